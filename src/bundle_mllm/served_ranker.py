"""Ask an exported ranker that an OpenAI-compatible server runs: by one token of a chat, with log-probabilities.

Knows nothing about retrieval, or how the answers are joined with those of a retriever.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import torch

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.modeling.configuration_bundle_mllm import BundleMLLMConfig
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor
from bundle_mllm.modeling.questions_bundle_mllm import describe
from bundle_mllm.modeling.scoring_bundle_mllm import LetterLogits, Unanswered

EXPORT_RECORD = "bundle_mllm_export.json"
"""What `bundle-mllm export` leaves beside a stock language model, and in the model folder that it was made of."""
MAX_LETTERS = 20
"""Most log-probabilities of a token that an OpenAI-compatible server sends, so most options of a prompt."""
PAUSE = 5.0
"""Seconds for which a server that failed is left alone; the retriever answers meanwhile."""
TOLERANCE = 0.5
"""Largest difference of a log-probability that is taken for half precision, and not for another model."""
API_KEY = "RANKER_API_KEY"
"""Environment variable with the key of the server, where it wants one."""
_FORM = "write openai:http://HOST/v1#MODEL, with MODEL as the server calls it"


@dataclass(frozen=True)
class RankerAddress:
    """Where a ranker is served: `openai:http://HOST/v1?timeout=10&retries=2#MODEL`.

    Attributes:
        url: Of the API, up to `/v1`.
        model: What the server calls the model.
        timeout: Seconds that an answer may take, all tries together.
        retries: How often a prompt is sent again after an error of the connection or of the server.
    """

    url: str
    model: str
    timeout: float = 10.0
    retries: int = 2

    @classmethod
    def parse(cls, text: str) -> RankerAddress:
        """Read an address.

        Raises:
            BundleMLLMError: If it is none.
        """
        scheme, _, url = text.partition(":")
        try:
            parts = urlsplit(url)
            if scheme != "openai" or parts.scheme not in ("http", "https") or not parts.hostname or not parts.fragment:
                raise ValueError("it is no address of a model")
            if parts.username is not None:
                raise ValueError(f"a key would be seen in logs: set {API_KEY} instead")
            options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
            timeout, retries = float(options.pop("timeout", cls.timeout)), int(options.pop("retries", cls.retries))
            if options or not 0 < timeout < math.inf or retries < 0:
                raise ValueError("it has other options than timeout=SECONDS and retries=NUMBER")
            base = parts._replace(query="", fragment="").geturl().rstrip("/")
            httpx2.URL(base)
            return cls(base, parts.fragment, timeout, retries)
        except (ValueError, httpx2.InvalidURL) as error:
            raise BundleMLLMError(f"The ranker {text!r} cannot be asked ({error}): {_FORM}.") from None


class _NoAnswerError(Exception):
    """The server did not answer a prompt; `is_outage` if it would not answer another one either."""

    def __init__(self, reason: str, *, is_outage: bool = True):
        super().__init__(reason)
        self.is_outage = is_outage


class ServedRanker:
    """A ranker that a server runs, as a `BundleCompleter` takes it.

    Before the first prompt, and after an outage, the server is asked the questions of the export record, whose answers
    are known, so that another model is noticed. While the server is down, questions are not sent.

    Args:
        address: Where it is served.
        config: Configuration of the ranker that was exported.
        record: What `bundle_mllm_export.json` holds.

    Raises:
        BundleMLLMError: If the record is of an older version, or of an export without some modalities.
    """

    training = False

    def __init__(self, address: RankerAddress, config: BundleMLLMConfig, record: Mapping[str, Any]):
        if missing := sorted({"items_hash", "weights", "probes"} - set(record)):
            raise BundleMLLMError(
                f"{EXPORT_RECORD} lacks {', '.join(missing)}, so nothing tells whether the server has the same "
                "ranker: export it again (bundle-mllm export)."
            )
        if unused := sorted(set(config.modalities) - set(record["modalities"])):
            raise BundleMLLMError(
                f"The ranker was exported without {', '.join(unused)}, so it is not the one that the model folder "
                "joins with a retriever: export it with all modalities."
            )
        self.address, self.config, self.record = address, config, record
        key = os.environ.get(API_KEY)
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=None,  # `_answer` limits all tries together
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
        )
        self._is_checked, self._problem, self._again_at = False, None, 0.0
        self._loop = asyncio.new_event_loop()  # of its own: a notebook has one, too, and callers are threads
        Thread(target=self._loop.run_forever, name="served ranker", daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def letter_logits(
        self, questions: Sequence[Any], processor: BundleMLLMProcessor
    ) -> list[LetterLogits | Unanswered]:
        """Ask questions, all at once; return for each the log-probabilities of its letters, or why there are none."""
        return asyncio.run_coroutine_threadsafe(self._answers(questions, processor), self._loop).result()

    def problem(self, processor: BundleMLLMProcessor) -> str | None:
        """Return why the server cannot be asked now, if it cannot."""
        return asyncio.run_coroutine_threadsafe(self._find_problem(processor), self._loop).result()

    # What a completer uses of a module

    def parameters(self) -> Iterator[torch.Tensor]:
        """Yield one weight of each parameter `[1]`, by which a combination knows its models; `[0]` if unknown."""
        return (torch.tensor([] if weight is None else [weight]) for weight in self.record["weights"])

    def catalog_rows(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return no rows: the items are tokens of the exported model."""
        return {"features": {}, "present": {}}

    def to(self, device: Any) -> ServedRanker:
        """Stay where it is."""
        return self

    # The server

    async def _answers(
        self, questions: Sequence[Any], processor: BundleMLLMProcessor
    ) -> list[LetterLogits | Unanswered]:
        if problem := await self._find_problem(processor):
            return [Unanswered(problem)] * len(questions)
        answers = await asyncio.gather(*(self._answer(each, processor) for each in questions), return_exceptions=True)
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        if unknown := [failure for failure in failures if not isinstance(failure, _NoAnswerError)]:
            raise unknown[0]
        if len(failures) == len(questions) and all(getattr(failure, "is_outage", False) for failure in failures):
            self._pause(str(failures[0]))
        return [Unanswered(str(each)) if isinstance(each, BaseException) else each for each in answers]

    async def _find_problem(self, processor: BundleMLLMProcessor) -> str | None:
        if processor.items_hash != self.record["items_hash"]:
            return (
                "The served ranker was exported with other items than the model folder has now, so its tokens would "
                "name other items: export it again, and restart its server."
            )
        if self._is_checked:
            return None
        if self._problem is None:
            return await self._check(processor)
        if time.monotonic() > self._again_at:  # who asks meanwhile does not wait
            self._pause(self._problem)
            self._check_task = asyncio.create_task(self._check(processor))
        return self._problem

    def _pause(self, problem: str) -> None:
        self._is_checked, self._problem, self._again_at = False, problem, time.monotonic() + PAUSE

    async def _check(self, processor: BundleMLLMProcessor) -> str | None:
        """Ask the questions whose answers are known."""
        probes = self.record["probes"]
        try:
            answers = await asyncio.gather(*(self._answer(probe["question"], processor) for probe in probes))
        except _NoAnswerError as failure:
            self._pause(str(failure))
            return self._problem
        pairs = [
            (logits.log_softmax(dim=-1), torch.tensor(probe["log_probabilities"]))
            for (logits, _), probe in zip(answers, probes, strict=True)
        ]
        difference = max(float((found - known).abs().max()) for found, known in pairs)
        if difference > TOLERANCE:
            self._pause(
                f"{self.address.url} answers otherwise than the ranker that was exported (a log-probability differs "
                f"by {difference:.2g}), so it serves another model: serve the last export as {self.address.model!r}."
            )
            return self._problem
        self._is_checked, self._problem = True, None
        return None

    async def _answer(self, question: Any, processor: BundleMLLMProcessor) -> LetterLogits:
        partial, candidates = processor.read_question(question)
        count = len(candidates or ())
        if processor.show_items and any(isinstance(entry, Mapping) for entry in (*partial, *(candidates or ()))):
            reason = "has an item that the catalog lacks, for which an exported model has no token: add it first."
            raise _NoAnswerError(f"{describe(question)} {reason}", is_outage=False)
        if count > MAX_LETTERS:
            reason = f"has {count} candidates, but servers send {MAX_LETTERS} log-probabilities: give fewer."
            raise _NoAnswerError(f"{describe(question)} {reason}", is_outage=False)
        body = request_body(self.address.model, processor.message(question))
        try:
            async with asyncio.timeout(self.address.timeout):
                answer = await self._post(body)
        except TimeoutError:
            raise self._failure(f"did not answer within {self.address.timeout:g} s") from None
        try:
            return read_letters(answer, [processor.completion(index) for index in range(count)])
        except ValueError as error:
            raise _NoAnswerError(f"{self.address.url}: {error}", is_outage=False) from None

    async def _post(self, body: Mapping[str, Any]) -> Any:
        """Send a request, again after an error that may pass; return what JSON the answer holds."""
        for tries_left in reversed(range(self.address.retries + 1)):
            try:
                response = await self._client.post(f"{self.address.url}/chat/completions", json=body)
                if response.status_code == 200:
                    return response.json()
                status = response.status_code
                failure = self._failure(f"answered with status {status}", is_outage=status not in (400, 422))
                if status != 429 and status < 500:
                    raise failure
            except httpx2.HTTPError as error:
                failure = self._failure(f"cannot be reached ({str(error) or type(error).__name__})")
            except ValueError:
                raise self._failure("answered with something else than JSON") from None
            if not tries_left:
                raise failure
            await asyncio.sleep(0.1 * 2 ** (self.address.retries - tries_left))

    def _failure(self, what: str, *, is_outage: bool = True) -> _NoAnswerError:
        return _NoAnswerError(
            f"The server of the ranker, {self.address.url}, {what}: check that it runs, serves "
            f"{self.address.model!r}, and takes the key in {API_KEY}, if any.",
            is_outage=is_outage,
        )


def request_body(model: str, message: str) -> dict[str, Any]:
    """Return the body of a request for the most likely tokens after a user message."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": message}],
        "max_tokens": 1,
        "temperature": 1.0,  # some servers divide by it before they take log-probabilities
        "logprobs": True,
        "top_logprobs": MAX_LETTERS,
    }


def read_letters(answer: Any, letters: Sequence[str]) -> LetterLogits:
    """Read the log-probabilities of letters out of a server's answer.

    Args:
        answer: The JSON of the answer.
        letters: The text of each letter's token.

    Raises:
        ValueError: If the answer is no such JSON, holds no log-probabilities, or lacks those of a letter.
    """
    try:
        given = answer["choices"][0].get("logprobs")
        top = given["content"][0]["top_logprobs"] if given else []
        logs = {str(each["token"]): float(each["logprob"]) for each in top}
        if not all(map(math.isfinite, logs.values())):
            raise ValueError
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise ValueError(
            "The answer is not in the form of OpenAI's chat completions: give the address of the API, up to /v1."
        ) from None
    if not logs:
        raise ValueError(
            "The server sends no log-probabilities, and letters alone cannot be joined with a retriever "
            "(`transformers serve` drops them): use one that does, such as vLLM or SGLang."
        )
    if not any(letter in logs for letter in letters):  # servers that leave out the space before a letter
        logs, letters = {text.strip(): log for text, log in logs.items()}, [letter.strip() for letter in letters]
    if missing := [letter.strip() for letter in letters if letter not in logs]:
        raise ValueError(
            f"The {len(logs)} log-probabilities that the server sent lack the answers {', '.join(missing)}: let it "
            f"send {MAX_LETTERS}, or ask with fewer candidates than {len(letters)}."
        )
    first = max(logs, key=logs.__getitem__)
    return torch.tensor([logs[letter] for letter in letters]), letters.index(first) if first in letters else None

"""The `bundle-completion` pipeline: from a question to its options, best first, with probabilities.

Knows nothing about prompt wording, token ids or features.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import Pipeline

from .processing_bundle_mllm import BundleMLLMProcessor
from .questions_bundle_mllm import check_keys, check_scores, field, shorten
from .ranking_bundle_mllm import GROUP_SIZE, MAX_OPTIONS, num_questions, rank_in_groups

PROMPTS_PER_PASS = 16
"""Prompts of a long list that run at once."""


class BundleCompletionPipeline(Pipeline):
    """Complete partial bundles: which of the candidates belongs to the items that are there?

    ```python
    >>> completer = pipeline("bundle-completion", model=folder)
    >>> completer({"partial": ["i1", "i2"], "candidates": ["i3", "i4"]})
    [{"item_id": "i4", "title": "linen shirt", "letter": "B", "score": 0.93}, {"item_id": "i3", ...}]
    ```

    A list of questions gives a list of such lists; `batch_size` of them run at once. An item that the catalog does not
    hold is given as `{"title": ..., "features": {modality: vector}}`. `top_k` keeps the best options only.

    A list of more candidates than the processor's `max_options` (up to 26) is ranked by questions of `group_size` (10)
    of them, see `rank_in_groups`, which says what that costs; the scores are then probabilities among all candidates,
    and past 26 of them the `letter`, which says the place in the list, is `None`. Without candidates, the whole
    catalog except the partial bundle is ranked.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    processor: BundleMLLMProcessor

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                "the pipeline has no processor, so it cannot write questions: give the model's folder, or pass "
                "processor=BundleMLLMProcessor.from_pretrained(folder) beside the model."
            )
        config = self.model.config
        if self.processor.num_items != config.num_items:
            raise ValueError(
                f"the processor has {self.processor.num_items} items and the model {config.num_items}, so ids would "
                "name the wrong rows: load both from one folder, or call set_catalog with the processor's items."
            )
        self.processor.check_model(config)
        if self.processor.modalities is None:
            self.processor.modalities = dict(config.modalities)

    def _sanitize_parameters(
        self, top_k: int | None = None, group_size: int | None = None, **unknown: Any
    ) -> tuple[dict, dict, dict]:
        unknown.pop("local_files_only", None)  # transformers leaves it among the parameters
        if unknown:
            raise ValueError(
                f"bundle-completion has no parameters {sorted(unknown)}; it has top_k, group_size and batch_size."
            )
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise ValueError(
                f"top_k is {shorten(top_k)}, which is no number of options to keep: give an integer of at least 1, or "
                "leave it out."
            )
        if group_size is not None:
            num_questions(MAX_OPTIONS, group_size)  # refuses a wrong size before anything runs
        return (
            {},
            {} if group_size is None else {"group_size": group_size},
            {} if top_k is None else {"top_k": top_k},
        )

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Complete one bundle or a list of them; no questions have no answers."""
        if isinstance(inputs, (list, tuple)) and not inputs:
            return []
        return super().__call__(inputs, *args, **kwargs)

    def preprocess(self, question: Any) -> dict[str, Any]:
        """Check the question, also by writing it once. It is tokenized with its batch, which numbers dict items."""
        check_keys(question)
        asked = self._asked(question)
        self.processor.read_question(asked)
        self.processor.render({**asked, "candidates": asked["candidates"][: self.processor.max_options]})
        return {"questions": asked}

    def _forward(self, inputs: dict[str, Any], group_size: int | None = None) -> dict[str, Any]:
        limit = self.processor.max_options
        group_size = group_size or min(GROUP_SIZE, limit)
        asked = inputs["questions"] if isinstance(inputs["questions"], list) else [inputs["questions"]]
        scores: dict[int, list[float]] = {}
        short = [i for i, question in enumerate(asked) if len(question["candidates"]) <= limit]
        if short:
            for i, logits in zip(short, self._option_logits([asked[i] for i in short]), strict=True):
                scores[i] = logits.softmax(dim=-1).tolist()
        long = [i for i in range(len(asked)) if i not in scores]

        def ask(groups: list[tuple[int, list[int]]]) -> list[list[float]]:
            prompts = [
                {**asked[long[i]], "candidates": [asked[long[i]]["candidates"][member] for member in members]}
                for i, members in groups
            ]
            starts = range(0, len(prompts), PROMPTS_PER_PASS)
            chunks = (self._option_logits(prompts[start : start + PROMPTS_PER_PASS]) for start in starts)
            return [row.tolist() for chunk in chunks for row in chunk]

        ranked = rank_in_groups(ask, [len(asked[i]["candidates"]) for i in long], group_size=group_size)
        for i, log_probabilities in zip(long, ranked, strict=True):
            scores[i] = torch.tensor(log_probabilities).exp().tolist()
        return {"scores": [scores[i] for i in range(len(asked))], "questions": asked}

    def _option_logits(self, questions: list[dict]) -> list[torch.Tensor]:
        """Return the logits [K] of each of a few questions of up to 26 candidates."""
        encoded = self.processor(questions, return_tensors="pt")
        num_options = [len(question["candidates"]) for question in questions]
        letters = torch.tensor(self.processor.answer_token_ids(max(num_options)))
        logits = self.model.option_logits(**self.ensure_tensor_on_device(**encoded), option_token_ids=letters)
        answers = [row[:count] for row, count in zip(logits.float().cpu(), num_options, strict=True)]
        for question, answer in zip(questions, answers, strict=True):
            check_scores(question, answer.tolist())
        return answers

    def postprocess(self, outputs: dict[str, Any], top_k: int | None = None) -> list[dict[str, Any]]:
        """Return the options of one question, best first."""
        question, scores = outputs["questions"], outputs["scores"]
        if isinstance(question, list):
            question, scores = question[0], scores[0]
        candidates = question["candidates"]
        long = len(candidates) > MAX_OPTIONS
        letters = [None] * len(candidates) if long else self.processor.answer_letters(len(candidates))
        best = sorted(range(len(candidates)), key=lambda i: -scores[i])[:top_k]
        return [{**self._describe(candidates[i]), "letter": letters[i], "score": scores[i]} for i in best]

    def _asked(self, question: Any) -> dict[str, Any]:
        """Return the question with its candidates: without any, they are the catalog except the partial bundle."""
        asked = {name: field(question, name) for name in ("question_id", "partial", "candidates")}
        for name, entries in asked.items():  # a set or an array will do; what is no list, the processor will refuse
            if name != "question_id" and isinstance(entries, Collection) and not isinstance(entries, (str, Mapping)):
                asked[name] = list(entries)
        if asked["candidates"] is None:
            partial = asked["partial"] if isinstance(asked["partial"], list) else ()
            ids = [entry.get("item_id") if isinstance(entry, Mapping) else entry for entry in partial]
            shown = {item_id for item_id in ids if isinstance(item_id, str)}
            asked["candidates"] = [item_id for item_id in self.processor.item_ids if item_id not in shown]
        return asked

    def _describe(self, entry: Any) -> dict[str, str | None]:
        if isinstance(entry, Mapping):
            return {"item_id": entry.get("item_id"), "title": entry.get("title", "")}
        return {"item_id": entry, "title": self.processor.titles[self.processor.row(entry)]}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save the model and, unlike the base class, the processor with its items."""
        self.model.config.items_hash = self.processor.items_hash
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


__all__ = ["BundleCompletionPipeline"]

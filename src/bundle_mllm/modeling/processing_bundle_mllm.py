"""Processor of the ranker: from a bundle question to the prompt that the backbone reads, and to its answer letters.

Knows nothing about weights, devices, training or where features come from.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from transformers.tokenization_utils_base import BatchEncoding, PreTrainedTokenizerBase

from .chat_bundle_mllm import around_message
from .item_processing_bundle_mllm import PROCESSOR, BundleItemProcessor
from .questions_bundle_mllm import describe
from .ranking_bundle_mllm import LETTERS
from .tokenization_bundle_mllm import ITEM_SEPARATOR, BundleMLLMTokenizerFast
from .types_bundle_mllm import check_type

_NOUNS = {"item_noun", "bundle_noun"}
_TEMPLATE_CHARACTERS = 10_000
_TEMPLATE_REPETITIONS = 4
_LONE_CAPITAL = re.compile(r"(?<![^\W\d_])[A-Z](?![^\W\d_])")
_TEMPLATES = {
    "instruction": _NOUNS,
    "prompt_template": _NOUNS | {"instruction", "partial", "options"},
    "partial_item_template": {"number", "item"},
    "option_template": {"letter", "item"},
    "item_template": {"title", "separator", "item"},
}


class BundleMLLMProcessor(BundleItemProcessor):
    """Write bundle questions as prompts, over the items of one catalog.

    Questions and their items are those of `BundleItemProcessor`; a prompt has 2 to 26 candidates.

    Args:
        tokenizer: A `BundleMLLMTokenizerFast`.
        item_ids: Ids of the items, in the order of the model's catalog rows.
        titles: Their titles; an item without one is shown by separator and item token alone.
        modalities: Width of the features of each modality, to check the features of dict items.
        max_length: Longest prompt in tokens, the context of the backbone; `None` for no check.
        max_options: Longest list of candidates that is best asked in one prompt, up to 26: longer ones are ranked in
            groups. Set it to what the model was trained on, where that is less; it does not know letters beyond.
        max_title_tokens: Longest title in tokens; longer ones are cut where a token ends. `None` for no limit.
        show_items: Whether item tokens are shown beside the titles (stage two) or not (stage one).
        conversational: Whether to ask in the tokenizer's chat template, as a user; by default if it has one.
        item_noun: What the instruction calls an item.
        bundle_noun: What the instruction calls a bundle.
        instruction: Template of the instruction, of `item_noun` and `bundle_noun`.
        prompt_template: Template of the prompt, of the former and `instruction`, `partial`, `options`.
        partial_item_template: Template of an item of the partial bundle, of `number` and `item`.
        option_template: Template of an option, of `letter` and `item`.
        item_separator_text: What stands between two items.
        item_template: Template of an item, of `title`, `separator` and `item`.
        untitled_text: Stands for an item without a title where item tokens are not shown.
        answer_cue: Ends the prompt, in a chat the beginning of the answer.
        chat_template: The template of conversations, which becomes the tokenizer's; by default the tokenizer's own.

    Raises:
        ValueError: If ids and titles differ in number, an id is repeated, a value is of another type or out of range,
            or a template has an unknown field.
    """

    def __init__(
        self,
        tokenizer,
        item_ids=(),
        titles=(),
        modalities: dict[str, int] | None = None,
        max_length: int | None = None,
        max_options: int = 26,
        max_title_tokens: int | None = None,
        show_items: bool = True,
        conversational: bool | None = None,
        item_noun: str = "item",
        bundle_noun: str = "bundle",
        instruction: str = "Which {item_noun} completes the {bundle_noun}?",
        prompt_template: str = "{instruction}\nBundle:\n{partial}\nOptions:\n{options}\n",
        partial_item_template: str = "{number}. {item}",
        option_template: str = "{letter}. {item}",
        item_separator_text: str = "\n",
        item_template: str = "{title}{separator}{item}",
        untitled_text: str = "untitled",
        answer_cue: str = "Answer:",
        chat_template: str | dict[str, str] | None = None,
    ):
        if not hasattr(tokenizer, "item_token") or "item_token_offset" not in tokenizer.init_kwargs:
            raise ValueError(
                f"The tokenizer is a {type(tokenizer).__name__} without settings for items: load the folder's own, "
                "with tokenizer_config.json, or build the processor by from_backbone_tokenizer."
            )
        check_type("chat_template", chat_template, str | dict[str, str] | None, PROCESSOR)
        self.tokenizer = tokenizer
        chat_template = chat_template or tokenizer.chat_template
        super().__init__(item_ids, titles, modalities, tokenizer=tokenizer, chat_template=chat_template)
        self.max_length, self.max_options, self.max_title_tokens = max_length, max_options, max_title_tokens
        self.show_items, self.conversational = show_items, conversational
        self.item_noun, self.bundle_noun = item_noun, bundle_noun
        self.instruction, self.prompt_template = instruction, prompt_template
        self.partial_item_template, self.option_template = partial_item_template, option_template
        self.item_separator_text, self.item_template = item_separator_text, item_template
        self.untitled_text, self.answer_cue = untitled_text, answer_cue
        self._check_fields()
        self._check_wording()
        if conversational and tokenizer.chat_template is None:
            raise ValueError(
                "Questions were asked in a chat template, and the tokenizer has none: restore chat_template.jinja, or "
                "set conversational=False."
            )
        self._letters: dict[str, tuple[str, list[int]]] = {}
        self._chat: tuple[Any, str, str] | None = None

    def set_items(self, item_ids: Sequence[str], titles: Sequence[str]) -> None:
        """Replace all items; see the base class."""
        super().set_items(item_ids, titles)
        self._escaped: dict[int, str] = {}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields; `conversational` as it is now, so that the loss of the chat template is noticed."""
        return {**super().to_dict(), "conversational": self.is_conversational}

    def _check_fields(self) -> None:
        for name, parameter in inspect.signature(type(self)).parameters.items():
            if parameter.annotation is not parameter.empty:
                check_type(name, getattr(self, name), parameter.annotation, PROCESSOR)
        for name in ("max_length", "max_title_tokens"):
            if (most := getattr(self, name)) is not None and most < 1:
                raise ValueError(f"{name} is {most}, so nothing could be written: give a positive number of tokens.")

    def _check_wording(self) -> None:
        if not 3 <= self.max_options <= len(LETTERS):
            raise ValueError(f"max_options is {self.max_options}, but options are lettered A to Z: give 3 to 26.")
        for name, allowed in _TEMPLATES.items():
            template = getattr(self, name)
            if len(template) > _TEMPLATE_CHARACTERS:
                raise ValueError(f"{name} has {len(template):,} characters: give {_TEMPLATE_CHARACTERS:,} at most.")
            parsed = [(field, spec) for _, field, spec, _ in Formatter().parse(template) if field is not None]
            if formatted := sorted(field for field, spec in parsed if spec):
                raise ValueError(
                    f"{name} gives the fields {formatted} a width or format, which could make a prompt of any length: "
                    "write the braces with the name alone."
                )
            fields = [field for field, _ in parsed]
            if repeated := sorted({field for field in fields if fields.count(field) > _TEMPLATE_REPETITIONS}):
                raise ValueError(
                    f"{name} has the fields {repeated} more than {_TEMPLATE_REPETITIONS} times, which could make a "
                    "prompt of any length: write them less often."
                )
            if unknown := sorted({*fields} - allowed):
                raise ValueError(
                    f"{name} has the unknown fields {unknown}, so it cannot be filled: use only {sorted(allowed)}, "
                    "and double the braces that are meant as text."
                )

    @classmethod
    def from_backbone_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        item_ids: Sequence[str] = (),
        titles: Sequence[str] = (),
        item_token_offset: int = 1 << 20,
        **fields: Any,
    ) -> "BundleMLLMProcessor":
        """Build the processor from a backbone's tokenizer, extended by the virtual item vocabulary.

        Args:
            tokenizer: Any fast tokenizer, or one that is extended already.
            item_ids: Ids of the items, in the order of the catalog rows.
            titles: Their titles.
            item_token_offset: Id of item 0, as in the model's configuration.
            **fields: Other fields of the processor: wording, `max_length`, `modalities`.
        """
        if not isinstance(tokenizer, BundleMLLMTokenizerFast):
            tokenizer = BundleMLLMTokenizerFast.from_tokenizer(tokenizer, item_token_offset)
        return cls(tokenizer, item_ids=item_ids, titles=titles, **fields)

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        """Template of conversations: the tokenizer's, so that there are never two."""
        return self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, template: str | dict[str, str] | None) -> None:
        self.tokenizer.chat_template = template

    @property
    def separator_token_id(self) -> int:
        """Id of the soft separator."""
        return self.tokenizer.separator_token_id

    @property
    def is_conversational(self) -> bool:
        """Whether questions are asked in the tokenizer's chat template."""
        return self.tokenizer.chat_template is not None if self.conversational is None else self.conversational

    def __call__(
        self,
        questions: Any = None,
        show_items: bool | None = None,
        return_tensors: str | None = None,
        padding: bool | str | None = None,
        text: str | list[str] | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Tokenize questions.

        Args:
            questions: One question or a list of them.
            show_items: Whether item tokens are shown; by default the field `show_items`.
            return_tensors: "pt" for padded tensors [batch, length]; otherwise lists, one per question.
            padding: Whether to pad, on the side of the tokenizer; by default, if tensors are asked for.
            text: Ready prompts instead of questions (what TRL passes); then `kwargs` go to the tokenizer.
            **kwargs: For the tokenizer, with `text` only.

        Returns:
            `input_ids` and `attention_mask`, always with a batch dimension; and `extra_items`, for the model, where
            dict items are shown (numbered through the batch).

        Raises:
            ValueError: If an item is unknown, malformed or there twice, a feature vector cannot be read, the number
                of options is not 2 to 26, or the prompt is longer than `max_length`.
        """
        if text is not None:
            texts = [text] if isinstance(text, str) else text
            return self.tokenizer(texts, return_tensors=return_tensors, padding=bool(padding), **kwargs)
        if kwargs:
            raise ValueError(f"{sorted(kwargs)} would be ignored beside questions: set the processor's fields.")
        extra: list[Mapping] = []
        batch = list(questions) if isinstance(questions, (list, tuple)) else [questions]
        if not batch:
            raise ValueError("There is no question to write: give one, or a list of some.")
        prompts = [self.render(question, show_items, extra) for question in batch]
        input_ids = self.tokenizer(prompts)["input_ids"]
        for question, ids in zip(batch, input_ids, strict=True):
            if self.max_length is not None and len(ids) > self.max_length:
                raise ValueError(
                    f"{describe(question)} has {len(ids)} tokens, and the backbone reads {self.max_length}, so a part "
                    "would be lost: give fewer items or shorter titles."
                )
        # Padding and truncation are not set on the backend: they are state of the tokenizer, which threads share.
        encoded = BatchEncoding({"input_ids": input_ids, "attention_mask": [[1] * len(ids) for ids in input_ids]})
        if return_tensors is not None if padding is None else padding:
            encoded = self.tokenizer.pad(encoded, padding=padding or True, return_tensors=return_tensors)
        if extra:
            encoded["extra_items"] = self.extra_items(extra)
        return encoded

    def render(self, question: Any, show_items: bool | None = None, extra: list[Mapping] | None = None) -> str:
        """Write one question as the text of its prompt, and add its dict items to `extra`; errors are `__call__`'s.

        Tokenized with special tokens it begins with exactly one beginning-of-sequence token, if the tokenizer has that
        habit.
        """
        body = self._body(*self._written(question, show_items, [] if extra is None else extra))
        return self._prompt(body)

    def message(self, question: Any) -> str:
        """Write one question as the user message that an exported model's chat template turns into its prompt.

        Errors are those of `__call__`. Dict items have no token in an exported model.
        """
        body = self._body(*self._written(question, None, []))
        return body.strip() if self.is_conversational else body + self.answer_cue

    def _written(self, question: Any, show_items: bool | None, extra: list[Mapping]) -> tuple[str, str]:
        """Return the partial bundle and the options of a question as prompts write them."""
        partial, candidates = self.read_question(question)
        if candidates is None or not 2 <= len(candidates) <= len(LETTERS):
            raise ValueError(
                f"The question has {len(candidates or ())} candidates, but options are lettered A to Z: give 2 to 26 "
                "of them, or use the pipeline, which ranks longer lists and whole catalogs."
            )
        numbered = [
            self.partial_item_template.format(
                number=number, item=_without_letters(self.item_text(entry, show_items, extra))
            )
            for number, entry in enumerate(partial, start=1)
        ]
        options = [
            self.option_template.format(letter=letter, item=_without_letters(self.item_text(entry, show_items, extra)))
            for letter, entry in zip(LETTERS, candidates, strict=False)
        ]
        return self.item_separator_text.join(numbered), self.item_separator_text.join(options)

    def _body(self, partial: str, options: str) -> str:
        nouns = {"item_noun": self.item_noun, "bundle_noun": self.bundle_noun}
        instruction = self.instruction.format(**nouns)
        return self.prompt_template.format(instruction=instruction, partial=partial, options=options, **nouns)

    def _prompt(self, body: str) -> str:
        if not self.is_conversational:
            return body + self.answer_cue
        if self._chat is None or self._chat[0] != self.tokenizer.chat_template:
            self._chat = (self.tokenizer.chat_template, *around_message(self.tokenizer))
        _, before, after = self._chat
        bos = self.tokenizer.bos_token
        if bos and before.startswith(bos) and self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]:
            before = before[len(bos) :]  # the tokenizer will add it
        return before + body.strip() + after + self.answer_cue

    def item_text(self, entry: Any, show_items: bool | None = None, extra: list[Mapping] | None = None) -> str:
        """Return an item as prompts write it, for example `shirt<|item_separator|><|item_42|>`.

        A dict item that is shown is added to `extra`, those of the same batch that precede it.
        """
        show_items = self.show_items if show_items is None else show_items
        if isinstance(entry, Mapping):
            extra = [] if extra is None else extra
            title, row = self._shown_title(entry.get("title") or ""), self.num_items + len(extra)
            extra += [entry] if show_items else []
        else:
            row = self.row(entry)
            if row not in self._escaped:
                self._escaped[row] = self._shown_title(self.titles[row])
            title = self._escaped[row]
        if not show_items:
            return title or self.untitled_text
        item = self.tokenizer.item_token(row)
        if not title:
            return ITEM_SEPARATOR + item
        return self.item_template.format(title=title, separator=ITEM_SEPARATOR, item=item)

    def item_tokens(
        self, entries: Sequence[Any], show_items: bool | None = None
    ) -> tuple[list[list[int]], dict[str, Any] | None]:
        """Tokenize items, each alone, as prompts write them; what a ranker without letters reads.

        Returns:
            The tokens of each item, and `extra_items` for the model, where dict items are shown.

        Raises:
            ValueError: If an item is unknown or malformed, or longer than `max_length`.
        """
        extra: list[Mapping] = []
        texts = [self.item_text(entry, show_items, extra) for entry in entries]
        tokens: list[list[int]] = self.tokenizer(texts)["input_ids"] if texts else []
        longest = max(map(len, tokens), default=0)
        if self.max_length is not None and longest > self.max_length:
            raise ValueError(
                f"The title of an item has {longest} tokens, and the backbone reads {self.max_length}, so a part "
                "would be lost: set max_title_tokens."
            )
        return tokens, self.extra_items(extra) if extra else None

    def title_tokens(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens of an item that are words of its title: neither separators nor items."""
        first_item, separator = self.tokenizer.item_token_offset, self.separator_token_id
        return [token for token in tokens if token < first_item and token != separator]

    def _shown_title(self, title: str) -> str:
        """Return a title as ordinary words, cut to `max_title_tokens`."""
        title, most = self.tokenizer.escape(title), self.max_title_tokens
        if most is None or len(title) <= most:  # a token has a character at least
            return title
        spans = self.tokenizer(title, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return title if len(spans) <= most else title[: spans[most - 1][1]].rstrip()

    def answer_token_ids(self, num_candidates: int) -> list[int]:
        """Return the tokens of the answer letters, as the tokenizer writes them after a prompt.

        Raises:
            ValueError: If some letter is not one token of its own after a prompt.
        """
        ids = self._letters_in_context()[1]
        if len(ids) < num_candidates:
            raise ValueError(
                f"After a prompt only the first {len(ids)} answer letters are single, distinct tokens that end the "
                f"text, so {num_candidates} options could not be told apart: set another answer_cue, or "
                "add_eos_token=False if the tokenizer appends tokens."
            )
        return ids[:num_candidates]

    def completion(self, index: int) -> str:
        """Return the text that answers with option `index`: its letter, and the space that precedes it, if any.

        `tokenize(prompt + completion(index)) == tokenize(prompt) + [answer_token_ids(k)[index]]`.
        """
        self.answer_token_ids(index + 1)
        return self._letters_in_context()[0] + LETTERS[index]

    def _letters_in_context(self) -> tuple[str, list[int]]:
        prompt = self._prompt(self._body(self.partial_item_template.format(number=1, item="x"), "x"))
        if prompt not in self._letters:
            tokens = self.tokenizer([prompt])["input_ids"][0]
            found = []
            for prefix in ("", " ") if prompt[-1:].isspace() else (" ", ""):
                ids: list[int] = []
                for answered in self.tokenizer([prompt + prefix + letter for letter in LETTERS])["input_ids"]:
                    if answered[:-1] != tokens or answered[-1] in ids:
                        break
                    ids.append(answered[-1])
                found.append((prefix, ids))
            self._letters[prompt] = max(found, key=lambda choice: len(choice[1]))
        return self._letters[prompt]

    def apply_chat_template(self, conversation: list, **kwargs: Any) -> Any:
        """Apply the tokenizer's chat template to one conversation or a batch, as transformers' processors do.

        Args:
            conversation: Messages, or a list of such lists. A message is a mapping or an object, of `role` and
                `content`, which may be missing, text, or parts of text.
            **kwargs: For the tokenizer. With `tokenize=True` the result has a batch dimension (what TRL expects).
        """
        is_batch = bool(conversation) and isinstance(conversation[0], (list, tuple))
        batch = [[_plain(message) for message in each] for each in (conversation if is_batch else [conversation])]
        tokenize = kwargs.pop("tokenize", False)
        messages = batch if is_batch or tokenize else batch[0]
        return self.tokenizer.apply_chat_template(messages, tokenize=tokenize, **kwargs)


def _without_letters(item: str) -> str:
    """Return an item of a prompt without the name of an option.

    A capital letter that stands alone is what an answer looks like, so it is shown as a small one: "Size M" as
    "Size m". A title of capitals ("B B B B") won answers otherwise (`benchmarks/prompt_attacks.py`).
    """
    return _LONE_CAPITAL.sub(lambda letter: letter[0].lower(), item)


def _plain(message: Any) -> dict[str, Any]:
    """Return a message as a dictionary whose content is text."""
    plain = _fields(message)
    content = plain.get("content")
    if isinstance(content, (list, tuple)):
        parts = [_fields(part) for part in content]
        if others := sorted({str(part.get("type")) for part in parts if not isinstance(part.get("text"), str)}):
            raise ValueError(f"A message has parts of type {others}, which would be lost: give parts of text only.")
        content = "".join(part["text"] for part in parts)
    return {**plain, "content": content or ""}


def _fields(part: Any) -> dict[str, Any]:
    return dict(part) if isinstance(part, Mapping) else dict(vars(part))

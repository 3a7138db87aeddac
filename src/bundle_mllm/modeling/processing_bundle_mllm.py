"""Processor of Bundle-MLLM: from a bundle question to the prompt the backbone reads, and to its answer letters.

Knows nothing about weights, devices, training or where features come from.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring, encode_basestring_ascii
from string import Formatter
from typing import Any

import torch
from transformers import ProcessorMixin
from transformers.tokenization_utils_base import BatchEncoding, PreTrainedTokenizerBase
from transformers.utils import hub

from .questions_bundle_mllm import describe, read_features, read_question, unknown_item
from .tokenization_bundle_mllm import ITEM_SEPARATOR, OPTION_SEPARATOR, BundleMLLMTokenizerFast

ITEMS_FILE = "items.jsonl"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NOUNS = {"item_noun", "bundle_noun"}
_TEMPLATES = {
    "instruction": _NOUNS,
    "prompt_template": _NOUNS | {"instruction", "partial", "options"},
    "partial_item_template": {"number", "item"},
    "option_template": {"letter", "item"},
    "item_template": {"title", "separator", "item"},
}
_HUB_KWARGS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")


class BundleMLLMProcessor(ProcessorMixin):
    """Write bundle questions as prompts, over the items of one catalog.

    A question is a mapping with `partial` and `candidates`, or an object with these attributes. Their entries are
    item ids, or, for items that the catalog does not hold, `{"title": str, "features": {modality: vector}}`; one of
    the two may be left out, and an `"item_id"` may be added. No item may be there twice. The other keys of question
    files are allowed and ignored.

    Args:
        tokenizer: A `BundleMLLMTokenizerFast`.
        item_ids: Ids of the items, in the order of the model's catalog rows.
        titles: Their titles; an item without one is shown by separator and item token alone.
        modalities: Width of the features of each modality, to check the features of dict items.
        max_length: Longest prompt in tokens, the context of the backbone; `None` for no check.
        max_options: Longest list of candidates that is best asked in one prompt, up to 26: longer ones are ranked in
            groups. Set it to what the model was trained on, where that is less; it does not know letters beyond.
        show_items: Whether item tokens are shown beside the titles (stage two) or not (stage one).
        marks_options: Whether the soft separator of options has a token of its own: the model embeds both alike, and
            its matching finds the options by it.
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
        chat_template: Set by transformers; the tokenizer's.

    Raises:
        ValueError: Ids and titles of different number, a repeated id, or a template with an unknown field.
    """

    def __init__(
        self,
        tokenizer,
        item_ids=(),
        titles=(),
        modalities=None,
        max_length=None,
        max_options=26,
        show_items=True,
        marks_options=False,
        conversational=None,
        item_noun="item",
        bundle_noun="bundle",
        instruction="Which {item_noun} completes the {bundle_noun}?",
        prompt_template="{instruction}\nBundle:\n{partial}\nOptions:\n{options}\n",
        partial_item_template="{number}. {item}",
        option_template="{letter}. {item}",
        item_separator_text="\n",
        item_template="{title}{separator}{item}",
        untitled_text="untitled",
        answer_cue="Answer:",
        chat_template=None,
    ):
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template)
        self.item_ids, self.titles = tuple(item_ids), tuple(title or "" for title in titles)
        self._rows = {item_id: row for row, item_id in enumerate(self.item_ids)}
        self.modalities = None if modalities is None else {name: modalities[name] for name in sorted(modalities)}
        self.max_length = max_length
        self.max_options = max_options
        self.show_items = show_items
        self.marks_options = marks_options
        self.conversational = conversational
        self.item_noun = item_noun
        self.bundle_noun = bundle_noun
        self.instruction = instruction
        self.prompt_template = prompt_template
        self.partial_item_template = partial_item_template
        self.option_template = option_template
        self.item_separator_text = item_separator_text
        self.item_template = item_template
        self.untitled_text = untitled_text
        self.answer_cue = answer_cue
        self._check()
        self._items_hash: tuple[tuple, tuple, str] | None = None
        self._escaped: dict[int, str] = {}
        self._letters: dict[tuple, tuple[str, list[int]]] = {}

    def _check(self) -> None:
        if len(self.item_ids) != len(self.titles):
            raise ValueError(
                f"there are {len(self.item_ids)} item ids but {len(self.titles)} titles, so titles would be assigned "
                'to the wrong items: give one title per id, "" where there is none.'
            )
        if len(self._rows) != len(self.item_ids):
            seen: set[str] = set()
            repeated = next(item_id for item_id in self.item_ids if item_id in seen or seen.add(item_id))
            raise ValueError(f"the item id {repeated!r} occurs twice, so it names no single row: make the ids unique.")
        if not 3 <= self.max_options <= len(LETTERS):
            raise ValueError(f"max_options is {self.max_options}, but options are lettered A to Z: give 3 to 26.")
        for name, allowed in _TEMPLATES.items():
            fields = {field for _, field, _, _ in Formatter().parse(getattr(self, name)) if field is not None}
            if unknown := sorted(fields - allowed):
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
        marks_options: bool = False,
        **fields: Any,
    ) -> "BundleMLLMProcessor":
        """Build the processor from a backbone's tokenizer, extended by the virtual item vocabulary.

        Args:
            tokenizer: Any fast tokenizer, or one that is extended already.
            item_ids: Ids of the items, in the order of the catalog rows.
            titles: Their titles.
            item_token_offset: Id of item 0, as in the model's configuration.
            marks_options: Whether the soft separator of options has a token of its own, which a matching needs.
            **fields: Other fields of the processor: wording, `max_length`, `modalities`.

        Returns:
            The processor.
        """
        if not isinstance(tokenizer, BundleMLLMTokenizerFast):
            tokenizer = BundleMLLMTokenizerFast.from_tokenizer(tokenizer, item_token_offset, marks_options)
        return cls(tokenizer, item_ids=item_ids, titles=titles, marks_options=marks_options, **fields)

    @property
    def num_items(self) -> int:
        """Number of items of the catalog."""
        return len(self.item_ids)

    @property
    def items_hash(self) -> str:
        """SHA-256 over ids and titles in row order: what the model's configuration remembers of its catalog."""
        hashed = self._items_hash
        if hashed is None or hashed[0] is not self.item_ids or hashed[1] is not self.titles:
            digest = hashlib.sha256()
            for item_id, title in zip(self.item_ids, self.titles, strict=True):
                pair = f"[{encode_basestring_ascii(item_id)}, {encode_basestring_ascii(title)}]\n"
                digest.update(pair.encode())
            hashed = self._items_hash = self.item_ids, self.titles, digest.hexdigest()
        return hashed[2]

    def check_model(self, config: Any) -> None:
        """Refuse a model that was saved with other items or prompts than those of this processor.

        Args:
            config: The model's `BundleMLLMConfig`.

        Raises:
            ValueError: Its rows are other items, if it remembers them; or its matching, if it has one, looks for
                options and answers where these prompts have none.
        """
        if config.items_hash is not None and config.items_hash != self.items_hash:
            raise ValueError(
                f"{ITEMS_FILE} does not hold the items the model was saved with (SHA-256 {self.items_hash[:8]}..., "
                f"not {config.items_hash[:8]}...), so ids would name the wrong rows: restore the file; or, if only "
                "titles or ids were edited and the rows are the same, load model and processor each by "
                "from_pretrained and save both by bundle_mllm.save_model."
            )
        if config.matching_hidden_size is None:
            return
        fields = self.matching_fields()
        if changed := sorted(name for name, value in fields.items() if getattr(config, name) != value):
            raise ValueError(
                f"the prompts of this processor differ from those of the model's matching ({', '.join(changed)}), so "
                "scores would be added in the wrong place: restore the wording it was trained with, or set these "
                "fields of the model's configuration to processor.matching_fields()."
            )

    @property
    def separator_token_id(self) -> int:
        """Id of the soft separator."""
        return self.tokenizer.separator_token_id

    @property
    def is_conversational(self) -> bool:
        """Whether questions are asked in the tokenizer's chat template."""
        return self.tokenizer.chat_template is not None if self.conversational is None else self.conversational

    def row(self, item_id: str) -> int:
        """Return the catalog row of an item.

        Raises:
            ValueError: The catalog does not hold it.
        """
        if item_id not in self._rows:
            raise ValueError(unknown_item(item_id, self.num_items))
        return self._rows[item_id]

    def read_question(self, question: Any) -> tuple[Sequence, Sequence]:
        """Return partial bundle and candidates of a question, of any number, once each entry can be asked about.

        Raises:
            ValueError: An entry is unknown or malformed, or one is there twice.
        """
        return read_question(question, self._rows)

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
            ValueError: An item is unknown, malformed or there twice, a feature vector cannot be read, the number of
                options is not 2 to 26, or the prompt is longer than `max_length`.
        """
        if text is not None:
            texts = [text] if isinstance(text, str) else text
            return self.tokenizer(texts, return_tensors=return_tensors, padding=bool(padding), **kwargs)
        if kwargs:
            raise ValueError(f"{sorted(kwargs)} would be ignored beside questions: set the processor's fields.")
        extra: list[Mapping] = []
        batch = list(questions) if isinstance(questions, (list, tuple)) else [questions]
        prompts = [self._render(question, show_items, extra) for question in batch]
        input_ids = self.tokenizer(prompts)["input_ids"]
        for question, ids in zip(batch, input_ids, strict=True):
            if self.max_length is not None and len(ids) > self.max_length:
                raise ValueError(
                    f"{describe(question)} has {len(ids)} tokens, the backbone reads {self.max_length}, so a part "
                    "would be lost: ask with fewer items or shorter titles."
                )
        # The backend is never told to pad or truncate: that is state of the tokenizer, which other threads share.
        encoded = BatchEncoding({"input_ids": input_ids, "attention_mask": [[1] * len(ids) for ids in input_ids]})
        if return_tensors is not None if padding is None else padding:
            encoded = self.tokenizer.pad(encoded, padding=padding or True, return_tensors=return_tensors)
        if extra:
            encoded["extra_items"] = self._extra_items(extra)
        return encoded

    def render(self, question: Any, show_items: bool | None = None) -> str:
        """Write one question as the text of its prompt.

        Tokenized with special tokens it begins with exactly one beginning-of-sequence token, if the tokenizer has that
        habit.

        Raises:
            ValueError: As in `__call__`.
        """
        return self._render(question, show_items, [])

    def _render(self, question: Any, show_items: bool | None, extra: list[Mapping]) -> str:
        partial, candidates = self.read_question(question)
        if not 2 <= len(candidates) <= len(LETTERS):
            raise ValueError(
                f"the question has {len(candidates)} candidates, but options are lettered A to Z: give 2 to 26, or "
                "ask the pipeline, which ranks longer lists."
            )
        show_items = self.show_items if show_items is None else show_items
        lines = [
            self.partial_item_template.format(number=number, item=self._item(entry, show_items, extra))
            for number, entry in enumerate(partial, start=1)
        ]
        options = [
            self.option_template.format(
                letter=letter, item=self._item(entry, show_items, extra, self._option_separator)
            )
            for letter, entry in zip(LETTERS, candidates, strict=False)
        ]
        return self._layout(self.item_separator_text.join(lines), self.item_separator_text.join(options))

    def _layout(self, partial: str, options: str) -> str:
        nouns = {"item_noun": self.item_noun, "bundle_noun": self.bundle_noun}
        body = self.prompt_template.format(
            instruction=self.instruction.format(**nouns), partial=partial, options=options, **nouns
        )
        if not self.is_conversational:
            return body + self.answer_cue
        message = {"role": "user", "content": body.strip()}
        text = self.tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        bos = self.tokenizer.bos_token
        if bos and text.startswith(bos) and self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]:
            text = text[len(bos) :]  # the tokenizer will add it
        return text + self.answer_cue

    def item_text(self, item_id: str, show_items: bool | None = None) -> str:
        """Return one item of the catalog as prompts write it, for example `linen shirt<|item_separator|><|item_42|>`.

        Raises:
            ValueError: The catalog does not hold it.
        """
        return self._item(item_id, self.show_items if show_items is None else show_items, [])

    @property
    def _option_separator(self) -> str:
        return OPTION_SEPARATOR if self.marks_options else ITEM_SEPARATOR

    def _item(self, entry: Any, show_items: bool, extra: list[Mapping], separator: str = ITEM_SEPARATOR) -> str:
        if isinstance(entry, Mapping):
            title, row = self.tokenizer.escape(entry.get("title") or ""), self.num_items + len(extra)
            if show_items:
                extra.append(entry)
        else:
            row = self.row(entry)
            title = self._escaped.get(row)
            if title is None:
                title = self._escaped[row] = self.tokenizer.escape(self.titles[row])
        if not show_items:
            return title or self.untitled_text
        item = self.tokenizer.item_token(row)
        if not title:
            return separator + item
        return self.item_template.format(title=title, separator=separator, item=item)

    def _extra_items(self, extra: list[Mapping]) -> dict[str, Any]:
        modalities = self.modalities or {}
        features = {name: torch.zeros(len(extra), width) for name, width in modalities.items()}
        present = torch.zeros(len(extra), len(modalities), dtype=torch.bool)
        for row, entry in enumerate(extra):
            for name, vector in read_features(entry, modalities).items():
                features[name][row] = vector
                present[row, list(modalities).index(name)] = True
        return {"features": features, "present": present}

    def answer_letters(self, num_candidates: int) -> list[str]:
        """Return the letters of the options, in order."""
        return list(LETTERS[:num_candidates])

    def answer_token_ids(self, num_candidates: int) -> list[int]:
        """Return the tokens of the answer letters, as the tokenizer writes them after a prompt.

        Raises:
            ValueError: Some letter is not one token of its own after a prompt.
        """
        ids = self._letters_in_context()[1]
        if len(ids) < num_candidates:
            raise ValueError(
                f"after a prompt this tokenizer writes only the first {len(ids)} answer letters as single, distinct "
                f"tokens that end the text, but {num_candidates} are needed, so options could not be told apart: set "
                "another answer_cue, or add_eos_token=False if the tokenizer appends tokens."
            )
        return ids[:num_candidates]

    def matching_fields(self) -> dict[str, Any]:
        """Return the fields of `BundleMLLMConfig` by which a matching finds options and answers in these prompts.

        Raises:
            ValueError: The tokenizer does not mark options, or its answer letters cannot be told apart.
        """
        if not self.marks_options or self.tokenizer.option_separator_token_id is None:
            raise ValueError(
                "this processor writes options with the separator of all items, so a matching could not find them: "
                "make it by from_backbone_tokenizer(..., marks_options=True)."
            )
        item = self.item_template.format(
            title="x", separator=self._option_separator, item=self.tokenizer.item_token(0)
        )
        prompt = self._layout(
            self.partial_item_template.format(number=1, item="x"), self.option_template.format(letter="A", item=item)
        )
        ids = self.tokenizer([prompt])["input_ids"][0]
        return {
            "option_separator_token_id": self.tokenizer.option_separator_token_id,
            "answer_token_ids": self.answer_token_ids(len(LETTERS)),
            "answer_distance": len(ids) - 1 - ids.index(self.tokenizer.item_token_offset),
        }

    def completion(self, index: int) -> str:
        """Return the text that answers with option `index`: its letter, and the space that precedes it, if any.

        `tokenize(prompt + completion(index)) == tokenize(prompt) + [answer_token_ids(k)[index]]`.
        """
        self.answer_token_ids(index + 1)
        return self._letters_in_context()[0] + LETTERS[index]

    def _letters_in_context(self) -> tuple[str, list[int]]:
        prompt = self._layout(self.partial_item_template.format(number=1, item="x"), "x")
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
        """Apply the tokenizer's chat template, with text parts joined and a batch dimension (what TRL expects)."""
        messages = [
            message
            if isinstance(message["content"], str)
            else {**message, "content": "".join(part["text"] for part in message["content"])}
            for message in conversation
        ]
        tokenize = kwargs.pop("tokenize", False)
        return self.tokenizer.apply_chat_template([messages] if tokenize else messages, tokenize=tokenize, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of `processor_config.json`; the items are saved beside it."""
        names = self.__init__.__code__.co_varnames[1 : self.__init__.__code__.co_argcount]
        apart = ("tokenizer", "item_ids", "titles", "chat_template")
        fields = {name: getattr(self, name) for name in names if name not in apart}
        fields |= {"auto_map": self.auto_map} if "auto_map" in self.__dict__ else {}
        return {**fields, "processor_class": type(self).__name__}

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Save tokenizer, wording and `items.jsonl`, one line per catalog row."""
        saved = super().save_pretrained(save_directory, **({} if push_to_hub else kwargs))
        path = os.path.join(save_directory, ITEMS_FILE)
        with open(path + ".tmp", "w", encoding="utf-8", newline="\n") as file:
            for item_id, title in zip(self.item_ids, self.titles, strict=True):
                file.write(f'{{"item_id": {encode_basestring(item_id)}, "title": {encode_basestring(title)}}}\n')
        os.replace(path + ".tmp", path)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.normpath(save_directory))), **kwargs)
        return [*saved, path]

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `processor_config.json`, and the items beside it; see the base class."""
        hub_kwargs = {name: kwargs[name] for name in _HUB_KWARGS if kwargs.get(name) is not None}
        fields, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        with open(hub.cached_file(pretrained_model_name_or_path, ITEMS_FILE, **hub_kwargs), encoding="utf-8") as file:
            items = json.loads(f"[{file.read().strip().replace(chr(10), ',')}]")  # in one go: a million lines in 2 s
        fields["item_ids"], fields["titles"] = [i["item_id"] for i in items], [i["title"] for i in items]
        return fields, kwargs


__all__ = ["BundleMLLMProcessor"]

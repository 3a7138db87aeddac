"""Tokenizer of Bundle-MLLM: a stock tokenizer plus the virtual item vocabulary, both ways.

Knows nothing about titles, features, questions or how many items a catalog holds.
"""

import re
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import BatchEncoding, PreTrainedTokenizerBase

from .types_bundle_mllm import check_type

ITEM_PLACEHOLDER = "<|item|>"
ITEM_SEPARATOR = "<|item_separator|>"
ITEM_TEXT = re.compile(r"<\|item_(0|[1-9][0-9]*)\|>")
_DEFAULT_OFFSET = 1 << 20


class BundleMLLMTokenizerFast(PreTrainedTokenizerFast):
    """A stock tokenizer in which `<|item_42|>` is the id `item_token_offset + 42`. No token is added per item.

    In the text every item is replaced by one placeholder token before the backend sees it, and the placeholder's id by
    the item's id afterwards. Which placeholder is which item is read from its character offset, so truncation on
    either side, overflowing parts and pairs cannot assign a row to the wrong place.

    This class must not define `__init__`: transformers would rebuild the backend on loading and lose its
    pre-tokenizer. Its settings live in `init_kwargs`.
    """

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, item_token_offset: int = _DEFAULT_OFFSET
    ) -> "BundleMLLMTokenizerFast":
        """Extend a backbone's tokenizer; the original stays as it is.

        Args:
            tokenizer: Any fast tokenizer. Its special tokens, chat template and padding side are kept; without a
                padding token its end-of-sequence token is used.
            item_token_offset: Id of item 0, as in the model's configuration.

        Returns:
            The tokenizer, with a placeholder and the soft separator as two more special tokens.

        Raises:
            ValueError: If the tokenizer is not a fast one, is damaged, or item ids would fall into its vocabulary.
        """
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ValueError(
                f"{type(tokenizer).__name__} has no tokenizer.json, so item tokens cannot be placed by character "
                "offsets: load the tokenizer through AutoTokenizer with use_fast=True."
            )
        added = (ITEM_PLACEHOLDER, ITEM_SEPARATOR)
        _check_offset(item_token_offset, len(tokenizer) + len(added))
        backend = _copy(tokenizer)
        inherited = {name: tokenizer.init_kwargs[name] for name in INHERITED_SETTINGS if name in tokenizer.init_kwargs}
        if tokenizer.chat_template is not None:
            inherited["chat_template"] = tokenizer.chat_template
        extended = cls(
            tokenizer_object=backend,
            **inherited,
            **tokenizer.special_tokens_map,
            padding_side=tokenizer.padding_side,
            truncation_side=tokenizer.truncation_side,
            model_max_length=tokenizer.model_max_length,
            model_input_names=["input_ids", "attention_mask"],
            item_token_offset=item_token_offset,
        )
        extended.add_tokens([AddedToken(text, special=True, normalized=False) for text in added], special_tokens=True)
        if extended.pad_token is None:
            extended.pad_token = extended.eos_token or extended.unk_token
        return extended

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load the tokenizer; see the base class.

        Raises:
            ValueError: If `item_token_offset` is no integer, or item ids would fall into the vocabulary.
        """
        tokenizer = super().from_pretrained(*args, **kwargs)
        _check_offset(tokenizer.item_token_offset, len(tokenizer))
        return tokenizer

    @property
    def item_token_offset(self) -> int:
        """Id of item 0."""
        return self.init_kwargs.get("item_token_offset", _DEFAULT_OFFSET)

    @property
    def separator_token_id(self) -> int:
        """Id of the soft separator."""
        return self._added_id(ITEM_SEPARATOR)

    def _added_id(self, token: str) -> int:
        token_id: Any = self.backend_tokenizer.token_to_id(token)
        return token_id

    @staticmethod
    def item_token(row: int) -> str:
        """Return the text of an item, for example `<|item_42|>`."""
        return f"<|item_{row}|>"

    def escape(self, text: str) -> str:
        """Make any text harmless: whatever it holds, it is tokenized as ordinary words on one line.

        A title may hold the text of an item, of the separator or of any special token (`</s>`, `<|im_start|>`). Each
        such token is broken by a space after its first character (`< |item_42|>`); a special token of one character is
        dropped. Runs of whitespace, line breaks included, become one space, and the ends are stripped.

        Raises:
            ValueError: If the text holds half a character (a lone surrogate), which no tokenizer reads.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The text {text!r} holds half a character at {error.start}: it was probably cut inside an emoji; "
                "cut it elsewhere."
            ) from error
        pattern = self._control_pattern()
        text = " ".join(text.split())
        while pattern.search(text):
            text = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}" if len(match[0]) > 1 else " ", text)
        return text.strip()

    def _control_pattern(self) -> re.Pattern:
        if self.__dict__.get("_control_pattern_of") is None or self._control_pattern_of[0] != len(self):
            added = self.added_tokens_decoder.values()
            control = {token.content for token in added if token.special or token.content[:1] in "<["}
            texts = [text for text in control | {*self.all_special_tokens} if text and not text[-1].isspace()]
            longest_first = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
            self._control_pattern_of = (len(self), re.compile(f"{ITEM_TEXT.pattern}|{longest_first}"))
        return self._control_pattern_of[1]

    def _encode_plus(self, text, text_pair=None, return_tensors=None, **kwargs) -> BatchEncoding:
        as_plain_text = kwargs.get("split_special_tokens") or kwargs.get("sanitize_control_tokens")
        if as_plain_text or not _mentions_items(text, text_pair):
            return super()._encode_plus(text, text_pair, return_tensors=return_tensors, **kwargs)
        if kwargs.get("is_split_into_words"):
            raise ValueError(
                "The words hold item tokens, which is_split_into_words=True cannot place: give the whole text instead."
            )
        single = isinstance(text, str)
        batch = [text] if single else list(text)
        pairs = [None] * len(batch) if text_pair is None else [text_pair] if single else list(text_pair)
        if any(isinstance(entry, (list, tuple)) for entry in batch):
            batch, pairs = [entry[0] for entry in batch], [entry[1] for entry in batch]
        replaced = [[_Replaced(entry or "") for entry in texts] for texts in zip(batch, pairs, strict=True)]
        with_pairs = any(pair is not None for pair in pairs)
        offsets, mapping = kwargs.pop("return_offsets_mapping", False), kwargs.get("return_overflowing_tokens", False)
        encoded = super()._encode_plus(
            [first.text for first, _ in replaced],
            [second.text for _, second in replaced] if with_pairs else None,
            return_tensors=None,
            **kwargs,
        )
        encodings: Any = encoded.encodings
        samples = encoded["overflow_to_sample_mapping"] if mapping else range(len(batch))
        for ids, encoding, sample in zip(encoded["input_ids"], encodings, samples, strict=True):
            self._place_items(ids, encoding, replaced[sample])
        data = dict(encoded)  # without the backend's encodings: their offsets point into the replaced text
        if offsets:
            data["offset_mapping"] = [
                [
                    (0, 0) if part is None else replaced[sample][part].original_span(span)
                    for part, span in zip(encoding.sequence_ids, encoding.offsets, strict=True)
                ]
                for encoding, sample in zip(encodings, samples, strict=True)
            ]
        if single and return_tensors is None and not mapping:
            data = {key: value[0] if isinstance(value, list) else value for key, value in data.items()}
        return BatchEncoding(data, tensor_type=return_tensors)

    def _place_items(self, ids: list[int], encoding, replaced: list["_Replaced"]) -> None:
        placeholder = self._added_id(ITEM_PLACEHOLDER)
        parts, spans = encoding.sequence_ids, encoding.offsets  # each access builds the whole list
        for position, token_id in enumerate(ids):
            if token_id == placeholder:
                row = replaced[parts[position]].rows.get(spans[position][0])
                if row is None:
                    raise ValueError(
                        f"The text holds {ITEM_PLACEHOLDER!r}, which names no item: write <|item_K|> for row K, and "
                        "pass the words of users through escape()."
                    )
                ids[position] = self.item_token_offset + row

    def _decode(self, token_ids, skip_special_tokens: bool = False, **kwargs) -> str:
        if isinstance(token_ids, dict):
            token_ids = token_ids["input_ids"]
        ids = [token_ids] if isinstance(token_ids, int) else [int(token_id) for token_id in token_ids]
        rows = [token_id - self.item_token_offset for token_id in ids if token_id >= self.item_token_offset]
        if not rows:
            return super()._decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)
        # Item tokens are special tokens. The others are decoded in one piece: a decoder may trim each start of a text.
        placeholder = self._added_id(ITEM_PLACEHOLDER)
        ids = [placeholder if token_id >= self.item_token_offset else token_id for token_id in ids]
        text = super()._decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)
        if skip_special_tokens:
            return text
        parts = text.split(ITEM_PLACEHOLDER)
        if len(parts) != len(rows) + 1:
            raise ValueError(
                f"The tokens spell {ITEM_PLACEHOLDER!r} beside {len(rows)} items, which then have no certain place in "
                "the text: decode the parts between the items one by one."
            )
        return parts[0] + "".join(self.item_token(row) + part for row, part in zip(rows, parts[1:], strict=True))

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs) -> list[str]:
        """Split a text into tokens, items included; see the base class."""
        encoded = self._encode_plus(text, pair, add_special_tokens=add_special_tokens, **kwargs)
        return self.convert_ids_to_tokens(encoded["input_ids"])

    def convert_ids_to_tokens(self, ids, skip_special_tokens: bool = False) -> Any:
        """Convert ids to tokens, items included; see the base class."""
        if isinstance(ids, int):
            return self._convert_id_to_token(ids)
        ids = [int(token_id) for token_id in ids]
        if skip_special_tokens:
            special = set(self.all_special_ids)
            ids = [token_id for token_id in ids if token_id not in special and token_id < self.item_token_offset]
        return [self._convert_id_to_token(token_id) for token_id in ids]

    def _convert_id_to_token(self, index: int) -> str | None:
        if index >= self.item_token_offset:
            return self.item_token(index - self.item_token_offset)
        return super()._convert_id_to_token(index)

    def _convert_token_to_id_with_added_voc(self, token: str) -> int:
        match = ITEM_TEXT.fullmatch(token)
        return self.item_token_offset + int(match[1]) if match else super()._convert_token_to_id_with_added_voc(token)


class _Replaced:
    """A text with its items replaced by placeholders, and the row and the original place of each."""

    def __init__(self, text: str):
        self.rows: dict[int, int] = {}
        self._shifts: list[tuple[int, int]] = []  # (position in the replaced text, characters lost before it)
        pieces, end, lost, length = [], 0, 0, 0
        for match in ITEM_TEXT.finditer(text):
            pieces += [text[end : match.start()], ITEM_PLACEHOLDER]
            length += match.start() - end
            self.rows[length] = int(match[1])
            length += len(ITEM_PLACEHOLDER)
            end, lost = match.end(), lost + len(match[0]) - len(ITEM_PLACEHOLDER)
            self._shifts.append((length, lost))
        self.text = "".join([*pieces, text[end:]])

    def original_span(self, span: tuple[int, int]) -> tuple[int, int]:
        """Translate character offsets of the replaced text to those of the original."""
        first, end = (
            position + max((lost for start, lost in self._shifts if start <= position), default=0) for position in span
        )
        return first, end


def _copy(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Copy the backend of a tokenizer by what it writes, so that the original gains no tokens.

    Of two tokens with one id the library writes one, which of them is random, and may not be able to read that.
    """
    original = tokenizer.backend_tokenizer
    try:
        copied = type(original).from_str(original.to_str())
        lost = original.get_vocab_size(with_added_tokens=False) - copied.get_vocab_size(with_added_tokens=False)
        if lost:
            raise ValueError(f"{lost} of its tokens have the id of another one")
    except Exception as error:  # the library raises no other
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path!r} contradicts itself ({error}), so it could be saved but "
            "not loaded again: download its tokenizer.json again."
        ) from error
    return copied


def _check_offset(offset: Any, num_tokens: int) -> None:
    check_type("item_token_offset", offset, int, "the tokenizer (tokenizer_config.json)")
    if offset < num_tokens:
        raise ValueError(
            f"item_token_offset is {offset}, but the tokenizer has {num_tokens} tokens, so text would be read as "
            "items: choose a larger offset."
        )


def _mentions_items(*texts) -> bool:
    for text in texts:
        if isinstance(text, str) and (ITEM_PLACEHOLDER in text or ITEM_TEXT.search(text)):
            return True
        if isinstance(text, (list, tuple)) and _mentions_items(*text):
            return True
    return False


INHERITED_SETTINGS = ("add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "legacy")

"""The items of a catalog by id, and questions about them as catalog rows: what the retriever reads.

Knows nothing about prompts, tokens or weights.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any

import torch
from transformers import ProcessorMixin
from transformers.tokenization_utils_base import BatchEncoding
from transformers.utils import PROCESSOR_NAME, hub

from .groups_bundle_mllm import ItemPairs
from .questions_bundle_mllm import groups_of, read_features, read_question, unknown_item
from .types_bundle_mllm import check_type, check_widths

ITEMS_FILE = "items.jsonl"
PROCESSOR = f"the processor ({PROCESSOR_NAME})"
"""What messages call it."""
HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
"""Arguments of `from_pretrained` that say which files of which repository are meant."""


class BundleItemProcessor(ProcessorMixin):
    """Turn bundle questions into catalog rows.

    A question is a mapping with `partial` and `candidates`, or an object with these attributes. Their entries are
    item ids, or, for items that the catalog does not hold, `{"title": str, "features": {modality: vector}}`; one of
    the two may be left out, and an `"item_id"` may be added. No item may occur twice. The other keys of question
    files are allowed and ignored.

    Args:
        item_ids: Ids of the items, in the order of the model's catalog rows.
        titles: Their titles, "" where there is none.
        modalities: Width of the features of each modality that the model reads from dict items.
        **parts: The tokenizer and its chat template, of the subclass that has one.

    Raises:
        ValueError: If ids and titles differ in number, an id is repeated, or a value is of another type.
    """

    def __init__(self, item_ids=(), titles=(), modalities: dict[str, int] | None = None, **parts):
        super().__init__(**parts)
        check_type("modalities", modalities, dict[str, int] | None, PROCESSOR)
        check_widths(modalities or {})
        self.modalities = None if modalities is None else {name: modalities[name] for name in sorted(modalities)}
        self.other_modalities: dict[str, int] = {}  # that another model reads from the same dict items; not saved
        self.set_items(item_ids, titles)

    def set_items(self, item_ids: Sequence[str], titles: Sequence[str]) -> None:
        """Replace all items; see the class for the arguments and errors."""
        item_ids, titles = tuple(item_ids), tuple("" if title is None else title for title in titles)
        for name, values in (("An item id", item_ids), ("A title", titles)):
            if others := [value for value in values if not isinstance(value, str)]:
                other = f"{str(others[0])[:60]} ({type(others[0]).__name__})"
                raise ValueError(f"{name} is {other}, which could be written in several ways: give it as text.")
        rows = {item_id: row for row, item_id in enumerate(item_ids)}
        if len(item_ids) != len(titles):
            raise ValueError(
                f"There are {len(item_ids)} item ids but {len(titles)} titles, so items would get those of others: "
                'give one title per id, "" where there is none.'
            )
        if len(rows) != len(item_ids):
            repeated = next(item_id for row, item_id in enumerate(item_ids) if rows[item_id] != row)
            raise ValueError(f"The item id {repeated!r} occurs twice, so it names no single row: make the ids unique.")
        self.item_ids, self.titles, self._rows = item_ids, titles, rows
        self._items_hash: tuple[tuple, tuple, str] | None = None

    @property
    def num_items(self) -> int:
        """Number of items of the catalog."""
        return len(self.item_ids)

    @property
    def items_hash(self) -> str:
        """SHA-256 over ids and titles in row order, by which a model's configuration recognizes its catalog."""
        hashed = self._items_hash
        if hashed is None or hashed[0] is not self.item_ids or hashed[1] is not self.titles:
            digest = hashlib.sha256()
            for item_id, title in zip(self.item_ids, self.titles, strict=True):
                pair = f"[{encode_basestring_ascii(item_id)}, {encode_basestring_ascii(title)}]\n"
                digest.update(pair.encode())
            hashed = self._items_hash = self.item_ids, self.titles, digest.hexdigest()
        return hashed[2]

    def check_model(self, config: Any) -> None:
        """Refuse the configuration of a model that was saved with other items than those of this processor.

        Raises:
            ValueError: If it has another number of items, or other items, as far as it records them.
        """
        if config.num_items not in (0, self.num_items):  # without features there are no rows
            raise ValueError(
                f"The processor has {self.num_items} items and the {config.model_type} model {config.num_items}: load "
                "both from one folder, or call set_catalog with the same items."
            )
        if config.items_hash is not None and config.items_hash != self.items_hash:
            raise ValueError(
                f"{ITEMS_FILE} does not hold the items the model was saved with (SHA-256 {self.items_hash[:8]}..., "
                f"not {config.items_hash[:8]}...), so ids would name the wrong rows: restore the file; or, if only "
                "titles or ids were edited, load model and processor each by from_pretrained and save both by "
                "bundle_mllm.save_model."
            )

    def __contains__(self, item_id: Any) -> bool:
        return item_id in self._rows

    def row(self, item_id: str) -> int:
        """Return the catalog row of an item; an unknown one is a `ValueError`."""
        if item_id not in self._rows:
            raise ValueError(unknown_item(item_id, self.num_items))
        return self._rows[item_id]

    def title(self, entry: Any) -> str:
        """Return the title of an entry of a question."""
        return entry.get("title") or "" if isinstance(entry, Mapping) else self.titles[self.row(entry)]

    def read_question(self, question: Any) -> tuple[Sequence, Sequence | None]:
        """Return partial bundle and candidates of a question; see the function of this name."""
        return read_question(question, self._rows)

    def allowed(self, partials: Sequence[Sequence[Any]]) -> torch.Tensor | None:
        """Return which items of the catalog may complete partial bundles `[batch, num_items]`: not their dict items.

        `None` where no partial bundle holds an item of the catalog as a dict.
        """
        held = [
            (number, self.row(entry["item_id"]))
            for number, partial in enumerate(partials)
            for entry in partial
            if isinstance(entry, Mapping) and entry.get("item_id") in self
        ]
        if not held:
            return None
        allowed = torch.ones(len(partials), self.num_items, dtype=torch.bool)
        allowed[tuple(zip(*held, strict=True))] = False
        return allowed

    def option_rows(self, questions: Sequence[Any], modalities: Mapping[str, int] | None = None) -> BatchEncoding:
        """Return questions as the retriever reads them.

        Args:
            questions: Questions; without candidates a question has no options.
            modalities: The modalities of the model that reads dict items; those of the processor if not given.

        Returns:
            `partial_rows` `[batch, max_partial]` and `option_rows` `[batch, max_options]`, -1 for padding; and
            `extra_items` where there are dict items, numbered through the batch from row `num_items` on, with the
            `groups` of these.
        """
        read = [self.read_question(question) for question in questions]
        extra: list[Mapping] = []

        def rows(entries: Sequence) -> list[int]:
            before = self.num_items + len(extra)
            dicts = [entry for entry in entries if isinstance(entry, Mapping)]
            extra.extend(dicts)
            numbers = iter(range(before, before + len(dicts)))
            return [next(numbers) if isinstance(entry, Mapping) else self._rows[entry] for entry in entries]

        encoded: dict[str, Any] = {
            "partial_rows": _pad([rows(partial) for partial, _ in read]),
            "option_rows": _pad([rows(candidates or ()) for _, candidates in read]),
        }
        if extra:
            encoded["extra_items"] = {**self.extra_items(extra, modalities), "groups": _pairs_of(extra)}
        return BatchEncoding(encoded)

    def extra_items(self, entries: Sequence[Mapping], modalities: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Return dict items as the models take them; of the modalities given, or of all of the processor's.

        Returns:
            `features` `[n, width]` of each modality, and `present` `[n, num_modalities]`.
        """
        own = self.modalities or {}
        modalities = own if modalities is None else modalities
        features = {name: torch.zeros(len(entries), width) for name, width in modalities.items()}
        present = torch.zeros(len(entries), len(modalities), dtype=torch.bool)
        for row, entry in enumerate(entries):
            for name, vector in read_features(entry, {**self.other_modalities, **own, **modalities}).items():
                if name in features:
                    features[name][row] = vector
                    present[row, list(modalities).index(name)] = True
        return {"features": features, "present": present}

    def without_titles(self) -> "BundleItemProcessor":
        """Return a processor with the same settings over the same items, none of which has a title."""
        fields = {name: value for name, value in self.to_dict().items() if name not in ("auto_map", "processor_class")}
        fields |= {name: getattr(self, name) for name in ("tokenizer", "chat_template") if hasattr(self, name)}
        return type(self)(**fields, item_ids=self.item_ids, titles=[""] * self.num_items)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of `processor_config.json`; the items are saved beside it."""
        apart = ("tokenizer", "item_ids", "titles", "chat_template", "parts")
        fields = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters if name not in apart}
        cls = type(self)
        if cls._auto_class is not None:  # as saving writes it, and loading drops it
            fields["auto_map"] = {cls._auto_class: f"{cls.__module__.split('.')[-1]}.{cls.__name__}"}
        return {**fields, "processor_class": cls.__name__}

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Save the settings, the tokenizer if there is one, and `items.jsonl`, one line per catalog row."""
        saved = super().save_pretrained(save_directory, **({} if push_to_hub else kwargs))
        path = os.path.join(save_directory, ITEMS_FILE)
        with open(path + ".tmp", "w", encoding="utf-8", newline="\n") as file:
            for item_id, title in zip(self.item_ids, self.titles, strict=True):
                file.write(f'{{"item_id": {encode_basestring(item_id)}, "title": {encode_basestring(title)}}}\n')
        os.replace(path + ".tmp", path)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.normpath(save_directory))), **kwargs)
        return [*(saved or ()), path]

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `processor_config.json`, and the items beside it; see the base class."""
        hub_kwargs = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        fields, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        path: Any = hub.cached_file(
            pretrained_model_name_or_path, ITEMS_FILE, **hub_kwargs, _raise_exceptions_for_missing_entries=False
        )
        missing = ITEMS_FILE if path is None else None if "processor_class" in fields else PROCESSOR_NAME
        if missing:
            raise ValueError(
                f"{pretrained_model_name_or_path} has no {missing}, so questions could not be read: save the "
                "processor there, too (processor.save_pretrained; a trainer with a tokenizer saves that alone)."
            )
        try:
            with open(str(path), encoding="utf-8") as file:
                lines = file.read().strip().replace("\n", ",")
            items = json.loads(f"[{lines}]")  # in one go: a million lines in 2 s
            fields["item_ids"], fields["titles"] = [i["item_id"] for i in items], [i["title"] for i in items]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path} does not hold an item {{"item_id": …, "title": …}} in each line ({type(error).__name__}: '
                f"{error}): copy the model folder again."
            ) from error
        return fields, kwargs


def _pairs_of(entries: Sequence[Mapping]) -> dict[str, ItemPairs]:
    """Return the groups of dict items by membership, the number of the item as node."""
    pairs: dict[str, list[tuple[int, int]]] = {}
    for node, entry in enumerate(entries):
        for name, groups in groups_of(entry).items():
            pairs.setdefault(name, []).extend((node, group) for group in groups)
    return {name: ItemPairs(*torch.tensor(each, dtype=torch.long).T) for name, each in pairs.items()}


def _pad(rows: list[list[int]]) -> torch.Tensor:
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.long).view(len(rows), width)

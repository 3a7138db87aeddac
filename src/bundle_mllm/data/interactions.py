"""Which user has interacted with which item of the catalog.

It must not know bundles, torch or the language model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.records import require_fields, to_id
from bundle_mllm.data.tables import find_table
from bundle_mllm.data.user_log import NUM_EXAMPLES, read_log
from bundle_mllm.errors import BundleMLLMError


@dataclass(frozen=True, eq=False)
class Interactions:
    """Distinct pairs of a user and an item, as two columns of equal length.

    Attributes:
        user_ids: The user of each pair.
        rows: The catalog row of each pair's item, `[num_pairs]` (int64).
        num_unknown: How many records were dropped because the catalog lacks their item.
        first_unknown: The items of the first few of these, each once.
        num_repeated: How many records were dropped because they repeat a pair.
    """

    user_ids: tuple[str, ...]
    rows: np.ndarray
    num_unknown: int = 0
    first_unknown: tuple[str, ...] = ()
    num_repeated: int = 0

    @classmethod
    def from_records(
        cls, records: Iterable[Mapping[str, Any]], catalog: ItemCatalog, source: str = "interactions"
    ) -> Interactions:
        """Build the pairs from dictionaries.

        Args:
            records: One mapping per interaction with `user_id` and `item_id`; other fields, such as `timestamp`, are
                ignored. A repeated pair counts once, and a record whose item the catalog lacks is dropped.
            catalog: The catalog that holds the items.
            source: What error messages call the records, such as a file name.

        Raises:
            BundleMLLMError: If a field is missing or empty.
        """
        pairs: dict[tuple[str, int], None] = {}
        num_records = num_unknown = 0
        first_unknown: list[str] = []
        row_of = {item_id: row for row, item_id in enumerate(catalog.item_ids)}
        for number, record in enumerate(records, start=1):
            where = f"{source} row {number}"
            require_fields(record, ("user_id", "item_id"), where)
            user_id = to_id(record["user_id"], where)
            item_id = to_id(record["item_id"], where)
            row = row_of.get(item_id)
            num_records += 1
            if row is None:
                num_unknown += 1
                if len(first_unknown) < NUM_EXAMPLES and item_id not in first_unknown:
                    first_unknown.append(item_id)
            else:
                pairs[user_id, row] = None
        rows = np.fromiter((row for _, row in pairs), dtype=np.int64, count=len(pairs))
        return cls(
            user_ids=tuple(user_id for user_id, _ in pairs),
            rows=rows,
            num_unknown=num_unknown,
            first_unknown=tuple(first_unknown),
            num_repeated=num_records - num_unknown - len(pairs),
        )

    @classmethod
    def load(cls, path_or_folder: str | os.PathLike, catalog: ItemCatalog) -> Interactions:
        """Read the pairs from a table, or from the table `interactions` of a folder.

        Raises:
            BundleMLLMError: If there is no such table, or for what [`~Interactions.from_records`] refuses.
        """
        path = Path(path_or_folder)
        if not path.is_file():
            folder, path = path, find_table(path, "interactions")
            if path is None:
                raise BundleMLLMError(
                    f"{folder} holds no interactions file, so nothing is known of its users: add interactions.csv "
                    "with `user_id` and `item_id`, or do without the user_item modality."
                )
        log = read_log(path, catalog)
        if log.num_missing:
            raise BundleMLLMError(
                f"{path} row {log.missing[0]} names no user or no item ({log.num_missing} such rows): "
                "give every row a `user_id` and an `item_id`, or remove it."
            )
        return cls(
            user_ids=tuple(map(log.users.__getitem__, log.user_index.tolist())),
            rows=log.rows,
            num_unknown=log.num_unknown,
            first_unknown=tuple(item_id for _, item_id in log.unknown),
            num_repeated=log.num_repeated,
        )

    @cached_property
    def user_index(self) -> np.ndarray:
        """The user of each pair as a number below `num_users`, in order of first appearance, `[num_pairs]` (int64)."""
        index: dict[str, int] = {}
        numbers = (index.setdefault(user_id, len(index)) for user_id in self.user_ids)
        return np.fromiter(numbers, dtype=np.int64, count=len(self.user_ids))

    @property
    def num_users(self) -> int:
        """How many different users there are."""
        return int(self.user_index.max()) + 1 if len(self) else 0

    def __len__(self) -> int:
        return len(self.user_ids)

    def __repr__(self) -> str:
        return f"Interactions({len(self)} pairs of {self.num_users} users)"

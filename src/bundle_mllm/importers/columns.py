"""Map the columns of a foreign table to the fields of a dataset folder.

Knows nothing about files or what the fields are used for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bundle_mllm.errors import BundleMLLMError

FIELDS = {
    "items": ("item_id", "title", "description", "category", "image", "audio"),
    "bundles": ("bundle_id", "items", "item_id", "split", "name"),
    "interactions": ("user_id", "item_id", "timestamp"),
}
"""The fields of each table. Bundles have `items` (one row per bundle) or `item_id` (one row per bundle and item)."""


class Columns:
    """The columns of one table.

    Args:
        table: `"items"`, `"bundles"` or `"interactions"`.
        mapping: The column of a field, such as `{"title": "product_name"}`, for every table that has such a field; or,
            with a table's name before the field, for that table alone: `{"bundles.item_id": "product"}`. A field
            that is not named is in the column of its own name.

    Attributes:
        of: The column of each field that is named.
    """

    def __init__(self, table: str, mapping: Mapping[str, str] | None = None):
        check_columns(mapping)
        self.of: dict[str, str] = {}
        for field in FIELDS[table]:
            column = (mapping or {}).get(f"{table}.{field}", (mapping or {}).get(field))
            if column is not None:
                self.of[field] = column
        if len(set(self.of.values())) < len(self.of):
            raise BundleMLLMError(
                f"Two fields of the {table} are mapped to one column ({self.of}): map each to its own."
            )
        self._field_of = {column: field for field, column in self.of.items()}
        self._unseen = dict(self.of)
        self.replaced: set[str] = set()

    def rename(self, records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield records with the names of fields in place of those of their columns.

        A column that has the name of a field, which is mapped to another column, is left out and named in `replaced`.
        """
        for record in records:
            renamed = {}
            for column, value in record.items():
                field = self._field_of.get(column)
                if field is not None:
                    renamed[field] = value
                    self._unseen.pop(field, None)
                elif column in self.of:
                    self.replaced.add(column)
                else:
                    renamed[column] = value
            yield renamed

    def name(self, field: str) -> str:
        """Return the column of a field."""
        return self.of.get(field, field)

    def check_seen(self, source: str, seen: Iterable[str], optional: Iterable[str] = ()) -> None:
        """Check that the records had the columns that are named.

        Args:
            source: What the error message calls the table.
            seen: The columns of the records, for the error message.
            optional: Fields that may be lacking.

        Raises:
            BundleMLLMError: If a column never occurred.
        """
        for field, column in self._unseen.items():
            if field not in optional:
                raise BundleMLLMError(
                    f"{source} has no column {column!r}, which the mapping {field}={column} names (its columns: "
                    f"{', '.join(seen) or 'none'}): correct the mapping; TABLE.{field}=COLUMN maps one table alone."
                )


def check_columns(mapping: Mapping[str, str] | None) -> None:
    """Check that the fields of a mapping exist.

    Raises:
        BundleMLLMError: If one does not.
    """
    known = {field for fields in FIELDS.values() for field in fields}
    known |= {f"{table}.{field}" for table, fields in FIELDS.items() for field in fields}
    for name in mapping or {}:
        if name not in known:
            fields = "; ".join(f"{table}: {', '.join(fields)}" for table, fields in FIELDS.items())
            raise BundleMLLMError(f"There is no field {name!r} to map a column to: use one of {fields}.")

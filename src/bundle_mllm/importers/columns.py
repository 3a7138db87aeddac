"""Map the columns of a foreign table to the fields of a dataset folder.

Knows nothing about files or what the fields are used for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bundle_mllm.data.interactions import FIELDS as INTERACTION_FIELDS
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers.summary import ImportNotes

FIELDS = {
    "items": ("item_id", "title", "description", "category", "image", "audio"),
    "bundles": ("bundle_id", "items", "item_id", "split", "name"),
    "interactions": INTERACTION_FIELDS,
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

    Raises:
        BundleMLLMError: If no table has such a field, or two fields have one column.
    """

    def __init__(self, table: str, mapping: Mapping[str, str] | None = None):
        mapping = mapping or {}
        known = {name for table, fields in FIELDS.items() for field in fields for name in (field, f"{table}.{field}")}
        if unknown := [name for name in mapping if name not in known]:
            fields = "; ".join(f"{table}: {', '.join(fields)}" for table, fields in FIELDS.items())
            raise BundleMLLMError(f"There is no field {unknown[0]!r} to map a column to: use one of {fields}.")
        columns = {field: mapping.get(f"{table}.{field}", mapping.get(field)) for field in FIELDS[table]}
        self.of = {field: column for field, column in columns.items() if column is not None}
        self._field_of = {column: field for field, column in self.of.items()}
        if len(self._field_of) < len(self.of):
            raise BundleMLLMError(f"Two fields of the {table} are mapped to one column ({self.of}): keep one.")

    def name(self, field: str) -> str:
        """Return the column of a field."""
        return self.of.get(field, field)

    def rename(
        self, records: Iterable[Mapping[str, Any]], source: str, notes: ImportNotes
    ) -> Iterator[dict[str, Any]]:
        """Yield records with the names of fields in place of those of their columns.

        Args:
            records: The records of the table.
            source: What messages call the table.
            notes: Is warned of columns with the name of a field that is mapped to another column: they are left out.

        Raises:
            BundleMLLMError: Afterwards, if a column that is named never occurred.
        """
        seen: dict[str, None] = {}
        for record in records:
            seen.update(dict.fromkeys(record))
            yield {
                self._field_of.get(column, column): value
                for column, value in record.items()
                if column in self._field_of or column not in self.of
            }
        for field, column in self.of.items():
            if column not in seen and not (field == "item_id" and self.name("items") in seen):
                raise BundleMLLMError(
                    f"{source} has no column {column!r}, which the mapping {field}={column} names (its columns: "
                    f"{', '.join(seen) or 'none'}): correct the mapping; TABLE.{field}=COLUMN maps one table alone."
                )
        if replaced := sorted(seen.keys() & self.of.keys() - self._field_of.keys()):
            notes.warn(f"{source}: columns whose name another column took were left out: {', '.join(replaced)}.")

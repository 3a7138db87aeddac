"""Map the columns of a foreign table to the fields of a dataset folder.

Knows nothing about files or what the fields are used for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from bundle_mllm.data.interactions import FIELDS as INTERACTION_FIELDS
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers.assemble import Place, Row
from bundle_mllm.importers.summary import ImportNotes

FIELDS = {
    "items": ("item_id", "title", "description", "category", "image", "audio"),
    "bundles": ("bundle_id", "items", "item_id", "split", "name"),
    "interactions": INTERACTION_FIELDS,
    "orders": (
        *("order_id", "item_id", "quantity", "timestamp", "user_id", "status", "cancelled_at", "title"),
        "product_handle",
    ),
}
"""The fields of each table. Bundles have `items` (one row per bundle) or `item_id` (one row per bundle and item)."""
LINE_FIELDS = (*FIELDS["orders"], "category", "price")
"""The fields of order lines that describe their items, too."""
ALIASES = {
    "order_id": ("order", "order_number", "order_no", "invoice", "invoice_no", "invoice_number", "invoice_id"),
    "item_id": ("sku", "stock_code", "product_id", "product_code", "lineitem_sku", "product_sku", "handle", "article"),
    "quantity": ("qty", "lineitem_quantity", "units"),
    "timestamp": ("created_at", "date", "invoice_date", "order_date", "date_created", "paid_at", "time"),
    "user_id": ("customer_id", "customer", "user", "client_id"),
    "status": ("financial_status", "order_status", "payment_status"),
    "cancelled_at": ("canceled_at",),
    "title": ("description", "name", "product_name", "product", "item_name", "lineitem_name"),
    "product_handle": ("handle", "product_id"),
    "category": ("product_type", "department"),
    "price": ("unit_price", "lineitem_price"),
}
"""What the columns of order lines are called elsewhere, whatever the case, blanks and dashes."""


class Columns:
    """The columns of one table.

    Args:
        table: A key of `FIELDS`.
        mapping: The column of a field, such as `{"title": "product_name"}`, for every table that has such a field; or,
            with a table's name before the field, for that table alone: `{"bundles.item_id": "product"}`. A field
            that is not named is in the column of its own name.
        fields: The fields of the table where they are others than in `FIELDS`.

    Attributes:
        of: The column of each field that is named.

    Raises:
        BundleMLLMError: If no table has such a field, or two fields have one column.
    """

    def __init__(self, table: str, mapping: Mapping[str, str] | None = None, fields: Sequence[str] = ()):
        mapping = mapping or {}
        self.fields = fields or FIELDS[table]
        self._aliases = ALIASES if table == "orders" else {}
        all_fields = {**FIELDS, table: self.fields}
        known = {name for of, names in all_fields.items() for field in names for name in (field, f"{of}.{field}")}
        if unknown := [name for name in mapping if name not in known]:
            listed = "; ".join(f"{of}: {', '.join(names)}" for of, names in all_fields.items())
            raise BundleMLLMError(f"There is no field {unknown[0]!r} to map a column to: use one of {listed}.")
        columns = {field: mapping.get(f"{table}.{field}", mapping.get(field)) for field in self.fields}
        self.of = {field: column for field, column in columns.items() if column is not None}
        self._field_of = {column: field for field, column in self.of.items()}
        if len(self._field_of) < len(self.of):
            raise BundleMLLMError(f"Two fields of the {table} are mapped to one column ({self.of}): keep one.")

    def name(self, field: str) -> str:
        """Return the column of a field."""
        return self.of.get(field, field)

    def complete(self, header: Collection[str], source: str, notes: ImportNotes) -> None:
        """Take columns that are fields but for case, blanks and dashes, such as `Item ID`, and say so.

        The columns of orders may have other usual names, too; see `ALIASES`. In Shopify's export, whose other
        columns are `Lineitem …`, the number of an order is its `Name`.
        """
        free = [column for column in header if column not in self._field_of and column not in self.fields]
        has_lines = any(_plain(column).startswith("lineitem") for column in header)
        taken = {}
        for field in self.fields:
            if field in self.of or field in header:
                continue
            of_shopify = ("name",) if field == "order_id" and has_lines else ()
            for name in (field, *self._aliases.get(field, ()), *of_shopify):
                alike = [column for column in free if _plain(column) == _plain(name)]
                if len(alike) == 1:
                    taken[field] = self.of[field] = alike[0]
                    self._field_of[alike[0]] = field
                    free.remove(alike[0])
                    break
        if taken:
            pairs = ", ".join(f"{field}={column}" for field, column in taken.items())
            notes.warn(f"{source}: columns taken for the fields that they resemble: {pairs}.")

    def rename(self, records: Iterable[Place], source: str, notes: ImportNotes) -> Iterator[Place]:
        """Yield records with the names of fields in place of those of their columns.

        Args:
            records: The records of the table.
            source: What messages call the table.
            notes: Receives columns that were taken for fields that they resemble, that are left out because another
                was mapped to their name, and that are named and never occur (a problem).
        """
        seen: dict[str, None] = {}
        for where, record in records:
            if not seen:
                self.complete(record, source, notes)
            seen.update(dict.fromkeys(record))
            renamed = Row(
                (self._field_of.get(column, column), value)
                for column, value in record.items()
                if column in self._field_of or column not in self.of
            )
            renamed.columns = self.of
            yield where, renamed
        for field, column in self.of.items():
            if column not in seen and not (field == "item_id" and self.name("items") in seen):
                notes.problem(
                    f"{source} has no column {column!r}, which the mapping {field}={column} names (its columns: "
                    f"{', '.join(seen) or 'none'}): correct the mapping; TABLE.{field}=COLUMN maps one table alone."
                )
        if replaced := sorted(seen.keys() & self.of.keys() - self._field_of.keys()):
            notes.warn(f"{source}: columns whose name another column took were left out: {', '.join(replaced)}.")


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())

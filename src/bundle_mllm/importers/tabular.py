"""Import the tables of a shop: CSV, JSON Lines or Parquet, with columns of any name, or as a shop system exports them.

Knows nothing about what a shop sells, or what becomes of its data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bundle_mllm.data.bundles import BundleSplits
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.files import new_folder, require_folder
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.interactions import Interactions
from bundle_mllm.data.leakage import check_interactions, mark_held_out
from bundle_mllm.data.splitting import FRACTIONS, check_fractions
from bundle_mllm.data.tables import SUFFIXES, find_table, iter_places, read_header
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.importers.assemble import (
    Place,
    RawBundle,
    collect_bundles,
    collect_items,
    note_interactions,
    settle_bundles,
    write_dataset,
)
from bundle_mllm.importers.columns import FIELDS, LINE_FIELDS, Columns
from bundle_mllm.importers.media import MediaFolder
from bundle_mllm.importers.orders import (
    Orders,
    catalog_records,
    collect_orders,
    names_of,
    number_bundles,
    to_bundles,
    user_log,
)
from bundle_mllm.importers.products import shopify_items, woocommerce_items
from bundle_mllm.importers.settings import TableSettings
from bundle_mllm.importers.summary import ImportNotes, ImportSummary
from bundle_mllm.settings import configured_by

ReadProducts = Callable[[Iterable[Place], ImportNotes], Iterator[Place]]
"""Turns the rows of a product export into items."""


@configured_by(TableSettings)
def import_tabular(settings: TableSettings) -> ImportSummary:
    r"""Turn tables of items and, optionally, of bundles or orders, and of interactions into a dataset folder.

    Bundles are one row each, with a list of item ids (`12|7`, a JSON list, a list), or one row per bundle and item.
    Orders are one row per order and item: see `orders.collect_orders`; those with a customer are the user log, too.
    One error names all problems of all tables, by file and line: malformed lines, an item described in two ways, a
    repeated bundle, an unknown split. Counted, reported and left out: rows without an id, items of bundles, orders and
    interactions that the items table lacks, bundles of fewer than two items, files of media that are missing. Counted
    once: repeated pairs of user and item, repeated items of a bundle. Texts lose HTML and entities.

    `TableSettings` has the meaning of the arguments; files in `tables` are relative to `source`, and `delimiter` is
    `"\t"` for tabs. The folder appears only when all of it is written, and the same source and seed give the same
    bytes.

    Raises:
        BundleMLLMError: If a file, column or row is not what it should be, or `output_dir` is not empty.
    """
    return _import_tables(settings)


@configured_by(TableSettings)
def import_shopify(settings: TableSettings) -> ImportSummary:
    """Turn Shopify's product export (`products*.csv`) into a dataset folder; see `products.shopify_items`.

    Tables of orders, bundles or interactions are those of [`import_tabular`]; orders may be Shopify's own export.
    """
    return _import_tables(settings, shopify_items, {"items": "*product*.csv", "orders": "*orders*.csv"})


@configured_by(TableSettings)
def import_woocommerce(settings: TableSettings) -> ImportSummary:
    """Turn WooCommerce's product export (`wc-product-export-….csv`) into a dataset folder.

    See `products.woocommerce_items`; tables of orders, bundles or interactions are those of [`import_tabular`].
    """
    return _import_tables(settings, woocommerce_items, {"items": "*product*.csv", "orders": "*orders*.csv"})


@configured_by(TableSettings)
def import_orders(settings: TableSettings) -> ImportSummary:
    """Turn one table of order lines with descriptions, and no table of products, into a dataset folder.

    Columns are taken by their usual names (invoice, stock code, description, quantity, date, price, customer; see
    `columns.ALIASES`). The most frequent spelling of a description is the title. Returns and cancellations are taken
    off; see `orders.collect_orders`. The errors and notes are those of [`import_tabular`].
    """
    check_fractions(settings.fractions or FRACTIONS)
    notes = ImportNotes(settings.strict)
    path = _orders_table(settings)
    columns = Columns("orders", _mapping(settings), LINE_FIELDS)
    with new_folder(settings.output_dir) as folder:
        records = _records(path, columns, settings, notes)
        orders = notes.attempt(lambda: collect_orders(records, settings, notes)) or Orders()
        notes.refuse_problems()
        catalog = collect_items(catalog_records(orders, notes), str(path), notes)
        return _write(folder, settings, catalog, None, orders, None, str(path), notes)


def _import_tables(
    settings: TableSettings, products: ReadProducts | None = None, patterns: Mapping[str, str] | None = None
) -> ImportSummary:
    check_fractions(settings.fractions or FRACTIONS)
    mapping = _mapping(settings)
    of = {table: Columns(table, mapping) for table in FIELDS}
    if products is not None and (ignored := [name for name in mapping if name.startswith("items.")]):
        raise BundleMLLMError(
            f"{ignored[0]} maps a column of a product export, whose columns are known: leave it out."
        )
    if len(_delimiter(settings)) != 1:
        raise BundleMLLMError(f"The delimiter {settings.delimiter!r} is not one character: use ',', ';' or a tab.")
    paths = _find_tables(settings, patterns or {})
    items = paths["items"]
    notes = ImportNotes(settings.strict)
    with new_folder(settings.output_dir) as folder:
        media = MediaFolder(folder, require_folder(settings.media_dir or items.parent, "check media_dir"), notes)

        def read_items() -> ItemCatalog:
            if products is None:
                rows = _records(items, of["items"], settings, notes)
            else:
                rows = products(iter_places(items, _delimiter(settings), notes.problem, items.name), notes)
            return collect_items(rows, str(items), notes, media, on_duplicate=settings.on_duplicate)

        def read_interactions() -> Interactions:
            path, columns = paths["interactions"], of["interactions"]
            columns.complete(read_header(path, _delimiter(settings)), path.name, notes)
            return Interactions.read(
                path, catalog, columns=columns.of, delimiter=_delimiter(settings), report=notes.problem
            )

        catalog = notes.attempt(read_items) or ItemCatalog([])
        raw = orders = log = None
        if "bundles" in paths:
            records = _records(paths["bundles"], of["bundles"], settings, notes)
            raw = notes.attempt(lambda: collect_bundles(records, notes))
        if "orders" in paths:
            lines = _records(paths["orders"], of["orders"], settings, notes)
            orders = notes.attempt(lambda: collect_orders(lines, settings, notes, names_of(catalog)))
        if "interactions" in paths:
            log = notes.attempt(read_interactions)
        notes.refuse_problems()
        media.sound_alarm()
        if log is not None:
            note_interactions(log, catalog, paths["interactions"].name, notes)
        source = str(paths.get("bundles") or paths.get("orders") or items)
        return _write(folder, settings, catalog, raw, orders, log, source, notes)


def _write(
    folder: Path,
    settings: TableSettings,
    catalog: ItemCatalog,
    raw: Mapping[str, RawBundle] | None,
    orders: Orders | None,
    log: Interactions | None,
    source: str,
    notes: ImportNotes,
) -> ImportSummary:
    """Split the bundles, or make them of orders, and write all; the log loses what shows held-out bundles."""
    fractions = settings.fractions or FRACTIONS
    if orders is not None:
        raw = to_bundles(orders, catalog, settings, fractions, notes)
    if raw is None:
        notes.warn(
            "there are no bundles, so the items can be encoded and nothing can be trained: add a table of them."
        )
        bundles = BundleSplits()
    else:
        seed = 42 if settings.seed is None else settings.seed
        bundles = settle_bundles(raw, catalog, source, notes, fractions=fractions, seed=seed)
    if orders is not None and (records := user_log(orders, bundles, settings, notes)):
        log = Interactions.from_records(records, catalog, source)
    elif log is not None:
        log = _without_answers(folder, catalog, bundles, log, notes)
    made_of = None if raw is None else "bundles" if orders is None else "orders"
    if orders is not None and settings.order_ids == "number":
        bundles, made_of = number_bundles(bundles), "orders, numbered"
    return write_dataset(folder, settings.output_dir, catalog, bundles, log, notes, made_of=made_of)


def _without_answers(
    folder: Path, catalog: ItemCatalog, bundles: BundleSplits, log: Interactions, notes: ImportNotes
) -> Interactions:
    """Take pairs out of a user log that encodes held-out bundles: both were made of the same orders."""
    data = DatasetFolder(folder, catalog, bundles)
    vars(data)["interactions"] = log
    leaked = check_interactions(data, allow_leakage=True)
    if leaked is None or not leaked.is_refused:
        return log
    dropped = mark_held_out(data)
    notes.add(
        "interactions that show a whole bundle of validation or test, left out",
        count=int(dropped.sum()),
        harmless=True,
    )
    notes.warn(f"the interactions encode the bundles, as if both were made of the same orders: {leaked}.")
    return log.without(dropped)


def _records(path: Path, columns: Columns, settings: TableSettings, notes: ImportNotes) -> Iterator[Place]:
    places = iter_places(path, _delimiter(settings), notes.problem, path.name)
    return columns.rename(places, path.name, notes)


def _delimiter(settings: TableSettings) -> str:
    return "," if settings.delimiter is None else settings.delimiter


def _mapping(settings: TableSettings) -> Mapping[str, str]:
    return settings.columns if isinstance(settings.columns, Mapping) else {}


def _orders_table(settings: TableSettings) -> Path:
    """Return the one table of the `orders` format: a file, or in a folder the table `orders` or the only one."""
    source, named = settings.source, _names(settings)
    if source.is_file():
        return source
    require_folder(source, "give the file of order lines, or its folder")
    if unknown := named.keys() - {"orders"}:
        raise BundleMLLMError(
            f"The format orders has no table {min(unknown)!r}: name the one that it has, orders=FILE."
        )
    if "orders" in named:
        return _named(source, named["orders"], "orders")
    tables = sorted(path for path in source.iterdir() if path.name.endswith(SUFFIXES))
    if (path := find_table(source, "orders")) is None and len(tables) != 1:
        listed = ", ".join(path.name for path in tables) or "none"
        raise BundleMLLMError(
            f"{source} has no table orders, and not just one table ({listed}): name it, orders=FILE."
        )
    return path or tables[0]


def _find_tables(settings: TableSettings, patterns: Mapping[str, str]) -> dict[str, Path]:
    """Return the path of each table that there is; that of the items must be there."""
    source, named = settings.source, _names(settings)
    if source.is_file():
        named = {"items": source.name, **named}
        source = source.parent
    require_folder(source, "give the folder that holds the tables")
    if unknown := named.keys() - FIELDS.keys():
        raise BundleMLLMError(f"There is no table {min(unknown)!r}: name the files of {', '.join(FIELDS)}.")
    paths = {}
    for table in FIELDS:
        if table in named:
            paths[table] = _named(source, named[table], table)
        elif settings.source.is_dir():
            path = find_table(source, table)
            if path is None and table in patterns:
                path = _matching(source, patterns[table], table)
            if path is not None:
                paths[table] = path
    if "items" not in paths:
        expected = patterns.get("items") or ", ".join(SUFFIXES)
        raise BundleMLLMError(f"{source} holds no table items ({expected}): add it, or name it: items=FILE.")
    if {"bundles", "orders"} <= paths.keys():
        raise BundleMLLMError(
            f"{paths['bundles'].name} and {paths['orders'].name} both make bundles: keep one, or give the orders as "
            "interactions=FILE."
        )
    return paths


def _names(settings: TableSettings) -> dict[str, str]:
    return dict(settings.tables) if isinstance(settings.tables, Mapping) else {}


def _named(source: Path, name: str, table: str) -> Path:
    if not (path := source / name).is_file():
        raise BundleMLLMError(f"There is no file {path}: correct the name that `tables` gives for {table}.")
    return path


def _matching(source: Path, pattern: str, table: str) -> Path | None:
    paths: Sequence[Path] = sorted(source.glob(pattern))
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        raise BundleMLLMError(f"{source} holds {names}, so it is unclear which one to read: name it, {table}=FILE.")
    return paths[0] if paths else None

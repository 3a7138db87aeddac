"""Encode further columns of the items table: where a number or a date lies, and which names an item has.

Knows nothing about pictures, sounds, texts or users, and of bundles only which columns name them or are unrelated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from scipy import sparse

from bundle_mllm.data.association import unrelated_columns
from bundle_mllm.data.attributes import AttributeChoice, AttributeColumn, choose_columns, quantiles
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.leakage import columns_that_name_bundles
from bundle_mllm.data.memberships import ATTRIBUTES, ItemGroups
from bundle_mllm.encoders.base import Encoded, FittedState, FittingEncoder, Progress
from bundle_mllm.encoders.textual import fit_tfidf, tfidf

NUM_PIECES = 8
"""Pieces that the range of a number is cut into, at its quantiles (ours)."""
NUM_RANGES = 64
"""Ranges between quantiles whose items share a name, for each column of numbers (ours)."""
MAX_GROUP_SHARE = 0.1
"""Names that a larger share of the items has are no groups: most items would share one (ours)."""
MAX_GROUP_SIZE = 1_000
"""Names that more items have are no groups, either, so that the cost of a question has a bound in any catalog."""
UNKNOWN_NAMES = 0.05
"""Share of names beyond those unknown at first from which what was fitted counts as outdated (ours)."""


class AttributeEncoder(FittingEncoder):
    """Describe each item by the columns of the items table beside title, description and category.

    A number or a date x becomes, for each of eight pieces between its quantiles, the share of the piece that lies
    below x (piecewise linear encoding; Gorishniy et al., 2022): a linear map of these shares is any function of x that
    is linear on each piece. They are standardized, and 0 where x is missing. Names (categories, lists, all that is
    above in a path, the year of a date, the range of a number among 64 between quantiles) are weighed like the words
    of a text, see `TfidfEncoder`. Where both together are more than `dim` columns, each is added, with a random sign,
    to one of `dim` (feature hashing; Weinberger et al., 2009), which keeps products of vectors in expectation.

    What it fits: the columns and their kinds, quantiles, means, deviations, the names that several items have, their
    weights, and where each is added.

    Args:
        columns: The columns to read; all that say something if not given, see `choose_attributes`.
        dim: Length of a vector; columns that are not needed are zero.
    """

    modality = ATTRIBUTES

    def __init__(self, columns: Sequence[str] | None = None, dim: int = 128):
        self.columns, self.dim = columns, dim
        which = "" if columns is None else f" of {', '.join(columns)}"
        self.name = f"attributes-1{which}" if dim == 128 else f"attributes-1{which} ({dim} wide)"

    @property
    def read_columns(self) -> tuple[str, ...]:
        """The columns of the items table that it reads, once it is fitted."""
        return () if self.fitted is None else tuple(column["name"] for column in self.fitted.values["columns"])

    @classmethod
    def of_columns(cls, columns: str, device: torch.device) -> AttributeEncoder:
        """Make the encoder of the columns that a text names, separated by commas."""
        return cls([part.strip() for part in columns.split(",") if part.strip()])

    def encode(self, folder: DatasetFolder, progress: Progress | None = None) -> Encoded:
        """Describe the items of a folder; an item whose columns say nothing is absent."""
        if self.fitted is None:
            self.fitted = self._fit(folder)
        shares, of_items = _read(folder, self.fitted)
        columns = _table(shares, of_items, self.fitted, self.dim).toarray()
        features = np.zeros((len(of_items), self.dim), dtype=np.float32)  # [num_items, dim]
        features[:, : columns.shape[1]] = columns
        if progress is not None:
            progress(len(features), len(features))
        known = set(self.fitted.values["names"])
        has_name = np.array([not known.isdisjoint(names) for names in of_items])
        return Encoded(features, has_name | ~np.isnan(shares).all(axis=1))

    def groups(self, folder: DatasetFolder) -> ItemGroups:
        """Return which items have which name, but for names that too many items had when they were fitted."""
        assert self.fitted is not None
        values = self.fitted.values
        largest = min(MAX_GROUP_SIZE, MAX_GROUP_SHARE * values["num_items"])
        numbered = enumerate(zip(values["names"], values["counts"], strict=True))
        number = {name: group for group, (name, count) in numbered if count <= largest}
        _, of_items = _read(folder, self.fitted)
        of_items = [[number[name] for name in names if name in number] for names in of_items]
        nodes = np.repeat(np.arange(len(of_items)), [len(groups) for groups in of_items])
        return ItemGroups(ATTRIBUTES, nodes, np.array([*chain(*of_items)], dtype=np.int64), len(of_items))

    def still_fits(self, folder: DatasetFolder) -> bool:
        """Return whether the items have the same columns as at first, and hardly more names that are unknown.

        Columns that were not named do not fit where they name bundles, which may be younger than the features.
        """
        assert self.fitted is not None
        values = self.fitted.values
        if self.columns is None and columns_that_name_bundles(folder, map(_column, values["columns"])):
            return False
        examined = {*values["left_out"], *(column["name"] for column in values["columns"])}
        known = _share_known(_read(folder, self.fitted)[1], values["names"])
        return examined == set(folder.catalog.other_columns) and known >= values["share_known"] - UNKNOWN_NAMES

    @property
    def notes(self) -> tuple[str, ...]:
        """Which columns are read, and which are left out for what reason."""
        assert self.fitted is not None
        values, reasons = self.fitted.values, {}
        for name, reason in values["left_out"].items():
            reasons.setdefault(reason, []).append(name)
        read = ", ".join(f"{column['name']} ({column['kind']})" for column in values["columns"])
        return f"columns: {read}", *(f"left out, {reason}: {', '.join(names)}" for reason, names in reasons.items())

    def _fit(self, folder: DatasetFolder) -> FittedState:
        choice = choose_attributes(folder, self.columns)
        values: dict[str, Any] = {"columns": [], "left_out": dict(choice.left_out), "num_items": len(folder.catalog)}
        for column in choice.columns:
            entry: dict[str, Any] = {**asdict(column), "edges": []}
            if column.is_quantity:
                numbers = column.numbers(folder.catalog.cells(column.name))
                entry["edges"] = quantiles(numbers, NUM_PIECES)
                if column.kind == "number":
                    entry["ranges"] = quantiles(numbers, NUM_RANGES)
            values["columns"].append(entry)
        shares, of_items = _read(folder, FittedState(values))
        names, idf = fit_tfidf([Counter(names) for names in of_items])
        counts = Counter(chain(*of_items))
        values |= {"names": names, "counts": [counts[name] for name in names]}
        values["share_known"] = _share_known(of_items, names)
        arrays = {"mean": np.nanmean(shares, axis=0), "std": np.nanstd(shares, axis=0), "idf": idf}
        if (width := shares.shape[1] + max(1, len(names))) > self.dim:
            random = np.random.default_rng(0)
            arrays |= {
                "targets": random.integers(self.dim, size=width),
                "signs": random.choice([-1.0, 1.0], size=width),
            }
        return FittedState(values, arrays)


def choose_attributes(folder: DatasetFolder, names: Sequence[str] | None = None) -> AttributeChoice:
    """Choose the columns to read, see `choose_columns`.

    Those whose values name bundles, and those that have nothing to do with which items are bundled, are left out
    unless named.
    """
    return _choose_all(folder) if names is None else choose_columns(folder.catalog, names)


@lru_cache(maxsize=1)  # one encoding asks whether there are any, and then for them
def _choose_all(folder: DatasetFolder) -> AttributeChoice:
    choice = choose_columns(folder.catalog)
    reasons = dict.fromkeys(columns_that_name_bundles(folder, choice.columns), "values that name bundles")
    others = [column for column in choice.columns if column.name not in reasons]
    reasons |= dict.fromkeys(unrelated_columns(folder, others), "unrelated to which items are bundled")
    columns = tuple(column for column in others if column.name not in reasons)
    return AttributeChoice(columns, {**choice.left_out, **reasons})


def _column(entry: Mapping[str, Any]) -> AttributeColumn:
    return AttributeColumn(entry["name"], entry["kind"], entry["form"])


def _read(folder: DatasetFolder, fitted: FittedState) -> tuple[np.ndarray, list[list[str]]]:
    """Read the columns.

    Returns:
        The share of each piece of a number or date that is below the item's, `[num_items, num_pieces]` float64, NaN
        where missing; and the distinct names of each item, as COLUMN=NAME.
    """
    blocks, of_items = [np.empty((len(folder.catalog), 0))], [[] for _ in folder.catalog]
    for entry in fitted.values["columns"]:
        column, edges = _column(entry), np.array(entry["edges"])
        cells = folder.catalog.cells(column.name)
        if column.is_quantity:
            numbers = column.numbers(cells)
            blocks.append(np.clip((numbers[:, None] - edges[:-1]) / np.diff(edges), 0, 1))
            for row in np.flatnonzero(~np.isnan(numbers)) if "ranges" in entry else ():
                of_items[row].append(f"{column.name}=range {np.searchsorted(entry['ranges'], numbers[row])}")
        for names, of_cell in zip(of_items, column.names(cells), strict=True):
            names += [f"{column.name}={name}" for name in of_cell]
    return np.concatenate(blocks, axis=1), of_items


def _table(shares: np.ndarray, of_items: Sequence[Sequence[str]], fitted: FittedState, dim: int) -> sparse.csr_array:
    """Return standardized shares, divided by the root of their number, beside the weights of names; hashed if wide."""
    arrays = fitted.arrays
    standardized = np.nan_to_num((shares - arrays["mean"]) / arrays["std"]) / max(1, shares.shape[1]) ** 0.5
    weights = tfidf([Counter(names) for names in of_items], fitted.values["names"], arrays["idf"])
    table = sparse.csr_array(sparse.hstack([sparse.csr_array(standardized), weights]))
    if "targets" not in arrays:
        return table
    places = np.arange(len(arrays["targets"])), arrays["targets"]
    return sparse.csr_array(table @ sparse.csr_array((arrays["signs"], places), shape=(len(places[0]), dim)))


def _share_known(of_items: Sequence[Sequence[str]], names: Sequence[str]) -> float:
    """Return the share of the items' names that are among `names`."""
    known = set(names)
    found = [name in known for name in chain(*of_items)]
    return sum(found) / max(1, len(found))

"""Columns are told apart by whether training bundles have to do with them."""

import numpy as np
import pytest

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.data.association import unrelated_columns
from bundle_mllm.data.attributes import choose_columns

NUM_ITEMS = 120


def folder_of(path, bundles, columns, split="train"):
    """Write a folder; `columns` have a cell for each item."""
    cells = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    write_records(path / "items.jsonl", [{"item_id": str(row), **each} for row, each in enumerate(cells)])
    records = [{"bundle_id": f"b{n}", "items": [*map(str, rows)], "split": split} for n, rows in enumerate(bundles)]
    write_records(path / "bundles.jsonl", records)
    return DatasetFolder.open(path)


def unrelated(folder):
    return unrelated_columns(folder, choose_columns(folder.catalog).columns)


@pytest.fixture
def bundles():
    """Each of four items of one third of the catalog, one of each rest by 4; items of the first quarter more often."""
    rng = np.random.default_rng(0)
    weights = np.where(np.arange(NUM_ITEMS) < NUM_ITEMS // 4, 3.0, 1.0)
    found = []
    for n in range(150):
        chosen = [[row for row in range(NUM_ITEMS) if row % 3 == n % 3 and row % 4 == rest] for rest in range(4)]
        found.append([int(rng.choice(rows, p=weights[rows] / weights[rows].sum())) for rows in chosen])
    return found


def test_columns_that_bundles_share_avoid_or_prefer_are_related_and_others_not(tmp_path, bundles):
    rng = np.random.default_rng(1)
    rows = range(NUM_ITEMS)
    columns = {
        "brand": [f"brand {row % 3}" for row in rows],  # the same in a bundle
        "kind": [f"kind {row % 4}" for row in rows],  # never the same
        "stars": [100 - row if row % 5 else None for row in rows],  # the larger, the more often bundled
        "tags": [[f"tag {row % 3}", f"random {rng.integers(9)}"] for row in rows],
        "label": [f"label {rng.integers(9)}" for _ in rows],
        "price": rng.random(NUM_ITEMS).round(3).tolist(),
        "batch": [f"batch {rng.integers(40)}" if row % 2 else None for row in rows],
    }
    assert unrelated(folder_of(tmp_path, bundles, columns)) == ["label", "price", "batch"]


def test_chance_takes_few_columns(tmp_path, bundles):
    rng = np.random.default_rng(2)
    columns = {f"column {n}": [f"{rng.integers(6)} of 6" for _ in range(NUM_ITEMS)] for n in range(60)}
    assert len(unrelated(folder_of(tmp_path, bundles, columns))) >= 56  # 4 statistics, 200 orders: 1.2 are expected


def test_only_training_bundles_count_and_a_few_are_not_enough(tmp_path, bundles):
    columns = {"label": [f"label {each}" for each in np.random.default_rng(3).integers(9, size=NUM_ITEMS)]}
    assert unrelated(folder_of(tmp_path, bundles, columns)) == ["label"]
    assert unrelated(folder_of(tmp_path, bundles[:30], columns)) == []  # 180 pairs
    assert unrelated(folder_of(tmp_path, bundles, columns, split="validation")) == []


def test_a_bundle_of_very_many_items_is_not_read(tmp_path, bundles, monkeypatch):
    columns = {"label": [f"label {each}" for each in np.random.default_rng(3).integers(9, size=NUM_ITEMS)]}
    monkeypatch.setattr("bundle_mllm.data.association.NUM_PAIRS", 1_000)
    whole = list(range(NUM_ITEMS))  # 7,140 pairs
    assert unrelated(folder_of(tmp_path, [whole], columns)) == []
    assert unrelated(folder_of(tmp_path, [whole, *bundles], columns)) == ["label"]

"""Shops to import."""

import hashlib
from pathlib import Path

import pytest

from bundle_mllm.data import write_records


def tree(folder):
    """The SHA-256 of each file of a folder."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def same_tree():
    return lambda left, right: tree(left) == tree(right)


@pytest.fixture
def items():
    return [{"item_id": f"{n:03d}", "title": f"thing {n}", "category": f"c{n % 3}"} for n in range(60)]


@pytest.fixture
def bundles():
    """40 bundles; each odd one is a near-duplicate of the even one before it."""
    made = []
    for n in range(40):
        first = n // 2 * 3
        made.append({"bundle_id": f"b{n}", "items": [f"{(first + step) % 60:03d}" for step in range(3 + n % 2)]})
    return made


@pytest.fixture
def shop(tmp_path, items, bundles):
    """A folder of tables with the names of fields."""
    folder = tmp_path / "shop"
    write_records(folder / "items.csv", items)
    write_records(folder / "bundles.jsonl", bundles)
    pairs = [("u1", "001", "5"), ("u1", "002", "6"), ("u2", "001", "7"), ("u1", "001", "8")]
    write_records(
        folder / "interactions.csv", [dict(zip(("user_id", "item_id", "timestamp"), p, strict=True)) for p in pairs]
    )
    return folder

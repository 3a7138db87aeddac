import pytest

from bundle_mllm.data import BundleSplits, ItemCatalog


@pytest.fixture
def catalog():
    """200 items `i0` … `i199` in two categories and one item, `i200`, that has none."""
    records = [{"item_id": f"i{n}", "title": f"Item {n}", "category": f"c{n % 2}"} for n in range(200)]
    return ItemCatalog.from_records([*records, {"item_id": "i200"}])


@pytest.fixture
def splits(catalog):
    """60 training bundles (low item numbers are frequent), 20 for validation."""
    records = []
    for n in range(80):
        numbers = [(n * n + step * step * (1 + n % 5)) % (20 + 2 * n) for step in range(2 + n % 7)]
        split = "train" if n < 60 else "validation"
        records.append({"bundle_id": f"b{n}", "items": [f"i{number}" for number in numbers], "split": split})
    return BundleSplits.from_records(records, catalog)

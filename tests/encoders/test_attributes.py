"""Columns of the items table as features and as groups: what is alike is alike, and new items bring theirs."""

import shutil

import numpy as np
import pytest
import torch

from bundle_mllm.data import BundleSplits, DatasetFolder, ItemCatalog, write_records
from bundle_mllm.encoders import encode_folder
from bundle_mllm.encoders.attributes import AttributeEncoder
from bundle_mllm.encoders.fitted import read_encoder
from bundle_mllm.encoders.registry import available
from bundle_mllm.errors import BundleMLLMError

COLUMNS = {
    "price": [10.0, 11.0, None, 30.0, None, 50.0, 51.0, 90.0, 91.0, 999.0] * 2,
    "brand": ["acme", "Acme", "bolt", "bolt", None, "cord", "cord", "dune", "dune", "only one"] * 2,
    "tags": [["a", "b"], ["a"], ["b"], ["c"], None, ["c"], ["a", "c"], ["d"], ["d"], ["e"]] * 2,
    "released": ["2001-01-01", "2001-12-01", "2002", "2002-05", None, "2010-01", "2010", "2011", "2011", "2020"] * 2,
    "asin": [f"B{row:03d}" for row in range(20)],
}


def records(columns, first=0):
    rows = zip(*columns.values(), strict=True)
    return [{"item_id": f"i{first + n}", **dict(zip(columns, row, strict=True))} for n, row in enumerate(rows)]


def items(columns):
    return DatasetFolder("unused", ItemCatalog.from_records(records(columns)), BundleSplits())


@pytest.fixture
def folder(tmp_path):
    write_records(tmp_path / "items.jsonl", records(COLUMNS))
    write_records(tmp_path / "bundles.jsonl", [{"bundle_id": "b", "items": ["i0", "i1"], "split": "train"}])
    return tmp_path


def stored(folder):
    features, present = DatasetFolder.open(folder).features(["attributes"]).load()
    return features["attributes"].numpy(), present["attributes"].tolist()


def test_columns_that_say_something_are_encoded_by_default_and_the_others_named(folder):
    assert ("attributes", "all") in available(DatasetFolder.open(folder))
    summary = encode_folder(folder)["attributes"]
    assert (summary.num_present, summary.num_items, summary.dim) == (18, 20, 128)
    assert str(summary).splitlines()[1:] == [
        "  columns: price (number), brand (category), tags (list), released (date)",
        "  left out, values of which nearly every item has its own: asin",
    ]
    again = encode_folder(folder)["attributes"]
    assert again.up_to_date
    assert again.notes == summary.notes


def test_an_item_of_which_no_column_says_anything_is_absent(folder):
    encode_folder(folder, attributes="all")
    features, present = stored(folder)
    assert present == [row % 10 != 4 for row in range(20)]
    assert not features[~np.array(present)].any()


def test_only_named_columns_are_encoded(folder):
    summary = encode_folder(folder, attributes="columns:brand, asin")["attributes"]
    assert summary.notes == ("columns: brand (category), asin (category)",)
    with pytest.raises(BundleMLLMError, match="no column 'colour'"):
        encode_folder(folder, attributes="columns:colour")
    assert encode_folder(folder, attributes="columns:brand, asin")["attributes"].up_to_date


def test_a_number_is_the_share_of_each_piece_that_lies_below_it_standardized():
    price = np.random.default_rng(0).permutation(81).astype(np.float64)
    features = AttributeEncoder().encode(items({"price": price.tolist()})).features
    shares = np.stack([np.clip((price - low) / 10, 0, 1) for low in range(0, 80, 10)], axis=1)
    expected = (shares - shares.mean(axis=0)) / shares.std(axis=0) / 8**0.5
    np.testing.assert_allclose(features[:, :8], expected, atol=1e-6)


def test_numbers_between_the_same_quantiles_share_a_name_and_missing_ones_none():
    price = np.random.default_rng(0).permutation(640).astype(np.float64)
    data, encoder = items({"price": [*price.tolist(), None]}), AttributeEncoder()
    features = encoder.encode(data).features
    groups = encoder.groups(data)
    ranges = {}
    for node, group in zip(groups.nodes.tolist(), groups.groups.tolist(), strict=True):
        ranges.setdefault(group, []).append(price[node])
    assert len(ranges) == 64
    assert all(max(each) - min(each) == len(each) - 1 for each in ranges.values())  # no other number between them
    assert 640 not in groups.nodes
    assert (features[:640, 8:72] > 0).sum() == sum(map(len, ranges.values()))


def test_missing_numbers_are_masked_and_outliers_bounded():
    columns = {"price": [*range(1, 10), None, "sold out", 1e9], "stock": [3, 3, 4] * 4}
    encoded = AttributeEncoder(["price"]).encode(items(columns))
    assert encoded.present.tolist() == [True] * 9 + [False, False, True]
    assert not encoded.features[9:11].any()
    assert np.abs(encoded.features).max() < 3
    both = AttributeEncoder(["price", "stock"]).encode(items(columns))
    assert both.present.all()
    assert np.isfinite(both.features).all()


def test_items_that_share_rare_names_are_more_alike():
    columns = {"brand": ["a"] * 2 + ["b"] * 2 + [None] * 6, "sex": ["w", "w", "w", "m", *"wwwwmm"]}
    features = AttributeEncoder().encode(items(columns)).features
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    cosines = unit @ unit.T
    assert cosines[0, 1] > cosines[0, 2] > cosines[0, 3]
    assert cosines[0, 3] == pytest.approx(0)


def test_many_names_are_hashed_to_the_width_and_products_are_kept_on_average():
    columns = {"artist": [f"artist {row // 4}" for row in range(320)], "price": [row * 7 % 320 for row in range(320)]}
    wide, narrow = (AttributeEncoder(dim=dim).encode(items(columns)).features for dim in (128, 64))
    assert narrow.shape == (320, 64)
    errors = narrow @ narrow.T - wide @ wide.T
    assert np.abs(wide @ wide.T).mean() > 0.3
    assert abs(errors.mean()) < 0.05
    assert np.corrcoef((narrow @ narrow.T).ravel(), (wide @ wide.T).ravel())[0, 1] > 0.8
    np.testing.assert_array_equal(narrow, AttributeEncoder(dim=64).encode(items(columns)).features)


def test_groups_are_names_of_several_items_but_of_at_most_a_tenth():
    columns = {
        "brand": [f"brand {row // 3}" for row in range(59)] + ["unique"],
        "sex": ["w"] * 40 + ["m"] * 20,
        "released": [f"{1990 + row // 6}-01-01" for row in range(60)],
    }
    data, encoder = items(columns), AttributeEncoder()
    encoder.encode(data)
    groups = encoder.groups(data)
    members = {}
    for node, group in zip(groups.nodes.tolist(), groups.groups.tolist(), strict=True):
        members.setdefault(group, set()).add(node)
    by_brand = [set(range(3 * n, min(3 * n + 3, 59))) for n in range(20)]
    by_year = [set(range(6 * n, 6 * n + 6)) for n in range(10)]
    assert sorted(map(sorted, members.values())) == sorted(map(sorted, by_brand + by_year))


def test_a_name_of_very_many_items_is_no_group_in_any_catalog():
    data, encoder = (
        items({"brand": ["large"] * 1_001 + ["small"] * 1_000 + [f"b{row // 2}" for row in range(9_000)]}),
        AttributeEncoder(),
    )
    encoder.encode(data)
    groups = encoder.groups(data)
    assert set(range(11_001)) - set(groups.nodes.tolist()) == set(range(1_001))


def test_new_items_are_described_by_what_was_fitted(folder):
    encode_folder(folder, attributes="all")
    before, _ = stored(folder)
    encoder = read_encoder(folder / "features" / "encoders", "attributes").make(torch.device("cpu"))
    assert isinstance(encoder, AttributeEncoder)
    assert encoder.read_columns == ("price", "brand", "tags", "released")
    new = {name: [cells[0], cells[3], None] for name, cells in COLUMNS.items()} | {"color": ["red", "red", "blue"]}
    del new["tags"]
    encoded = encoder.encode(items({**new, "tags": [["b", "a", "unheard"], ["c"], ["unheard"]]}))
    np.testing.assert_allclose(encoded.features[:2], before[[0, 3]], atol=1e-6)
    assert encoded.present.tolist() == [True, True, False]
    of_all, of_new = encoder.groups(DatasetFolder.open(folder)), encoder.groups(items(new))
    shared = set(of_all.groups[of_all.nodes == 3]) & set(of_new.groups[of_new.nodes == 1])
    assert len(shared) == len(of_new.groups[of_new.nodes == 1])


def test_new_items_change_no_row_of_the_others_and_new_columns_fit_anew(folder):
    encode_folder(folder, attributes="all")
    before, _ = stored(folder)
    more = records({name: cells[:2] for name, cells in COLUMNS.items()}, first=20)
    write_records(folder / "items.jsonl", [*more, *records(COLUMNS)])
    encode_folder(folder, attributes="all")
    np.testing.assert_array_equal(stored(folder)[0][2:], before)
    write_records(folder / "items.jsonl", records({**COLUMNS, "season": ["summer", "winter"] * 10}))
    assert "season (category)" in encode_folder(folder, attributes="all")["attributes"].notes[0]


def test_a_column_that_names_bundles_is_left_out_or_refused_if_named(tmp_path):
    looks = [[f"look {row // 4}"] for row in range(160)]
    write_records(tmp_path / "items.jsonl", records({"look": looks, "brand": ["a", "b"] * 80}))
    bundles = [[f"i{row}" for row in range(4 * n, 4 * n + 4)] for n in range(40)]
    write_records(
        tmp_path / "bundles.jsonl",
        [{"bundle_id": f"b{n}", "items": each, "split": "validation"} for n, each in enumerate(bundles)],
    )
    summary = encode_folder(tmp_path)["attributes"]
    assert summary.notes == ("columns: brand (category)", "left out, values that name bundles: look")
    with pytest.raises(BundleMLLMError, match=r"name bundles, the answers: 'look' \(100% .*--allow-leakage"):
        encode_folder(tmp_path, attributes="columns:look")
    notes = encode_folder(tmp_path, attributes="columns:look", allow_leakage=True)["attributes"].notes
    assert notes == ("columns: look (list)",)


def test_a_column_that_names_bundles_which_came_after_the_features_is_left_out(tmp_path):
    looks = [[f"look {row // 4}"] for row in range(160)]
    write_records(tmp_path / "items.jsonl", records({"look": looks, "brand": ["a", "b"] * 80}))
    write_records(tmp_path / "bundles.jsonl", [])
    assert encode_folder(tmp_path)["attributes"].notes == ("columns: look (list), brand (category)",)
    bundles = [[f"i{row}" for row in range(4 * n, 4 * n + 4)] for n in range(40)]
    write_records(
        tmp_path / "bundles.jsonl",
        [{"bundle_id": f"b{n}", "items": each, "split": "train"} for n, each in enumerate(bundles)],
    )
    assert encode_folder(tmp_path)["attributes"].notes == (
        "columns: brand (category)",
        "left out, values that name bundles: look",
    )


def test_columns_that_all_say_nothing_are_no_modality_and_it_is_said(tmp_path, caplog):
    write_records(tmp_path / "items.jsonl", [{"item_id": f"i{n}", "title": "x", "asin": f"B{n}"} for n in range(9)])
    write_records(tmp_path / "bundles.jsonl", [{"bundle_id": "b", "items": ["i0", "i1"], "split": "train"}])
    assert list(encode_folder(tmp_path)) == ["textual"]
    assert "left out: asin (values of which nearly every item has its own)" in caplog.text


def test_an_unrelated_column_is_left_out_unless_it_is_named_or_a_model_reads_it(tmp_path):
    rng = np.random.default_rng(0)
    labels = {"label": [f"label {number}" for number in rng.integers(9, size=100)]}
    few, many, model = tmp_path / "few", tmp_path / "many", tmp_path / "model"
    for folder, num_bundles in ((few, 10), (many, 80)):
        write_records(folder / "items.jsonl", records({"title": labels["label"], **labels}))
        bundles = [[f"i{row}" for row in rng.choice(100, size=4, replace=False)] for _ in range(num_bundles)]
        write_records(
            folder / "bundles.jsonl",
            [{"bundle_id": str(n), "items": each, "split": "train"} for n, each in enumerate(bundles)],
        )
    assert "attributes" in encode_folder(few)  # 60 pairs of items are too few
    assert "attributes" not in encode_folder(many)
    shutil.copytree(few / "features" / "encoders", model / "encoders")
    assert encode_folder(many, like=model)["attributes"].num_present == 100
    assert encode_folder(many, attributes="columns:label")["attributes"].num_present == 100

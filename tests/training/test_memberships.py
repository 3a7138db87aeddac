"""Groups for the retriever: read from training bundles, users and words, never from a question's own fold."""

import pytest
import torch

from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.encoders import encode_folder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.training import memberships as module
from bundle_mllm.training.config import MEMBERSHIPS
from bundle_mllm.training.memberships import load_memberships
from bundle_mllm.training.out_of_fold import load_out_of_fold
from bundle_mllm.training.retriever import RetrieverSettings, new_retriever


def load(data, names=MEMBERSHIPS, modalities=None, **options):
    modalities = list(data.features().modalities) if modalities is None else modalities
    return load_memberships(data, names, modalities, load_out_of_fold(data, modalities), **options)


def as_set(pairs):
    return set(zip(pairs.nodes.tolist(), pairs.groups.tolist(), strict=True))


def sorted_train(data):
    return sorted(data.bundles.train, key=lambda bundle: bundle.bundle_id)


def test_groups_are_training_bundles_and_users(circles):
    memberships = load(circles)
    assert memberships.keys() == {"bundle_item", "user_item"}  # there are no words, and no categories
    train = sorted_train(circles)
    assert as_set(memberships["bundle_item"]) == {
        (row, number) for number, bundle in enumerate(train) for row in circles.catalog.rows(bundle.items)
    }
    log = circles.interactions
    assert as_set(memberships["user_item"]) == set(zip(log.rows.tolist(), log.user_index.tolist(), strict=True))


def test_groups_are_words_of_texts_and_bundles_of_categories(shop):
    memberships = load(shop)
    assert memberships.keys() == {"bundle_category", "bundle_item", "textual"}
    of_word: dict[int, set[int]] = {}
    for row, word in as_set(memberships["textual"]):
        of_word.setdefault(word, set()).add(row)
    everything = set(range(24))
    assert len(of_word) == 2 + 23 + 1 + 3  # red, thing; numbers; socks; categories
    assert everything in of_word.values()  # red
    assert everything - {23} in of_word.values()  # thing
    assert {n for n in range(24) if n % 3 == 1} in of_word.values()  # shoes
    nodes, bundles, category, *_ = memberships["bundle_category"]
    assert category.tolist() == [{0: 1, 1: 2, 2: 0}[n % 3] for n in range(23)] + [-1]  # Hat, Shirt, Shoes
    assert set(zip(nodes.tolist(), bundles.tolist(), strict=True)) == {
        (int(category[row]), group) for row, group in as_set(memberships["bundle_item"])
    }


def test_groups_are_names_that_items_share_in_the_columns_that_were_encoded(tmp_path):
    records = [{"item_id": f"i{n}", "brand": f"brand {n // 2}", "price": n % 7} for n in range(40)]
    write_records(tmp_path / "items.jsonl", records)
    write_records(tmp_path / "bundles.jsonl", [{"bundle_id": "b", "items": ["i0", "i1"], "split": "train"}])
    encode_folder(tmp_path, attributes="columns:price")
    assert load(DatasetFolder.open(tmp_path)) == {}
    encode_folder(tmp_path, attributes="columns:price,brand")
    data = DatasetFolder.open(tmp_path)
    of_brand: dict[int, set[int]] = {}
    for row, brand in as_set(load(data)["attributes"]):
        of_brand.setdefault(brand, set()).add(row)
    assert sorted(map(sorted, of_brand.values())) == [[n, n + 1] for n in range(0, 40, 2)]
    (tmp_path / "features" / "encoders" / "attributes.json").unlink()  # features that were not made by `encode`
    assert load(data) == {}


@pytest.mark.parametrize(
    ("names", "modalities", "expected"),
    [
        (("user_item",), None, {"user_item"}),
        ((), None, set()),
        (MEMBERSHIPS, ["user_item"], {"user_item"}),
        (MEMBERSHIPS, ["bundle_item"], {"bundle_item"}),
        (MEMBERSHIPS, [], set()),
    ],
)
def test_groups_are_read_where_they_are_wanted_and_their_modality_is_used(circles, names, modalities, expected):
    assert load(circles, names, modalities).keys() == expected


def test_bundles_without_out_of_fold_features_are_left_out(circles):
    """A training question would find its own bundle among them."""
    assert load_memberships(circles, MEMBERSHIPS, ["bundle_item", "user_item"], None).keys() == {"user_item"}


def test_a_popular_item_keeps_its_smallest_groups(circles, monkeypatch):
    everything = load(circles)["user_item"]
    monkeypatch.setattr(module, "MAX_GROUPS", 2)
    kept_pairs = load(circles)["user_item"]
    sizes = everything.groups.bincount()
    for row in range(len(circles.catalog)):
        all_groups = everything.groups[everything.nodes == row]
        kept = kept_pairs.groups[kept_pairs.nodes == row]
        assert len(kept) == min(2, len(all_groups))
        assert sorted(sizes[kept].tolist()) == sorted(sizes[all_groups].tolist())[: len(kept)]


def test_a_log_whose_users_are_held_out_bundles_is_refused(bare_circles, tmp_path):
    for name in ("items.jsonl", "bundles.jsonl"):
        (tmp_path / name).symlink_to(bare_circles / name)
    bundles = DatasetFolder.open(bare_circles).bundles
    held_out = [*bundles.validation, *bundles.test]
    lines = [f"{bundle.bundle_id},{item_id}\n" for bundle in held_out for item_id in bundle.items]
    (tmp_path / "interactions.csv").write_text("user_id,item_id\n" + "".join(lines))
    leaking = DatasetFolder.open(tmp_path)
    with pytest.raises(BundleMLLMError, match=r"encode held-out bundles.*--allow-leakage"):
        load(leaking, modalities=["user_item"])
    assert load(leaking, ("textual",), ["textual", "user_item"]).keys() == {"textual"}
    assert load(leaking, modalities=["user_item"], allow_leakage=True).keys() == {"user_item"}


def groups_of_rows(retriever, out_of_fold, name, rows):
    """The groups of catalog rows, as pairs of index and group, while the catalog has the rows of folds."""
    catalog = retriever.catalog
    catalog.set_folds(out_of_fold.modality, out_of_fold.features, out_of_fold.present)
    _, owner, group, _ = retriever.groups[name].gather(rows, catalog.num_rows)
    catalog.clear_folds()
    return set(zip(owner.tolist(), group.tolist(), strict=True))


@pytest.mark.parametrize("fixture", ["circles", "shop"])
def test_rows_of_a_fold_are_in_no_bundle_of_it_and_in_all_other_groups(fixture, request):
    data = request.getfixturevalue(fixture)
    store = data.features()
    retriever = new_retriever(store, load(data), RetrieverSettings(), seed=0)
    out_of_fold = load_out_of_fold(data, list(store.modalities))
    folds = [out_of_fold.fold_of_bundle[bundle.bundle_id] for bundle in sorted_train(data)]
    rows = torch.arange(len(data.catalog))
    for name in retriever.groups:
        everything = groups_of_rows(retriever, out_of_fold, name, rows)
        assert everything
        for fold in (0, 3):
            expected = everything
            if name in ("bundle_item", "bundle_category"):
                expected = {(row, group) for row, group in everything if folds[group] != fold}
                assert expected != everything
            assert groups_of_rows(retriever, out_of_fold, name, rows + (fold + 1) * len(rows)) == expected, name

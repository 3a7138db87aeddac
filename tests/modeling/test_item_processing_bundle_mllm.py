"""Items by id, and questions as catalog rows: saved and loaded without a tokenizer, and checked against models."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_models import ITEM_IDS, MODALITIES, TITLES, make_item_processor, make_retriever
from transformers import AutoProcessor

from bundle_mllm.modeling import BundleItemProcessor

HAT = {"title": "hat", "features": {"visual": [0.5] * 12}}


def config_of(num_items=8, items_hash=None):
    return SimpleNamespace(num_items=num_items, items_hash=items_hash, model_type="bundle_retriever")


def test_questions_are_rows_padded_to_the_longest():
    rows = make_item_processor().option_rows(
        [
            {"partial": ["i3"], "candidates": ["i7", "i0", "i1"]},
            {"partial": ["i2", "i4"], "candidates": ["i5"]},
            SimpleNamespace(partial=("i1",), candidates=None),
        ]
    )
    assert rows["partial_rows"].tolist() == [[3, -1], [2, 4], [1, -1]]
    assert rows["option_rows"].tolist() == [[7, 0, 1], [5, -1, -1], [-1, -1, -1]]
    assert "extra_items" not in rows


def test_questions_about_the_whole_catalog_have_no_options():
    rows = make_item_processor().option_rows([{"partial": ["i3"]}, {"partial": ["i1", "i2"]}])
    assert rows["partial_rows"].shape == (2, 2) and rows["option_rows"].shape == (2, 0)
    assert make_item_processor().option_rows([])["partial_rows"].shape == (0, 0)


def test_dict_items_are_rows_past_the_catalog_numbered_through_the_batch():
    scarf = {"features": {"user_item": torch.ones(6), "visual": torch.zeros(12)}}
    questions = [{"partial": ["i0", HAT], "candidates": ["i1", scarf]}, {"partial": [{"title": "x"}]}]
    rows = make_item_processor().option_rows(questions)
    [[first, hat], [titled, padding]], [[second, shown], _] = (
        rows["partial_rows"].tolist(),
        rows["option_rows"].tolist(),
    )
    assert (first, second, padding) == (0, 1, -1) and {hat, titled, shown} == {8, 9, 10}
    extra = rows["extra_items"]
    assert extra["present"][[hat - 8, shown - 8, titled - 8]].tolist() == [[False, True], [True, True], [False, False]]
    assert extra["features"]["visual"][hat - 8].eq(0.5).all() and extra["features"]["user_item"][shown - 8].eq(1).all()


def test_a_model_gets_the_features_that_it_reads_and_no_other():
    extra = make_item_processor().extra_items([HAT, {"features": {"user_item": [1.0] * 6}}], {"visual": 12})
    assert set(extra["features"]) == {"visual"}
    assert extra["present"].tolist() == [[True], [False]]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"partial": ["nope"]}, "'nope' is not among the 8 items"),
        ({"partial": ["i0", "i0"]}, "'i0' is more than once in partial"),
        ({"partial": ["i0"], "candidates": ["i0"]}, "'i0' is in the partial bundle already"),
        ({"partial": []}, r"partial of the question is \[\]"),
        ({"partial": [{"title": "x", "features": {"acoustic": [1.0]}}]}, "features of 'acoustic'"),
        ({"partial": [{"title": "x", "features": {"visual": [1.0]}}]}, r"shape \[1\], expected \[12\]"),
    ],
)
def test_a_question_that_would_be_misread_is_an_error(question, message):
    with pytest.raises(ValueError, match=message):
        make_item_processor().option_rows([question])


def test_a_model_of_the_same_items_or_of_none_is_accepted():
    processor = make_item_processor()
    for config in (config_of(), config_of(0), config_of(items_hash=processor.items_hash)):
        processor.check_model(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (config_of(5), "processor has 8 items and the bundle_retriever model 5"),
        (config_of(items_hash="0" * 64), "does not hold the items the model was saved with"),
    ],
)
def test_a_model_of_other_items_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make_item_processor().check_model(config)


@pytest.mark.parametrize(
    ("ids", "titles"),
    [(ITEM_IDS[::-1], TITLES), (ITEM_IDS, TITLES[::-1]), (["i0 ", *ITEM_IDS[1:]], TITLES), (ITEM_IDS[:7], TITLES[:7])],
)
def test_the_hash_of_the_items_is_of_ids_titles_and_order(ids, titles):
    assert BundleItemProcessor(ids, titles).items_hash != make_item_processor().items_hash


def test_the_hash_follows_new_items():
    processor = make_item_processor()
    before = processor.items_hash
    processor.set_items(["a"], ["x"])
    assert processor.items_hash != before and processor.row("a") == 0 and "i0" not in processor
    processor.set_items(ITEM_IDS, TITLES)
    assert processor.items_hash == before


def test_a_saved_processor_loads_with_the_auto_class(tmp_path):
    titles = ["红色 衬衫", "line\u2028break", 'quote " and \\ backslash', *TITLES[3:]]
    BundleItemProcessor(ITEM_IDS, titles, MODALITIES).save_pretrained(tmp_path)
    make_retriever().save_pretrained(tmp_path)
    first = json.loads((tmp_path / "items.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first == {"item_id": "i0", "title": titles[0]}
    for loaded in (AutoProcessor.from_pretrained(tmp_path), BundleItemProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is BundleItemProcessor
        assert (loaded.item_ids, loaded.titles) == (tuple(ITEM_IDS), tuple(titles))
        assert loaded.modalities == MODALITIES and list(loaded.modalities) == sorted(MODALITIES)


def test_a_processor_without_titles_has_the_same_items_and_settings():
    processor = make_item_processor()
    untitled = processor.without_titles()
    assert (untitled.item_ids, set(untitled.titles)) == (processor.item_ids, {""})
    assert untitled.modalities == processor.modalities and processor.title("i0") == TITLES[0]


def test_ids_and_titles_that_do_not_belong_together_are_an_error():
    with pytest.raises(ValueError, match="8 item ids but 1 titles"):
        BundleItemProcessor(ITEM_IDS, ["a"])
    with pytest.raises(ValueError, match=r"An item id is 0 \(int\), .*give it as text"):
        BundleItemProcessor([0], ["a"])
    with pytest.raises(ValueError, match="A title is False"):
        BundleItemProcessor(["0"], [False])
    with pytest.raises(ValueError, match=r"A title is \['a'\] \(list\)"):
        BundleItemProcessor(["0"], [["a"]])
    with pytest.raises(ValueError, match="'i0' occurs twice"):
        BundleItemProcessor(["i0", "i1", "i0"], ["", "", ""])

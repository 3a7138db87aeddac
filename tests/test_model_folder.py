"""A model folder holds parts that belong together: a list of items that is not the model's is noticed."""

import json

import pytest
from tiny_models import ITEM_IDS, MODALITIES, TITLES, make_features, make_model, make_processor, make_tokenizer
from transformers import pipeline

from bundle_mllm.data import ItemCatalog
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.model_folder import load_model, save_model
from bundle_mllm.modeling import BundleMLLMForCausalLM, BundleMLLMProcessor

PAIRS = list(zip(ITEM_IDS, TITLES, strict=True))


@pytest.fixture
def folder(tmp_path):
    processor = make_processor()
    save_model(make_model(separator_token_id=processor.separator_token_id), processor, tmp_path)
    return tmp_path


def write_items(folder, pairs):
    lines = [json.dumps({"item_id": item_id, "title": title}) + "\n" for item_id, title in pairs]
    (folder / "items.jsonl").write_text("".join(lines), encoding="utf-8")


@pytest.mark.parametrize("pairs", [PAIRS[::-1], [*PAIRS[1:], ("other", "x")], [("i0", "red shirt, long"), *PAIRS[1:]]])
def test_other_items_than_the_model_was_saved_with_are_an_error(folder, pairs):
    write_items(folder, pairs)
    with pytest.raises(BundleMLLMError, match=r"items.jsonl does not hold the items.*wrong rows: restore the file"):
        load_model(folder)
    with pytest.raises(ValueError, match=r"items.jsonl does not hold the items.*wrong rows: restore the file"):
        pipeline("bundle-completion", model=str(folder), device="cpu")


def test_the_same_items_in_another_layout_are_no_error(folder):
    write_items(folder, PAIRS)
    assert load_model(folder)[1].titles == tuple(TITLES)


def test_edited_titles_are_accepted_once_both_parts_are_saved_together(folder):
    write_items(folder, [("i0", "red shirt, long"), *PAIRS[1:]])
    parts = BundleMLLMForCausalLM.from_pretrained(folder), BundleMLLMProcessor.from_pretrained(folder)
    save_model(*parts, folder)
    assert load_model(folder)[1].titles[0] == "red shirt, long"


def test_a_saved_pipeline_remembers_its_items_and_a_new_catalog_forgets_them(folder, tmp_path):
    completer = pipeline("bundle-completion", model=str(folder), device="cpu")
    completer.model.set_catalog(make_features(seed=1, modalities=MODALITIES))
    assert completer.model.config.items_hash is None
    completer.save_pretrained(tmp_path / "again")
    write_items(tmp_path / "again", PAIRS[::-1])
    with pytest.raises(BundleMLLMError, match="does not hold the items"):
        load_model(tmp_path / "again")


def test_a_model_that_remembers_no_items_loads_as_before(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("items_hash") == make_processor().items_hash
    (folder / "config.json").write_text(json.dumps(config))
    write_items(folder, PAIRS[::-1])
    assert load_model(folder)[0].config.items_hash is None


def test_processor_and_catalog_agree_on_the_hash():
    pairs = [("ä\n", 'a "title" \\ \u2028 \U0001f600'), ("b", "")]
    catalog = ItemCatalog.from_records({"item_id": item_id, "title": title} for item_id, title in pairs)
    processor = BundleMLLMProcessor(make_tokenizer(), catalog.item_ids, catalog.titles)
    assert processor.items_hash == catalog.content_hash
    processor.titles = ("a", "b")
    assert processor.items_hash != catalog.content_hash

"""A model folder holds models and items that belong together; what is none is refused in one line."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    CHAT_TEMPLATE,
    ITEM_IDS,
    MODALITIES,
    TITLES,
    make_backbone,
    make_completer,
    make_features,
    make_model,
    make_processor,
    make_tokenizer,
)
from transformers import pipeline

from bundle_mllm.data import ItemCatalog
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.model_folder import (
    fingerprint,
    load_completer,
    load_processor,
    load_ranker,
    save_model,
)
from bundle_mllm.modeling import BundleCompleter, BundleMLLMForCausalLM, BundleMLLMProcessor, BundleRetriever

PAIRS = list(zip(ITEM_IDS, TITLES, strict=True))
QUESTION = {"partial": ["i0", "i1"], "candidates": ["i2", "i3", "i4"]}
KINDS = {"ranker": (True, False), "retriever": (False, True), "both": (True, True)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        make_completer(*KINDS[kind]).save_pretrained(folder)
    return folders


@pytest.fixture(params=KINDS)
def any_folder(request, saved, tmp_path):
    return shutil.copytree(saved[request.param], tmp_path / request.param)


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved["both"], tmp_path / "model")


def write_items(folder, pairs):
    lines = [json.dumps({"item_id": item_id, "title": title}) + "\n" for item_id, title in pairs]
    (folder / "items.jsonl").write_text("".join(lines), encoding="utf-8")


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_combination(folder, **changes):
    values = json.loads((folder / "combination.json").read_text()) | changes
    (folder / "combination.json").write_text(json.dumps(values))


def edit_weights(folder, name):
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights[name] + 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_completer_loads_with_its_models_and_answers_the_same(saved, kind):
    expected, found = make_completer(*KINDS[kind]), load_completer(saved[kind], "cpu")
    assert found.parts == expected.parts
    assert not any(model.training for model in found.models)
    assert {model.config.items_hash for model in found.models} == {expected.processor.items_hash}
    [one], [other] = expected.score([QUESTION]), found.score([QUESTION])
    assert torch.allclose(one.answer, other.answer, atol=1e-4)


def test_the_ranker_stands_at_the_top_and_the_retriever_below_or_alone(saved):
    types = {
        path.relative_to(folder).as_posix(): json.loads(path.read_text())["model_type"]
        for folder in saved.values()
        for path in sorted(folder.rglob("config.json"))
        if folder is not saved["retriever"]
    }
    assert types == {"config.json": "bundle_mllm", "retriever/config.json": "bundle_retriever"}
    assert not (saved["ranker"] / "retriever").exists() and not (saved["retriever"] / "retriever").exists()
    assert not list(saved["retriever"].glob("tokenizer*"))


@pytest.mark.parametrize("pairs", [PAIRS[::-1], [*PAIRS[1:], ("other", "x")], [("i0", "red shirt, long"), *PAIRS[1:]]])
def test_other_items_than_the_models_were_saved_with_are_an_error(any_folder, pairs):
    write_items(any_folder, pairs)
    with pytest.raises(BundleMLLMError, match=r"items.jsonl does not hold the items.*wrong rows: restore the file"):
        load_completer(any_folder)
    with pytest.raises(ValueError, match=r"items.jsonl does not hold the items.*wrong rows: restore the file"):
        pipeline("bundle-completion", model=str(any_folder), device="cpu")


def test_a_retriever_of_other_items_than_the_ranker_is_an_error(folder):
    edit_config(folder / "retriever", items_hash="0" * 64)
    with pytest.raises(BundleMLLMError, match=r"does not hold the items the model was saved with .* not 00000000"):
        load_completer(folder)
    assert load_ranker(folder)[0].config.num_items == 8  # which it does not concern


def test_the_same_items_in_another_layout_are_no_error(any_folder):
    write_items(any_folder, PAIRS)
    assert load_completer(any_folder).processor.titles == tuple(TITLES)


def test_edited_titles_are_accepted_once_both_parts_are_saved_together(saved, tmp_path):
    folder = shutil.copytree(saved["ranker"], tmp_path / "model")
    write_items(folder, [("i0", "red shirt, long"), *PAIRS[1:]])
    parts = BundleMLLMForCausalLM.from_pretrained(folder), BundleMLLMProcessor.from_pretrained(folder)
    save_model(*parts, folder)
    assert load_ranker(folder)[1].titles[0] == "red shirt, long"


def test_a_saved_pipeline_remembers_its_items_and_a_new_catalog_forgets_them(folder, tmp_path):
    completer = pipeline("bundle-completion", model=str(folder), device="cpu")
    for model in completer.completer.models:
        model.set_catalog(make_features(seed=1, modalities=MODALITIES))
        assert model.config.items_hash is None
    completer.save_pretrained(tmp_path / "again")
    write_items(tmp_path / "again", PAIRS[::-1])
    with pytest.raises(BundleMLLMError, match="does not hold the items"):
        load_completer(tmp_path / "again")


def test_a_model_that_remembers_no_items_is_not_checked(any_folder):
    for part in (any_folder, any_folder / "retriever"):
        if part.is_dir():
            edit_config(part, items_hash=None)
    write_items(any_folder, PAIRS[::-1])
    assert load_completer(any_folder).processor.item_ids == tuple(ITEM_IDS[::-1])


def test_processor_and_catalog_agree_on_the_hash():
    pairs = [("ä\n", 'a "title" \\ \u2028 \U0001f600'), ("b", "")]
    catalog = ItemCatalog.from_records({"item_id": item_id, "title": title} for item_id, title in pairs)
    processor = BundleMLLMProcessor.from_backbone_tokenizer(make_tokenizer(), catalog.item_ids, catalog.titles)
    assert processor.items_hash == catalog.content_hash
    processor.titles = ("a", "b")
    assert processor.items_hash != catalog.content_hash


def make_llama(path):
    make_backbone().save_pretrained(path)
    make_tokenizer().save_pretrained(path)


def make_adapterless_folder(path):
    make_completer(retriever=False).processor.save_pretrained(path)


def make_first_layout(path):
    shutil.copytree(Path(__file__).parent / "modeling" / "first_layout", path, dirs_exist_ok=True)


def make_broken_weights(path):
    make_completer().save_pretrained(path)
    (path / "model.safetensors").write_bytes(b"\x00" * 64)


def make_broken_retriever(path):
    make_completer().save_pretrained(path)
    (path / "retriever" / "model.safetensors").write_bytes(b"\x00" * 64)


def make_newer_ranker(path):
    make_completer().save_pretrained(path)
    edit_config(path, format_version=99)


def make_newer_retriever(path):
    make_completer().save_pretrained(path)
    edit_config(path / "retriever", format_version=99)


def make_newer_retriever_alone(path):
    make_completer(ranker=False).save_pretrained(path)
    edit_config(path, format_version=99)


def make_broken_tokenizer(path):
    make_completer().save_pretrained(path)
    file = path / "tokenizer.json"
    file.write_text(file.read_text().replace('"content"', '"x"', 1))


def make_broken_config(path):
    make_completer().save_pretrained(path)
    (path / "config.json").write_text("{")


def make_folder_without_items(path):
    make_completer().save_pretrained(path)
    (path / "items.jsonl").unlink()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no readable Bundle-MLLM model"),
        (make_llama, "'llama' model"),
        (make_adapterless_folder, "config.json"),
        (make_first_layout, r"format_version 1, and this code reads 2: train it again"),
        (make_broken_weights, "no readable Bundle-MLLM model"),
        (make_newer_ranker, r"format_version 99, and this code reads 2: update bundle-mllm"),
        (make_broken_config, "config.json"),
        (make_folder_without_items, "items.jsonl"),
        (make_broken_tokenizer, "missing field"),
    ],
)
@pytest.mark.parametrize("load", [load_completer, load_ranker])
def test_a_folder_without_a_ranker_is_refused_in_one_line(tmp_path, make, message, load):
    make(tmp_path)
    with pytest.raises(BundleMLLMError, match=message) as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value).strip()
    assert len(str(error.value)) < 800


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_broken_retriever, "no readable Bundle-MLLM model"),
        (make_newer_retriever, r"format_version 99, and this code reads 2: update bundle-mllm"),
        (make_newer_retriever_alone, r"format_version 99, and this code reads 2: update bundle-mllm"),
    ],
)
def test_a_folder_with_a_retriever_that_cannot_be_read_is_refused_in_one_line(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(BundleMLLMError, match=message) as error:
        load_completer(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value).strip()


def test_a_retriever_alone_is_no_ranker(saved):
    with pytest.raises(BundleMLLMError, match=r"'bundle_retriever' model, not of a ranker"):
        load_ranker(saved["retriever"])


@pytest.mark.parametrize("name", ["out/model/of/nobody", "/no/such/folder", "./model", "model"])
@pytest.mark.parametrize("load", [load_completer, load_ranker, load_processor])
def test_a_folder_that_does_not_exist_is_refused_before_the_hub_is_reached(name, load):
    with pytest.raises(BundleMLLMError, match=f"There is no folder {name}: give the output folder"):
        load(name)


def test_a_fingerprint_is_of_all_that_decides_the_answers_of_both_models(folder, saved):
    seen = {fingerprint(folder)}
    edit_config(folder, transformers_version="6.0.0")
    edit_config(folder / "retriever", transformers_version="6.0.0")
    (folder / "README.md").write_text("about it")
    (folder / "metrics.json").write_text("{}")
    assert {fingerprint(folder)} == seen == {fingerprint(saved["both"])}
    for change in (
        lambda: edit_config(folder, fusion_layer_norm=True),
        lambda: edit_combination(folder, ranker_weight=0.25),
        lambda: edit_weights(folder, "model.fusion.key.weight"),
        lambda: edit_weights(folder / "retriever", "towers.logit_scale"),
        lambda: write_items(folder, PAIRS[::-1]),
        lambda: (folder / "chat_template.jinja").write_text("{{ messages }}"),
        lambda: shutil.rmtree(folder / "retriever"),
    ):
        change()
        assert fingerprint(folder) not in seen
        seen.add(fingerprint(folder))
    assert fingerprint(saved["retriever"]) != fingerprint(saved["ranker"])


def test_a_name_on_the_hub_has_no_fingerprint():
    assert fingerprint("acme/bundles") is None


def test_a_ranker_saved_anew_over_a_folder_keeps_the_retriever_below_it(folder):
    save_model(make_model(separator_token_id=make_processor().separator_token_id), make_processor(), folder)
    assert load_completer(folder).parts == ("ranker", "retriever", "both")
    assert type(load_completer(folder).retriever) is BundleRetriever


@pytest.mark.parametrize(
    ("part", "name"), [("ranker", "model.fusion.key.weight"), ("retriever", "towers.cosine_weight")]
)
def test_a_combination_of_other_models_is_refused_in_one_line_that_says_to_fit_again(folder, part, name):
    edit_weights(folder / {"ranker": "", "retriever": "retriever"}[part], name)
    with pytest.raises(BundleMLLMError, match=rf"The {part} has other weights .* \(bundle-mllm retriever\)") as error:
        load_completer(folder)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=rf"The {part} has other weights .* \(bundle-mllm retriever\)"):
        pipeline("bundle-completion", model=str(folder), device="cpu")


def test_a_combination_without_the_retriever_that_it_was_fitted_for_is_refused(folder):
    shutil.rmtree(folder / "retriever")
    with pytest.raises(BundleMLLMError, match=r"there is no retriever, so answers would be those of one model"):
        load_completer(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_combination_holds_for_its_models_in_other_precisions(saved, tmp_path, dtype):
    completer = load_completer(saved["both"], dtype=dtype)
    for model in completer.models:
        model.to(getattr(torch, dtype))
    completer.save_pretrained(tmp_path)
    assert load_completer(tmp_path).combination == load_completer(saved["both"]).combination


def test_folders_without_a_combination_join_both_models_as_they_are(folder):
    (folder / "combination.json").unlink()
    assert load_completer(folder).combination.ranker_weight == 1


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda values: {**values, "temperature": float("nan")}, "temperature is 'nan'"),
        (lambda values: {**values, "temperature": "cold"}, "temperature is 'cold'"),
        (lambda values: {**values, "temperature": 0}, "temperature is '0'"),
        (lambda values: {**values, "ranker_weight": True}, "ranker_weight is 'True'"),
        (lambda values: {**values, "ranker_weight": None}, "ranker_weight is 'None'"),
        (lambda values: {**values, "ranker_weight": -0.5}, "ranker_weight is '-0.5'"),
        (
            lambda values: {**values, "weight": 1},
            "does not hold ranker_weight, temperature, num_ranked, fitted_for",
        ),
        (
            lambda values: {"ranker_weight": 1},
            "does not hold ranker_weight, temperature, num_ranked, fitted_for",
        ),
        (lambda values: {**values, "num_ranked": 27}, "num_ranked is '27', but a prompt has 2 to 26 options"),
        (lambda values: {**values, "fitted_for": None}, "fitted_for names no models"),
        (lambda values: {**values, "fitted_for": {}}, 'does not name a "ranker" or a "retriever"'),
        (lambda values: {**values, "fitted_for": {"ranker": [1], "retriever": "x"}}, "retriever in fitted_for are no"),
        (lambda values: [values], "does not hold"),
    ],
)
def test_a_combination_that_is_none_is_refused_in_one_line(folder, write, message):
    path = folder / "combination.json"
    path.write_text(json.dumps(write(json.loads(path.read_text()))))
    with pytest.raises(BundleMLLMError, match=message) as error:
        load_completer(folder)
    assert "combination.json" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600
    path.write_text("{")
    with pytest.raises(BundleMLLMError, match=r"combination\.json cannot be used"):
        load_completer(folder)


def test_all_files_of_a_model_have_the_permissions_of_the_umask(tmp_path):
    make_completer().save_pretrained(tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.*")} == {0o666 & ~current_umask()}


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def chat_completer():
    completer = make_completer()
    processor = make_processor(make_tokenizer(chat_template=CHAT_TEMPLATE))
    completer.ranker.config.separator_token_id = processor.separator_token_id
    return BundleCompleter(processor, completer.ranker, completer.retriever)


def test_a_folder_that_lacks_any_file_is_refused_in_one_line_or_a_warning_says_what_is_missing(tmp_path, caplog):
    whole = tmp_path / "whole"
    chat_completer().save_pretrained(whole)
    expected = load_completer(whole).complete(QUESTION)
    for path in sorted(
        path for path in whole.rglob("*") if path.suffix in (".json", ".jsonl", ".jinja", ".safetensors")
    ):
        name = path.relative_to(whole)
        folder = shutil.copytree(whole, tmp_path / name.as_posix().replace("/", "-"))
        (folder / name).unlink()
        caplog.clear()
        try:
            assert load_completer(folder).complete(QUESTION) == expected
            assert name.name in ("generation_config.json", "combination.json"), name
            assert ("has no combination.json" in caplog.text) == (name.name == "combination.json")
        except BundleMLLMError as error:
            assert str(folder) in str(error) and "\n" not in str(error).strip(), name


def test_pickled_weights_are_not_read(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BundleMLLMError, match="safetensors") as error:
        load_completer(folder)
    assert "\n" not in str(error.value).strip()


@pytest.mark.parametrize("name", ["BertTokenizer", "LlamaTokenizerFast", "NoSuchTokenizer"])
def test_another_tokenizer_class_is_refused_in_one_line(folder, name):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name, "auto_map": None}))
    with pytest.raises(BundleMLLMError, match="okenizer") as error:
        load_completer(folder)
    assert "\n" not in str(error.value).strip()


def test_a_folder_with_a_tokenizer_but_no_processor_says_to_save_the_processor(tmp_path):
    completer = make_completer(retriever=False)
    completer.ranker.save_pretrained(tmp_path)
    completer.processor.tokenizer.save_pretrained(tmp_path)  # what a trainer with processing_class=tokenizer saves
    with pytest.raises(ValueError, match=r"has no items\.jsonl.* save the processor there, too"):
        pipeline("bundle-completion", model=str(tmp_path), device="cpu")
    with pytest.raises(BundleMLLMError, match=r"has no items\.jsonl.* save the processor there, too"):
        load_completer(tmp_path)

"""The card: valid metadata, figures that were measured, nothing that the folder does not hold."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tiny_models import make_item_processor

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.card import escape_markdown, read_measurements, render_model_card, split_name
from bundle_mllm.hub.settings import PublishSettings
from bundle_mllm.model_folder import fingerprint, load_completer
from bundle_mllm.modeling import BundleCompleter, BundleMLLMForOptionScoring

REPO = "acme/outfits"


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(model_folder, tmp_path / "model")


def render(folder, *paths, **options) -> ModelCard:
    return render_model_card(PublishSettings(folder, REPO, **options), read_measurements(folder, paths))


def test_the_metadata_name_library_task_base_model_datasets_license_and_metrics(folder):
    card = render(folder, datasets=["acme/shop"], license="llama2")
    data, measured = card.data.to_dict(), json.loads((folder / "metrics.json").read_text())
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert (data["base_model"], data["datasets"]) == ("meta-llama/Llama-2-7b-hf", ["acme/shop"])
    assert data["license"] == "llama2" and {"bundle-mllm", "custom_code"} <= set(data["tags"])
    (entry,) = data["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "outfits"
    assert result["dataset"] == {
        "name": "acme/shop",
        "type": "acme/shop",
        "config": "questions",
        "split": "test_hard",
    }
    by_type = {metric["type"]: metric for metric in result["metrics"]}
    assert by_type["hit_rate@1"]["value"] == round(measured["hit_rate@1"], 6)
    assert by_type["hit_rate@1"]["args"]["num_questions"] == 3
    assert by_type["hit_rate@1"]["args"]["num_candidates"] == [2, 3]
    assert by_type["hit_rate@1"]["args"]["standard_error"] == measured["hit_rate@1_se"]


def test_the_text_has_figures_settings_of_both_stages_and_how_to_ask(folder):
    text, measured = str(render(folder)), json.loads((folder / "metrics.json").read_text())
    assert f"| both | {measured['hit_rate@1']:.3f} ± {measured['hit_rate@1_se']:.3f} | 0.389 |" in text
    assert "| 2–3 |" in text and "3 (2) |" in text
    assert "| | retriever | ranker, stage one (bundle patterns) | ranker, stage two (multimodal semantics) |" in text
    assert "| trains |  | lora | fusion, projector, separator |" in text
    assert "| lora |  | r 8, alpha 16, dropout 0.05 |  |" in text
    assert "| validation HitRate@1 |  | 0.500, step 5 |  |" in text
    assert 'pipeline("bundle-completion", model="acme/outfits", trust_remote_code=True)' in text
    assert '"partial": ["i0", "i1"], "candidates": ["i2", "i3", "i4"]' in text
    assert "user\\_item (6), visual (12)" in text
    assert str(folder.parent) not in text


@pytest.mark.parametrize("base_model", ["scratch", "/models/llama", "./llama", "C:\\models\\llama"])
def test_a_base_model_that_is_not_on_the_hub_is_not_named(folder, base_model):
    record = json.loads((folder / "run.json").read_text())
    record["settings"]["base_model"] = base_model
    (folder / "run.json").write_text(json.dumps(record))
    card = render(folder)
    assert card.data.base_model is None and base_model not in str(card)
    assert render(folder, base_model="org/name").data.base_model == "org/name"


def test_a_folder_that_has_the_name_of_a_hub_model_is_not_taken_for_it(folder):
    record = json.loads((folder / "run.json").read_text()) | {"base_model_is_folder": True}
    (folder / "run.json").write_text(json.dumps(record))
    assert render(folder).data.base_model is None


def test_a_card_without_metrics_is_an_error_unless_it_is_meant(folder):
    (folder / "metrics.json").unlink()
    shutil.rmtree(folder / "report")
    with pytest.raises(BundleMLLMError, match=r"no metrics of .*bundle-mllm evaluate.*--allow-no-metrics"):
        render(folder)
    card = render(folder, allow_no_metrics=True)
    assert card.data.eval_results is None and "published without metrics" in str(card)


def test_several_files_are_several_rows_with_splits_of_their_own(folder, tmp_path):
    other = json.loads((folder / "metrics.json").read_text())
    other["questions"] |= {"path": "elsewhere/test_hard.jsonl", "sha256": "f" * 64}
    other["hit_rate@1_se"] = float("nan")
    (folder / "metrics_2.json").write_text(json.dumps(other))
    card = render(folder)
    assert [entry["dataset"]["split"] for entry in card.data.to_dict()["model-index"][0]["results"]] == [
        "test_hard",
        "test_hard_ffffffff",
    ]
    assert "nan" not in str(card)
    shutil.copy(folder / "metrics.json", tmp_path / "copy.json")
    with pytest.raises(BundleMLLMError, match="both measure the questions 'test_hard'"):
        render(folder, folder / "metrics.json", tmp_path / "copy.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ('{"hit_rate@1": "0.5"}', "no metrics file"),
        ('{"hit_rate@1": NaN}', "no metrics file"),
        ('{"hit_rate@1": 1.5}', "no metrics file"),
    ],
)
def test_a_file_that_holds_no_metrics_is_an_error(folder, tmp_path, content, message):
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(BundleMLLMError, match=message):
        render(folder, tmp_path / "m.json")


def test_metrics_of_other_weights_are_an_error(folder):
    path = next(folder.glob("*.safetensors"))
    weights = load_file(path)
    save_file({name: weight + 1 for name, weight in weights.items()}, path, metadata={"format": "pt"})
    with pytest.raises(BundleMLLMError, match=r"measured other weights, .* run `bundle-mllm evaluate"):
        render(folder)


def test_metrics_that_do_not_say_of_which_weights_are_an_error(folder):
    values = json.loads((folder / "metrics.json").read_text())
    del values["fingerprint"]
    (folder / "metrics.json").write_text(json.dumps(values))
    with pytest.raises(BundleMLLMError, match=r"does not name the weights it measured.* evaluate"):
        render(folder)


def test_the_card_says_how_the_questions_were_made_where_the_metrics_do(folder):
    values = json.loads((folder / "metrics.json").read_text())
    values["questions"] |= {"path": "q.jsonl", "made": {"split": "test", "negatives": "hard", "seed": 3}}
    (folder / "metrics.json").write_text(json.dumps(values))
    card = render(folder)
    assert "| test, hard negatives (q) | 2–3 | both |" in str(card)
    (result,) = card.data.to_dict()["model-index"][0]["results"]
    assert result["dataset"]["split"] == "test"
    metric = next(metric for metric in result["metrics"] if metric["type"] == "hit_rate@1")
    assert metric["name"] == "HitRate@1 (hard negatives)"
    assert (metric["args"]["negatives"], metric["args"]["seed"]) == ("hard", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"license": "My License"}, "no identifier of the Hub"),
        ({"datasets": ["/data/shop"]}, "The data set '/data/shop' is no name on the Hub"),
        ({"base_model": "a/b/c"}, "The base model 'a/b/c' is no name on the Hub"),
    ],
)
def test_a_wrong_name_is_an_error(folder, options, message):
    with pytest.raises(BundleMLLMError, match=message):
        render(folder, **options)


def test_a_run_that_is_not_finished_is_an_error(folder):
    record = json.loads((folder / "run.json").read_text()) | {"finished": False}
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(BundleMLLMError, match="is not finished"):
        render(folder)


@pytest.mark.parametrize("record", [None, {"base_model": "org/llama", "inputs": {}}])
def test_a_model_that_was_not_trained_here_gets_a_card_too(folder, record):
    (folder / "run.json").unlink()
    if record:
        (folder / "conversion.json").write_text(json.dumps(record))
    card = render(folder)
    assert ("There is no record" in str(card)) == (record is None) and "| stage one" not in str(card)
    assert card.data.base_model == (None if record is None else "org/llama")


@pytest.mark.parametrize("value", [5, "hf_Secret", [{"secret": 1}], {"secret": "s3://secret"}, None, []])
def test_a_record_of_another_form_still_gives_a_card_without_its_text(folder, value):
    record = json.loads((folder / "run.json").read_text())
    record |= dict.fromkeys(("stage_one", "stage_two", "retriever", "versions", "inputs"), value)
    record["settings"]["stage_one"] |= dict.fromkeys(("trains", "lora", "learning_rate", "num_candidates"), value)
    record["settings"] |= dict.fromkeys(("seed", "modalities", "retriever"), value)
    (folder / "run.json").write_text(json.dumps(record))
    assert "hf_Secret" not in str(render(folder)) and "s3:" not in str(render(folder))


def test_names_from_files_cannot_break_the_card(folder, tmp_path):
    evil = 'x | <b>[y](http://z)</b> `"\n---\nlicense: mit\n'
    values = json.loads((folder / "metrics.json").read_text()) | {"data": f"/data/{evil}"}
    values["questions"]["path"] = f"{evil}.jsonl"
    (folder / "metrics.json").write_text(json.dumps(values))
    record = json.loads((folder / "run.json").read_text())
    record["settings"]["data"] = f"/data/{evil}"
    (folder / "run.json").write_text(json.dumps(record))
    lines = (folder / "items.jsonl").read_text().splitlines()
    (folder / "items.jsonl").write_text("\n".join([json.dumps({"item_id": evil, "title": evil}), *lines]) + "\n")
    values["fingerprint"] = fingerprint(folder)
    (folder / "metrics.json").write_text(json.dumps(values))
    card = render(folder)
    assert card.data.license == "unknown"
    body = str(card).split("\n---\n", 1)[1]
    assert "<b>" not in re.sub(r"```.*?```", "", body, flags=re.DOTALL) and "\nlicense: mit" not in body
    assert str(card).count("\n---\n") == 1


@pytest.mark.parametrize(
    ("name", "split"),
    [("test.jsonl.gz", "test"), ("validation-hard 2.csv", "validation_hard_2"), ("all.jsonl", "all_questions")],
)
def test_the_name_of_a_question_file_becomes_one_of_a_split(name, split):
    assert split_name(name) == split


def test_escaped_text_stays_on_one_line():
    assert escape_markdown("a|b\n`c` <d>") == "a\\|b \\`c\\` \\<d\\>"


def test_ranker_retriever_and_both_stand_in_one_table(folder):
    card, parts = render(folder), json.loads((folder / "metrics.json").read_text())["parts"]
    assert len(card.data.to_dict()["model-index"][0]["results"]) == 1
    rows = [line for line in str(card).splitlines() if line.startswith("| test\\_hard |")]
    assert [row.split(" | ")[2] for row in rows] == ["both", "ranker", "retriever"]
    for row, part in zip(rows, ("both", "ranker", "retriever"), strict=True):
        assert f"| {part} | {parts[part]['hit_rate@1']:.3f} ± {parts[part]['hit_rate@1_se']:.3f} | 0.389 |" in row
    assert "| – |" in rows[2]


def test_the_card_of_two_models_sets_them_apart(folder):
    text = str(render(folder))
    assert "The pipeline joins both models" in text and "are the ranker alone" in text
    assert "5 pairs of item and word" in text
    shutil.rmtree(folder / "retriever")
    text = str(render_model_card(PublishSettings(folder, REPO, allow_no_metrics=True), ()))
    assert "The pipeline joins both models" not in text and "retriever" not in text.split("## Training")[0]


def test_the_metrics_of_a_part_are_not_those_of_the_model(folder):
    with pytest.raises(BundleMLLMError, match="is of one part of the model"):
        render(folder, folder / "metrics.ranker.json")


def test_a_retriever_alone_is_no_language_model(folder, tmp_path):
    retriever = load_completer(folder).retriever
    BundleCompleter(make_item_processor(), retriever=retriever).save_pretrained(tmp_path / "alone")
    card = render_model_card(PublishSettings(tmp_path / "alone", REPO, allow_no_metrics=True), ())
    assert card.data.pipeline_tag == "feature-extraction" and "needs no language model" in str(card)
    assert "5 pairs of item and word" in str(card) and "AutoModelForCausalLM" not in str(card)


def test_a_ranker_without_letters_writes_no_text_and_has_no_valid_ratio(folder, tmp_path):
    completer = load_completer(folder)
    ranker = BundleMLLMForOptionScoring.from_ranker(completer.ranker, matching_rank=4)
    BundleCompleter(completer.processor, ranker, completer.retriever).save_pretrained(tmp_path / "model")
    metrics = json.loads((folder / "metrics.json").read_text()) | {"fingerprint": fingerprint(tmp_path / "model")}
    (tmp_path / "model" / "metrics.json").write_text(json.dumps(metrics))
    card = render(tmp_path / "model")
    [result] = card.data.to_dict()["model-index"][0]["results"]
    assert card.data.pipeline_tag == "feature-extraction"
    assert [metric["type"] for metric in result["metrics"]] == ["hit_rate@1"]
    text = " ".join(str(card).split())
    assert "a list of options may have any length" in text and "The pipeline joins both models" in text
    for false in ("AutoModelForCausalLM", "with letters", "generate", "share of unrestricted"):
        assert false not in text, false


@pytest.mark.parametrize("value", [["<img src=x>", 3], "javascript:alert(1)", [{"a": 1}], "s3://bucket/x"])
def test_metrics_of_another_type_do_not_reach_the_card(folder, value):
    values = json.loads((folder / "metrics.json").read_text())
    values["questions"] |= {"num_candidates": value, "made": {"split": value, "negatives": value, "seed": 3}}
    values |= dict.fromkeys(
        ("num_questions", "num_bundles", "random_hit_rate@1", "hit_rate@1_se", "valid_ratio"), value
    )
    values["parts"] = dict.fromkeys(("ranker", "retriever"), value)
    (folder / "metrics.json").write_text(json.dumps(values))
    text = str(render(folder))
    assert "<img" not in text and "javascript" not in text and "s3:" not in text
    assert re.search(r"\| not recorded \| both \| 0\.\d+ \| not recorded \| not recorded \| \? \(\?\) \|", text)

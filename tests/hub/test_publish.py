"""Publishing over real HTTP: what becomes visible, what a stranger gets, and what goes wrong cleanly."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import TOKEN, HubServer
from huggingface_hub import ModelCard, SpaceCard
from safetensors.torch import load_file, save_file
from tiny_models import MODALITIES, make_completer, make_item_processor, make_retriever
from transformers import pipeline

from bundle_mllm.app.settings import AppSettings
from bundle_mllm.completion.new_items import find_item_encoder
from bundle_mllm.data import SPLITS, DatasetFolder, load_questions
from bundle_mllm.encoders import ImageDescriptor, SoundDescriptor, TfidfEncoder
from bundle_mllm.encoders.base import FittedState
from bundle_mllm.encoders.fitted import save_encoder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.publish import publish
from bundle_mllm.model_folder import fingerprint, load_completer, load_ranker, save_model
from bundle_mllm.modeling import BundleCompleter

pytestmark = pytest.mark.slow

NEW_ITEM = {"title": "new hat", "features": {name: [0.5] * width for name, width in MODALITIES.items()}}
QUESTIONS = [
    {"partial": ["i0", "i1"], "candidates": ["i2", "i3", "i4"]},
    {"partial": ["i5", NEW_ITEM], "candidates": ["i6", "i7"]},
]
INITIAL = [".gitattributes"]


@pytest.fixture(scope="module")
def server():
    with HubServer() as server:
        yield server
    assert not server.faults, server.faults[0]


def act(role, server, home, **arguments):
    """Run a client in a process that finds the Hub at the server of this test, and return its outcomes."""
    home.mkdir()
    request, outcomes = home / "arguments.json", home / "outcomes.json"
    request.write_text(json.dumps({**arguments, "work": str(home)}))
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",  # without it contents would go to the Hub's own storage service
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    script = Path(__file__).parents[1] / "helpers" / "clients.py"
    command = [sys.executable, str(script), role, str(request), str(outcomes)]
    process = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-5000:]
    return json.loads(outcomes.read_text())


@pytest.fixture(scope="module")
def published(server, model_folder, data_folder, tmp_path_factory):
    """What the publisher saw; the server holds the repositories afterwards."""
    work = tmp_path_factory.mktemp("publisher")
    model, processor = load_ranker(model_folder)
    save_model(model, processor, work / "single")
    (work / "single" / "metrics.json").write_text(
        json.dumps({"hit_rate@1": 0.5, "fingerprint": fingerprint(work / "single")})
    )
    return act(
        "publisher",
        server,
        work / "home",
        model_dir=str(model_folder),
        single_file_dir=str(work / "single"),
        data_dir=str(data_folder),
    )


@pytest.fixture(scope="module")
def received(published, server, tmp_path_factory):
    """What a stranger, in whose process the package cannot be imported, got from the repositories."""
    work = tmp_path_factory.mktemp("stranger")
    repositories = ["acme/outfits", "acme/pushed", "acme/pipeline"]
    return act("stranger", server, work / "home", questions=QUESTIONS, repositories=repositories)


@pytest.fixture(scope="module")
def expected(model_folder):
    completer = pipeline("bundle-completion", model=str(model_folder), device="cpu")
    return [{option["letter"]: option["score"] for option in completer(question)} for question in QUESTIONS]


def close(found, expected):
    assert not isinstance(found, str), found
    assert [set(scores) for scores in found] == [set(scores) for scores in expected]
    differences = [abs(f[letter] - e[letter]) for f, e in zip(found, expected, strict=True) for letter in e]
    assert max(differences) <= 1e-5
    return True


def repository(server, name, kind="model"):
    return server.repositories[kind, name]


def test_a_dry_run_needs_no_token_and_says_what_would_be_published(published, model_folder):
    report = published["dry run"]
    assert report["url"] is None
    questions, difference = report["verified"]
    assert questions >= 4 and difference <= 1e-5
    shards = {path.name: path.stat().st_size for path in model_folder.glob("*.safetensors")}
    assert shards.items() <= report["files"].items()
    assert {"README.md", "training_record.json", "metrics.json", "items.jsonl", "config.json"} <= set(report["files"])
    assert {"report/report.html", "report/report.json", "report/figures/by_stage.png"} <= set(report["files"])
    assert not [name for name in report["files"] if name.startswith(("report/measured", "report/questions"))]
    parts = [f"metrics.{name}{end}" for name in ("ranker", "retriever") for end in (".json", ".questions.jsonl")]
    assert report["left_out"] == sorted(["metrics.questions.jsonl", *parts, "training"])


def test_the_record_and_the_metrics_name_no_folder_of_this_machine(published, model_folder):
    files = published["dry run folder"]
    settings = json.loads((model_folder / "run.json").read_text())["settings"]
    public = json.loads(files["training_record.json"])["settings"]
    assert settings.keys() - public.keys() <= {"data", "output_dir", "relations"}
    assert all(public[name] == settings[name] for name in ("base_model", "seed", "stage_one", "stage_two"))
    assert json.loads(files["metrics.json"])["questions"]["path"] == "test_hard.jsonl"
    assert str(model_folder.parent) not in "".join(files.values())


def test_a_space_opens_the_published_model(published, server):
    assert published["with a Space"]["space"]["files"] == ["README.md", "app.py", "requirements.txt"]
    assert "/acme/try-outfits/commit/" in published["with a Space"]["space"]["url"]
    files = repository(server, "acme/try-outfits", "space").files
    card = SpaceCard(files["README.md"].decode()).data
    assert (card.sdk, card.app_file, card.models, card.title) == ("gradio", "app.py", ["acme/outfits"], "try-outfits")
    assert files["requirements.txt"] == b"bundle-mllm[app]==1.2.3\n"
    [call] = [node for node in ast.walk(ast.parse(files["app.py"])) if isinstance(node, ast.Call)]
    arguments = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
    assert AppSettings(**arguments) == AppSettings(model="acme/outfits", host="0.0.0.0")
    assert "is not the name of a Hub repository" in published["with a Space of no name"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no token", "There is no token .* run `hf auth login`"),
        ("wrong token", "The token is not valid: run `hf auth login`"),
        ("no network", r"http://127.0.0.1:1: .*\. Check the network, then repeat the command"),
        ("offline", "HF_HUB_OFFLINE is set"),
        ("foreign owner", "The token may not write there"),
        ("license that the Hub does not know", 'license" must be one of'),
        ("server dies", "Could not publish acme/outfits on .* then repeat the command"),
        ("private after public", "acme/outfits exists and is public.*Nothing was uploaded"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(published, name, message):
    import re

    assert published[name].startswith("error: ") and "\n" not in published[name], published[name]
    assert re.search(message, published[name]), published[name]


def test_a_publish_that_dies_shows_nothing_and_its_repetition_sends_only_the_rest(published, server):
    assert published["after the death"] == INITIAL
    assert published["repeated"]["url"].startswith(server.url)
    assert len(server.received) == len(set(server.received))


def test_everything_becomes_visible_in_one_commit(published, server):
    assert repository(server, "acme/outfits").messages == ["initial commit", "Publish with bundle-mllm"]
    assert set(repository(server, "acme/outfits").files) == {*INITIAL, *published["repeated"]["files"]}
    assert published["repeated once more"]["url"] == published["repeated"]["url"]


def test_private_means_private(published, server):
    assert repository(server, "acme/secret").private and not repository(server, "acme/outfits").private


def test_weights_of_an_earlier_publish_do_not_stay(published, server):
    assert len([name for name in published["other weights"]["files"] if name.endswith(".safetensors")]) > 1
    files = set(published["after other weights"])
    assert {name for name in files if "safetensors" in name} == {"model.safetensors"}
    assert {*INITIAL, "README.md"} <= files and "training_record.json" not in files
    assert len(repository(server, "acme/changing").messages) == 3


@pytest.mark.parametrize("name", ["acme/outfits", "acme/pipeline", "again"])
def test_a_stranger_gets_the_scores_of_the_installed_package_by_the_name_of_the_repository(received, name, expected):
    assert close(received[name], expected)


def test_a_ranker_that_was_pushed_answers_alone(received, model_folder, expected):
    completer = load_completer(model_folder)
    alone = BundleCompleter(completer.processor, completer.ranker)
    scores = [{o["letter"]: o["score"] for o in alone.complete(question)} for question in QUESTIONS]
    assert close(received["acme/pushed"], scores)
    assert any(abs(one["A"] - both["A"]) > 1e-3 for one, both in zip(scores, expected, strict=True))


@torch.no_grad()
def test_a_stranger_gets_the_same_logits_from_the_auto_classes(received, model_folder):
    model, processor = load_ranker(model_folder)
    for question, logits in zip(QUESTIONS, received["logits"], strict=True):
        inputs = processor(question, return_tensors="pt")
        assert torch.allclose(model(**inputs).logits[0, -1], torch.tensor(logits), atol=1e-5)


def test_a_download_holds_the_same_bytes_and_a_valid_card(received, model_folder):
    folder = Path(received["snapshot"])
    for path in model_folder.glob("*.safetensors"):
        assert load_file(folder / path.name).keys() == load_file(path).keys()
        assert (folder / path.name).read_bytes() == path.read_bytes()
    metadata = ModelCard.load(folder / "README.md").data
    assert (metadata.library_name, metadata.pipeline_tag) == ("transformers", "text-generation")
    assert metadata.base_model == "meta-llama/Llama-2-7b-hf"
    assert {result.metric_type for result in metadata.eval_results} == {"hit_rate@1", "valid_ratio"}


def test_a_data_set_is_read_by_load_dataset(published, received, data_folder):
    data = DatasetFolder.open(data_folder)
    assert published["data set"]["url"]
    count, first = received["items"]["items"]
    assert (count, first["item_id"]) == (len(data.catalog), data.catalog.item_ids[0])
    assert {split: count for split, (count, _) in received["bundles"].items()} == {
        s: len(data.bundles[s]) for s in SPLITS
    }
    assert received["bundles"]["test"][1]["items"] == list(data.bundles.test[0].items)
    questions = load_questions(data_folder / "questions" / "test-uniform.jsonl", data.catalog)
    assert set(received["questions"]) == {"test_uniform", "validation_uniform"}
    count, first = received["questions"]["test_uniform"]
    assert count == len(questions) and first["candidates"] == list(questions[0].candidates)


def test_a_download_of_a_data_set_is_the_same_dataset_folder(received, data_folder):
    ours, theirs = DatasetFolder.open(data_folder), DatasetFolder.open(received["data snapshot"])
    assert theirs.catalog.item_ids == ours.catalog.item_ids and theirs.catalog.titles == ours.catalog.titles
    assert all(theirs.bundles[split] == ours.bundles[split] for split in SPLITS)
    assert theirs.features().modalities == ours.features().modalities
    for path in (data_folder / "questions").iterdir():
        name = path.name.replace("-", "_").replace(".jsonl", ".parquet")
        assert load_questions(theirs.path / "questions" / name, theirs.catalog) == load_questions(path, ours.catalog)
    assert set(theirs.input_hashes()) > {"items.parquet", "bundles/train.parquet", "features/visual.safetensors"}


def test_a_user_log_pictures_and_local_paths_stay_at_home(published, received, data_folder):
    left_out = ["images", "interactions.csv", "columns of the items (--columns publishes them): price"]
    assert published["data set"]["left_out"] == left_out
    folder = Path(received["data snapshot"])
    assert not list(folder.rglob("interactions*")) and not (folder / "images").exists()
    manifest = (folder / "features" / "manifest.json").read_text()
    assert str(data_folder.parent) not in manifest and "clip" not in manifest


def test_what_trl_leaves_in_a_folder_stays_at_home(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    for name in ("training_args.bin", "README.md", "trainer_state.json", "checkpoint-5/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x80\x04not for others")
    report = publish(folder, "acme/outfits", dry_run=True)
    assert {"training_args.bin", "README.md", "trainer_state.json", "checkpoint-5"} <= set(report.left_out)
    assert not {"training_args.bin", "trainer_state.json"} & set(report.files)
    assert (report.folder / "README.md").read_text().startswith("---")


def spoil_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_free_text_of_records_settings_and_weights_reaches_neither_card_nor_repository(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    secrets = {"note": "hf_SecretTokenOfAlice", "bucket": "s3://alice-bucket/x", "log": "../alice/run.log"}
    record = json.loads((folder / "run.json").read_text())
    record["settings"] |= {**secrets, "base_model": "runs/alice/llama", "data": "runs/alice"}
    record["settings"]["stage_one"] |= {**secrets, "lr_scheduler_type": "hf_TokenOfAlice", "trains": ["s3://alice"]}
    spoil_json(folder / "run.json", **{**record, **secrets, "inputs": {"../alice/items.jsonl": "f" * 64}})
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json"):
        spoil_json(folder / name, **secrets, _name_or_path="alice/model", name_or_path="/home/alice/model")
    config = json.loads((folder / "config.json").read_text())
    spoil_json(folder / "config.json", auto_map={**config["auto_map"], "AutoX": "alice/repo--x.X"})
    for path in folder.glob("*.safetensors"):
        save_file(load_file(path), path, metadata={"format": "pt", **secrets})
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    (folder / "items.jsonl").write_text("".join(json.dumps(item | secrets) + "\n" for item in items))
    shutil.rmtree(folder / "report")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics |= {**secrets, "fingerprint": fingerprint(folder), "model": "runs/alice", "data": "s3://alice"}
    metrics["questions"] |= {"path": "s3://alice/q", **secrets}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    report = publish(folder, "acme/outfits", dry_run=True)
    assert report.verification is not None and report.verification.largest_difference <= 1e-5
    for name in report.files:
        assert b"alice" not in (report.folder / name).read_bytes().lower(), name
    assert json.loads((report.folder / "metrics.json").read_text())["fingerprint"] == fingerprint(report.folder)


def test_encoders_that_others_can_make_go_along_and_columns_stay_at_home(model_folder, tmp_path):
    left_out = shutil.ignore_patterns("metrics*", "report")  # of other items
    folder = shutil.copytree(model_folder, tmp_path / "model", ignore=left_out)
    (folder / "catalog.parquet").write_bytes(b"prices of alice")
    tfidf = TfidfEncoder()
    values = {"vocabulary": ["blue", "shirt"], "known_words": 4, "words": 5, "note": "alice"}
    tfidf.fitted = FittedState(values, {"idf": np.ones(2), "vectors": np.eye(2)})
    save_encoder(folder / "encoders", tfidf, "tfidf")
    save_encoder(folder / "encoders", ImageDescriptor(), "descriptor")
    save_encoder(folder / "encoders", SoundDescriptor(), f"laion:{tmp_path}/alice.pt")
    (folder / "encoders" / "attributes.json").write_text('{"encoder": "a", "spec": "b", "fitted": {"x": "alice"}}')
    (folder / "group_names.json").write_text('{"textual": ["alice", "blue", "jeans", "shirt", "secret"]}')
    report = publish(folder, "acme/outfits", dry_run=True, allow_no_metrics=True)
    published = {name for name in report.files if "encoders/" in name or name == "group_names.json"}
    textual = {"encoders/textual.json", "encoders/textual.safetensors"}
    assert published == {"encoders/visual.json", "group_names.json", *textual}
    assert "catalog.parquet" in report.left_out
    for name in report.files:
        assert b"alice" not in (report.folder / name).read_bytes().lower(), name
    names = json.loads((report.folder / "group_names.json").read_text())
    assert names == {"textual": ["", "blue", "jeans", "shirt", ""]}
    [entry] = find_item_encoder(str(report.folder)).encode_items([{"title": "a blue dress"}])
    assert entry["features"]["textual"][:2] == [1, 0] and entry.groups == {"textual": [1]}
    (folder / "encoders" / "textual.safetensors").write_bytes(b"cut")
    with pytest.raises(BundleMLLMError, match=r"textual\.safetensors is of another encoding"):
        publish(folder, "acme/outfits", dry_run=True, allow_no_metrics=True)


def test_files_that_need_no_change_are_published_as_they_are(model_folder, tmp_path):
    report = publish(model_folder, "acme/outfits", dry_run=True, output_dir=tmp_path / "hub")
    own = {path.name: path.read_bytes() for path in model_folder.iterdir() if path.name in report.files}
    assert {"config.json", "processor_config.json", "tokenizer_config.json", "items.jsonl"} <= own.keys()
    changed = [name for name, content in own.items() if (report.folder / name).read_bytes() != content]
    assert changed == ["metrics.json"]


def test_the_retriever_is_checked_and_published_with_the_ranker(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "retriever" / "optimizer.pt").write_bytes(b"\x80\x02not for others")
    report = publish(folder, "acme/outfits", dry_run=True)
    names = ("config.json", "model.safetensors", "retriever_bundle_mllm.py")
    assert {f"retriever/{name}" for name in names} <= set(report.files)
    assert "retriever/optimizer.pt" in report.left_out and "retriever" not in report.left_out
    assert load_completer(report.folder).parts == ("ranker", "retriever", "both")
    for name in names:
        content = (folder / "retriever" / name).read_bytes()
        (folder / "retriever" / name).unlink()
        with pytest.raises(BundleMLLMError, match=r"retriever (has no|holds no)"):
            publish(folder, "acme/outfits", dry_run=True)
        (folder / "retriever" / name).write_bytes(content)
    (folder / "retriever" / "retriever_bundle_mllm.py").write_text("print('hello')")
    with pytest.raises(BundleMLLMError, match="is not the code of this version"):
        publish(folder, "acme/outfits", dry_run=True)


@pytest.mark.parametrize("is_alone", [False, True], ids=["beside a ranker", "alone"])
def test_a_retriever_that_holds_a_user_log_is_published_only_when_asked_for(model_folder, tmp_path, is_alone):
    completer, retriever = load_completer(model_folder), make_retriever(groups={"user_item": [[0, 1, 2], [5, 6]]})
    if is_alone:
        completer = BundleCompleter(make_item_processor(), retriever=retriever)
    else:
        completer = BundleCompleter(completer.processor, completer.ranker, retriever)
    completer.save_pretrained(tmp_path / "model")
    options = {"dry_run": True, "allow_no_metrics": True}
    with pytest.raises(BundleMLLMError, match=r"5 pairs of user and item.*--share-user-log"):
        publish(tmp_path / "model", "acme/logs", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    report = publish(tmp_path / "model", "acme/logs", share_user_log=True, **options)
    assert report.verification is not None
    card = ModelCard.load(report.folder / "README.md")
    assert "5 pairs of item and user" in str(card)
    assert card.data.pipeline_tag == ("feature-extraction" if is_alone else "text-generation")
    assert ("tokenizer.json" in report.files) == (not is_alone)


@pytest.mark.parametrize("name", ["outfits", "a/b/c", "acme/", "acme/out fits", "acme/-outfits", "/some/out", ""])
def test_a_name_that_is_none_is_refused(model_folder, tmp_path, name):
    with pytest.raises(BundleMLLMError, match=r"is not the name of a Hub repository.*owner/name"):
        publish(model_folder, name, dry_run=True, output_dir=tmp_path / "out")


def test_all_parts_are_read_from_one_revision_with_the_token_that_is_given(server, tmp_path):
    expected, folders = [], []
    for number in range(2):
        completer = make_completer()
        completer.retriever.towers.cosine_weight.data += number
        completer = BundleCompleter(completer.processor, completer.ranker, completer.retriever)
        folders.append(str(tmp_path / str(number)))
        completer.save_pretrained(Path(folders[-1]))
        answers = completer.complete(QUESTIONS[0], explain=True)
        expected.append({answer["item_id"]: answer["explanation"]["retriever"] for answer in answers})
    found = act("reader", server, tmp_path / "home", folders=folders, question=QUESTIONS[0])
    for name, which in {"0": 0, "1": 1, "newest": 1}.items():
        assert found[f"completer {name}"] == pytest.approx(expected[which], abs=1e-4)
        assert found[f"pipeline {name}"] == pytest.approx(expected[which], abs=1e-4)
    assert expected[0] != pytest.approx(expected[1], abs=1e-2)
    assert found["not downloaded"].startswith("error: ")

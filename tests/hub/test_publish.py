"""Publishing over real HTTP: what becomes visible, what a stranger gets, and what goes wrong cleanly."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, HubServer
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny_models import MODALITIES
from transformers import pipeline

from bundle_mllm.data import SPLITS, DatasetFolder, load_questions
from bundle_mllm.encoders import encode_folder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.publish import publish
from bundle_mllm.model_folder import fingerprint, load_model, save_model
from bundle_mllm.training.backbone import build_model
from bundle_mllm.training.config import default_run

NEW_ITEM = {"title": "new hat", "features": {name: [0.5] * width for name, width in MODALITIES.items()}}
ASKED = [
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
    model, processor = load_model(model_folder)
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
    return act("stranger", server, work / "home", questions=ASKED, repositories=repositories)


@pytest.fixture(scope="module")
def expected(model_folder):
    completer = pipeline("bundle-completion", model=str(model_folder), device="cpu")
    return [{option["letter"]: option["score"] for option in completer(question)} for question in ASKED]


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
    assert report["left_out"] == ["metrics.questions.jsonl", "training"]


def test_the_record_and_the_metrics_name_no_folder_of_this_machine(published, model_folder):
    files = published["dry run folder"]
    assert (
        json.loads(files["training_record.json"])["settings"]["data"]
        == Path(json.loads((model_folder / "run.json").read_text())["settings"]["data"]).name
    )
    assert json.loads(files["metrics.json"])["questions"]["path"] == "test_hard.jsonl"
    assert str(model_folder.parent) not in "".join(files.values())


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


@pytest.mark.parametrize("name", ["acme/outfits", "acme/pushed", "acme/pipeline", "again"])
def test_a_stranger_gets_the_scores_of_the_installed_package_by_the_name_of_the_repository(received, name, expected):
    assert close(received[name], expected)


@torch.no_grad()
def test_a_stranger_gets_the_same_logits_from_the_auto_classes(received, model_folder):
    model, processor = load_model(model_folder)
    for question, logits in zip(ASKED, received["logits"], strict=True):
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
    assert (count, first["item_id"], first["price"]) == (len(data.catalog), data.catalog.item_ids[0], "7")
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
    assert published["data set"]["left_out"] == ["images", "interactions.csv"]
    folder = Path(received["data snapshot"])
    assert not list(folder.rglob("interactions*")) and not (folder / "images").exists()
    manifest = (folder / "features" / "manifest.json").read_text()
    assert str(data_folder.parent) not in manifest and '"clip"' in manifest


def test_what_trl_leaves_in_a_folder_and_names_of_local_folders_stay_at_home(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    for name in ("training_args.bin", "README.md", "trainer_state.json", "checkpoint-5/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x80\x04not for others")
    record = json.loads((folder / "run.json").read_text()) | {"base_model_is_folder": True}
    record["settings"]["base_model"] = "../../private/llama"
    record["note"] = f"made in {tmp_path}/model by hand"
    (folder / "run.json").write_text(json.dumps(record))
    report = publish(folder, "acme/outfits", dry_run=True)
    assert {"training_args.bin", "README.md", "trainer_state.json", "checkpoint-5"} <= set(report.left_out)
    assert not {"training_args.bin", "trainer_state.json"} & set(report.files)
    assert (report.folder / "README.md").read_text().startswith("---")
    text = (report.folder / "training_record.json").read_text()
    assert json.loads(text)["settings"]["base_model"] == "llama" and "private" not in text + str(report.files)
    assert json.loads(text)["note"] == "made in model by hand"


@pytest.mark.parametrize("name", ["outfits", "a/b/c", "acme/", "acme/out fits", "acme/-outfits", "/some/out", ""])
def test_a_name_that_is_none_is_refused(model_folder, tmp_path, name):
    with pytest.raises(BundleMLLMError, match=r"is not the name of a Hub repository.*owner/name"):
        publish(model_folder, name, dry_run=True, output_dir=tmp_path / "out")


def test_a_model_that_holds_a_user_log_is_published_only_when_told_to(tiny_data, tmp_path):
    for file in ("items.jsonl", "bundles.jsonl"):
        (tmp_path / file).symlink_to(tiny_data / file)
    items = [item.item_id for item in DatasetFolder.open(tiny_data).catalog]
    pairs = [f"u{user},{items[(user + step) % len(items)]}" for user in range(20) for step in (1, 2, 5)]
    (tmp_path / "interactions.csv").write_text("user_id,item_id\n" + "\n".join(pairs) + "\n")
    encode_folder(tmp_path, relational="user_item:svd")
    run = default_run("scratch", data=tmp_path, output_dir=tmp_path / "out")
    save_model(*build_model(run, DatasetFolder.open(tmp_path)), tmp_path / "model")
    settings = {"dry_run": True, "allow_no_metrics": True, "output_dir": tmp_path / "hub"}
    with pytest.raises(BundleMLLMError, match=r"60 pairs of user and item.*--share-user-log"):
        publish(tmp_path / "model", "acme/logs", **settings)
    assert not (tmp_path / "hub").exists()
    assert publish(tmp_path / "model", "acme/logs", share_user_log=True, **settings).verification
    assert "60 pairs of item and user" in (tmp_path / "hub" / "README.md").read_text()

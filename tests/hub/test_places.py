"""Paths of this machine are found wherever they stand, and what only looks like one passes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bundle_mllm.data import write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.places import Places


@pytest.fixture
def here(tmp_path):
    """A folder that exists and is neither home, working nor temporary folder of the process."""
    (tmp_path / "secret").mkdir()
    return tmp_path / "secret"


@pytest.mark.parametrize(
    "text",
    [
        "{here}",
        "local-dir:{here}/gone",
        "made from {here}/gone by hand",
        "({here})",
        "file:///elsewhere/x.png",
        "see FILE://host/x",
        "../x",
        "../../x/y",
        "~/x",
        "{home}/gone",
        "{work}",
    ],
)
def test_a_place_on_this_machine_is_found_within_a_text(here, text):
    text = text.format(here=here, home=Path.home(), work=Path.cwd())
    found = Places().find(text)
    assert found is not None and found in text
    assert found not in Places().reduce({"note": text})["note"]


@pytest.mark.parametrize(
    "text",
    [
        "/dev/null tee",
        "/dev/null",
        "a/b",
        "AC/DC",
        "/tmp tee",
        "https://example.com{here}",
        "home/garden",
        "/home/garden-chairs",
        "../",
        "either ../or",
        "w/o sleeves",
        "~/ tee",
        "/Home/Kitchen",
        "50 % off / new",
        "/",
        "//",
        "{# see </s> and /* x */ #}",
        "",
    ],
)
def test_what_only_looks_like_a_path_passes(here, text):
    text = text.replace("{here}", str(here))
    assert Places().find(text) is None


def test_a_record_keeps_the_last_part_of_each_path_also_of_relative_ones():
    record = {"settings": {"base_model": "../../x/llama", "data": "runs/shop"}, "files": ["/some/where/q.jsonl"]}
    assert Places().reduce(record) == {"settings": {"base_model": "llama", "data": "shop"}, "files": ["q.jsonl"]}
    assert Places().reduce({"base_model": "org/name"}) == {"base_model": "org/name"}
    assert Places().reduce({"base_model": "org/name"}, ["base_model"]) == {"base_model": "name"}


def write_metadata(path, text):
    save_file({"x": torch.zeros(1)}, path, metadata={"made": text})


WRITERS = {
    "items.jsonl": lambda path, text: write_records(path, [{"item_id": "i0"}, {"item_id": "i1", "note": [text]}]),
    "items.parquet": lambda path, text: write_records(path, [{"item_id": "i0"}, {"item_id": "i1", "note": [text]}]),
    "config.json": lambda path, text: path.write_text(json.dumps({"made": {"by": text}})),
    "weights.safetensors": write_metadata,
    "model_bundle_mllm.py": lambda path, text: path.write_text(f"import x\n# from {text}\n"),
    "chat_template.jinja": lambda path, text: path.write_text(f"{{# {text} #}}"),
}
PLACES = {
    "items.jsonl": "row 2 .item_id 'i1'., column 'note'",
    "items.parquet": "row 2 .item_id 'i1'., column 'note'",
    "config.json": "field 'by'",
    "weights.safetensors": "metadata 'made'",
    "model_bundle_mllm.py": "line 2",
    "chat_template.jinja": "line 1",
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_file_and_the_place_in_it_are_named(tmp_path, here, name):
    folder = tmp_path / "repository"
    folder.mkdir()
    WRITERS[name](folder / name, "/dev/null tee")
    Places().check(folder)
    WRITERS[name](folder / name, f"{here}/x")
    with pytest.raises(BundleMLLMError, match=f"{name}, {PLACES[name]}.* names .*secret/x.*: remove it"):
        Places().check(folder)


def test_a_tokenizer_that_names_a_local_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "models" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"name_or_path": "models/llama"}')
    with pytest.raises(BundleMLLMError, match=r"field 'name_or_path', names 'models/llama'"):
        Places().check(tmp_path)

import json

import pytest

from bundle_mllm.data.files import sha256
from bundle_mllm.data.manifest import read_question_manifest, write_question_manifest
from bundle_mllm.errors import BundleMLLMError

MADE = {"split": "validation", "num_candidates": 10, "negatives": "hard", "seed": 42}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question_id": "b-0"}\n')
    return path


def test_a_question_file_is_identified_by_its_hash_and_how_it_was_made(file):
    assert read_question_manifest(file) == {"path": str(file), "sha256": sha256(file)}
    assert write_question_manifest(file, MADE).name == "q.jsonl.json"
    assert read_question_manifest(file) == {"path": str(file), "sha256": sha256(file), "made": MADE}


def test_the_same_file_and_settings_give_the_same_note(file, tmp_path):
    first = write_question_manifest(file, MADE).read_bytes()
    assert write_question_manifest(file, MADE).read_bytes() == first
    assert str(tmp_path) not in first.decode()


def test_a_changed_question_file_is_refused(file):
    write_question_manifest(file, MADE)
    file.write_text('{"question_id": "b-1"}\n')
    with pytest.raises(BundleMLLMError, match=r"q\.jsonl is not the file .* was changed after it was made"):
        read_question_manifest(file)


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"sha256": "x"}), "[" * 50_000])
def test_a_note_without_content_is_refused(file, text):
    file.with_name("q.jsonl.json").write_text(text)
    with pytest.raises(BundleMLLMError, match="does not hold how"):
        read_question_manifest(file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BundleMLLMError, match="no file"):
        read_question_manifest(tmp_path / "q.jsonl")


@pytest.mark.parametrize("digest", [7, None, ["a"], {"a": 1}])
def test_a_hash_of_another_type_is_refused(file, digest):
    file.with_name("q.jsonl.json").write_text(json.dumps({"sha256": digest, "made": MADE}))
    with pytest.raises(BundleMLLMError, match=r"q\.jsonl is not the file"):
        read_question_manifest(file)

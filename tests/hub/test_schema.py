"""A schema lets numbers pass, and text in fields that it names; everything else is left out."""

import re

import pytest

from bundle_mllm.hub.records import FEATURES, METRICS, RUN, VERSIONS
from bundle_mllm.hub.schema import (
    NAME,
    WithheldError,
    digest,
    hub_name,
    label,
    nested,
    number,
    numbers,
    rebuild,
    table_name,
    text,
    version,
    word,
)
from bundle_mllm.settings import as_dict
from bundle_mllm.training.config import default_run


@pytest.mark.parametrize(
    ("kind", "passes", "withheld"),
    [
        (number, [1, 0.5, True, None], ["1", [1], {}]),
        (digest, ["0" * 64], ["0" * 63, "G" * 64, 1, None]),
        (version, ["5.24.0", "2.13.0+cpu", "1.0.dev3"], ["latest", "1.0 of alice", "1/2"]),
        (word, ["float32", "bundle_item", "adamw-torch"], ["hf_AbCd", "a/b", "two words", "a" * 33, ""]),
        (hub_name, ["gpt2", "meta-llama/Llama-2-7b-hf"], ["/models/llama", "a/b/c", "../llama", "C:\\llama"]),
        (label, ["stage two, features shuffled", "gpt-2 (small)"], ["a/b", "<b>", "s3://x", "`x`", "a\nb"]),
        (text, ["", "any <b>"], [1, None, ["a"]]),
    ],
)
def test_a_kind_passes_values_of_its_form_alone(kind, passes, withheld):
    assert [kind(value) for value in passes] == passes
    for value in withheld:
        with pytest.raises(WithheldError):
            kind(value)


def test_what_does_not_fit_is_left_out_and_the_rest_stays():
    schema = {"seed": number, "names": [word], re.compile("n_.*"): number, "inner": {"sha": digest}}
    value = {"seed": "x", "names": ["a", "B C"], "n_1": 3, "note": "free text", "inner": {"sha": "f" * 64, "by": "me"}}
    assert rebuild(value, schema) == {"n_1": 3, "inner": {"sha": "f" * 64}}
    assert rebuild({"seed": 1, "names": ["a"], "inner": []}, schema) == {"seed": 1, "names": ["a"]}
    with pytest.raises(WithheldError):
        rebuild(["seed"], schema)


def test_numbers_pass_in_any_depth_under_plain_names():
    value = {"A": 1, "6-10": [0.5, None], "hit_rate@1_se": {"11+": float("nan")}}
    assert numbers(value) == {"A": 1, "6-10": [0.5, None], "hit_rate@1_se": {"11+": None}}
    assert numbers({"</td><script>": 1, "s3://x": 2, "a": {"b": "text"}}) == {"a": {}}
    assert nested(word, NAME)({"a": ["b", {"c": "d"}], "e": ["F G"]}) == {"a": ["b", {"c": "d"}]}


@pytest.mark.parametrize(
    ("path", "name"), [("/home/alice/q.jsonl.gz", "q.jsonl.gz"), ("C:\\alice\\test_hard.parquet", "test_hard.parquet")]
)
def test_of_the_path_of_a_table_the_last_part_passes(path, name):
    assert table_name(path) == name
    with pytest.raises(WithheldError):
        table_name("s3://alice-bucket")


def test_every_setting_of_a_run_is_published_but_those_that_are_paths(tmp_path):
    settings = as_dict(default_run("org/llama", data=tmp_path, output_dir=tmp_path / "out"))
    assert rebuild({"settings": settings}, RUN)["settings"].keys() >= settings.keys() - {
        "data",
        "output_dir",
        "relations",
    }
    for step in ("retriever", "stage_one", "stage_two", "fusion"):
        assert rebuild({"settings": settings}, RUN)["settings"][step] == settings[step]


def test_metrics_keep_breakdowns_and_parts_and_lose_where_they_were_made():
    metrics = {
        "hit_rate@1": 0.5, "model": "/out", "data": "/data", "slices": {"answer": {"cold": {"mrr": 0.1}}},
        "parts": {"ranker": {"hit_rate@1": 0.25}, "other": {}}, "fingerprint": "x",
    }  # fmt: skip
    assert rebuild(metrics, METRICS) == {
        "hit_rate@1": 0.5, "slices": {"answer": {"cold": {"mrr": 0.1}}}, "parts": {"ranker": {"hit_rate@1": 0.25}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("encoder", "is_published"),
    [
        ("tfidf-2 (64 wide)", True),
        ("bundle-item svd-2, 10 folds", True),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", True),
        ("transformers:openai/clip-vit-base-patch32", True),
        ("folder:/home/alice/clip", False),
        ("made by alice", False),
    ],
)
def test_the_encoder_of_features_is_published_in_the_forms_that_encode_writes(encoder, is_published):
    entry = {"visual": {"dim": 4, "provenance": {"encoder": encoder, "versions": {"torch": "2.8.0"}}}}
    assert ("encoder" in rebuild(entry, FEATURES)["visual"]["provenance"]) == is_published


def test_versions_are_versions():
    assert rebuild({"torch": "2.13.0+cpu", "python": "3.11.7", "host": "alice"}, VERSIONS) == {
        "torch": "2.13.0+cpu", "python": "3.11.7",
    }  # fmt: skip

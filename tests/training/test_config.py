"""Settings of a run: recipes, YAML values, and mistakes in them."""

import dataclasses
from pathlib import Path

import pytest

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.training.config import as_dict, default_run, read_overrides, with_overrides

DATA, OUT = Path("data"), Path("out")


def test_a_pretrained_backbone_gets_the_papers_recipe():
    run = default_run("org/llm", data=DATA, output_dir=OUT)
    assert run.stage_one.trains == ("lora",)
    assert run.stage_two.trains == ("fusion", "projector", "separator")
    assert (run.stage_one.lora.r, run.stage_one.lora.alpha, run.stage_one.lora.dropout) == (8, 16, 0.05)
    assert run.stage_one.lora.target_modules is None  # query and value, whatever the backbone calls them
    assert run.stage_one.learning_rate == run.stage_two.learning_rate == 3e-4
    assert (run.stage_one.shows_items, run.stage_two.shows_items) == (False, True)
    assert not run.fusion.standardize_features


def test_a_scratch_backbone_trains_in_full():
    run = default_run("scratch", data=DATA, output_dir=OUT)
    assert "backbone" in run.stage_one.trains
    assert "lora" not in run.stage_one.trains + run.stage_two.trains


def test_nested_values_replace_defaults_and_leave_the_rest():
    run = default_run("scratch", data=DATA, output_dir=OUT)
    values = {"seed": 3, "stage_one": {"learning_rate": "1e-4", "num_candidates": [2, 5], "lora": {"r": 4}}}
    changed = with_overrides(run, values)
    assert (changed.seed, changed.stage_one.learning_rate, changed.stage_one.num_candidates) == (3, 1e-4, (2, 5))
    assert changed.stage_one.lora.r == 4
    assert changed.stage_two == run.stage_two


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stage_3": {}}, "Unknown setting 'stage_3'"),
        ({"stage_one": {"lerning_rate": 1}}, "Unknown setting 'stage_one.lerning_rate'"),
        ({"stage_one": 5}, "stage_one is a group of settings"),
        ({"seed": "three"}, "seed must be of type int"),
        ({"stage_one": {"learning_rate": "fast"}}, "stage_one.learning_rate must be a number"),
        ({"stage_one": {"num_candidates": 10}}, "stage_one.num_candidates must be a list"),
        ({"stage_one": {"num_candidates": [10, 27]}}, "2 to 26 options"),
        ({"stage_one": {"num_candidates": [10]}}, "stage_one.num_candidates must be a list of 2"),
        ({"stage_two": {"trains": ["fusion", "projecter"]}}, "stage_two.trains must be one of .*, not 'projecter'"),
        ({"stage_one": {"max_tokens": "many"}}, "stage_one.max_tokens must be of type int, not 'many'"),
        ({"modalities": "visual"}, "modalities must be a list, not 'visual'"),
        ({"dtype": "float99"}, "dtype must be one of 'float32', 'bfloat16', 'auto', not 'float99'"),
        ({"seed": None}, "seed must be of type int, not None"),
        ({"stage_two": {"batch_size": 0}}, "stage_two.batch_size is 0, so no step"),
        ({"stage_two": {"num_questions": 3}}, "less than one batch"),
        ({"stage_two": {"trains": []}}, "stage_two.trains is empty"),
        ({"relations": ["user_items"]}, r"\['user_items'\] have no groups.*choose from bundle_category"),
    ],
)
def test_a_wrong_value_is_named(values, said):
    with pytest.raises(BundleMLLMError, match=said):
        with_overrides(default_run("scratch", data=DATA, output_dir=OUT), values)


def test_what_may_be_left_out_may_be_null():
    run = default_run("scratch", data=DATA, output_dir=OUT)
    values = {"num_threads": None, "stage_one": {"max_tokens": None}, "fusion": {"matching_hidden_size": None}}
    changed = with_overrides(run, values)
    assert run.num_threads and run.stage_one.max_tokens and run.fusion.matching_hidden_size
    assert (changed.num_threads, changed.stage_one.max_tokens, changed.fusion.matching_hidden_size) == (None,) * 3


def test_a_yaml_file_is_read_and_a_broken_one_is_refused(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 7\nstage_one:\n  batch_size: 8\n")
    assert read_overrides(file) == {"seed": 7, "stage_one": {"batch_size": 8}}
    file.write_text("seed: [")
    with pytest.raises(BundleMLLMError, match="not valid YAML"):
        read_overrides(file)
    with pytest.raises(BundleMLLMError, match="does not exist"):
        read_overrides(tmp_path / "absent.yaml")


def test_what_is_recorded_can_be_given_back_as_overrides():
    run = default_run("scratch", data=DATA, output_dir=OUT)
    recorded = as_dict(run)
    assert recorded["data"] == "data"
    assert with_overrides(default_run("org/llm", data=DATA, output_dir=OUT), recorded) == run


def test_a_matching_that_nothing_would_train_is_refused():
    run = default_run("scratch", data=DATA, output_dir=OUT)
    with pytest.raises(BundleMLLMError, match="alignment_steps"):
        dataclasses.replace(run, stage_two=dataclasses.replace(run.stage_two, alignment_steps=0))

"""Settings of a run: recipes, values of YAML files, and mistakes in them."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_models import make_processor

from bundle_mllm.data.questions import Question
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.settings import as_dict, read_overrides, with_overrides
from bundle_mllm.training.config import MEMBERSHIPS, AddRetrieverSettings, RunConfig, StageTwoConfig, default_run
from bundle_mllm.training.run import within_budget

DATA, OUT = Path("data"), Path("out")


def recipe(base_model: str = "scratch") -> RunConfig:
    return default_run(base_model, data=DATA, output_dir=OUT)


def test_folders_may_be_texts():
    assert default_run("scratch", data="data", output_dir="out") == recipe()


def test_a_pretrained_backbone_gets_the_papers_recipe():
    run = recipe("org/llm")
    assert run.stage_one.trains == ("lora",)
    assert run.stage_two.trains == ("fusion", "projector", "separator")
    assert (run.stage_one.lora.r, run.stage_one.lora.alpha, run.stage_one.lora.dropout) == (8, 16, 0.05)
    assert run.stage_one.lora.target_modules is None  # query and value, whatever the backbone calls them
    assert run.stage_one.learning_rate == run.stage_two.learning_rate == 3e-4
    assert (run.stage_one.shows_items, run.stage_two.shows_items) == (False, True)
    assert run.stage_one.warm_start_steps == run.stage_two.warm_start_steps == 0
    assert not run.fusion.standardize_features


def test_a_scratch_backbone_trains_in_full():
    run = recipe()
    assert "backbone" in run.stage_one.trains
    assert "lora" not in run.stage_one.trains + run.stage_two.trains


@pytest.mark.parametrize(
    ("base_model", "changes", "ranker", "retriever"),
    [
        ("scratch", {}, True, True),
        ("org/llm", {}, True, True),
        ("none", {}, False, True),
        ("scratch", {"no_retriever": True}, True, False),
        ("scratch", {"retriever": {"steps": 0}}, True, False),
    ],
)
def test_a_run_trains_ranker_and_retriever_unless_one_is_left_out(base_model, changes, ranker, retriever):
    run = with_overrides(recipe(base_model), changes)
    assert (run.trains_ranker, run.trains_retriever) == (ranker, retriever)


@pytest.mark.parametrize("changes", [{"no_retriever": True}, {"retriever": {"steps": 0}}])
def test_a_run_that_trains_nothing_is_refused(changes):
    with pytest.raises(BundleMLLMError, match="nothing would be trained"):
        with_overrides(recipe("none"), changes)


def test_nested_values_replace_defaults_and_leave_the_rest():
    run = recipe()
    values = {"seed": 3, "stage_one": {"learning_rate": "1e-4", "num_candidates": [2, 5], "lora": {"r": 4}}}
    changed = with_overrides(run, values)
    assert (changed.seed, changed.stage_one.learning_rate, changed.stage_one.num_candidates) == (3, 1e-4, (2, 5))
    assert changed.stage_one.lora.r == 4
    assert changed.stage_two == run.stage_two


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stage_3": {}}, "Unknown setting 'stage_3'"),
        ({"stage_one": {"lerning_rate": 1}}, "Unknown setting 'stage_one.lerning_rate'"),
        ({"stage_one": 5}, "stage_one is a group of settings"),
        ({"seed": "three"}, "seed must be of type int"),
        ({"stage_one": {"learning_rate": "fast"}}, "stage_one.learning_rate must be a number"),
        ({"stage_one": {"learning_rate": 0}}, "stage_one.learning_rate is 0.0"),
        ({"stage_two": {"learning_rate": "nan"}}, "stage_two.learning_rate must be a number, not 'nan'"),
        ({"retriever": {"learning_rate": -1}}, "retriever.learning_rate is -1.0, .*: give a positive number"),
        ({"stage_two": {"learning_rate": "inf"}}, "stage_two.learning_rate is inf"),
        ({"stage_two": {"weight_decay": -0.1}}, "stage_two.weight_decay is -0.1, .*: give 0 or more"),
        ({"stage_one": {"warmup_ratio": 3}}, "stage_one.warmup_ratio is 3.0, .*: give 0 to 1"),
        ({"stage_one": {"lora": {"dropout": 1}}}, r"stage_one.lora.dropout is 1.0, .*: give 0 to \.99"),
        ({"stage_one": {"max_tokens": 0}}, "stage_one.max_tokens is 0"),
        ({"stage_one": {"num_questions": -1}}, "stage_one.num_questions is -1"),
        ({"fusion": {"fusion_hidden_size": 0}}, "fusion.fusion_hidden_size is 0"),
        ({"retriever": {"hard_fraction": -0.5}}, "retriever.hard_fraction is -0.5"),
        ({"retriever": {"num_questions": 0}}, "retriever.num_questions is 0, so no batch"),
        ({"validation_candidates": 1}, "validation_candidates is 1, .*: give 2 or more"),
        ({"stage_one": {"num_candidates": 10}}, "stage_one.num_candidates must be a list"),
        ({"stage_one": {"num_candidates": [10, 27]}}, "2 to 26 options"),
        ({"stage_one": {"num_candidates": [10]}}, "stage_one.num_candidates must be a list of 2"),
        ({"stage_two": {"trains": ["fusion", "projecter"]}}, "stage_two.trains must be one of .*, not 'projecter'"),
        ({"stage_one": {"max_tokens": "many"}}, "stage_one.max_tokens must be of type int, not 'many'"),
        ({"modalities": "visual"}, "modalities must be a list, not 'visual'"),
        ({"dtype": "float99"}, "dtype must be one of 'float32', 'bfloat16', 'auto', not 'float99'"),
        ({"seed": None}, "seed must be of type int, not None"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"stage_two": {"batch_size": 0}}, "stage_two.batch_size is 0, .*: give 1 or more"),
        ({"stage_two": {"num_questions": 3}}, "less than one batch"),
        ({"stage_two": {"trains": []}}, "stage_two.trains is empty"),
        ({"scoring": "options"}, 'scoring is "options", which'),
        ({"stage_one": {"num_questions": 32, "copy_questions": 40}}, "copy_questions is 40, but .* the 32 training"),
        (
            {"base_model": "x", "scoring": "options", "stage_one": {"copy_questions": 8}},
            "copy_questions teach letters",
        ),
        ({"max_title_tokens": 0}, "max_title_tokens is 0"),
        ({"stage_one": {"lora": {"upper_layers": 0}}}, "stage_one.lora.upper_layers is 0"),
        ({"retriever": {"memberships": ["user_items"]}}, r"\['user_items'\] have no groups.*from attributes"),
        ({"retriever": {"num_candidates": [1, 5]}}, "retriever.num_candidates is 1–5"),
        ({"retriever": {"steps": -1}}, "retriever.steps is -1"),
        ({"retriever": {"batch_size": 0}}, "retriever.batch_size is 0"),
    ],
)
def test_a_wrong_value_is_named(values, message):
    with pytest.raises(BundleMLLMError, match=message):
        with_overrides(recipe(), values)


def test_the_settings_of_an_added_retriever_are_checked_like_those_of_a_run():
    with pytest.raises(BundleMLLMError, match="have no groups"):
        AddRetrieverSettings(OUT, DATA, retriever={"memberships": ["words"]})
    assert AddRetrieverSettings(OUT, DATA).retriever == recipe().retriever


def test_all_memberships_are_counted_by_default():
    assert recipe().retriever.memberships == MEMBERSHIPS


def test_optional_values_may_be_null():
    run = recipe()
    changed = with_overrides(run, {"num_threads": None, "stage_one": {"max_tokens": None}})
    assert run.num_threads and run.stage_one.max_tokens
    assert (changed.num_threads, changed.stage_one.max_tokens) == (None, None)


def test_a_yaml_file_is_read_and_a_broken_one_is_refused(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 7\nstage_one:\n  batch_size: 8\n")
    assert read_overrides(file) == {"seed": 7, "stage_one": {"batch_size": 8}}
    file.write_text("seed: [")
    with pytest.raises(BundleMLLMError, match="not valid YAML"):
        read_overrides(file)
    with pytest.raises(BundleMLLMError, match="does not exist"):
        read_overrides(tmp_path / "absent.yaml")


@pytest.mark.parametrize("base_model", ["scratch", "none", "org/llm"])
def test_recorded_settings_are_overrides_that_give_the_run_again(base_model):
    run = dataclasses.replace(recipe(base_model), seed=4)
    recorded = as_dict(run)
    assert recorded["data"] == "data"
    assert with_overrides(recipe("org/llm"), recorded) == run


@pytest.mark.parametrize("scoring", ["letters", "options"])
def test_the_budget_counts_what_the_ranker_reads(tiny_data, scoring):
    processor = make_processor()
    questions = [Question("q", "b", ("i0", "i1"), ("i2", "i3", "i4"), 0)]
    data = SimpleNamespace(ranker_questions=lambda stage, seed: questions)
    items = sum(map(len, processor.item_tokens([f"i{n}" for n in range(5)])[0]))  # without letters: each item alone
    [prompt] = processor(questions, show_items=True)["input_ids"]
    tokens = {"letters": len(prompt), "options": items}[scoring]
    stage = StageTwoConfig(num_questions=100, batch_size=2, gradient_accumulation_steps=1, max_tokens=20 * tokens)
    assert within_budget(stage, data, processor, 0, scoring).num_questions == 20 and items < len(prompt)

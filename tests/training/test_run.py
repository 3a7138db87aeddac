"""A run from dataset folder to model folder: what it makes, what reaches the weights, and what a kill changes."""

import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make_backbone, make_tokenizer
from tiny_training import TINY_STAGE, tiny_run, weights
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, pipeline

import bundle_mllm
from bundle_mllm.data import DatasetFolder, make_questions, save_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.evaluate import evaluate
from bundle_mllm.evaluation.metrics import compute_metrics
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.model_folder import load_completer, load_ranker
from bundle_mllm.modeling import BundleCompleter, BundleMLLMForOptionScoring
from bundle_mllm.training import run as module
from bundle_mllm.training.run import limited_threads, train
from bundle_mllm.training.run_data import RunData
from bundle_mllm.training.stage import KeepBest

pytestmark = pytest.mark.slow

assert bundle_mllm  # importing it registers the Auto classes

NO_STAGE = {"num_questions": 0}
FAST = {"stage_one": NO_STAGE, "stage_two": TINY_STAGE | {"num_questions": 8, "num_validations": 1}}


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """A run of ranker and retriever."""
    return train(tiny_run(tiny_data, tmp_path_factory.mktemp("both") / "out"))


@pytest.fixture(scope="module")
def retriever_alone(tiny_data, tmp_path_factory):
    return train(tiny_run(tiny_data, tmp_path_factory.mktemp("none") / "out", "none"))


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def differing(a, b):
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


def rewrite_bundles(folder, change):
    path = folder / "bundles.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records = [record for record in map(change, records) if record is not None]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def questions_of(data_path):
    data = DatasetFolder.open(data_path)
    return make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=4, seed=0)


# What a run makes


def test_the_record_says_how_the_folder_was_made(finished):
    record = record_of(finished)
    assert record["finished"] is True
    assert record["settings"]["seed"] == 0
    assert set(record["inputs"]) == {"items.jsonl", "bundles.jsonl", "features/visual.safetensors"}
    for stage in ("stage_one", "stage_two"):
        assert len(record[stage]) == 2
        assert {"step", "validation_hit_rate@1", "validation_num_questions"} <= set(record[stage][0])
    for part in ("retriever", "both"):
        assert record[part]["num_questions"] == 8
    assert record["combination"]["num_questions"] == 32


def test_a_finished_folder_holds_the_models_the_record_and_the_histories_alone(finished, retriever_alone):
    of_ranker = {name for name in files(finished) if not name.startswith(("training/", "retriever/"))}
    assert {"run.json", "config.json", "model.safetensors", "items.jsonl", "tokenizer.json"} < of_ranker
    of_stage_one = {"training/stage_one/model/" + name for name in of_ranker - {"run.json"}}
    histories = {"training/stage_one/history.json", "training/stage_two/history.json"}
    left = files(finished) - of_ranker - of_stage_one - histories
    assert left and all(name.startswith("retriever/") for name in left)
    assert {path.name for path in (finished / "training").iterdir()} == {"stage_one", "stage_two"}
    assert not (retriever_alone / "training").exists() and not (retriever_alone / "retriever").exists()
    assert not any(name.startswith(".") for folder in (finished, retriever_alone) for name in files(folder))


def test_both_models_load_with_the_auto_classes(finished):
    assert AutoModelForCausalLM.from_pretrained(finished).config.num_items == 32
    assert AutoModel.from_pretrained(finished, subfolder="retriever").config.num_items == 32
    processor = AutoProcessor.from_pretrained(finished)
    assert processor.item_ids[0] == "red-shirt"
    assert processor.max_options == 5  # the longest list it was trained on; longer ones are ranked in groups


def test_the_fitted_combination_is_that_of_the_folder(finished):
    combination, completer = record_of(finished)["combination"], load_completer(finished)
    assert completer.parts == ("ranker", "retriever", "both")
    assert completer.combination.ranker_weight == combination["ranker_weight"]
    assert completer.combination.temperature == combination["temperature"]


def test_the_models_of_a_run_are_calibrated_on_a_question_about_each_validation_bundle(
    finished, retriever_alone, tiny_data
):
    number = len(DatasetFolder.open(tiny_data).bundles.validation)
    for folder, parts in ((finished, {"ranker", "retriever", "both"}), (retriever_alone, {"retriever"})):
        calibration = load_completer(folder).combination.calibration
        assert {part: len(values) for part, values in calibration.conformity.items()} == dict.fromkeys(parts, number)
        assert calibration.num_candidates == 4


def test_the_figures_of_a_run_are_those_of_the_models_in_its_folder(finished, tiny_data):
    record, completer = record_of(finished), load_completer(finished)
    data = RunData(tiny_run(tiny_data, finished), DatasetFolder.open(tiny_data))
    scored = score_questions(completer, data.validation_questions)
    rates = {part: compute_metrics(questions)["hit_rate@1"] for part, questions in scored.items()}
    assert record["both"]["hit_rate@1"] == pytest.approx(rates["both"])
    assert record["retriever"]["hit_rate@1"] == pytest.approx(rates["retriever"])
    best = max(entry["validation_hit_rate@1"] for entry in record["stage_two"])
    assert rates["ranker"] == pytest.approx(best)


def test_the_ranker_of_stage_one_answers_from_titles_alone(finished, tiny_data):
    completer = load_completer(finished / "training" / "stage_one" / "model")
    questions = questions_of(tiny_data)
    assert completer.parts == ("ranker",)
    assert "<|item_" not in completer.processor.render(questions[0])
    before = score_questions(completer, questions)
    completer.ranker.model.catalog.features["visual"].zero_()
    assert score_questions(completer, questions) == before


@pytest.mark.slow
def test_a_retriever_alone_is_a_model_folder_that_completes_and_evaluates(retriever_alone, tiny_data, tmp_path):
    record, questions = record_of(retriever_alone), questions_of(tiny_data)
    assert record["retriever"]["num_questions"] == 8 and not {"both", "combination", "stage_one"} & set(record)
    assert AutoModel.from_pretrained(retriever_alone).config.model_type == "bundle_retriever"
    completer = pipeline("bundle-completion", model=str(retriever_alone))
    answers = completer({"partial": list(questions[0].partial), "candidates": list(questions[0].candidates)})
    assert {answer["item_id"] for answer in answers} == set(questions[0].candidates)
    assert len(completer({"partial": ["red-shirt"]}, top_k=3)) == 3
    save_questions(tmp_path / "q.jsonl", questions)
    evaluate(retriever_alone, tiny_data, tmp_path / "q.jsonl", output=tmp_path / "metrics.json", device="cpu")
    assert json.loads((tmp_path / "metrics.json").read_text())["parts"].keys() == {"retriever"}


@pytest.mark.slow
def test_the_papers_system_is_the_ranker_alone_trained_on_every_bundle(tiny_data, tmp_path):
    run = tiny_run(tiny_data, tmp_path / "out", no_retriever=True, **FAST)
    out = train(run)
    assert load_completer(out).parts == ("ranker",)
    assert not (out / "retriever").exists()
    assert not {"retriever", "both", "combination"} & set(record_of(out))


@pytest.mark.slow
def test_a_ranker_without_letters_trains_in_both_stages_and_answers_beside_the_retriever(folds_data, tmp_path):
    make_backbone().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    run = tiny_run(
        folds_data.path,
        tmp_path / "out",
        str(tmp_path / "base"),
        scoring="options",
        validation_questions=0,  # so that the last checkpoints are kept
        stage_one={"warm_start_steps": 0, "lora": {"upper_layers": 1}},
    )
    out = train(run)
    first, last = load_completer(out / "training/stage_one/model").ranker, load_completer(out)
    assert type(last.ranker).__name__ == "BundleMLLMForOptionScoring"
    moved = differing(first.state_dict(), last.ranker.state_dict())
    assert {name.split(".")[0] for name in moved} == {"model", "matching", "item_matching"}
    assert not any("language_model" in name for name in moved)  # frozen in stage two
    start = make_backbone().state_dict()["model.layers.1.self_attn.q_proj.weight"]
    assert not torch.equal(first.state_dict()["model.language_model.layers.1.self_attn.q_proj.weight"], start)
    scored = score_questions(last, questions_of(folds_data.path))
    assert compute_metrics(scored["ranker"])["valid_ratio"] == 1.0


@pytest.mark.slow
def test_copies_are_the_first_questions_of_stage_one_and_of_no_other(tiny_data, tmp_path, monkeypatch):
    asked, run_stage = {}, module.run_stage

    def keep(model, processor, stage, catalog, questions, *, folder, seed):
        asked[folder.name] = questions
        return run_stage(model, processor, stage, catalog, questions, folder=folder, seed=seed)

    monkeypatch.setattr(module, "run_stage", keep)
    one = TINY_STAGE | {"num_questions": 32, "copy_questions": 24}
    train(tiny_run(tiny_data, tmp_path / "out", no_retriever=True, stage_one=one))
    first, second = asked["stage_one"], asked["stage_two"]
    assert [len(first.copies), len(first.train), len(second.copies)] == [24, 8, 0]
    assert all(copy.answer in copy.partial for copy in first.copies)
    assert not any(question.answer in question.partial for question in [*first.train, *second.train])


@pytest.mark.slow
def test_stage_two_of_a_ranker_without_letters_reads_each_title_once(tiny_data, tmp_path, monkeypatch):
    make_backbone().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    read, titles = BundleMLLMForOptionScoring.read_titles, []

    def counting(self, input_ids, attention_mask):
        titles.extend(map(tuple, input_ids.tolist()))
        return read(self, input_ids, attention_mask)

    monkeypatch.setattr(BundleMLLMForOptionScoring, "read_titles", counting)
    changes = {"scoring": "options", "no_retriever": True, "stage_one": NO_STAGE, "validation_questions": 0}
    train(tiny_run(tiny_data, tmp_path / "out", str(tmp_path / "base"), **changes))
    assert len(titles) <= 3 * 32  # for the statistics, for the stage, and for the figures at the end


def test_a_short_budget_of_tokens_means_fewer_questions(tiny_data, tmp_path):
    changes = TINY_STAGE | {"max_tokens": 900, "num_questions": 80, "trains": ("separator",)}
    out = train(tiny_run(tiny_data, tmp_path / "out", no_retriever=True, stage_one=NO_STAGE, stage_two=changes))
    history = json.loads((out / "training" / "stage_two" / "history.json").read_text())
    steps = max(entry["step"] for entry in history)
    assert 1 <= steps < 80 // 8
    data, processor = DatasetFolder.open(tiny_data), AutoProcessor.from_pretrained(out)
    questions = make_questions(data.bundles.train, data.catalog, data.bundles, num_candidates=4, seed=0)
    tokens = sum(map(len, processor(questions)["input_ids"])) / len(questions)
    assert 0.5 * 900 < steps * 8 * tokens < 1.5 * 900


@pytest.mark.slow
def test_each_stage_moves_what_it_trains_and_nothing_else(tiny_data, tmp_path):
    trains = {"trains": ("fusion", "projector", "separator")}
    out = train(tiny_run(tiny_data, tmp_path / "out", no_retriever=True, stage_two=TINY_STAGE | trains))
    after_one = load_file(out / "training" / "stage_one" / "model" / "model.safetensors")
    moved = differing(after_one, load_file(out / "model.safetensors"))
    groups = ("model.fusion.", "model.projector.", "model.separator.")
    expected = {name for name in after_one if name.startswith(groups) and "statistics" not in name}
    # No item of a question lacks every modality but one, so "no features" gets a gradient only when it is shown.
    assert moved | {"model.fusion.no_features.weight"} == expected | {"model.fusion.no_features.weight"}


# What reaches the weights


def poison(folder, is_chosen):
    """Give some bundles items that no other bundle has together: one of each color, of different kinds."""
    colors, kinds = (
        ("red", "green", "blue", "black"),
        ("shirt", "skirt", "shoes", "bag", "hat", "scarf", "belt", "coat"),
    )

    def change(record):
        if not is_chosen(record):
            return record
        rng = random.Random(record["bundle_id"])
        return record | {"items": [f"{c}-{k}" for c, k in zip(colors, rng.sample(kinds, 4), strict=True)]}

    rewrite_bundles(folder, change)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["test", "validation"])
def test_test_and_validation_bundles_do_not_reach_the_retriever(retriever_alone, copied_data, tmp_path, split):
    poison(copied_data, lambda record: record["split"] == split)
    changed = train(tiny_run(copied_data, tmp_path / "out", "none"))
    assert record_of(changed)["inputs"] != record_of(retriever_alone)["inputs"]
    assert not differing(weights(changed), weights(retriever_alone))


@pytest.mark.slow
def test_held_out_and_test_bundles_do_not_reach_the_ranker(finished, copied_data, tmp_path):
    data = RunData(tiny_run(copied_data, tmp_path / "out"), DatasetFolder.open(copied_data))
    held_out = data.held_out
    assert held_out
    poison(copied_data, lambda record: record["bundle_id"] in held_out or record["split"] == "test")
    changed = train(data.settings)
    assert RunData(data.settings, DatasetFolder.open(copied_data)).held_out == held_out
    differs = differing(weights(finished), weights(changed))
    assert differs and all(name.startswith("retriever/") for name in differs)
    assert record_of(changed)["combination"] != record_of(finished)["combination"]


@pytest.mark.slow
def test_a_run_trains_on_out_of_fold_features_and_saves_the_features_themselves(folds_data, tmp_path):
    out = train(tiny_run(folds_data.path, tmp_path / "out", **FAST))
    completer = load_completer(out)
    for catalog in (completer.ranker.model.catalog, completer.retriever.catalog):
        assert catalog.num_rows == len(folds_data.catalog)
        assert catalog.features["bundle_item"].min() > 90
    assert completer.retriever.config.memberships["bundle_item"] > 0
    questions = questions_of(folds_data.path)
    assert len(score_questions(completer, questions)["both"]) == len(questions)


# Data that lack something


@pytest.mark.slow
def test_without_features_the_ranker_is_trained_on_titles_alone(copied_data, tmp_path, caplog):
    shutil.rmtree(copied_data / "features")
    with pytest.raises(BundleMLLMError, match=r"no item features.*stage_two\.num_questions=0"):
        train(tiny_run(copied_data, tmp_path / "refused"))
    out = train(tiny_run(copied_data, tmp_path / "out", stage_two=NO_STAGE))
    assert "no retriever is trained" in caplog.text
    completer = load_completer(out)
    assert completer.parts == ("ranker",) and completer.ranker.config.modalities == {}
    assert completer.processor.show_items is False


def test_a_retriever_without_features_is_refused(copied_data, tmp_path):
    shutil.rmtree(copied_data / "features")
    with pytest.raises(BundleMLLMError, match="nothing to retrieve by"):
        train(tiny_run(copied_data, tmp_path / "out", "none"))


@pytest.mark.slow
def test_a_run_without_validation_bundles_keeps_the_last_checkpoints(copied_data, tmp_path):
    rewrite_bundles(copied_data, lambda record: None if record["split"] == "validation" else record)
    out = train(tiny_run(copied_data, tmp_path / "out", **FAST))
    record = record_of(out)
    assert record["stage_two"] == [] and "both" not in record
    assert record["combination"]["num_questions"] == 32
    assert load_completer(out).parts == ("ranker", "retriever", "both")


@pytest.mark.slow
def test_a_run_of_too_few_bundles_to_hold_any_out_joins_both_with_equal_weights(copied_data, tmp_path, caplog):
    rewrite_bundles(copied_data, lambda record: record if record["bundle_id"] in ("b0", "b3", "b4") else None)
    out = train(tiny_run(copied_data, tmp_path / "out", **FAST))
    untrained = load_ranker(out / "training" / "stage_one" / "model")[1]
    assert not untrained.show_items and load_ranker(out)[1].show_items  # item tokens of new weights say nothing
    assert "too few different training bundles (1)" in caplog.text
    combination = load_completer(out).combination
    assert (combination.ranker_weight, combination.temperature) == (1.0, 1.0)
    assert "combination" not in record_of(out)


@pytest.mark.slow
def test_stage_one_warns_where_no_item_has_a_title(copied_data, tmp_path, caplog):
    items = [json.loads(line) for line in (copied_data / "items.jsonl").read_text().splitlines()]
    lines = [json.dumps({"item_id": item["item_id"]}) + "\n" for item in items]
    (copied_data / "items.jsonl").write_text("".join(lines))
    train(tiny_run(copied_data, tmp_path / "two", no_retriever=True, **FAST))
    assert "has a title" not in caplog.text
    short = TINY_STAGE | {"num_questions": 8, "num_validations": 1}
    train(tiny_run(copied_data, tmp_path / "one", no_retriever=True, stage_one=short, stage_two=NO_STAGE))
    assert "stage_one.num_questions=0 saves its time" in caplog.text


# Mistakes


def test_a_finished_run_is_not_repeated_and_another_run_is_refused(retriever_alone, tiny_data, caplog):
    before = (retriever_alone / "model.safetensors").stat().st_mtime_ns
    train(tiny_run(tiny_data, retriever_alone, "none"))
    assert (retriever_alone / "model.safetensors").stat().st_mtime_ns == before
    assert "nothing to do" in caplog.text
    with pytest.raises(BundleMLLMError, match=r"other settings.*seed"):
        train(tiny_run(tiny_data, retriever_alone, "none", seed=1))


def test_a_base_model_that_is_not_there_ends_a_run_before_anything_is_trained(tiny_data, tmp_path):
    with pytest.raises(BundleMLLMError, match="There is no folder"):
        train(tiny_run(tiny_data, tmp_path / "out", str(tmp_path / "no" / "model")))
    assert files(tmp_path / "out") == {"run.json"}
    assert train(tiny_run(tiny_data, tmp_path / "out", "none", seed=1)) == tmp_path / "out"


@pytest.mark.parametrize("no_retriever", [True, False])
def test_out_of_fold_features_of_other_bundles_end_a_run_before_anything_is_trained(
    folds_data, tmp_path, no_retriever
):
    rewrite_bundles(folds_data.path, lambda record: record | {"bundle_id": f"new-{record['bundle_id']}"})
    with pytest.raises(BundleMLLMError, match="encode 'bundle_item' again"):
        train(tiny_run(folds_data.path, tmp_path / "out", no_retriever=no_retriever))
    assert not (tmp_path / "out" / "training").exists()


def test_a_folder_with_other_files_is_not_overwritten(tiny_data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleMLLMError, match="not empty"):
        train(tiny_run(tiny_data, tmp_path))


@pytest.mark.slow
def test_fields_stand_over_the_recipe_of_the_base_model(tiny_data, tmp_path):
    with pytest.raises(BundleMLLMError, match=r"Unknown setting 'retriever\.step'"):
        train(data=tiny_data, output_dir=tmp_path / "out", base_model="none", retriever={"step": 3})
    with pytest.raises(BundleMLLMError, match="no output_dir"):
        train(tiny_data, base_model="none")
    with pytest.raises(TypeError, match="seed, output_dir beside RunConfig"):
        train(tiny_run(tiny_data, tmp_path / "out", "none"), tmp_path / "other", seed=1)
    out = train(str(tiny_data), str(tmp_path / "out"), base_model="none", retriever={"steps": 2})
    settings = record_of(out)["settings"]
    assert (settings["retriever"]["steps"], settings["num_threads"]) == (2, 1)


def test_threads_are_limited_for_a_while():
    before = torch.get_num_threads()
    with limited_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with limited_threads(None):
        assert torch.get_num_threads() == before


# Kills


def in_a_process(target, *args):
    """Run a function in a process of its own; returns the process."""
    context = multiprocessing.get_context("forkserver")  # imports once, and forks before any thread is there
    context.set_forkserver_preload(["bundle_mllm.training.run"])
    child = context.Process(target=target, args=args)
    child.start()
    return child


def train_alone(run):
    torch.set_num_threads(1)  # as in this process: sums of more threads round differently
    logging.disable()
    train(run)


def die_after_a_checkpoint(run):
    on_save = KeepBest.on_save

    def dying(self, *args, **kwargs):
        on_save(self, *args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    KeepBest.on_save = dying
    train_alone(run)


def end(child):
    child.join(600)
    return child.exitcode


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(finished, tiny_data, tmp_path):
    """SIGKILL a child a random moment after it reached each of several points; compare with the run left alone."""
    run, random_delay = tiny_run(tiny_data, tmp_path / "out"), random.Random(0)
    points = ("run.json", "*/retriever/model", "*/stage_one/checkpoint-*", "*/stage_one/model", "*/stage_two/best*")
    for point in points:
        child = in_a_process(train_alone, run)
        deadline = time.monotonic() + 600
        while not list(run.output_dir.glob(point)):
            assert child.is_alive(), f"the run was over before {point} was there"
            assert time.monotonic() < deadline, f"{point} is still not there"
            time.sleep(0.002)
        time.sleep(random_delay.uniform(0, 0.2))
        child.kill()
        assert end(child) == -signal.SIGKILL, point
    assert end(in_a_process(train_alone, run)) == 0
    assert not differing(weights(finished), weights(run.output_dir))
    assert files(run.output_dir) == files(finished)
    same = ("retriever", "stage_one", "stage_two", "combination", "both")
    assert {name: record_of(run.output_dir)[name] for name in same} == {n: record_of(finished)[n] for n in same}
    for stage in ("stage_one", "stage_two"):
        history = f"training/{stage}/history.json"
        assert (run.output_dir / history).read_bytes() == (finished / history).read_bytes()


@pytest.mark.slow
def test_a_ranker_without_letters_killed_in_stage_two_ends_with_the_same_weights(tiny_data, tmp_path):
    make_backbone().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    base, changes = str(tmp_path / "base"), {"scoring": "options", "no_retriever": True, "stage_one": NO_STAGE}
    run, alone = (tiny_run(tiny_data, tmp_path / name, base, **changes) for name in ("out", "alone"))
    assert end(in_a_process(die_after_a_checkpoint, run)) == -signal.SIGKILL
    for each in (run, alone):
        assert end(in_a_process(train_alone, each)) == 0
    assert not differing(weights(alone.output_dir), weights(run.output_dir))


def die_at(run, name, number):
    """Train, and die by SIGKILL at the n-th call of a function that puts the model folder together."""
    owner = {"replace": os, "save_pretrained": BundleCompleter}.get(name, module)
    calls, function = [], getattr(owner, name)

    def dying(source, *args, **kwargs):
        if name != "replace" or Path(source).parent.name == "final":
            calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(source, *args, **kwargs)

    setattr(owner, name, dying)
    train_alone(run)


@pytest.mark.slow
@pytest.mark.parametrize("base_model", ["scratch", "none"])
def test_a_run_killed_while_its_folder_is_put_together_ends_with_the_same_folder(
    finished, retriever_alone, tiny_data, tmp_path, base_model
):
    expected = finished if base_model == "scratch" else retriever_alone
    run = tiny_run(tiny_data, tmp_path / "out", base_model)
    for name, number in (
        ("combine", 1),
        ("save_pretrained", 1),
        ("finish", 1),
        ("replace", 1),
        ("replace", 3),
        ("replace", 1),
        ("remove_leftovers", 1),
    ):
        assert end(in_a_process(die_at, run, name, number)) == -signal.SIGKILL, (name, number)
    assert end(in_a_process(train_alone, run)) == 0
    assert files(run.output_dir) == files(expected)
    assert not differing(weights(expected), weights(run.output_dir))
    changed = {name for name, value in record_of(run.output_dir).items() if value != record_of(expected)[name]}
    assert changed == {"settings"}  # the output folder

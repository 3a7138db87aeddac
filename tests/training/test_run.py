"""A run from data folder to model folder: what moves, what is chosen, and that a kill changes nothing."""

import json
import multiprocessing
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoProcessor

import bundle_mllm
from bundle_mllm.data import DatasetFolder, make_questions
from bundle_mllm.data.questions import spread
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import compute_metrics
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.training.config import default_run
from bundle_mllm.training.run import train

assert bundle_mllm  # importing it registers the Auto classes


def tiny_run(data: Path, out: Path, **stage_two):
    run = default_run("scratch", data=data, output_dir=out)
    small = dict(num_questions=32, batch_size=8, checkpoints=2, num_candidates=(2, 5), alignment_steps=3)
    return replace(
        run,
        validation_questions=8,
        validation_candidates=4,
        stage_one=replace(run.stage_one, **small),
        stage_two=replace(run.stage_two, **{**small, **stage_two}),
    )


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    return train(tiny_run(tiny_data, tmp_path_factory.mktemp("run") / "out"))


def test_the_folder_is_self_contained_and_says_how_it_was_made(finished, tiny_data):
    record = json.loads((finished / "run.json").read_text())
    assert record["finished"] is True
    assert record["settings"]["seed"] == 0
    assert set(record["inputs"]) == {"items.jsonl", "bundles.jsonl", "features/visual.safetensors"}
    assert record["versions"]["torch"] == torch.__version__
    for stage in ("stage_one", "stage_two"):
        assert len(record[stage]) == 2
        assert {"step", "validation_hit_rate@1", "validation_num_questions"} <= set(record[stage][0])
    assert not list(finished.glob("**/checkpoint-*"))
    assert AutoModelForCausalLM.from_pretrained(finished).config.num_items == 32
    processor = AutoProcessor.from_pretrained(finished)
    assert processor.item_ids[0] == "red-shirt"
    assert processor.max_options == 5  # the longest list it was trained on; longer ones are ranked in groups


def test_long_questions_are_fewer_so_that_a_run_takes_no_longer(tiny_data, tmp_path, finished):
    run = tiny_run(tiny_data, tmp_path / "out", max_tokens=900, num_questions=80, trains=("separator",))
    out = train(replace(run, stage_one=replace(run.stage_one, num_questions=0)))
    history = json.loads((out / "training" / "stage_two" / "history.json").read_text())
    steps = max(entry["step"] for entry in history)
    assert 1 <= steps < 80 // 8
    data, processor = DatasetFolder.open(tiny_data), AutoProcessor.from_pretrained(out)
    questions = make_questions(data.bundles.train, data.catalog, data.bundles, num_candidates=4, seed=0)
    tokens = sum(map(len, processor(questions)["input_ids"])) / len(questions)
    assert 0.5 * 900 < steps * 8 * tokens < 1.5 * 900


def test_each_stage_moves_what_it_trains_and_nothing_else(tiny_data, tmp_path):
    out = train(tiny_run(tiny_data, tmp_path / "out", trains=("fusion", "projector", "separator")))
    after_one = load_file(out / "training" / "stage_one" / "model" / "model.safetensors")
    after_two = load_file(out / "model.safetensors")
    moved = {name for name in after_one if not torch.equal(after_one[name], after_two[name])}
    groups = ("model.fusion.", "model.projector.", "model.separator.", "model.matching.")
    trains = {name for name in after_one if name.startswith(groups)}
    constant = {n for n in trains if n.endswith("matching.letters") or "feature_mean" in n or "feature_std" in n}
    # No item of a question lacks every modality but one, so "no features" gets a gradient only when it is shown.
    assert trains - constant - moved <= {"model.fusion.no_features.weight"}
    assert moved <= trains - constant


def test_the_stage_one_model_answers_from_titles_alone(finished, tiny_data):
    folder = finished / "training" / "stage_one" / "model"
    model, processor = AutoModelForCausalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    data = DatasetFolder.open(tiny_data)
    questions = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=4, seed=0)
    assert "<|item_" not in processor.render(questions[0])
    before = score_questions(model, processor, questions)
    model.model.catalog.features["visual"].zero_()
    assert score_questions(model, processor, questions) == before


def test_a_finished_run_is_not_repeated_and_another_run_is_refused(finished, tiny_data, caplog):
    weights = (finished / "model.safetensors").stat().st_mtime_ns
    train(tiny_run(tiny_data, finished))
    assert (finished / "model.safetensors").stat().st_mtime_ns == weights
    with pytest.raises(BundleMLLMError, match=r"other settings.*seed"):
        train(replace(tiny_run(tiny_data, finished), seed=1))


def test_a_mistake_that_ended_a_run_before_its_first_step_can_be_mended(tiny_data, tmp_path):
    run = tiny_run(tiny_data, tmp_path / "out")
    with pytest.raises(BundleMLLMError, match="There is no folder"):
        train(replace(run, base_model=str(tmp_path / "no" / "model")))
    assert (tmp_path / "out" / "run.json").exists()
    assert train(replace(run, seed=run.seed + 1)) == tmp_path / "out"


def test_a_run_uses_its_number_of_threads_and_gives_the_others_back(tiny_data, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr("bundle_mllm.training.run._run_stages", lambda *_: used.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    train(replace(tiny_run(tiny_data, tmp_path / "out"), num_threads=before + 1))
    assert used == [before + 1] and torch.get_num_threads() == before
    with pytest.raises(BundleMLLMError, match="num_threads is 0"):
        replace(tiny_run(tiny_data, tmp_path / "out"), num_threads=0)


def test_a_folder_with_other_files_is_not_overwritten(tiny_data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleMLLMError, match="not empty"):
        train(tiny_run(tiny_data, tmp_path))


def test_without_features_stage_two_is_refused_with_the_way_out(tiny_data, tmp_path):
    for name in ("items.jsonl", "bundles.jsonl"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes((tiny_data / name).read_bytes())
    with pytest.raises(BundleMLLMError, match=r"no item features.*stage_two\.num_questions=0"):
        train(tiny_run(tmp_path / "data", tmp_path / "out"))
    titles_only = train(tiny_run(tmp_path / "data", tmp_path / "out_2", num_questions=0))
    assert AutoModelForCausalLM.from_pretrained(titles_only).config.modalities == {}
    assert AutoProcessor.from_pretrained(titles_only).show_items is False


def test_items_without_titles_are_told_that_stage_one_is_in_vain(tiny_data, tmp_path, caplog):
    for name in ("bundles.jsonl", "features/visual.safetensors"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes((tiny_data / name).read_bytes())
    items = [json.loads(line) for line in (tiny_data / "items.jsonl").read_text().splitlines()]
    lines = [json.dumps({"item_id": item["item_id"]}) + "\n" for item in items]
    (tmp_path / "data" / "items.jsonl").write_text("".join(lines))
    run = tiny_run(tmp_path / "data", tmp_path / "out")
    train(replace(run, stage_one=replace(run.stage_one, num_questions=0)))
    assert "has a title" not in caplog.text
    train(replace(run, output_dir=tmp_path / "both"))
    assert "stage_one.num_questions=0 saves its time" in caplog.text


def test_the_checkpoint_with_the_best_validation_is_kept(tiny_data, tmp_path, monkeypatch):
    """Pretend that the first checkpoint is right about everything and the second about nothing."""
    seen = []

    def fake_scores(model, processor, questions, **kwargs):
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        right = len(seen) % 2 == 1
        return [_scored(question, right) for question in questions]

    monkeypatch.setattr("bundle_mllm.training.stage.score_questions", fake_scores)
    out = train(tiny_run(tiny_data, tmp_path / "out"))
    final = load_file(out / "model.safetensors")
    best, last = seen[2], seen[3]
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(final[name], best[name])
    assert not torch.equal(final[name], last[name])


def _scored(question, right):
    from bundle_mllm.evaluation.metrics import ScoredQuestion

    logits = [0.0] * len(question.candidates)
    logits[question.answer_index] = 1.0 if right else -1.0
    return ScoredQuestion(question.question_id, question.bundle_id, question.answer_index, tuple(logits), None)


def test_a_run_killed_at_any_moment_ends_with_the_same_weights(finished, tiny_data, tmp_path):
    """SIGKILL a child five times, a random moment after it reached a point; compare with the run left alone."""
    run, random_delay = tiny_run(tiny_data, tmp_path / "out"), random.Random(0)
    context = multiprocessing.get_context("forkserver")  # imports once, and forks before any thread is there
    context.set_forkserver_preload(["bundle_mllm.training.run"])
    points = ("run.json", "*/stage_one/checkpoint-*", "*/stage_one/best*", "*/stage_one/model", "*/stage_two/best*")
    for point in points:
        child = context.Process(target=_train_alone, args=(run,))
        child.start()
        deadline = time.monotonic() + 120
        while not list(run.output_dir.glob(point)):
            assert child.is_alive(), f"the run was over before {point} was there"
            assert time.monotonic() < deadline, f"{point} is still not there"
            time.sleep(0.002)
        time.sleep(random_delay.uniform(0, 0.2))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    child = context.Process(target=_train_alone, args=(run,))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    expected, resumed = load_file(finished / "model.safetensors"), load_file(run.output_dir / "model.safetensors")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def _train_alone(run):
    torch.set_num_threads(1)  # as in this process: sums of more threads round differently
    train(run)


def test_the_validation_of_a_run_is_that_of_its_kept_model(finished, tiny_data):
    record = json.loads((finished / "run.json").read_text())
    best = max(entry["validation_hit_rate@1"] for entry in record["stage_two"])
    data = DatasetFolder.open(tiny_data)
    model, processor = AutoModelForCausalLM.from_pretrained(finished), AutoProcessor.from_pretrained(finished)
    hits = []
    for negatives in ("uniform", "hard"):
        made = make_questions(
            spread(data.bundles.validation, 4),
            data.catalog,
            data.bundles,
            num_candidates=4,
            negatives=negatives,
            questions_per_bundle=1,
            seed=0,
        )
        hits += score_questions(model, processor, made)
    assert compute_metrics(hits)["hit_rate@1"] == pytest.approx(best)

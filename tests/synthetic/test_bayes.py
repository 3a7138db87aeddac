"""The Bayes-optimal accuracy on a question file, and a model's share of it."""

import json
from dataclasses import replace

import pytest

from bundle_mllm.cli import main
from bundle_mllm.data import DatasetFolder, load_questions, make_questions, save_questions
from bundle_mllm.data.manifest import read_question_manifest, write_question_manifest
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import as_scored, compute_metrics
from bundle_mllm.evaluation.results import compare_metrics, save_results
from bundle_mllm.synthetic import write
from bundle_mllm.synthetic.bayes import REALIZED, bayes_optimal, share_of_bayes_optimal
from bundle_mllm.synthetic.process import GenerativeProcess
from bundle_mllm.synthetic.settings import one_signal
from bundle_mllm.synthetic.write import make_synthetic

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A catalog without pictures and a question file about it."""
    folder = tmp_path_factory.mktemp("bayes")
    settings = replace(one_signal("title"), num_train=50, num_validation=5, num_test=400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "draw_picture", lambda *_: b"")
        make_synthetic(folder / "data", settings)
    data = DatasetFolder.open(folder / "data")
    questions = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=20, seed=0)
    save_questions(folder / "q.jsonl", questions)
    write_question_manifest(folder / "q.jsonl", {"negatives": "uniform", "partial": "half"})
    return folder, data, questions


def test_the_expected_accuracy_is_the_mean_of_the_greatest_posteriors_and_the_realized_one_is_near(written, tmp_path):
    folder, _, questions = written
    process = GenerativeProcess.load(folder / "data")
    greatest = [max(process.posterior(q.partial, q.candidates)) for q in questions]
    metrics = bayes_optimal(folder / "data", folder / "q.jsonl", tmp_path / "best.json")
    best = metrics["bayes_optimal"]
    assert best["expected"] == pytest.approx(float(sum(greatest) / len(greatest)))
    assert 0.6 < best["expected"] < 0.95
    assert best["realized"] == pytest.approx(best["expected"], abs=4 * metrics[f"{REALIZED}_se"])
    assert json.loads((tmp_path / "best.json").read_text())["bayes_optimal"] == best


def test_who_knows_no_signal_that_carries_the_theme_guesses(written):
    folder, _, _ = written
    best = bayes_optimal(folder / "data", folder / "q.jsonl", signals=())["bayes_optimal"]
    assert best["expected"] == pytest.approx(1 / 20)


def test_the_files_compare_with_metrics_files_and_give_the_share(written, tmp_path):
    folder, _, questions = written
    best = bayes_optimal(folder / "data", folder / "q.jsonl", tmp_path / "best.json")["bayes_optimal"]
    themes = GenerativeProcess.load(folder / "data").themes
    scores = [[float(themes[c] == themes[q.partial[0]]) for c in q.candidates] for q in questions]
    scored = as_scored(questions, scores)
    save_results(
        tmp_path / "m.json",
        {**compute_metrics(scored), "questions": read_question_manifest(folder / "q.jsonl")},
        scored,
    )
    share = share_of_bayes_optimal(tmp_path / "m.json", tmp_path / "best.json")
    hits = compute_metrics(scored)["hit_rate@1_random_ties"]  # a tie counts for as much as it does in the optimum
    assert share["accuracy"] == hits
    assert share["share"] == hits / best["expected"]
    assert share["share_of_realized"] == hits / best["realized"]
    assert 0.7 < share["share"] < 1
    paired = compare_metrics(tmp_path / "m.json", tmp_path / "best.json")
    assert paired["mrr"]["difference"] < 0


def test_the_command_prints_the_best_accuracy_and_the_share_of_each_metrics_file(written, tmp_path, capsys):
    folder, _, _ = written
    bayes_optimal(folder / "data", folder / "q.jsonl", tmp_path / "m.json")
    arguments = ["--data", str(folder / "data"), "--questions", str(folder / "q.jsonl")]
    arguments += ["--output", str(tmp_path / "b.json"), "--metrics", str(tmp_path / "m.json")]
    assert main(["best-accuracy", *arguments]) == 0
    best = json.loads((tmp_path / "b.json").read_text())["bayes_optimal"]
    printed = capsys.readouterr().out
    assert f"{best['expected']:.4f} expected, {best['realized']:.4f} realized" in printed
    assert printed.count("share ") == 1
    assert main(["best-accuracy", *arguments, "--signals", "media"]) == 0
    assert "0.0500 expected" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "printed", "recorded"),
    [
        (["--signal", "user_item", "--theme-purity", "0.8"], "864 invented items", ({"user_item": 24}, 0.8)),
        ([], "576 invented items", ({"title": 4, "media": 4, "user_item": 2}, 1.0)),
    ],
)
def test_the_command_makes_a_catalog(options, printed, recorded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(write, "draw_picture", lambda *_: b"")
    assert main(["synthetic", "--output-dir", str(tmp_path / "data"), "--seed", "2", *options]) == 0
    assert f"{printed}, 2400 training bundles" in capsys.readouterr().out
    settings = json.loads((tmp_path / "data" / "synthetic.json").read_text())["settings"]
    assert (settings["seed"], settings["signals"], settings["theme_purity"]) == (2, *recorded)


def test_hard_negatives_other_folders_and_other_question_files_are_refused(written, tmp_path, tiny_data):
    folder, data, questions = written
    save_questions(tmp_path / "hard.jsonl", questions)
    write_question_manifest(tmp_path / "hard.jsonl", {"negatives": "hard"})
    save_questions(tmp_path / "unknown.jsonl", questions)
    for name, negatives in (("hard", "hard"), ("unknown", "unknown")):
        with pytest.raises(BundleMLLMError, match=f"has {negatives} negatives.*--negatives uniform"):
            bayes_optimal(folder / "data", tmp_path / f"{name}.jsonl")
    save_questions(tmp_path / "train.jsonl", questions)
    write_question_manifest(tmp_path / "train.jsonl", {"negatives": "uniform", "split": "train"})
    with pytest.raises(BundleMLLMError, match=r"split train.*--split test"):
        bayes_optimal(folder / "data", tmp_path / "train.jsonl")
    with pytest.raises(BundleMLLMError, match="bundle-mllm synthetic"):
        bayes_optimal(tiny_data, folder / "q.jsonl")
    bayes_optimal(folder / "data", folder / "q.jsonl", tmp_path / "a.json")
    save_questions(tmp_path / "fewer.jsonl", load_questions(folder / "q.jsonl", data.catalog)[:-1])
    write_question_manifest(tmp_path / "fewer.jsonl", {"negatives": "uniform"})
    bayes_optimal(folder / "data", tmp_path / "fewer.jsonl", tmp_path / "b.json")
    with pytest.raises(BundleMLLMError, match="different question files"):
        share_of_bayes_optimal(tmp_path / "a.json", tmp_path / "b.json")
    other = json.loads((tmp_path / "a.json").read_text())
    del other["bayes_optimal"]
    (tmp_path / "a.json").write_text(json.dumps(other))
    with pytest.raises(BundleMLLMError, match="has no Bayes-optimal accuracy"):
        share_of_bayes_optimal(tmp_path / "b.json", tmp_path / "a.json")

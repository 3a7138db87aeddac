"""The ceiling of a question file, and a model's share of it."""

import json

import pytest

from bundle_mllm.cli import main
from bundle_mllm.data import DatasetFolder, load_questions, make_questions, save_questions
from bundle_mllm.data.manifest import read_question_manifest, write_question_manifest
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import as_scored, compute_metrics
from bundle_mllm.evaluation.results import compare_metrics, save_results
from bundle_mllm.synthetic import studio_ceiling
from bundle_mllm.synthetic.ceiling import bayes_optimal, share_of_ceiling
from bundle_mllm.synthetic.planted import PlantedBundles


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A studio without pictures and a question file about it."""
    folder = tmp_path_factory.mktemp("ceiling")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studio_ceiling, "draw_palette", lambda *_: b"")
        studio_ceiling.make_ceiling_studio(folder / "data", "title", num_train=50, num_validation=5, num_test=400)
    data = DatasetFolder.open(folder / "data")
    questions = make_questions(data.bundles.test, data.catalog, data.bundles, num_candidates=20, seed=0)
    save_questions(folder / "q.jsonl", questions)
    write_question_manifest(folder / "q.jsonl", {"negatives": "uniform"})
    return folder, data, questions


def test_the_expected_ceiling_is_the_mean_of_the_greatest_posteriors_and_the_realized_one_is_near(asked, tmp_path):
    folder, _, questions = asked
    planted = PlantedBundles.load(folder / "data")
    greatest = [max(planted.posterior(q.partial, q.candidates)) for q in questions]
    metrics = bayes_optimal(folder / "data", folder / "q.jsonl", tmp_path / "ceiling.json")
    found = metrics["ceiling"]
    assert found["expected"] == pytest.approx(float(sum(greatest) / len(greatest)))
    assert 0.6 < found["expected"] < 0.95
    assert found["realized"] == pytest.approx(found["expected"], abs=4 * metrics["hit_rate@1_expected_se"])
    assert json.loads((tmp_path / "ceiling.json").read_text())["ceiling"] == found


def test_ceiling_files_compare_with_metrics_files_and_give_the_share(asked, tmp_path):
    folder, _, questions = asked
    bayes_optimal(folder / "data", folder / "q.jsonl", tmp_path / "ceiling.json")
    themes = PlantedBundles.load(folder / "data").themes
    scores = [[sum(themes[c] == themes[i] for i in q.partial) + 0.01 * n for n, c in enumerate(q.candidates)]
              for q in questions]  # fmt: skip
    scored = as_scored(questions, scores)
    save_results(
        tmp_path / "m.json",
        {**compute_metrics(scored), "questions": read_question_manifest(folder / "q.jsonl")},
        scored,
    )
    share = share_of_ceiling(tmp_path / "m.json", tmp_path / "ceiling.json")
    ceiling = json.loads((tmp_path / "ceiling.json").read_text())["ceiling"]
    hits = compute_metrics(scored)["hit_rate@1"]
    assert share["accuracy"] == hits
    assert share["share"] == hits / ceiling["expected"]
    assert share["share_of_realized"] == hits / ceiling["realized"]
    assert 0.8 < share["share"] < 1.05
    paired = compare_metrics(tmp_path / "m.json", tmp_path / "ceiling.json")
    assert paired["mrr"]["difference"] < 0


def test_the_command_prints_the_ceiling_and_the_share_of_each_metrics_file(asked, tmp_path, capsys):
    folder, _, _ = asked
    of_itself = str(tmp_path / "m.json")
    bayes_optimal(folder / "data", folder / "q.jsonl", tmp_path / "m.json")
    arguments = ["--data", str(folder / "data"), "--questions", str(folder / "q.jsonl")]
    assert main(["ceiling", *arguments, "--output", str(tmp_path / "c.json"), "--metrics", of_itself]) == 0
    ceiling = json.loads((tmp_path / "c.json").read_text())["ceiling"]
    printed = capsys.readouterr().out
    assert f"{ceiling['expected']:.4f} expected, {ceiling['realized']:.4f} realized" in printed
    assert printed.count("share ") == 1


def test_the_command_makes_a_studio(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(studio_ceiling, "draw_palette", lambda *_: b"")
    assert main(["studio", "--output-dir", str(tmp_path / "data"), "--needs", "user_item", "--seed", "2"]) == 0
    assert "864 invented items, 2400 training bundles" in capsys.readouterr().out
    facts = json.loads((tmp_path / "data" / "studio.json").read_text())
    assert (facts["needs"], facts["seed"], facts["planted"]["fidelity"]) == ("user_item", 2, 0.9)


def test_hard_negatives_other_folders_and_other_question_files_are_refused(asked, tmp_path, tiny_data):
    folder, data, questions = asked
    save_questions(tmp_path / "hard.jsonl", questions)
    write_question_manifest(tmp_path / "hard.jsonl", {"negatives": "hard"})
    save_questions(tmp_path / "nobody_knows.jsonl", questions)
    for name, negatives in (("hard", "hard"), ("nobody_knows", "unknown")):
        with pytest.raises(BundleMLLMError, match=f"has {negatives} negatives.*--negatives uniform"):
            bayes_optimal(folder / "data", tmp_path / f"{name}.jsonl")
    with pytest.raises(BundleMLLMError, match="bundle-mllm studio"):
        bayes_optimal(tiny_data, folder / "q.jsonl")
    bayes_optimal(folder / "data", folder / "q.jsonl", tmp_path / "a.json")
    save_questions(tmp_path / "fewer.jsonl", load_questions(folder / "q.jsonl", data.catalog)[:-1])
    write_question_manifest(tmp_path / "fewer.jsonl", {"negatives": "uniform"})
    bayes_optimal(folder / "data", tmp_path / "fewer.jsonl", tmp_path / "b.json")
    with pytest.raises(BundleMLLMError, match="different question files"):
        share_of_ceiling(tmp_path / "a.json", tmp_path / "b.json")
    no_ceiling = json.loads((tmp_path / "a.json").read_text())
    del no_ceiling["ceiling"]
    (tmp_path / "a.json").write_text(json.dumps(no_ceiling))
    with pytest.raises(BundleMLLMError, match="holds no ceiling"):
        share_of_ceiling(tmp_path / "b.json", tmp_path / "a.json")

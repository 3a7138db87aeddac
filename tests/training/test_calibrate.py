"""A calibrated model answers with sets: through the completer, rules, pipeline, evaluation and the model's folder."""

import json
import re
from dataclasses import replace

import pytest
import torch
from tiny_models import make_completer, make_completer_for
from transformers import pipeline

from bundle_mllm.cli import show
from bundle_mllm.data import DatasetFolder, make_questions, save_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.evaluate import evaluate
from bundle_mllm.evaluation.prediction_sets import measure_sets
from bundle_mllm.evaluation.scoring import score_sets
from bundle_mllm.hub.records import COMBINATION
from bundle_mllm.hub.schema import rebuild
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling import BundleCompleter
from bundle_mllm.modeling.conformal_bundle_mllm import BundleCalibration
from bundle_mllm.modeling.conformity_bundle_mllm import conformity_of, p_values_of
from bundle_mllm.training.calibrate import calibrate, calibrated

KINDS = {"ranker": (True, False), "retriever": (False, True), "both": (True, True)}
PARTS = {"ranker": ("ranker",), "retriever": ("retriever",), "both": ("ranker", "retriever", "both")}


@pytest.fixture(scope="module")
def data(tiny_data):
    return DatasetFolder.open(tiny_data)


@pytest.fixture(scope="module")
def questions(data):
    return make_questions(data.bundles.train, data.catalog, data.bundles, num_candidates=4, seed=0)


@pytest.fixture(scope="module", params=KINDS)
def completer(request, data, questions):
    completer = make_completer_for(data, *KINDS[request.param])
    completer.combination = calibrated(completer, questions)
    return completer


def test_the_conformity_of_each_first_answer_is_kept_and_each_answer_is_as_usual_as_its_rank(completer, questions):
    calibration = completer.combination.calibration
    first = list({question.bundle_id: question for question in reversed(questions)}.values())[::-1]
    assert calibration.num_candidates == 4 and set(calibration.conformity) == set(completer.parts)
    assert {len(values) for values in calibration.conformity.values()} == {len(first)}
    values = p_values_of(completer, completer.score(first))
    own = sorted(float(each[q.answer_index]) for each, q in zip(values, first, strict=True))
    assert own == pytest.approx([(2 + rank) / (1 + len(first)) for rank in range(len(first))], abs=2 / len(first))


def test_what_a_retriever_says_of_a_candidate_does_not_depend_on_the_others(data, questions):
    completer = make_completer_for(data, ranker=False)
    [few, many, catalog] = conformity_of(
        completer,
        completer.score(
            [
                {"partial": ["red-shirt"], "candidates": ["red-bag", "blue-hat"]},
                {"partial": ["red-shirt"], "candidates": ["green-belt", "red-bag", "blue-hat", "red-skirt"]},
                {"partial": ["red-shirt"]},
            ],
            num_retrieved=100,
        ),
    )
    assert torch.allclose(few["retriever"], many["retriever"][1:3], atol=1e-5)
    assert float(catalog["retriever"].logsumexp(0)) == pytest.approx(0, abs=1e-5)
    assert float(catalog["retriever"].max()) >= float(many["retriever"].max()) - 1e-5


def test_both_join_the_absolute_score_of_the_retriever_with_the_weighted_ranker():
    completer = make_completer()
    [completion] = completer.score([{"partial": ["i0"], "candidates": ["i2", "i3", "i4"]}])
    [found] = conformity_of(completer, [completion])
    catalog = completer.catalog_scores([["i0"]])[0].double().log_softmax(0)
    assert torch.allclose(found["retriever"], catalog[[2, 3, 4]], atol=1e-5)
    assert torch.allclose(found["both"], completion.scores["ranker"] + found["retriever"])


def test_answers_are_cut_to_the_set_and_none_are_left_where_nothing_fits(completer, questions):
    question = {"partial": questions[0].partial, "candidates": questions[0].candidates}
    every = completer.complete(question)
    [values] = p_values_of(completer, completer.score([question]))
    by_id = dict(zip(question["candidates"], values.tolist(), strict=True))
    for coverage in (0.05, 0.3, 0.6, 0.9):
        answers = completer.complete(question, coverage=coverage)
        kept = [entry["item_id"] for entry in every if by_id[entry["item_id"]] > 1 - coverage + 1e-9]
        assert [entry["item_id"] for entry in answers] == kept
        assert [entry["p_value"] for entry in answers] == [by_id[item_id] for item_id in kept]
    impossible = {part: [1e6] * 20 for part in completer.parts}
    unlikely = replace(completer.combination, calibration=BundleCalibration(4, impossible))
    alike = BundleCompleter(completer.processor, completer.ranker, completer.retriever, unlikely)
    assert alike.complete(question, coverage=0.9) == []


def test_a_set_out_of_a_whole_catalog_is_that_of_the_retriever(data, questions):
    completer = make_completer_for(data)
    completer.combination = calibrated(completer, questions)
    known = torch.tensor(completer.combination.calibration.conformity["retriever"])
    scores = completer.catalog_scores([questions[0].partial])[0].double().log_softmax(0)
    p_values = (1 + (known[None] <= scores[:, None]).sum(1)) / (1 + len(known))
    expected = {data.catalog.item_ids[row] for row in (p_values > 0.3 + 1e-9).nonzero()[:, 0].tolist()}
    answers = completer.complete({"partial": questions[0].partial}, coverage=0.7)
    assert {entry["item_id"] for entry in answers} == expected


def test_models_that_were_not_calibrated_are_refused_and_other_models_are_not_calibrated(completer, questions):
    plain = BundleCompleter(completer.processor, completer.ranker, completer.retriever)
    with pytest.raises(ValueError, match=r"were not calibrated.*bundle-mllm calibrate"):
        plain.complete(questions[0], coverage=0.9)
    assert calibrated(plain, []).calibration is None
    assert completer.combination.unbound().calibration is None


def test_a_calibration_is_kept_in_the_folder_and_of_these_weights_alone(completer, questions, tmp_path):
    completer.save_pretrained(tmp_path)
    loaded = load_completer(tmp_path)
    assert loaded.combination.calibration == completer.combination.calibration
    values = json.loads((tmp_path / "combination.json").read_text())
    published = rebuild(values, COMBINATION)  # which bundles calibrated is nobody's business
    assert values["calibration"].pop("bundles") and published == values
    answers = pipeline("bundle-completion", model=str(tmp_path), device="cpu")
    question = {"partial": list(questions[0].partial), "candidates": list(questions[0].candidates)}
    expected = [entry["item_id"] for entry in completer.complete(question, coverage=0.6)]
    assert [entry["item_id"] for entry in answers(question, coverage=0.6)] == expected
    assert [[e["item_id"] for e in each] for each in answers([question] * 3, coverage=0.6, batch_size=2)] == (
        [expected] * 3
    )
    with pytest.raises(ValueError, match="known answers can promise"):
        answers(question, coverage=1.0)
    part = completer.parts[0]
    values["fitted_for"][part][0] = 1234.5
    (tmp_path / "combination.json").write_text(json.dumps(values))
    with pytest.raises(BundleMLLMError, match=rf"The {part} has other weights .* again \(bundle-mllm") as error:
        load_completer(tmp_path)
    assert "\n" not in str(error.value)
    values["calibration"] = {"num_candidates": 4}
    (tmp_path / "combination.json").write_text(json.dumps(values))
    with pytest.raises(BundleMLLMError, match="calibration does not hold num_candidates and conformity"):
        load_completer(tmp_path)


def test_calibrate_writes_what_evaluate_measures_on_other_bundles(data, questions, tmp_path):
    make_completer_for(data).save_pretrained(tmp_path / "model")
    bundles = list(dict.fromkeys(question.bundle_id for question in questions))
    first = set(bundles[: len(bundles) // 2])
    halves = {"first": [q for q in questions if q.bundle_id in first], "all": questions}
    for name, half in halves.items():
        save_questions(tmp_path / f"{name}.jsonl", half)
    counts = calibrate(model=tmp_path / "model", data=data.path, questions=tmp_path / "first.jsonl")
    assert counts == {"num_questions": len(first), "num_candidates": 4}
    asked = (0.5, 0.8)
    metrics = evaluate(tmp_path / "model", data.path, tmp_path / "all.jsonl", coverage=asked)
    for stated, figures in zip(asked, metrics["prediction_sets"], strict=True):
        assert figures["asked"] == stated
        assert figures["num_left_out"] == len(halves["first"])
        assert figures["num_questions"] == len(questions) - len(halves["first"])
        assert 0 <= figures["nothing_fits"] <= 1 - figures["coverage"]
        assert figures["nothing_fits_without_answer"] >= figures["nothing_fits"]
    text = show.metrics(metrics, {"output": "metrics.json"})
    assert re.search(r"sets of 80%  hold the answer \d\.\d{3} ± .*, size \d+\.\d\d .*; nothing fits .*, without", text)
    assert f"sets leave out {len(halves['first'])} questions about bundles that calibrated them" in text
    with pytest.raises(BundleMLLMError, match="known answers can promise"):
        evaluate(tmp_path / "model", data.path, tmp_path / "all.jsonl", coverage=(0.999,))
    with pytest.raises(BundleMLLMError, match="leave out coverage, or catalog"):
        evaluate(tmp_path / "model", data.path, tmp_path / "all.jsonl", coverage=asked, catalog=True)
    with pytest.raises(BundleMLLMError, match=r"All \d+ questions are about bundles that calibrated the sets"):
        evaluate(tmp_path / "model", data.path, tmp_path / "first.jsonl", coverage=asked)


def test_a_calibration_that_does_not_name_its_bundles_leaves_none_out(completer, questions):
    calibration = completer.combination.calibration
    assert {calibration.calibrated_on(question.bundle_id) for question in questions} == {True}
    assert not calibration.calibrated_on("another bundle")
    assert not {question.bundle_id for question in questions} & set(calibration.bundles)
    completer.combination = replace(completer.combination, calibration=replace(calibration, bundles=()))
    assert score_sets(completer, questions, [0.5])[0]["num_left_out"] == 0


def test_figures_of_sets_are_means_over_questions():
    sets, without = [[True, False], [False, False], [True, True]], [[False], [True], [False]]
    figures = measure_sets(sets, without, [0, 1, 1], ["a", "b", "c"], 0.9)
    assert figures["coverage"] == pytest.approx(2 / 3) and figures["size"] == 1
    assert figures["nothing_fits"] == pytest.approx(1 / 3)
    assert figures["nothing_fits_without_answer"] == pytest.approx(2 / 3)
    assert figures["num_questions"] == 3 and {"coverage_se", "size_se"} <= figures.keys()

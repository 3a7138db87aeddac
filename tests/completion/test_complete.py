"""Completion under rules: the documented steps, from the scores of both models to the answers."""

import math
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from slow_rules import Reference, boosted, random_items, random_rules
from tiny_models import ITEM_IDS, TITLES, make_completer, make_model, make_processor, make_retriever

from bundle_mllm.completion.columns import ItemColumns
from bundle_mllm.completion.complete import RuledCompleter
from bundle_mllm.completion.rules import Rules
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.modeling import BundleCompleter
from bundle_mllm.modeling.conformal_bundle_mllm import BundleCalibration

HAT = {"title": "new hat", "features": {"visual": [0.5] * 12}}
QUESTIONS = [
    {"partial": ["i0", "i1"]},
    {"partial": ["i3"], "candidates": ["i5", "i2", "i7", "i4"]},
    {"partial": [HAT, {**HAT, "item_id": "i6"}]},
    {"partial": [HAT], "candidates": ["i1", {**HAT, "title": "another hat"}]},
]
ITEMS = [
    {"item_id": item_id, "title": title, "price": 5.0 * (row + 1), "category": "ab"[row % 2], "in_stock": row != 5}
    for row, (item_id, title) in enumerate(zip(ITEM_IDS, TITLES, strict=True))
]
PARTS = {"both": (True, True), "retriever": (False, True), "ranker": (True, False)}


@pytest.fixture(scope="module", params=PARTS)
def completer(request):
    return make_completer(*PARTS[request.param])


@pytest.fixture(scope="module")
def both():
    return make_completer()


def ruled(completer, **rules):
    return RuledCompleter(completer, Rules.from_dict(rules).apply(ITEM_IDS, ItemColumns.from_records(ITEMS, ITEM_IDS)))


def ids(answers):
    return [item["item_id"] for item in answers.items]


def test_without_rules_the_answers_are_those_of_the_completer(completer):
    for question, answers in zip(QUESTIONS, RuledCompleter(completer).complete(QUESTIONS, top_k=3), strict=True):
        expected = completer.complete(question, top_k=3)
        assert [(a["item_id"], a["title"], a["letter"]) for a in answers.items] == [
            (e["item_id"], e["title"], e["letter"]) for e in expected
        ]
        np.testing.assert_allclose(
            *([entry["score"] for entry in each] for each in (answers.items, expected)), rtol=1e-4
        )
        assert answers.notes == (() if len(expected) == 3 else ("2 answers instead of 3: there are no more items",))


def test_k_answers_come_back_whenever_k_are_allowed(completer):
    answers = ruled(completer, allowed=["i0", "i4", "i6"], where="in_stock").complete([{"partial": ["i0"]}], top_k=2)
    assert sorted(ids(answers[0])) == ["i4", "i6"] and answers[0].notes == ()
    assert sum(item["score"] for item in answers[0].items) == pytest.approx(1)


def test_probabilities_are_among_the_allowed_items():
    completer = make_completer(ranker=False)
    everything = {a["item_id"]: a["score"] for a in completer.complete(QUESTIONS[0])}
    [answers] = ruled(completer, where="price > 20").complete(QUESTIONS[:1], top_k=8)
    allowed = {item_id: p for item_id, p in everything.items() if int(item_id[1:]) >= 4}
    assert {a["item_id"]: a["score"] for a in answers.items} == pytest.approx(
        {item_id: p / sum(allowed.values()) for item_id, p in allowed.items()}, rel=1e-4
    )


@torch.no_grad()
def answer_by_hand(completer, items, values, question, top_k):
    """The five steps of `Rules`, with the slow reference for selection."""
    ids, shown = [item["item_id"] for item in items], [int(item_id[1:]) for item_id in question["partial"]]
    rows = torch.arange(len(items))[None]
    units = completer.retriever.similarity(rows[0], rows[0]).double()
    vectors = np.linalg.cholesky(units.numpy() + 1e-9 * np.eye(len(items)))
    reference = Reference(items, values, vectors, shown)
    allowed = reference.allowed()
    open_rows = [row for row in allowed if row not in shown]
    scores = completer.retriever(torch.tensor([shown]), rows).scores[0].double()
    logs = torch.full((len(items),), -torch.inf, dtype=torch.float64)
    logs[open_rows] = scores[open_rows].log_softmax(0)
    number = completer.num_ranked
    scaled = {name: value for name, value in values.items() if name not in ("budget", "diversity")}
    if "max_per_category" in values:
        scaled["max_per_category"] = math.ceil(values["max_per_category"] * number / top_k)
    of_ranked = Reference(items, scaled, vectors, shown)
    of_ranked.allowed = lambda: allowed
    ranked = of_ranked.select(boosted(items, values, logs.numpy()), number)
    if len(ranked) > 1:
        [completion] = completer.score([{**question, "candidates": [ids[row] for row in ranked]}])
        logs[ranked] = logs[ranked].logsumexp(0) + completion.scores["both"]
    order = boosted(items, values, logs.numpy())
    return [(ids[row], math.exp(logs[row])) for row in reference.select(order, top_k)]


@pytest.mark.parametrize("block", range(2))
def test_answers_of_both_models_under_random_rules_are_those_of_the_documented_steps(block):
    processor = make_processor(max_options=3)
    ranker = make_model(separator_token_id=processor.separator_token_id)
    completer = BundleCompleter(processor, ranker, make_retriever())
    tried = 0
    for seed in range(1_000 * block, 1_000 * block + 30):
        rng = np.random.default_rng(seed)
        items = random_items(rng, 8)
        values, top_k = random_rules(rng, items), int(rng.integers(2, 4))
        question = {"partial": rng.choice(ITEM_IDS, size=int(rng.integers(1, 3)), replace=False).tolist()}
        try:
            rules = Rules.from_dict(values).apply(ITEM_IDS, ItemColumns.from_records(items, ITEM_IDS))
        except BundleMLLMError:
            continue
        [answers] = RuledCompleter(completer, rules).complete([question], top_k=top_k)
        expected = answer_by_hand(completer, items, values, question, top_k)
        assert ids(answers) == [item_id for item_id, _ in expected], (seed, values)
        np.testing.assert_allclose([a["score"] for a in answers.items], [p for _, p in expected], rtol=1e-4)
        tried += 1
    assert tried >= 10


def test_pages_are_disjoint_keep_to_the_rules_and_end_where_no_item_is_left(completer):
    pages = [ruled(completer, max_per_category=1).complete([QUESTIONS[0]], top_k=2, page=n)[0] for n in (1, 2, 3, 4)]
    found = [ids(page) for page in pages]
    assert sorted(chain(*found)) == ITEM_IDS[2:]
    assert all(len({int(item_id[1:]) % 2 for item_id in page}) == 2 for page in found[:3])
    plain = [ids(RuledCompleter(completer).complete([QUESTIONS[0]], top_k=2, page=n)[0]) for n in (1, 2, 3)]
    assert list(chain(*plain)) == ids(RuledCompleter(completer).complete([QUESTIONS[0]], top_k=6)[0])


def test_rules_hold_for_given_candidates_and_letters_are_those_of_the_question(completer):
    applied = ruled(completer, where="in_stock", max_per_category=1)
    [answers] = applied.complete([QUESTIONS[1]], top_k=4)
    assert all(item["letter"] == "ABCD"[QUESTIONS[1]["candidates"].index(item["item_id"])] for item in answers.items)
    assert len(answers.items) == 2 and "i5" not in ids(answers)
    assert answers.notes == ("2 answers instead of 4: where in_stock removes 1, max_per_category removes 1",)
    [one] = ruled(completer, allowed=["i2"]).complete([QUESTIONS[1]], top_k=4)
    assert [(item["item_id"], item["letter"], item["score"]) for item in one.items] == [("i2", "B", 1.0)]
    [none] = ruled(completer, allowed=["i0"]).complete([QUESTIONS[1]], top_k=4)
    assert none.items == [] and none.notes == ("0 answers instead of 4: allowed removes 4",)  # of the candidates
    with pytest.raises(BundleMLLMError, match="1 candidates are given as dictionaries"):
        applied.complete([QUESTIONS[3]])


def test_variants_of_the_bundle_are_no_answers_among_given_candidates():
    columns = ItemColumns.from_records([{**item, "handle": int(item["item_id"][1:]) % 3} for item in ITEMS], ITEM_IDS)
    rules = Rules(variant_column="handle").apply(ITEM_IDS, columns)
    [answers] = RuledCompleter(make_completer(ranker=False), rules).complete([QUESTIONS[1]], top_k=4)
    assert {int(item_id[1:]) % 3 for item_id in ids(answers)} == {1, 2}


def test_limits_hold_where_no_candidate_is_left_or_of_a_required_category():
    completer = ruled(make_completer(ranker=False), required_categories=["b"], excluded=["i0"])
    question = {"partial": ["i1"], "candidates": ["i2", "i4"]}  # both of category a
    [answers] = completer.complete([question], top_k=2)
    assert sorted(ids(answers)) == ["i2", "i4"]
    assert answers.notes == ("no allowed item of the required categories 'b' could be answered",)
    completer = ruled(make_completer(ranker=False), max_per_category=1, where="category == 'b'")
    [answers] = completer.complete([{**question, "partial": [HAT]}], top_k=2)
    assert answers.items == [] and "0 answers instead of 2" in answers.notes[0]


def test_an_explanation_has_each_model_the_sources_and_the_boost(both):
    [plain] = RuledCompleter(both).complete(QUESTIONS[:1], top_k=2, explain=True)
    [expected] = [both.complete(QUESTIONS[0], top_k=2, explain=True)]
    for item, other in zip(plain.items, expected, strict=True):
        explanation, wanted = item["explanation"], other["explanation"]
        assert set(explanation.pop("contributions")) == {"title", "picture", "users", "LLM"}
        del wanted["retriever_terms"]
        assert explanation == pytest.approx(wanted, abs=1e-4)
    [boosted_answers] = ruled(both, boost={"in_stock": 2.0}).complete(QUESTIONS[:1], top_k=2, explain=True)
    assert [item["explanation"]["boost"] for item in boosted_answers.items] == [2.0, 2.0]
    scores = {item["item_id"]: item["score"] for item in plain.items}
    [same] = ruled(both, boost={"in_stock": 0.0}).complete(QUESTIONS[:1], top_k=2)
    assert {item["item_id"]: item["score"] for item in same.items} == pytest.approx(scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"page": 0}, "page is 0"),
        ({"top_k": 1}, "2 categories are required .'a', 'b'., but only 1 answers are wanted"),
    ],
)
def test_impossible_numbers_are_refused(both, options, message):
    with pytest.raises(BundleMLLMError, match=message):
        ruled(both, required_categories=["a", "b"]).complete(QUESTIONS[:1], **options)


def test_rules_of_another_catalog_and_comparisons_without_a_retriever_are_refused(both):
    rules = Rules(where="in_stock").apply(ITEM_IDS[:3], ItemColumns.from_records(ITEMS[:3], ITEM_IDS[:3]))
    with pytest.raises(BundleMLLMError, match="applied to 3 items and the model has 8"):
        RuledCompleter(both, rules)
    with pytest.raises(BundleMLLMError, match="this model has no retriever"):
        ruled(make_completer(retriever=False), diversity=0.5)


def test_a_question_that_cannot_be_read_is_refused(both):
    with pytest.raises(BundleMLLMError, match="'gone' is not among the 8 items"):
        RuledCompleter(both).complete([{"partial": ["gone"]}])


def test_scores_of_the_whole_catalog_are_those_of_the_retriever_and_never_of_the_bundle():
    completer = make_completer(ranker=False)
    scores = completer.catalog_scores([["i0", "i1"], [{**HAT, "item_id": "i3"}]])
    rows = torch.arange(8)[None]
    expected = completer.retriever(torch.tensor([[0, 1]]), rows).scores[0]
    torch.testing.assert_close(scores[0, 2:], expected[2:], atol=1e-5, rtol=1e-5)
    assert scores.isinf().nonzero().tolist() == [[0, 0], [0, 1], [1, 3]]
    with pytest.raises(ValueError, match="no retriever"):
        BundleCompleter(make_processor(), make_model()).catalog_scores([["i0"]])


def test_similarity_is_the_mean_cosine_over_the_modalities_that_both_items_have():
    present = {"user_item": torch.arange(8) != 3}
    retriever = make_retriever(present=present)
    found = retriever.similarity(torch.tensor([0, 3]), torch.tensor([3, 4]))
    x = {name: retriever.towers.statistics(name, retriever.catalog.features[name]) for name in ("user_item", "visual")}
    unit = {name: torch.nn.functional.normalize(table, dim=-1) for name, table in x.items()}
    both_of_0_and_4 = sum(unit[name][0] @ unit[name][4] for name in unit) / 2
    torch.testing.assert_close(found[0, 0], unit["visual"][0] @ unit["visual"][3])
    torch.testing.assert_close(found[0, 1], both_of_0_and_4)
    torch.testing.assert_close(found[1, 0], torch.tensor(1.0))


def test_with_a_coverage_rules_select_among_the_set_and_a_note_says_its_size_or_that_nothing_fits(both):
    known = {part: [-9.0, -2.2, -2.1, -2.0, -1.9, -1.8, -1.7, -1.6, -1.5] for part in both.parts}
    combination = replace(both.combination, calibration=BundleCalibration(4, known))
    completer = BundleCompleter(both.processor, both.ranker, both.retriever, combination)
    expected = completer.complete(QUESTIONS[0], coverage=0.9)
    [answers] = RuledCompleter(completer).complete([QUESTIONS[0]], top_k=2, coverage=0.9)
    assert answers.set_size == len(expected) > 2
    assert [(a["item_id"], a["p_value"]) for a in answers.items] == [
        (e["item_id"], e["p_value"]) for e in expected[:2]
    ]
    assert answers.notes == (
        f"the right answer is in a set of {len(expected)} with the probability 90.0%, of which these are 2",
    )
    [of_rules] = ruled(completer, excluded=(expected[0]["item_id"],)).complete([QUESTIONS[0]], top_k=8, coverage=0.9)
    assert set(ids(of_rules)) == {entry["item_id"] for entry in expected[1:]}  # rules do not change what fits
    unlikely = replace(both.combination, calibration=BundleCalibration(4, dict.fromkeys(both.parts, [99.0] * 9)))
    completer = BundleCompleter(both.processor, both.ranker, both.retriever, unlikely)
    for question in QUESTIONS:
        [nothing] = RuledCompleter(completer).complete([question], coverage=0.9)
        assert nothing.items == [] and nothing.set_size == 0 and nothing.notes[0].startswith("nothing fits")
    with pytest.raises(BundleMLLMError, match="known answers can promise"):
        RuledCompleter(completer).complete(QUESTIONS, coverage=0.95)
    with pytest.raises(BundleMLLMError, match="were not calibrated"):
        RuledCompleter(both).complete(QUESTIONS, coverage=0.9)

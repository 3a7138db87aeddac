"""Scores of the ranker: those of the letters after the prompt, in each order of the candidates, and of groups."""

import pytest
import torch
from tiny_models import ITEM_IDS, make_model, make_processor
from torch.testing import assert_close

from bundle_mllm.modeling import prefix_bundle_mllm
from bundle_mllm.modeling.scoring_bundle_mllm import RankerScorer, candidate_orders

HAT = {"title": "hat", "features": {"visual": [0.5] * 12}}
QUESTIONS = [
    {"question_id": "q0", "partial": ["i0", "i1"], "candidates": ["i2", "i3", "i4"]},
    {"question_id": "q1", "partial": ["i5"], "candidates": ["i7", "i6"]},
    {"question_id": "q2", "partial": ["i2"], "candidates": ["i7", "i6", {"title": "hat"}, "i0", "i1"]},
]


@pytest.fixture(scope="module")
def parts():
    processor = make_processor()
    return make_model(separator_token_id=processor.separator_token_id), processor


@torch.no_grad()
def log_probabilities(parts, question):
    model, processor = parts
    logits = model(**processor(question, return_tensors="pt")).logits[0, -1].double()
    return logits[processor.answer_token_ids(len(question["candidates"]))].log_softmax(0)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores_are_the_log_probabilities_of_the_letters_whatever_the_batch(parts, batch_size):
    for question, found in zip(QUESTIONS, RankerScorer(*parts, batch_size).in_one_prompt(QUESTIONS), strict=True):
        assert_close(found.log_probabilities, log_probabilities(parts, question), atol=1e-4, rtol=0)
        assert_close(found.orders, found.log_probabilities[None])


def test_each_order_is_scored_with_its_own_letters_and_read_back_in_the_order_of_the_question(parts):
    for question, found in zip(QUESTIONS, RankerScorer(*parts, 8).in_one_prompt(QUESTIONS, 3, seed=5), strict=True):
        candidates = question["candidates"]
        for row, order in zip(
            found.orders, candidate_orders(len(candidates), 3, 5, question["question_id"]), strict=True
        ):
            moved = {**question, "candidates": [candidates[i] for i in order]}
            assert_close(row[order], log_probabilities(parts, moved), atol=1e-4, rtol=0)
        assert_close(found.log_probabilities, found.orders.mean(0))


def test_groups_of_one_list_read_its_partial_bundle_once_with_the_same_scores(parts, monkeypatch):
    features = 10 * torch.randn(30, 12, generator=torch.Generator().manual_seed(0))  # far apart: no near ties
    hats = [
        {"item_id": f"n{n}", "title": "hat", "features": {"visual": row}} for n, row in enumerate(features.tolist())
    ]
    question = {"partial": [*ITEM_IDS[:3], HAT], "candidates": hats}
    passes, forward = [], parts[0].model.forward

    def counted(*args, **kwargs):
        passes.append(kwargs["input_ids"].shape)
        return forward(*args, **kwargs)

    monkeypatch.setattr(parts[0].model, "forward", counted)
    found = RankerScorer(*parts, 32).in_groups([question, QUESTIONS[0]], 3)
    assert {shape[0] for shape in passes} >= {1, 10}  # what the groups share, and the rest of each
    shortest = min(shape[1] for shape in passes if shape[0] == 10)
    monkeypatch.setattr(prefix_bundle_mllm, "LEAST_SHARE", 2)
    passes.clear()
    expected = RankerScorer(*parts, 32).in_groups([question, QUESTIONS[0]], 3)
    assert shortest < min(shape[1] for shape in passes if shape[0] == 10)
    for one, other in zip(found, expected, strict=True):
        assert_close(one.log_probabilities, other.log_probabilities, atol=1e-3, rtol=0)


def test_the_unrestricted_choice_is_the_letter_if_one_is_the_most_likely_token():
    processor = make_processor()
    model = make_model(separator_token_id=processor.separator_token_id)
    letters, word = processor.answer_token_ids(3), processor.tokenizer("\n")["input_ids"][-1]
    question = QUESTIONS[0]
    with torch.no_grad():
        hidden = model.model(**processor(question, return_tensors="pt")).last_hidden_state[0, -1]
    for token, expected in ((letters[2], 2), (letters[0], 0), (word, None)):
        kept = model.lm_head.weight[token].detach().clone()
        model.lm_head.weight.data[token] = 100 * hidden
        for permutations in (1, 3):  # of the question's own order
            [found] = RankerScorer(model, processor, 8).in_one_prompt([question], permutations)
            assert found.unrestricted_choice == expected
        model.lm_head.weight.data[token] = kept


@torch.no_grad()
def test_the_unrestricted_choice_is_that_of_the_questions_own_order():
    processor, question = make_processor(), QUESTIONS[0]
    model = make_model(separator_token_id=processor.separator_token_id)
    [_, order] = candidate_orders(3, 2, 0, question["question_id"])
    moved = {**question, "candidates": [question["candidates"][i] for i in order]}
    own, other = (model.model(**processor(q, return_tensors="pt")).last_hidden_state[0, -1] for q in (question, moved))
    model.lm_head.weight.data[processor.answer_token_ids(3)[2]] = 100 * (own - other)  # C wins in the own order alone
    [found] = RankerScorer(model, processor, 8).in_one_prompt([question], 2)
    assert found.unrestricted_choice == 2


def test_groups_give_every_candidate_a_probability_and_depend_on_the_seed(parts):
    question = {"question_id": "q", "partial": ["i0"], "candidates": ITEM_IDS[1:]}
    scorer = RankerScorer(*parts, 4)
    [one], [same], [other] = (scorer.in_groups([question], 3, seed=seed) for seed in (0, 0, 1))
    assert one.log_probabilities.exp().sum() == pytest.approx(1) and one.log_probabilities.isfinite().all()
    assert one.unrestricted_choice == one.log_probabilities.argmax()
    assert_close(one.log_probabilities, same.log_probabilities)
    assert not torch.allclose(one.log_probabilities, other.log_probabilities)
    [both] = scorer.in_groups([question], 3, permutations=2, seed=0)
    assert_close(both.orders, torch.stack([one.log_probabilities, other.log_probabilities]), atol=1e-4, rtol=0)


def test_long_lists_do_not_depend_on_the_lists_beside_them(parts):
    questions = [
        {"partial": ["i0"], "candidates": ITEM_IDS[1:]},
        {"partial": ["i7", "i1"], "candidates": ITEM_IDS[2:6]},
    ]
    scorer = RankerScorer(*parts, 4)
    for together, question in zip(scorer.in_groups(questions, 3), questions, strict=True):
        [alone] = scorer.in_groups([question], 3)
        assert_close(together.log_probabilities, alone.log_probabilities, atol=5e-3, rtol=0)  # the fit's tolerance


def test_scores_that_are_not_finite_are_an_error_that_names_the_question():
    model, processor = make_model(), make_processor()
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"2 of the 2 options of the question 'q1' .* score nan"):
        RankerScorer(model, processor, 8).in_one_prompt(QUESTIONS)


@pytest.mark.parametrize("number", [2, 7, 10])
def test_as_many_orders_as_candidates_put_each_at_each_place_once(number):
    orders = candidate_orders(number, number, 0, "q")
    assert orders[0] == list(range(number))
    assert all(sorted(column) == list(range(number)) for column in zip(*orders, strict=True))


def test_few_orders_are_spread_and_more_than_the_candidates_are_shuffled_anew():
    assert candidate_orders(10, 2, 0, "q")[1] == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    more = candidate_orders(4, 8, 0, "q")
    assert all(sorted(column) == [0, 0, 1, 1, 2, 2, 3, 3] for column in zip(*more, strict=True))
    assert candidate_orders(10, 30, 1, "q") == candidate_orders(10, 30, 1, "q") != candidate_orders(10, 30, 2, "q")
    assert candidate_orders(10, 30, 1, "q") != candidate_orders(10, 30, 1, "r")

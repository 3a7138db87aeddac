"""Scores of whole question lists: independent of batching, and equal to a full forward pass."""

from dataclasses import replace

import pytest
import torch

from bundle_mllm.data import DatasetFolder, Question, sample_training_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.ranking import rank_candidates
from bundle_mllm.evaluation.scoring import candidate_orders, score_questions
from bundle_mllm.training.backbone import build_model
from bundle_mllm.training.config import default_run


@pytest.fixture(scope="module")
def parts(tiny_data, tmp_path_factory):
    data = DatasetFolder.open(tiny_data)
    run = default_run("scratch", data=tiny_data, output_dir=tmp_path_factory.mktemp("out"))
    model, processor = build_model(run, data)
    questions = sample_training_questions(
        data.bundles.train, data.catalog, num_questions=9, num_candidates=(2, 12), hard_fraction=0, seed=3
    )
    return model.eval(), processor, questions


def test_scores_do_not_depend_on_the_batch(parts):
    together = score_questions(*parts, batch_size=9)
    alone = score_questions(*parts, batch_size=1)
    for a, b, question in zip(together, alone, parts[2], strict=True):
        assert a.question_id == question.question_id
        assert len(a.scores) == len(question.candidates)
        assert a.scores == pytest.approx(b.scores, abs=1e-4)
        assert a.unrestricted_choice == b.unrestricted_choice


def test_scores_are_the_letters_logits_after_the_prompt(parts):
    model, processor, questions = parts
    ids = torch.tensor(processor([questions[0]])["input_ids"])
    logits = model(input_ids=ids).logits[0, -1]
    letters = processor.answer_token_ids(len(questions[0].candidates))
    assert score_questions(model, processor, questions)[0].scores == pytest.approx(logits[letters].tolist(), abs=1e-4)


def test_a_unrestricted_choice_that_is_no_letter_of_the_question_is_invalid(parts):
    model, processor, questions = parts
    before = score_questions(model, processor, questions)
    word = processor.tokenizer("\n")["input_ids"][-1]
    hidden = model.model(input_ids=torch.tensor(processor([questions[0]])["input_ids"])).last_hidden_state[0, -1]
    with torch.no_grad():
        kept = model.lm_head.weight[word].clone()
        model.lm_head.weight[word] = 100 * hidden  # the word is now what the model would say
    after = score_questions(model, processor, questions)
    with torch.no_grad():
        model.lm_head.weight[word] = kept
    assert after[0].unrestricted_choice is None
    assert after[0].scores == pytest.approx(before[0].scores)
    assert before[0].unrestricted_choice == max(range(len(before[0].scores)), key=before[0].scores.__getitem__)


def test_scoring_leaves_the_model_in_the_mode_it_was_in(parts):
    model, processor, questions = parts
    model.train()
    score_questions(model, processor, questions[:1])
    assert model.training
    model.eval()


def test_permuted_orders_are_averaged_and_the_own_order_is_the_first(parts):
    model, processor, questions = parts
    plain = score_questions(*parts)
    for permuted, alone, question in zip(score_questions(*parts, permutations=3), plain, questions, strict=True):
        logits = torch.tensor(alone.scores)
        assert permuted.per_order_scores[0] == pytest.approx(logits.log_softmax(0).tolist(), abs=1e-4)
        assert permuted.scores == pytest.approx(torch.tensor(permuted.per_order_scores).mean(0).tolist(), abs=1e-6)
        assert permuted.unrestricted_choice == alone.unrestricted_choice
        size = len(question.candidates)
        order = candidate_orders(size, 3, 0, question.question_id)[2]
        moved = replace(question, candidates=tuple(question.candidates[i] for i in order))
        (expected,) = score_questions(model, processor, [moved])
        found = [permuted.per_order_scores[2][i] for i in order]
        assert found == pytest.approx(torch.tensor(expected.scores).log_softmax(0).tolist(), abs=1e-4)


def test_as_many_orders_as_candidates_put_each_at_each_place_once():
    for number in (2, 7, 10):
        orders = candidate_orders(number, number, 0, "q")
        assert orders[0] == list(range(number))
        assert all(sorted(column) == list(range(number)) for column in zip(*orders, strict=True))
    assert candidate_orders(10, 2, 0, "q")[1] == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    more = candidate_orders(4, 8, 0, "q")
    assert all(sorted(column) == [0, 0, 1, 1, 2, 2, 3, 3] for column in zip(*more, strict=True))
    assert candidate_orders(10, 30, 1, "q") == candidate_orders(10, 30, 1, "q") != candidate_orders(10, 30, 2, "q")


def test_long_lists_are_ranked_in_groups_as_the_pipeline_ranks_them(parts):
    model, processor, questions = parts
    ids = list(processor.item_ids)
    long = Question("long", "b", tuple(ids[:2]), tuple(ids[2:]), 4)
    first, second = score_questions(model, processor, [long, questions[0]])
    assert second.scores == pytest.approx(score_questions(model, processor, questions)[0].scores, abs=1e-4)
    assert torch.tensor(first.scores).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert first.unrestricted_choice == first.scores.index(max(first.scores))
    ranked = rank_candidates(model, processor, ids[:2], top_k=None)
    score = {entry["item_id"]: entry["score"] for entry in ranked}
    assert [score[item_id] for item_id in long.candidates] == pytest.approx(
        torch.tensor(first.scores).exp().tolist(), abs=1e-4
    )
    assert rank_candidates(model, processor, ids[:2], ids[2:], top_k=20) == ranked[:20]


def test_max_options_sends_shorter_lists_to_the_groups(parts):
    model, processor, _ = parts
    ids = processor.item_ids
    question = Question("q", "b", ids[:2], ids[2:14], 4)
    (plain,) = score_questions(model, processor, [question])
    (grouped,) = score_questions(model, processor, [question], max_options=5)
    (again,) = score_questions(model, processor, [question], max_options=5, seed=1)
    (mean,) = score_questions(model, processor, [question], max_options=5, permutations=2)
    assert len({plain.scores, grouped.scores, again.scores}) == 3
    assert mean.per_order_scores == (grouped.scores, again.scores)


@pytest.mark.parametrize("option", [{"permutations": 0}, {"max_options": 2}, {"max_options": 27}, {"group_size": 2}])
def test_options_out_of_range_are_refused(parts, option):
    model, processor, _ = parts
    ids = processor.item_ids
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        score_questions(model, processor, [Question("q", "b", ids[:2], ids[2:], 4)], **option)


def test_scores_that_are_not_finite_are_an_error(parts, monkeypatch):
    model, processor, questions = parts
    monkeypatch.setattr(model.lm_head.weight, "data", torch.full_like(model.lm_head.weight, torch.nan))
    for options in ({}, {"permutations": 2}, {"max_options": 3, "group_size": 3}):
        with pytest.raises(ValueError, match=rf"question '{questions[0].bundle_id}-\d+' with .* score nan.*diverge"):
            score_questions(model, processor, questions[:1], **options)


def test_a_batch_of_no_prompts_is_an_error(parts):
    with pytest.raises(BundleMLLMError, match=r"batch_size is 0.*choose 1 or more"):
        score_questions(*parts, batch_size=0)


@pytest.mark.parametrize("top_k", [0, -1])
def test_keeping_no_candidate_is_an_error(parts, top_k):
    model, processor, questions = parts
    with pytest.raises(ValueError, match=f"top_k is {top_k}"):
        rank_candidates(model, processor, questions[0].partial, questions[0].candidates, top_k=top_k)

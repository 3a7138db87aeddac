"""Scores of whole question lists: independent of batching, and equal to a full forward pass."""

import pytest
import torch

from bundle_mllm.data import DatasetFolder, sample_training_questions
from bundle_mllm.evaluation.ranking import rank_candidates
from bundle_mllm.evaluation.scoring import score_questions
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
        assert len(a.option_logits) == len(question.candidates)
        assert a.option_logits == pytest.approx(b.option_logits, abs=1e-4)
        assert a.free_answer == b.free_answer


def test_scores_are_the_letters_logits_after_the_prompt(parts):
    model, processor, questions = parts
    ids = torch.tensor(processor([questions[0]])["input_ids"])
    logits = model(input_ids=ids).logits[0, -1]
    letters = processor.answer_token_ids(len(questions[0].candidates))
    assert score_questions(model, processor, questions)[0].option_logits == pytest.approx(
        logits[letters].tolist(), abs=1e-4
    )


def test_a_free_answer_that_is_no_letter_of_the_question_is_invalid(parts):
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
    assert after[0].free_answer is None
    assert after[0].option_logits == pytest.approx(before[0].option_logits)
    assert before[0].free_answer == max(range(len(before[0].option_logits)), key=before[0].option_logits.__getitem__)


def test_scoring_leaves_the_model_in_the_mode_it_was_in(parts):
    model, processor, questions = parts
    model.train()
    score_questions(model, processor, questions[:1])
    assert model.training
    model.eval()


def test_up_to_26_candidates_are_one_question_and_more_go_through_rounds(parts):
    model, processor, _ = parts
    ids = list(processor.item_ids)
    few = rank_candidates(model, processor, ids[:2], ids[2:12], top_k=3)
    assert len(few) == 3
    assert [e["score"] for e in few] == sorted((e["score"] for e in few), reverse=True)
    many = rank_candidates(model, processor, ids[:2], ids[2:], top_k=5)
    assert len(many) == 5
    assert len({e["item_id"] for e in many}) == 5
    assert not {e["item_id"] for e in many} & set(ids[:2])
    with pytest.raises(ValueError, match="at most 13"):
        rank_candidates(model, processor, ids[:2], ids[2:], top_k=20)

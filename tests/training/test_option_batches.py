"""Batches of a ranker without letters: each item once, wrong options of all questions, folds that do not mix."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import ITEM_IDS, make_model, make_processor
from torch.testing import assert_close

from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.questions import Question
from bundle_mllm.modeling import BundleMLLMForOptionScoring
from bundle_mllm.training.option_batches import COLUMNS, OptionCollator, batch_by_fold, question_dataset
from bundle_mllm.training.stage import states_of_titles

BUNDLES = [Bundle("a", ("i0", "i1", "i2"), "train"), Bundle("b", ("i3", "i4"), "train")]
QUESTIONS = [
    Question("a-0", "a", ("i0",), ("i5", "i1"), 1),
    Question("b-0", "b", ("i3",), ("i4", "i2"), 0),
    Question("a-1", "a", ("i0", "i1"), ("i2", "i4"), 0),
]
FOLDS = SimpleNamespace(fold_of_bundle={"a": 0, "b": 1})


@pytest.fixture
def processor():
    return make_processor()


def rows(questions):
    return [{name: getattr(question, name) for name in COLUMNS} for question in questions]


def shown(batch, processor, name, first_items):
    """The options of each question, as item ids by the tokens of their titles."""
    tokens = {tuple(processor.item_tokens([i], first_items)[0][0]): i for i in ITEM_IDS}
    lists = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    return [[tokens[tuple(lists[place])] for place in row.tolist() if place >= 0] for row in batch[name]]


def test_each_item_is_read_once_and_every_question_takes_the_options_of_all(processor):
    batch = OptionCollator(processor, BUNDLES, shows_items=False)(rows(QUESTIONS))
    assert len(batch["input_ids"]) == len({i for q in QUESTIONS for i in (*q.partial, *q.candidates)})
    assert shown(batch, processor, "partial", False) == [["i0"], ["i3"], ["i0", "i1"]]
    options = shown(batch, processor, "options", False)
    assert [set(each) for each in options] == [{"i5", "i1", "i4"}, {"i5", "i1", "i4", "i2"}, {"i5", "i4", "i2"}]


def test_the_label_is_the_answer(processor):
    batch = OptionCollator(processor, BUNDLES, shows_items=False)(rows(QUESTIONS))
    answers = batch["options"].gather(1, batch["labels"][:, None])
    assert (answers >= 0).all()
    assert shown({**batch, "answers": answers}, processor, "answers", False) == [[q.answer] for q in QUESTIONS]


def test_other_items_of_the_questions_own_bundle_are_no_wrong_options(processor):
    batch = OptionCollator(processor, BUNDLES, shows_items=False)(rows(QUESTIONS))
    for question, options in zip(QUESTIONS, shown(batch, processor, "options", False), strict=True):
        members = next(bundle.items for bundle in BUNDLES if bundle.bundle_id == question.bundle_id)
        assert not set(options) & (set(members) - {question.answer})


def test_items_are_rows_of_the_fold_and_folds_do_not_mix(processor):
    batch = OptionCollator(processor, BUNDLES, shows_items=True, features=FOLDS)(rows(QUESTIONS))
    first, num_items = processor.tokenizer.item_token_offset, processor.num_items
    fold_of = [int((ids.max() - first) // num_items) - 1 for ids in batch["input_ids"]]
    assert set(fold_of) == {0, 1}
    for question, places in zip(QUESTIONS, batch["options"].tolist(), strict=True):
        assert {fold_of[place] for place in places if place >= 0} == {FOLDS.fold_of_bundle[question.bundle_id]}


def test_batches_are_of_one_fold_where_they_can_be_and_no_question_is_lost():
    questions = [Question(f"{n}", "ab"[n % 2], ("i0",), ("i1", "i2"), 0) for n in range(64)]
    ordered = batch_by_fold(questions, FOLDS, batch_size=8, seed=0)
    assert sorted(q.question_id for q in ordered) == sorted(q.question_id for q in questions)
    assert all(len({q.bundle_id for q in ordered[start : start + 8]}) == 1 for start in range(0, 64, 8))
    assert batch_by_fold(questions, None, batch_size=8, seed=0) == questions


def test_a_dataset_holds_what_the_collator_reads(processor):
    collator = OptionCollator(processor, BUNDLES, shows_items=False)
    dataset = question_dataset(QUESTIONS)
    batch, expected = collator([dataset[i] for i in range(3)]), collator(rows(QUESTIONS))
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_titles_that_were_read_before_score_like_those_of_the_batch(processor):
    ranker = make_model(separator_token_id=processor.separator_token_id)
    model = BundleMLLMForOptionScoring.from_ranker(ranker, matching_rank=4)
    titles = states_of_titles(model, processor, QUESTIONS, bf16=False)
    assert set(titles) == {i for question in QUESTIONS for i in (*question.partial, *question.candidates)}
    batches = [
        OptionCollator(processor, BUNDLES, shows_items=True, titles=given)(rows(QUESTIONS)) for given in (None, titles)
    ]
    outputs = [model(**batch) for batch in batches]
    assert_close(outputs[1].scores, outputs[0].scores, atol=1e-5, rtol=1e-5)
    outputs[1].loss.backward()
    assert model.matching.query.up.weight.grad.abs().sum() > 0
    assert model.item_matching.query.up.weight.grad.abs().sum() > 0

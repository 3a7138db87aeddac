"""Questions as training rows: the same tokens as stock `trl sft` makes, ordered so that little is padded."""

import pytest
from tiny_training import training_questions

from bundle_mllm.data import DatasetFolder, sample_training_questions
from bundle_mllm.modeling import BundleMLLMProcessor
from bundle_mllm.training.dataset import (
    as_copies,
    batch_by_length,
    check_lengths,
    prompt_completion_dataset,
    training_dataset,
)
from bundle_mllm.training.out_of_fold import load_out_of_fold
from bundle_mllm.training.scratch import train_tokenizer


@pytest.fixture(scope="module")
def data(tiny_data):
    return DatasetFolder.open(tiny_data)


@pytest.fixture(scope="module")
def processor(data):
    tokenizer = train_tokenizer(data.catalog.titles)
    return BundleMLLMProcessor.from_backbone_tokenizer(tokenizer, data.catalog.item_ids, data.catalog.titles)


@pytest.fixture(scope="module")
def questions(data):
    return sample_training_questions(
        data.bundles.train, data.catalog, num_questions=64, num_candidates=(2, 9), hard_fraction=0.5, seed=1
    )


@pytest.mark.parametrize("shows_items", [True, False])
def test_rows_hold_the_tokens_that_trl_makes_of_prompt_and_completion(processor, questions, shows_items):
    rows = training_dataset(questions, processor, shows_items=shows_items)
    texts = prompt_completion_dataset(questions, processor, shows_items=shows_items)
    eos = processor.tokenizer.eos_token
    for row, text in zip(rows, texts, strict=True):
        prompt = processor.tokenizer(text["prompt"])["input_ids"]
        whole = processor.tokenizer(text["prompt"] + text["completion"] + eos)["input_ids"]
        assert row["input_ids"] == whole
        assert row["labels"] == [-100] * len(prompt) + whole[len(prompt) :]
        assert any(token >= processor.tokenizer.item_token_offset for token in row["input_ids"]) == shows_items


def test_copies_ask_which_option_is_one_of_the_items_shown(processor, questions):
    copies = as_copies(questions, seed=3)
    assert copies == as_copies(questions, seed=3) != as_copies(questions, seed=4)
    for copy, question in zip(copies, questions, strict=True):
        place = question.answer_index
        assert copy.answer in copy.partial == question.partial[:3] and copy.answer_index == place
        assert copy.candidates == (*question.candidates[:place], copy.answer, *question.candidates[place + 1 :])
        assert len(set(copy.candidates)) == len(copy.candidates)


def test_a_copy_is_written_as_the_same_question_about_titles(processor, questions):
    copies = as_copies(questions, seed=3)
    rows = training_dataset(copies, processor, shows_items=False)
    for row, copy in zip(rows, copies, strict=True):
        titles = [{"title": processor.titles[processor.row(item_id)]} for item_id in copy.partial]
        [prompt] = processor({"partial": titles, "candidates": copy.candidates}, show_items=False)["input_ids"]
        answer = processor.answer_token_ids(len(copy.candidates))[copy.answer_index]
        assert row["input_ids"] == [*prompt, answer, processor.tokenizer.eos_token_id]


def test_item_tokens_are_rows_of_the_fold_of_the_questions_bundle(folds_data, processor):
    questions = training_questions(folds_data, num_questions=16, num_candidates=(3, 5))
    features = load_out_of_fold(folds_data, ["bundle_item"])
    plain = training_dataset(questions, processor, shows_items=True)
    shifted = training_dataset(questions, processor, shows_items=True, out_of_fold=features)
    offset, items, folds = processor.tokenizer.item_token_offset, len(folds_data.catalog), set()
    for question, before, after in zip(questions, plain, shifted, strict=True):
        fold = features.fold_of_bundle[question.bundle_id]
        expected = [token + (fold + 1) * items if token >= offset else token for token in before["input_ids"]]
        assert after["input_ids"] == expected and after["labels"] == before["labels"]
        folds.add(fold)
    assert folds == set(range(features.num_folds))


def test_a_prompt_beyond_the_context_is_refused_before_training(processor, data, questions, monkeypatch):
    check_lengths(questions, processor, data.catalog)
    longest = max(len(ids) for ids in processor(questions)["input_ids"])
    monkeypatch.setattr(processor, "max_length", longest - 1)
    for each in (questions, as_copies(questions, seed=0)):
        with pytest.raises(ValueError, match=str(longest - 1)):
            check_lengths(each, processor, data.catalog)


def test_the_label_is_the_letter_of_the_answer(processor, questions):
    row = training_dataset(questions, processor, shows_items=True)[0]
    letter = processor.tokenizer.decode(next(token for token in row["labels"] if token != -100)).strip()
    assert letter == "ABCDEFGHI"[questions[0].answer_index]


def test_batches_hold_questions_of_like_length_and_none_is_lost(data, questions):
    ordered = batch_by_length(questions, data.catalog, batch_size=8, seed=0, window=4)
    assert sorted(q.question_id for q in ordered) == sorted(q.question_id for q in questions)
    assert ordered != questions

    def spread(order):
        sizes = [len(q.partial) + len(q.candidates) for q in order]
        batches = [sizes[i : i + 8] for i in range(0, len(sizes), 8)]
        return sum(max(batch) - min(batch) for batch in batches)

    assert spread(ordered) < 0.5 * spread(questions)


def test_the_order_depends_on_the_seed_alone(data, questions):
    first, again, other = (batch_by_length(questions, data.catalog, batch_size=8, seed=s, window=4) for s in (0, 0, 1))
    assert first == again != other


def test_a_last_short_batch_stays_last(data, questions):
    ordered = batch_by_length(questions[:61], data.catalog, batch_size=8, seed=0, window=100)
    lengths = [len(q.partial) + len(q.candidates) for q in ordered]
    assert len(ordered) == 61
    assert max(lengths) - min(lengths[56:]) <= 1 or max(lengths) in lengths[56:]

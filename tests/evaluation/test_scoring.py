"""Scores of whole question lists: of ranker, retriever and both, as the completer gives them for one question."""

import pytest
import torch

from bundle_mllm.data import Question, sample_training_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.evaluation.settings import ScoringOptions
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling import BundleCompleter

PARTS = ("ranker", "retriever", "both")


@pytest.fixture(scope="module")
def completer(model):
    return load_completer(model)


@pytest.fixture(scope="module")
def questions(data):
    return sample_training_questions(
        data.bundles.train, data.catalog, num_questions=9, num_candidates=(2, 12), hard_fraction=0, seed=3
    )


def score(completer, questions, **options):
    return score_questions(completer, questions, ScoringOptions(**options))


def long_question(completer, number=30):
    ids = completer.processor.item_ids
    return Question("long", "b", tuple(ids[:2]), tuple(ids[2 : 2 + number]), 4)


def approx(expected):
    return pytest.approx(expected, abs=2e-4)


def test_each_part_has_the_scores_that_the_completer_gives_to_each_question(completer, questions):
    scored = score(completer, questions)
    assert tuple(scored) == PARTS
    for number, question in enumerate(questions):
        [completion] = completer.score([question])
        for part in PARTS:
            found = scored[part][number]
            assert (found.question_id, found.answer_index) == (question.question_id, question.answer_index)
            assert found.scores == approx(completion.scores[part].tolist())
            assert found.per_order_scores == ()


@pytest.mark.parametrize("part", ["ranker", "retriever"])
def test_a_folder_with_one_model_has_one_part(folders, questions, part):
    scored = score(load_completer(folders[part]), questions)
    assert set(scored) == {part}
    both = score(load_completer(folders["both"]), questions)
    assert [q.scores for q in scored[part]] == [approx(q.scores) for q in both[part]]


def test_scores_do_not_depend_on_the_batch(completer, questions):
    together, alone = (score(completer, questions, batch_size=size) for size in (9, 1))
    for part in PARTS:
        for a, b in zip(together[part], alone[part], strict=True):
            assert a.scores == approx(b.scores)
            assert a.unrestricted_choice == b.unrestricted_choice


def test_a_prompt_that_is_answered_with_no_letter_is_invalid_for_all_but_the_retriever(model, questions):
    completer = load_completer(model)
    word = completer.processor.tokenizer("\n")["input_ids"][-1]
    prompt = torch.tensor(completer.processor([questions[0]])["input_ids"])
    with torch.no_grad():
        hidden = completer.ranker.model(input_ids=prompt).last_hidden_state[0, -1]
        completer.ranker.lm_head.weight[word] = 100 * hidden  # the word is now the most likely token
    scored = score(completer, questions[:1])
    assert [scored[part][0].unrestricted_choice is None for part in PARTS] == [True, False, True]


def test_the_choice_of_a_retriever_and_of_both_is_their_best_candidate(completer, questions):
    scored = score(completer, questions)
    for part in ("retriever", "both"):
        for question in scored[part]:
            if question.unrestricted_choice is not None:
                assert question.unrestricted_choice == question.scores.index(max(question.scores))
    assert any(question.unrestricted_choice is not None for question in scored["retriever"])


def test_scoring_leaves_the_models_in_the_mode_they_were_in(model, questions):
    completer = load_completer(model)
    completer.ranker.train()
    score(completer, questions[:1])
    assert completer.ranker.training and not completer.retriever.training


def test_several_orders_are_averaged_and_the_own_order_is_the_first(completer, questions):
    plain, permuted = score(completer, questions), score(completer, questions, permutations=3)
    for own, mean in zip(plain["ranker"], permuted["ranker"], strict=True):
        assert mean.per_order_scores[0] == approx(own.scores)
        assert mean.scores == approx(torch.tensor(mean.per_order_scores).mean(0).tolist())
        assert mean.unrestricted_choice == own.unrestricted_choice
    for own, mean in zip(plain["both"], permuted["both"], strict=True):
        assert len(mean.per_order_scores) == 3 and mean.per_order_scores[0] == approx(own.scores)
    assert all(question.per_order_scores == () for question in permuted["retriever"])


def test_of_a_long_list_the_ranker_alone_ranks_all_and_both_together_the_retrievers_best(completer, questions):
    question = long_question(completer)
    scored = score(completer, [question, questions[0]])
    alone = score(BundleCompleter(completer.processor, ranker=completer.ranker), [question])["ranker"]
    assert scored["ranker"][0].scores == approx(alone[0].scores)
    [completion] = completer.score([question])
    assert scored["both"][0].scores == approx(completion.answer.tolist())
    assert all(sum(torch.tensor(scored[part][0].scores).exp()) == approx(1) for part in PARTS)
    assert scored["ranker"][1].scores == approx(score(completer, questions[:1])["ranker"][0].scores)


def test_max_options_sends_shorter_lists_to_the_groups(folders):
    completer = load_completer(folders["ranker"])
    question = long_question(completer, 12)
    [plain] = score(completer, [question])["ranker"]
    [grouped] = score(completer, [question], max_options=5)["ranker"]
    [again] = score(completer, [question], max_options=5, seed=1)["ranker"]
    [mean] = score(completer, [question], max_options=5, permutations=2)["ranker"]
    assert plain.scores != approx(grouped.scores) and grouped.scores != approx(again.scores)
    assert list(mean.per_order_scores) == [approx(grouped.scores), approx(again.scores)]


@pytest.mark.parametrize(
    "option", [{"permutations": 0}, {"max_options": 2}, {"max_options": 27}, {"group_size": 2}, {"batch_size": 0}]
)
def test_options_out_of_range_are_refused(completer, questions, option):
    ((name, value),) = option.items()
    with pytest.raises(BundleMLLMError, match=rf"{name} (is )?{value}"):
        score(completer, questions, **option)


@pytest.mark.parametrize("options", [{}, {"permutations": 2}, {"max_options": 3, "group_size": 3}])
def test_scores_that_are_not_finite_are_an_error(folders, questions, options):
    completer = load_completer(folders["ranker"])
    completer.ranker.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(
        BundleMLLMError, match=rf"question '{questions[0].bundle_id}-\d+'.* score nan.*weights are finite"
    ):
        score(completer, questions[:1], **options)

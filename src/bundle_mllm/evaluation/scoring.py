"""Score questions by a completer: one list of scored questions for ranker, retriever and both.

Knows nothing about how a model was trained or which metric is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import ScoredQuestion
from bundle_mllm.evaluation.prediction_sets import measure_sets
from bundle_mllm.evaluation.settings import ScoringOptions
from bundle_mllm.modeling.answers_bundle_mllm import Completion
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.conformity_bundle_mllm import calibration_of, p_values_of
from bundle_mllm.progress import steps

if TYPE_CHECKING:
    from bundle_mllm.data.questions import Question


def score_questions(
    completer: BundleCompleter,
    questions: Sequence[Question],
    options: ScoringOptions | None = None,
    *,
    progress: bool = False,
) -> dict[str, list[ScoredQuestion]]:
    """Score the candidates of every question.

    Args:
        completer: The models and their processor.
        questions: Questions over the processor's items.
        options: How candidates are scored; see `BundleCompleter.score`. `device` is not used here.
        progress: Whether to show a progress bar.

    Returns:
        For each of `completer.parts` ("ranker", "retriever", "both") one `ScoredQuestion` per question.

    Raises:
        BundleMLLMError: If an option is out of range, a prompt is too long, an item is unknown or there twice, or a
            score is not finite.
    """
    options = options or ScoringOptions()
    completions = _score(completer, questions, options, progress)
    scored = {
        part: [_scored(*pair, part) for pair in zip(questions, completions, strict=True)] for part in completer.parts
    }
    if "both" in scored:  # of a long list the ranker was shown the retriever's best: alone it has to rank all
        long = [i for i, completion in enumerate(completions) if completion.scores["ranker"].isinf().any()]
        if long:
            alone = BundleCompleter(completer.processor, ranker=completer.ranker)
            ranked = _score(alone, [questions[i] for i in long], options, progress)
            for i, completion in zip(long, ranked, strict=True):
                scored["ranker"][i] = _scored(questions[i], completion, "ranker")
    return scored


def score_sets(
    completer: BundleCompleter,
    questions: Sequence[Question],
    coverages: Sequence[float],
    options: ScoringOptions | None = None,
    *,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Score questions with and without their answers, and return the figures of sets with a guarantee.

    Args:
        completer: Models that were calibrated.
        questions: Questions over the processor's items. Those about bundles that calibrated are left out.
        coverages: The stated probabilities.
        options: See `score_questions`.
        progress: Whether to show a progress bar.

    Returns:
        For each stated probability what `measure_sets` returns, and `num_left_out`.

    Raises:
        BundleMLLMError: If the models were not calibrated, or cannot promise such a probability, or no question is
            left.
    """
    options = options or ScoringOptions()
    try:
        calibration = calibration_of(completer)
        asked = [question for question in questions if not calibration.calibrated_on(question.bundle_id)]
        if not asked:
            raise BundleMLLMError(
                f"All {len(questions)} questions are about bundles that calibrated the sets, which say nothing about "
                "others: give questions about other bundles, such as those of the test split."
            )
        answers, bundles = [question.answer_index for question in asked], [each.bundle_id for each in asked]
        without = [
            {"partial": q.partial, "candidates": [c for i, c in enumerate(q.candidates) if i != q.answer_index]}
            for q in asked
        ]
        p_values = [p_values_of(completer, _score(completer, each, options, progress)) for each in (asked, without)]
        figures = []
        for coverage in coverages:
            of_all, of_rest = (
                [calibration.holds_answer(each, coverage).tolist() for each in values] for values in p_values
            )
            measured = measure_sets(of_all, of_rest, answers, bundles, coverage)
            figures.append({**measured, "num_left_out": len(questions) - len(asked)})
        return figures
    except ValueError as error:
        raise error if isinstance(error, BundleMLLMError) else BundleMLLMError(str(error)) from error


def _score(
    completer: BundleCompleter, questions: Sequence[Any], options: ScoringOptions, progress: bool
) -> list[Completion]:
    try:
        return completer.score(
            questions,
            batch_size=options.batch_size,
            permutations=options.permutations,
            max_options=options.max_options,
            group_size=options.group_size,
            seed=options.seed,
            progress=lambda batches: steps(batches, "scoring", shown=progress),
        )
    except ValueError as error:
        raise BundleMLLMError(str(error)) from error


def _scored(question: Question, completion: Completion, part: str) -> ScoredQuestion:
    scores, orders = completion.scores[part].tolist(), completion.orders.get(part)
    choice: int | None = max(range(len(scores)), key=scores.__getitem__)
    if part != "retriever" and completion.unrestricted_choice is None:
        choice = None  # the prompt was answered with no letter
    elif part == "ranker":
        choice = completion.unrestricted_choice
    return ScoredQuestion(
        question_id=question.question_id,
        bundle_id=question.bundle_id,
        answer_index=question.answer_index,
        scores=tuple(scores),
        unrestricted_choice=choice,
        per_order_scores=() if orders is None or len(orders) < 2 else tuple(map(tuple, orders.tolist())),
    )

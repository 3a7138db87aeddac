"""Score questions by a completer: one list of scored questions for ranker, retriever and both.

Knows nothing about how a model was trained or which metric is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import ScoredQuestion
from bundle_mllm.evaluation.settings import ScoringOptions
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter, Completion

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


def _score(
    completer: BundleCompleter, questions: Sequence[Question], options: ScoringOptions, progress: bool
) -> list[Completion]:
    try:
        return completer.score(
            questions,
            batch_size=options.batch_size,
            permutations=options.permutations,
            max_options=options.max_options,
            group_size=options.group_size,
            seed=options.seed,
            progress=lambda batches: tqdm(batches, desc="Scoring", unit="batch", disable=not progress),
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

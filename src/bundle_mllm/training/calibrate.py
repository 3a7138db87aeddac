"""Calibrate the answers of a completer on questions whose answers are known and that no model was trained on.

Knows nothing about how models are trained, or how p-values follow from conformity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.files import require_folder, write_json
from bundle_mllm.data.questions import Question, load_questions
from bundle_mllm.device import choose_device
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.evaluate import check_items
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling.combination_bundle_mllm import COMBINATION_FILE, BundleCombination
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.conformal_bundle_mllm import BundleCalibration, bundle_digest
from bundle_mllm.modeling.conformity_bundle_mllm import conformity_of
from bundle_mllm.settings import configured_by
from bundle_mllm.training.config import CalibrationSettings


def calibrated(completer: BundleCompleter, questions: Sequence[Question]) -> BundleCombination:
    """Return the combination of a completer with the conformity of the answers to some questions.

    The questions must be new to the models, and drawn as those that will be asked. Of each bundle the first question
    counts: those about one bundle are too alike to be counted as several. Validation questions are what `train` takes:
    the held-out training bundles, on which the weight of the ranker is fitted, are scored by an earlier retriever and
    by out-of-fold features, and have no cold items; calibrated on them, the demo asked .90 and got .81.
    """
    if not questions:
        return replace(completer.combination, calibration=None)
    most = completer.processor.max_options if completer.reads_letters else None
    of_bundle: dict[str, Question] = {}
    for question in questions:
        of_bundle.setdefault(question.bundle_id, question if most is None else _shortened(question, most))
    first = list(of_bundle.values())
    found = conformity_of(completer, completer.score(first))
    conformity = {
        part: sorted(
            float(f"{of_question[part][question.answer_index]:.6g}")
            for question, of_question in zip(first, found, strict=True)
        )
        for part in completer.parts
    }
    most_candidates = max(len(question.candidates) for question in first)
    calibration = BundleCalibration(most_candidates, conformity, sorted(map(bundle_digest, of_bundle)))
    bound = completer.combination.bind(completer.ranker, completer.retriever)
    return replace(bound, calibration=calibration)


def _shortened(question: Question, number: int) -> Question:
    """Leave wrong candidates out, so that no more are left than a prompt shows."""
    answer = question.candidates[question.answer_index]
    wrong = [item_id for item_id in question.candidates if item_id != answer]
    kept = (answer, *wrong[: number - 1])
    return question if len(wrong) < number else replace(question, candidates=kept, answer_index=0)


@configured_by(CalibrationSettings)
def calibrate(settings: CalibrationSettings) -> dict[str, Any]:
    """Calibrate a model folder on a question file, so that its answers can be given with a guarantee.

    `train` does so by itself on the validation bundles; this is for models that were made otherwise, and for questions
    that are drawn in another way, such as with more candidates.

    Returns:
        `num_questions` that count, one for each bundle, and the `num_candidates` of each.

    Raises:
        BundleMLLMError: If there is no such folder, a question is malformed, or an item is not in the model's catalog.
    """
    require_folder(settings.model, "give a model folder; one on the Hub has to be downloaded first (hf download)")
    questions = load_questions(settings.questions, ItemCatalog.load(settings.data))
    completer = load_completer(settings.model, str(choose_device(settings.device)))
    check_items(completer, questions, settings.questions, settings.model)
    try:
        combination = calibrated(completer, questions)
    except ValueError as error:
        raise error if isinstance(error, BundleMLLMError) else BundleMLLMError(str(error)) from error
    write_json(settings.model / COMBINATION_FILE, combination.to_dict())
    assert combination.calibration is not None
    numbers = {len(values) for values in combination.calibration.conformity.values()}
    return {"num_questions": min(numbers), "num_candidates": combination.calibration.num_candidates}

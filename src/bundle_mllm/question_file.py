"""Make a file of questions: for `evaluate`, or as prompts and completions for `trl sft`.

Knows nothing about how a model is trained or measured.
"""

from __future__ import annotations

from typing import Any

from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.manifest import write_question_manifest
from bundle_mllm.data.memberships import BUNDLE_ITEM
from bundle_mllm.data.questions import Question, make_questions, sample_training_questions, save_questions
from bundle_mllm.data.settings import QuestionFileSettings
from bundle_mllm.data.tables import write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.settings import configured_by


@configured_by(QuestionFileSettings)
def write_questions(settings: QuestionFileSettings) -> list[Question]:
    """Make a file of multiple-choice questions from the bundles of a split.

    Args:
        settings: Whose fields are the arguments: see `QuestionFileSettings`.

    Returns:
        The questions.

    Raises:
        BundleMLLMError: If options contradict each other, a path is wrong, or the split has no bundle of two items.
    """
    if settings.format == "questions" and (settings.model is not None or settings.titles_only):
        raise BundleMLLMError(
            "--model and --titles-only decide how a question is worded, and `--format questions` holds no wording: "
            "add --format prompt-completion, or leave them out."
        )
    split, folder = settings.split, DatasetFolder.open(settings.data)
    made_by: dict[str, Any] = {name: getattr(settings, name) for name in ("num_candidates", "negatives", "seed")}
    if settings.num_questions is None:
        made_by |= {"partial": settings.partial, "questions_per_bundle": settings.questions_per_bundle}
        questions = make_questions(folder.bundles[split], folder.catalog, folder.bundles, **made_by)
    elif split != "train":
        raise BundleMLLMError(f"--num-questions samples training questions, not of {split}: add --split train.")
    else:
        made_by |= {"num_questions": settings.num_questions}
        questions = sample_training_questions(
            folder.bundles.train,
            folder.catalog,
            num_questions=settings.num_questions,
            num_candidates=(settings.num_candidates, settings.num_candidates),
            hard_fraction=1.0 if settings.negatives == "hard" else 0.0,
            seed=settings.seed,
        )
    if not questions:
        raise BundleMLLMError(f"{settings.data} has no {split} bundle of two items, so no question can be made of it.")
    if settings.format == "questions":
        save_questions(settings.output, questions)
        write_question_manifest(settings.output, {"split": split, **made_by})
    else:
        _write_prompts(settings, folder, questions)
    return questions


def _write_prompts(settings: QuestionFileSettings, folder: DatasetFolder, questions: list[Question]) -> None:
    """Write prompts and completions; warn of features that give the answers away."""
    from transformers.utils import logging

    from bundle_mllm.model_folder import load_processor
    from bundle_mllm.training.dataset import prompt_completion_dataset
    from bundle_mllm.training.scratch import scratch_processor

    processor = scratch_processor(folder.catalog) if settings.model is None else load_processor(settings.model)
    if settings.split == "train" and not settings.titles_only and BUNDLE_ITEM in (processor.modalities or {}):
        logging.get_logger(__name__).warning(
            f"{settings.model} has {BUNDLE_ITEM!r} features, which were fitted to the training bundles, so a model "
            "that trains on these questions trusts them too much. `bundle-mllm train` uses features fitted without "
            "their bundles; for `trl sft`, make the model with --modalities without them."
        )
    shows_items, split = not settings.titles_only, settings.split
    rows: Any = prompt_completion_dataset(questions, processor, shows_items=shows_items, split=split)
    write_records(settings.output, rows)

"""Evaluate a model folder on a question file and write `metrics.json`.

Knows nothing about training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.files import atomic_path, sha256
from bundle_mllm.data.questions import load_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.metrics import compute_metrics
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.folder import load_model


def evaluate(
    model_dir: Path, data: Path, questions_path: Path, output: Path | None = None, *, batch_size: int = 32
) -> dict[str, Any]:
    """Score a question file and compute its metrics.

    Args:
        model_dir: A model folder.
        data: The dataset folder whose items the questions name.
        questions_path: A question file over these items.
        output: Where to write the metrics as JSON, if anywhere.
        batch_size: Questions per forward pass.

    Returns:
        See `compute_metrics`, and `random_hit_rate@1` (what guessing would reach), `questions` (path and SHA-256 of
        the file, fewest and most options of a question), `model`, `data`.

    Raises:
        BundleMLLMError: A path is wrong, a question is malformed, or the model's catalog lacks an item.
    """
    catalog = ItemCatalog.load(data)
    questions = load_questions(questions_path, catalog)
    model, processor = load_model(model_dir)
    asked = {item_id for q in questions for item_id in (*q.partial, *q.candidates)}
    if unknown := sorted(asked - set(processor.item_ids)):
        raise BundleMLLMError(
            f"{len(unknown)} items of {questions_path} are not in the catalog of {model_dir} (such as {unknown[:3]}), "
            "so their questions cannot be asked: evaluate on the catalog it was trained with, or set its catalog."
        )
    scored = score_questions(model, processor, questions, batch_size=batch_size, progress=True)
    num_candidates = [len(question.candidates) for question in questions]
    metrics = compute_metrics(scored) | {
        "random_hit_rate@1": sum(1 / number for number in num_candidates) / len(questions),
        "questions": {
            "path": str(questions_path),
            "sha256": sha256(questions_path),
            "num_candidates": [min(num_candidates), max(num_candidates)],
        },
        "model": str(model_dir),
        "data": str(data),
    }
    if output is not None:
        with atomic_path(output) as temporary:
            temporary.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics

"""The demo: invent a small catalog, encode it, train both models, evaluate, load the folder back, complete a bundle.

Knows nothing that a user could not do with the same functions.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import pipeline
from transformers.utils import logging

from bundle_mllm.completion.complete import load_ruled_completer
from bundle_mllm.data.files import write_json
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.manifest import write_question_manifest
from bundle_mllm.data.questions import Question, make_questions, save_questions
from bundle_mllm.encoders.encode import encode_folder
from bundle_mllm.evaluation.ablation import permuted
from bundle_mllm.evaluation.metrics import compute_metrics
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.model_folder import STAGE_ONE_MODEL, load_completer
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.settings import SCRATCH
from bundle_mllm.synthetic.settings import Domain, SyntheticSettings
from bundle_mllm.synthetic.write import make_synthetic
from bundle_mllm.training.config import RunConfig, default_run
from bundle_mllm.training.run import limited_threads, train

logger = logging.get_logger(__name__)

NUM_CANDIDATES = 10
PAGE = "demo.html"
"""The page of the completed bundle."""


def demo_run(data: Path, output_dir: Path, seed: int) -> RunConfig:
    """Return the demo's training run: the default recipe for `scratch`, shortened to minutes."""
    run = default_run(SCRATCH, data=data, output_dir=output_dir)
    same: dict[str, Any] = {"hard_fraction": 0.0, "num_candidates": (8, 10)}
    short: dict[str, Any] = {**same, "warm_start_steps": 200, "num_validations": 3}
    return replace(
        run,
        seed=seed,
        validation_questions=200,
        retriever=replace(run.retriever, steps=150, num_questions=12_000, dropout=0.2, **same),
        stage_one=replace(run.stage_one, num_questions=1_536, **short),
        stage_two=replace(run.stage_two, num_questions=3_072, **short),
    )


def run_demo(output_dir: Path, *, domain: Domain = "fashion", seed: int = 0) -> dict[str, Any]:
    """Run the whole demo in a folder.

    Args:
        output_dir: Receives `data/` (the invented dataset folder), `model/` (the model folder), `demo.json` and
            `demo.html`, a page of the completed bundle.
        domain: "fashion" (pictures) or "playlist" (sounds).
        seed: Seed of catalog, training and questions.

    Returns:
        What `demo.json` holds: `random`, `retriever`, `stage_one`, `stage_two` (the ranker alone), `both`,
        `stage_two_shuffled` and `both_shuffled` (features permuted among items), `hit_rate@1` each;
        `hit_rate@1_se`, `valid_ratio`, `num_questions`, `seconds`; and `completion`, one completed bundle.
    """
    start = time.monotonic()
    output_dir = Path(output_dir)
    data = output_dir / "data"
    make_synthetic(data, SyntheticSettings(domain=domain, seed=seed))
    media: Any = {"visual" if domain == "fashion" else "acoustic": "descriptor"}
    for summary in encode_folder(data, textual="tfidf", relational="user_item:svd", **media).values():
        logger.info(str(summary))
    folder = DatasetFolder.open(data)
    made: dict[str, Any] = {"num_candidates": NUM_CANDIDATES, "negatives": "uniform", "partial": "half", "seed": seed}
    questions = make_questions(folder.bundles.test, folder.catalog, folder.bundles, **made)
    save_questions(data / "questions" / "test.jsonl", questions)
    write_question_manifest(data / "questions" / "test.jsonl", {"split": "test", **made})
    run = demo_run(data, output_dir / "model", seed)
    model_dir = train(run)
    result: dict[str, Any] = {"domain": domain, "seed": seed}
    with limited_threads(run.num_threads):
        result |= _compare(model_dir, questions, seed)
        result["completion"] = _complete(model_dir, folder, questions[0])
        _write_page(output_dir / PAGE, model_dir, questions[0], result)
    result["seconds"] = round(time.monotonic() - start, 1)
    write_json(output_dir / "demo.json", result)
    return result


def _compare(model_dir: Path, questions: list[Question], seed: int) -> dict[str, Any]:
    """Evaluate each part, the ranker after stage one, and each part with features permuted among items."""

    def metrics_of(completer: BundleCompleter) -> dict[str, dict[str, Any]]:
        return {part: compute_metrics(scored) for part, scored in score_questions(completer, questions).items()}

    completer = load_completer(model_dir)
    metrics = metrics_of(completer)
    with permuted(completer, seed=seed):
        shuffled = metrics_of(completer)
    return {
        "random": sum(1 / len(question.candidates) for question in questions) / len(questions),
        "retriever": metrics["retriever"]["hit_rate@1"],
        "stage_one": metrics_of(load_completer(model_dir / STAGE_ONE_MODEL))["ranker"]["hit_rate@1"],
        "stage_two": metrics["ranker"]["hit_rate@1"],
        "both": metrics["both"]["hit_rate@1"],
        "stage_two_shuffled": shuffled["ranker"]["hit_rate@1"],
        "both_shuffled": shuffled["both"]["hit_rate@1"],
        "hit_rate@1_se": metrics["both"]["hit_rate@1_se"],
        "valid_ratio": metrics["ranker"]["valid_ratio"],
        "num_questions": len(questions),
    }


def _complete(model_dir: Path, folder: DatasetFolder, question: Question) -> dict[str, Any]:
    """Load the folder as anyone would and complete one test bundle."""
    # The stubs list the tasks of transformers alone.
    completer = pipeline("bundle-completion", model=str(model_dir))  # pyright: ignore[reportArgumentType, reportCallIssue]
    ranked = completer({"partial": list(question.partial), "candidates": list(question.candidates)})
    catalog = folder.catalog
    return {
        "partial": [{"item_id": i, "title": catalog[catalog.row(i)].title} for i in question.partial],
        "answer": question.answer,
        "ranked": ranked,
    }


def _write_page(path: Path, model_dir: Path, question: Question, result: dict[str, Any]) -> None:
    """Write a page of the same bundle: pictures or sounds, and what each source of information contributed."""
    completer = load_ruled_completer(model_dir, items=path.parent / "data")
    [answers] = completer.complete([question], top_k=5, explain=True)
    about = (
        f"An invented {result['domain']} catalog, and a bundle of its test split from which one item was left out. Of "
        f"{NUM_CANDIDATES} candidates, both models together find the right one in {result['both']:.1%} of "
        f"{result['num_questions']} such questions; guessing finds {result['random']:.1%}."
    )
    answers.write_html(path, about, right=question.answer)

"""Metrics files: what was measured on which question file, with every question's scores beside it; and comparing two.

Knows nothing about models or prompts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle_mllm.data.files import read_json, sha256, write_json
from bundle_mllm.data.manifest import manifest_path
from bundle_mllm.data.tables import iter_records, write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.catalog import RankedQuestion
from bundle_mllm.evaluation.catalog_metrics import catalog_differences
from bundle_mllm.evaluation.metrics import ScoredQuestion, paired_differences
from bundle_mllm.evaluation.tables import ComparisonDict

_FIELDS = ("question_id", "bundle_id", "answer_index", "rank", "scores", "unrestricted_choice")


def save_results(
    path: str | os.PathLike, metrics: Mapping[str, Any], scored: Sequence[ScoredQuestion | RankedQuestion]
) -> None:
    """Write a metrics file and, beside it, the scores of every question.

    Args:
        path: Where the metrics go, such as `metrics.json`. The scores go to `metrics.questions.jsonl`: one row per
            question with `question_id`, `bundle_id`, `answer_index`, `rank` (of the answer), `scores` (in the
            order of the question) and `unrestricted_choice`; of whole catalogs the fields of `RankedQuestion`.
        metrics: The metrics; `questions` must be the question file's, see `read_question_manifest`. What is not
            defined (NaN) is written as null. `results` is added: name and SHA-256 of the file of scores.
        scored: The scored questions.
    """
    path = Path(path)
    rows = _rows_path(path)
    write_records(rows, map(_to_record, scored))
    write_json(path, {**metrics, "results": {"path": rows.name, "sha256": sha256(rows)}})


def check_writable(path: str | os.PathLike, questions: str | os.PathLike) -> None:
    """Refuse a place where [`save_results`] could not write, before anything is measured.

    Raises:
        BundleMLLMError: If a folder is in the place of a file, the question file or its note would be overwritten, or
            files cannot be written there.
    """
    path = Path(path)
    kept = {file.resolve() for file in (Path(questions), manifest_path(questions))}
    for file in (path, _rows_path(path)):
        if file.resolve() in kept:
            raise BundleMLLMError(
                f"Metrics in {path} would overwrite {file}, which holds the questions: give another."
            )
        if file.is_dir():
            raise BundleMLLMError(f"{file} is a folder, so no metrics can be written there: give a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise BundleMLLMError(
            f"{path} cannot be written ({error}), so the metrics would be lost: give another file."
        ) from error


def load_results(path: str | os.PathLike) -> tuple[dict[str, Any], list[ScoredQuestion]]:
    """Read a metrics file of [`save_results`] on given candidates, and the scored questions beside it.

    Raises:
        BundleMLLMError: If a file is missing or malformed, the scores are those of another run, or the file is about
            whole catalogs.
    """
    metrics, records = _read(path)
    if "protocol" in metrics:
        raise BundleMLLMError(
            f"{path} is about whole catalogs, and these figures are of given candidates: evaluate without --catalog."
        )
    fields = ({name: record[name] for name in _FIELDS if name != "rank"} for record in records)
    return metrics, [ScoredQuestion(**{**record, "scores": tuple(record["scores"])}) for record in fields]


def load_catalog_results(path: str | os.PathLike) -> tuple[dict[str, Any], list[RankedQuestion]]:
    """Read a metrics file of [`save_results`] on whole catalogs, and the ranked questions beside it.

    Raises:
        BundleMLLMError: If a file is missing or malformed, the places are those of another run, or the file is not
            about whole catalogs.
    """
    metrics, records = _read(path)
    if "protocol" not in metrics:
        raise BundleMLLMError(f"{path} is about given candidates, not whole catalogs: evaluate with --catalog.")
    return metrics, [RankedQuestion(**{name: _frozen(value) for name, value in row.items()}) for row in records]


def load_metrics(path: str | os.PathLike) -> dict[str, Any]:
    """Read a metrics file of [`save_results`], of either kind; errors are those of [`load_results`]."""
    return _read(path)[0]


def is_catalog(path: str | os.PathLike) -> bool:
    """Return whether a metrics file is about whole catalogs."""
    return "protocol" in load_metrics(path)


def _read(path: str | os.PathLike) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """Read a metrics file, and the rows beside it."""
    path = Path(path)
    try:
        metrics = read_json(path)
        name, expected, _ = metrics["results"]["path"], metrics["results"]["sha256"], metrics["questions"]["sha256"]
    except (BundleMLLMError, KeyError, TypeError) as error:
        reason = str(error).rstrip(".") if isinstance(error, BundleMLLMError) else "no questions or no results"
        raise BundleMLLMError(
            f"{path} is no metrics file that can be compared ({reason}): give what `bundle-mllm evaluate` wrote."
        ) from error
    rows = path.parent / name
    if not rows.is_file() or sha256(rows) != expected:
        problem = "is another file than" if rows.exists() else "is missing, which holds"
        raise BundleMLLMError(f"{rows} {problem} the scores that {path} was computed from: evaluate again.")
    return metrics, iter_records(rows)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _to_record(question: ScoredQuestion | RankedQuestion) -> dict[str, Any]:
    if isinstance(question, RankedQuestion):
        return vars(question)
    return {name: getattr(question, name) for name in _FIELDS}


def compare_metrics(a: str | os.PathLike, b: str | os.PathLike) -> ComparisonDict:
    """Compare two runs on one question file.

    Args:
        a: Metrics file of one run.
        b: Metrics file of the other; both on given candidates, or both on whole catalogs.

    Returns:
        `a`, `b` (the paths), `questions` (which file) and, for each metric that both have, a mapping of `a`, `b`,
        `difference` (`a` minus `b`), `se` (paired, clustered by bundle) and `z`; see `paired_differences`. A notebook
        shows it as a table.

    Raises:
        BundleMLLMError: If the runs used different question files, or a file is missing, malformed or of another run.
    """
    of_catalogs = is_catalog(a)
    load: Callable[..., tuple[dict[str, Any], list[Any]]] = load_catalog_results if of_catalogs else load_results
    (metrics_a, of_a), (metrics_b, of_b) = load(a), load(b)
    used = [metrics["questions"] for metrics in (metrics_a, metrics_b)]
    if used[0]["sha256"] != used[1]["sha256"]:
        raise BundleMLLMError(
            f"{a} was measured on {used[0].get('path')} (SHA-256 {used[0]['sha256'][:12]}…) and {b} on "
            f"{used[1].get('path')} ({used[1]['sha256'][:12]}…), so a difference would be one of questions: evaluate "
            "both on one question file."
        )
    if of_catalogs:
        differences = catalog_differences(of_a, of_b, metrics_a["num_items"])
    else:
        probabilities = all("calibration_error" in metrics for metrics in (metrics_a, metrics_b))
        differences = paired_differences(of_a, of_b, probabilities=probabilities)
    return ComparisonDict({"a": str(a), "b": str(b), "questions": used[0], **differences})


def part_path(path: Path, part: str) -> Path:
    """Return where the metrics of a part or of another method go, beside a metrics file: `metrics.ranker.json`."""
    return path.with_name(f"{path.name.removesuffix('.json')}.{part}.json")


def _rows_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".json") + ".questions.jsonl")

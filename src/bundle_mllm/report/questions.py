"""The question files of a report: those that were given, or a uniform and a hard one made from a split.

Knows nothing about models or metrics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.manifest import read_question_manifest, write_question_manifest
from bundle_mllm.data.questions import Question, load_questions, make_questions, save_questions, spread
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.report.settings import QuestionOptions


@dataclass(frozen=True)
class QuestionSet:
    """A question file."""

    name: str
    """Its name in tables and figures: the file's name without its endings."""
    manifest: dict[str, Any]
    """See `read_question_manifest`."""
    questions: list[Question]

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return self.manifest["sha256"]

    @property
    def chance(self) -> float:
        """The share of hits of guessing."""
        return sum(1 / len(question.candidates) for question in self.questions) / len(self.questions)

    def summary(self) -> dict[str, Any]:
        """Return what a reader needs to know of it; no path of this machine."""
        sizes = [len(question.candidates) for question in self.questions]
        return {
            "name": self.name,
            "sha256": self.sha256,
            "made": self.manifest.get("made"),
            "num_questions": len(self.questions),
            "num_bundles": len({question.bundle_id for question in self.questions}),
            "num_candidates": [min(sizes), max(sizes)],
            "chance": self.chance,
        }


def open_question_sets(paths: Sequence[Path], folder: DatasetFolder) -> list[QuestionSet]:
    """Read question files.

    Raises:
        BundleMLLMError: If a file is missing or malformed, or two are the same or have the same name.
    """
    sets: dict[str, QuestionSet] = {}
    for path in paths:
        manifest = read_question_manifest(path)
        name = file_name(path.name.split(".")[0]) or "questions"
        if name in sets:
            raise BundleMLLMError(
                f"Two question files are called {name!r}, so a figure could not tell them apart: rename one."
            )
        if manifest["sha256"] in {other.sha256 for other in sets.values()}:
            raise BundleMLLMError(f"{path} holds the same questions as another of the files: give each once.")
        sets[name] = QuestionSet(name, manifest, load_questions(path, folder.catalog))
    return list(sets.values())


def make_question_sets(target: Path, folder: DatasetFolder, options: QuestionOptions, seed: int) -> list[Path]:
    """Write a file of uniform and one of hard questions, one question for each of some bundles at equal distances.

    Existing files are written again, to the same bytes; a note beside each records how it was made.

    Raises:
        BundleMLLMError: If there is no bundle of two items, or the catalog is too small.
    """
    bundles = spread(folder.bundles[options.split], options.max_questions)
    if not bundles:
        raise BundleMLLMError(
            f"{folder.path} has no {options.split} bundle of two items, so no question can be made: give --questions "
            "FILE, or another --split."
        )
    paths = []
    for kind in ("uniform", "hard"):
        made: dict[str, Any] = {"num_candidates": options.num_candidates, "negatives": kind, "seed": seed}
        made |= {"partial": "half", "questions_per_bundle": 1}
        path = target / f"{options.split}_{kind}.jsonl"
        save_questions(path, make_questions(bundles, folder.catalog, folder.bundles, **made))
        write_question_manifest(path, {"split": options.split, **made, "max_questions": options.max_questions})
        paths.append(path)
    return paths


def file_name(name: str) -> str:
    """Return a name with an underscore in place of what does not belong in the name of a file."""
    return re.sub(r"[^\w.-]+", "_", name)

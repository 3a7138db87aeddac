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

KINDS = ("uniform", "hard")
"""The kinds of negatives where no question file is given."""


@dataclass(frozen=True)
class QuestionSet:
    """A question file.

    Attributes:
        name: Its name in tables and figures: the file's name without its endings.
        manifest: Its path, SHA-256 and, where that is known, how it was made; see `read_question_manifest`.
        questions: The questions.
    """

    name: str
    manifest: dict[str, Any]
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
        }


def open_question_sets(paths: Sequence[Path], folder: DatasetFolder) -> list[QuestionSet]:
    """Read question files.

    Raises:
        BundleMLLMError: If a file is missing or malformed, or two are the same or have the same name.
    """
    sets: dict[str, QuestionSet] = {}
    for path in paths:
        manifest = read_question_manifest(path)
        name = re.sub(r"[^\w.-]+", "_", path.name.split(".")[0]) or "questions"
        if name in sets:
            raise BundleMLLMError(
                f"Two question files are called {name!r}, so a figure could not tell them apart: rename one."
            )
        if manifest["sha256"] in {other.sha256 for other in sets.values()}:
            raise BundleMLLMError(f"{path} holds the same questions as another of the files: give each once.")
        sets[name] = QuestionSet(name, manifest, load_questions(path, folder.catalog))
    return list(sets.values())


def make_question_sets(
    target: Path, folder: DatasetFolder, split: str, *, max_questions: int, num_candidates: int, seed: int
) -> list[Path]:
    """Write a question file of each kind, one question for each of some bundles at equal distances.

    Args:
        target: The folder that receives them; existing files are written again, to the same bytes.
        folder: The data set.
        split: Whose bundles the questions are about.
        max_questions: At most this many questions in each file.
        num_candidates: Candidates of a question.
        seed: The same seed makes the same files.

    Returns:
        The files; a note beside each records how it was made.

    Raises:
        BundleMLLMError: If there is no bundle of two items, or the catalog is too small.
    """
    bundles = spread(folder.bundles[split], max_questions)
    if not bundles:
        raise BundleMLLMError(
            f"{folder.path} has no {split} bundle of two items, so no question can be made: give --questions FILE, or "
            "another --split."
        )
    paths = []
    for kind in KINDS:
        made: dict[str, Any] = {"num_candidates": num_candidates, "negatives": kind, "seed": seed}
        made |= {"partial": "half", "questions_per_bundle": 1}
        path = target / f"{split}_{kind}.jsonl"
        save_questions(path, make_questions(bundles, folder.catalog, folder.bundles, **made))
        write_question_manifest(path, {"split": split, **made, "max_questions": max_questions})
        paths.append(path)
    return paths

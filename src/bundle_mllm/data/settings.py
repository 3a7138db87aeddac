"""Settings of question files and of the leakage check.

Knows nothing about tokenizers or models; imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundle_mllm.settings import Settings


@dataclass(frozen=True, kw_only=True)
class WordingOptions(Settings):
    """How questions are written."""

    format: Literal["questions", "prompt-completion"] = "questions"
    """"questions" for `bundle-mllm evaluate`; "prompt-completion" for `trl sft`."""
    model: Path | None = None
    """Model folder whose wording and chat template "prompt-completion" uses; plain wording if not given."""
    titles_only: bool = False
    """Leave out the item tokens in "prompt-completion" (stage one)."""


@dataclass(frozen=True)
class QuestionFileSettings(WordingOptions):
    """Make a file of multiple-choice questions from the bundles of a split."""

    data: Path
    """Dataset folder."""
    output: Path
    """File to write (.jsonl, .jsonl.gz, .csv or .parquet); a note beside it records how it was made."""
    split: Literal["train", "validation", "test"] = "validation"
    """Whose bundles the questions are about."""
    num_candidates: int = 10
    """Candidates of each question; one of them is the answer. More than 26 are ranked in groups."""
    negatives: Literal["uniform", "hard"] = "uniform"
    """Wrong candidates: drawn uniformly, or matched to the answer in category and train frequency."""
    partial: Literal["half", "leave_one_out"] = "half"
    """Show half of the bundle, or all of it but the answer."""
    questions_per_bundle: int = 2
    """Most questions about one bundle."""
    num_questions: int | None = None
    """Sample this many instead, each of another part of a bundle, as `train` does (train only)."""
    seed: int = 42
    """Seed of the questions; the same seed gives the same file, byte by byte."""


@dataclass(frozen=True)
class LeakageSettings(Settings):
    """Show how well features and interactions alone answer training and validation questions.

    Features that answer training questions better than validation questions know the training bundles, and a model
    learns to trust them too much; interactions that answer nearly everything were made of the bundles.
    """

    data: Path
    """Dataset folder."""
    num_questions: int = 1_000
    """Most questions of each kind."""
    seed: int = 0
    """Seed of the questions."""

"""Settings of `build_report`.

Knows nothing about models; imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundle_mllm.evaluation.settings import SIZES
from bundle_mllm.settings import Settings


@dataclass(frozen=True, kw_only=True)
class QuestionOptions(Settings):
    """Questions that are made, where no files are given."""

    split: Literal["train", "validation", "test"] = "validation"
    """Whose bundles the questions are about."""
    max_questions: int = 400
    """Most questions of each file; one per bundle."""
    num_candidates: int = 10
    """Candidates of each question."""


@dataclass(frozen=True, kw_only=True)
class LengthOptions(Settings):
    """The figure by number of candidates."""

    sizes: tuple[int, ...] = SIZES
    """Numbers of candidates; none leaves the figure out."""
    length_questions: int = 150
    """Questions for each of these numbers; fewer where they would cost more than 4,000 prompts."""


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions(Settings):
    """How models are measured."""

    batch_size: int = 32
    """Prompts per forward pass."""
    seed: int = 42
    """Seed of questions, permuted features and groups."""
    device: str | None = None
    """cpu or cuda; a GPU if there is one, if not given."""
    progress: bool = False
    """Show progress bars."""


@dataclass(frozen=True)
class ReportSettings(MeasuringOptions, LengthOptions, QuestionOptions):
    """Draw the paper's figures on your data: stages, number of candidates, training, cold start, ablation, size.

    Writes report.html (one page that needs nothing else), figures/*.png and report.json (every number). A report that
    was killed continues when the same command is given again. With the defaults and the scratch backbone it takes
    about ten minutes on one core; the number of questions decides.
    """

    model: tuple[Path, ...]
    """Model folders. Everything is measured of the first; several are compared by their size."""
    data: Path
    """Dataset folder."""
    output_dir: Path | None = None
    """Folder of the report; by default report/ in the first model folder, where `publish` finds it."""
    questions: tuple[Path, ...] = ()
    """Question files, each used whole; by default a uniform and a hard one are made and written to questions/ in the
    report's folder."""
    coverage: tuple[float, ...] = (0.8, 0.9, 0.95)
    """Stated probabilities of sets of answers with a guarantee; where the model is calibrated, and the questions are
    about other bundles than those that calibrated it."""
    metrics: tuple[Path, ...] = ()
    """Metrics files of other methods on the same question files, to be shown beside the model; one with
    `bayes_optimal` (the hit rate of the best possible answers) gives a section of its own."""

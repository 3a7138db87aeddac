"""Settings of an evaluation.

Knows nothing about models; imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundle_mllm.settings import Settings

SIZES = (2, 5, 10, 15, 20, 26, 50, 100, 1000)
"""Numbers of candidates that are measured by default."""


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(Settings):
    """How candidates are scored."""

    batch_size: int = 32
    """Prompts per forward pass."""
    permutations: int = 1
    """Score each question in this many orders of its candidates and average, against position bias."""
    max_options: int | None = None
    """Longest list of candidates in one prompt, 3 to 26; what the model was trained on if not given. Longer ones are
    ranked in groups."""
    group_size: int | None = None
    """Most candidates of a group; by default 10, or max_options if that is less."""
    seed: int = 0
    """Seed of candidate orders, groups, permuted features and baselines."""
    device: str | None = None
    """cpu or cuda; a GPU if there is one, if not given."""
    catalog: bool = False
    """Rank the whole catalog instead of the candidates: which places do the items of the bundle take that the question
    does not show?"""


@dataclass(frozen=True, kw_only=True)
class MaskingOptions(Settings):
    """What the model may see, to measure what it uses."""

    mask: tuple[str, ...] = ()
    """What is hidden of every item: modalities, "titles"."""
    permute: tuple[str, ...] = ()
    """Modalities of which every item gets the features of another (permutation importance)."""


@dataclass(frozen=True)
class EvaluationSettings(MaskingOptions, ScoringOptions):
    """Score a question file and write hit rates, valid_ratio, ranks, calibration, breakdowns and position bias."""

    model: Path
    """Model folder (the output of `bundle-mllm train`)."""
    data: Path
    """Dataset folder whose items the questions name."""
    questions: Path
    """Question file (see `bundle-mllm questions`)."""
    output: Path | None = None
    """Where the metrics are written, if anywhere. Beside them go the scores of every question
    (`metrics.questions.jsonl`), the metrics of each part (`metrics.ranker.json`, `metrics.retriever.json`) and those
    of baselines (`metrics.popularity.json`, ...)."""
    ranker: str | None = None
    """Server that runs the exported ranker, as openai:http://HOST/v1#MODEL; an error if it does not answer."""
    coverage: tuple[float, ...] = ()
    """Stated probabilities, such as 0.8 0.9 0.95: how often do the sets that hold the answer so often really hold it,
    how large are they, and how often does nothing fit, with the answer among the candidates and without?"""


@dataclass(frozen=True)
class ComparisonSettings(Settings):
    """Compare two metrics files of one question file: differences with paired standard errors, by bundle."""

    a: Path
    """Metrics file of one run."""
    b: Path
    """Metrics file of the other."""

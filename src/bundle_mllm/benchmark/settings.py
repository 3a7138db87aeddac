"""Settings of `run_benchmark`.

Knows nothing about data sets or models; imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundle_mllm.settings import Settings


@dataclass(frozen=True)
class BenchmarkSettings(Settings):
    """Measure baselines and models on a published data set, by fixed questions, and write one table.

    Reads the layout of the authors of Bundle-MLLM (POG, Spotify, Steam), BundleRec, Polyvore Outfits, and dataset
    folders. The first run imports the data to data/ in the output folder; models that are trained on it are given to
    a later run. What is measured already is kept.
    """

    source: Path
    """Folder of the data set as published, or a dataset folder."""
    output_dir: Path
    """Receives data/ (the imported data), questions/, metrics/, benchmark.json and the table, benchmark.md."""
    model: tuple[Path, ...] = ()
    """Model folders that were trained on the data; each becomes rows of the table."""
    baselines: tuple[str, ...] = ("all",)
    """Baselines; see `bundle-mllm evaluate`."""
    split: Literal["validation", "test"] = "test"
    """Whose bundles the questions are about."""
    num_candidates: int = 10
    """Candidates of each question."""
    seed: int = 42
    """Seed of the questions; baselines have seed 0."""

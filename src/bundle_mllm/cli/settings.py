"""Settings of commands that call several functions of the API, or none that takes settings.

Knows nothing that the API does not offer; imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundle_mllm.completion.settings import BulkOptions
from bundle_mllm.settings import Settings
from bundle_mllm.synthetic.settings import Attribute, Domain, Signal


@dataclass(frozen=True)
class TerminalSettings(Settings):
    """What every command says beside its result."""

    quiet: bool = False
    """Show results and errors only: no progress, no notes, no warnings."""


@dataclass(frozen=True)
class DemoSettings(Settings):
    """Invent a small catalog, train retriever and ranker on it, evaluate, and complete one bundle (some minutes)."""

    output_dir: Path
    """Receives data/ (the invented dataset folder), model/ (the trained model folder), demo.json, and demo.html, a
    page of one completed bundle."""
    domain: Domain = "fashion"
    """Outfits with pictures, or playlists with sounds."""
    seed: int = 0
    """Seed of data, training and questions."""


@dataclass(frozen=True)
class SyntheticCatalogSettings(Settings):
    """Invent a dataset folder whose best possible accuracy is known (see `best-accuracy`), to test a training run."""

    output_dir: Path
    """The dataset folder to write."""
    signal: Signal | None = None
    """The only signal that shows which items go together: titles, pictures or sounds, interactions, a column of the
    items table, or nothing but the training bundles (which always do: train without `bundle_item` for the others). If
    not given, titles, pictures or sounds, and interactions each show a part of it, as in the demo."""
    attribute: Attribute = "category"
    """What the column of `--signal attribute` holds: a label, tags, a price or a release date."""
    domain: Domain = "fashion"
    """Items with pictures (fashion) or sounds (playlist)."""
    seed: int = 0
    """The same seed gives the same files, byte by byte."""
    theme_purity: float | None = None
    """Probability that an item of a bundle fits it; the best possible accuracy rises with it. By default .9 with one
    signal, 1 without."""


@dataclass(frozen=True)
class BestAccuracySettings(Settings):
    """Compute the Bayes-optimal hit rate on a question file about a folder that `synthetic` made."""

    data: Path
    """Dataset folder that `bundle-mllm synthetic` made."""
    questions: Path
    """Question file with uniform negatives (see `bundle-mllm questions`)."""
    output: Path = Path("best-accuracy.json")
    """Where the Bayes-optimal metrics are written, in the form of `evaluate`: `compare` reads them."""
    metrics: tuple[Path, ...] = ()
    """Files of `bundle-mllm evaluate` on the same questions, whose share of the optimum is printed."""
    signals: tuple[Signal, ...] | None = None
    """The signals that are known, such as titles alone; all that show which items go together if not given."""


@dataclass(frozen=True)
class ConfigFileSettings(Settings):
    """The YAML file of a training run."""

    config: Path | None = None
    """YAML file of settings, nested like the options below; an option given here takes precedence."""


@dataclass(frozen=True)
class CompletionSettings(BulkOptions):
    """Complete one bundle or many: out of the whole catalog or of given candidates, under the rules of a shop."""

    model: str
    """Model folder or Hub repository."""
    bundle: str | None = None
    """Ids of the items that the bundle has so far, separated by commas; or a JSON list of ids and of new items, such
    as ["a12", {"title": "linen shirt", "image": "shirt.jpg"}]."""
    candidates: str | None = None
    """Ids to choose from, separated by commas; the whole catalog if not given. Of more than 26 the ranker sees the
    retriever's best; without a retriever they are ranked in groups, at about 0.15 prompts per candidate."""
    top_k: int = 5
    """Number of answers."""
    page: int = 1
    """Which answers: 2 for those after the first `top_k`, and so on. Each page keeps to the rules by itself."""
    rules: Path | None = None
    """File of rules, JSON or YAML, with the names of the options below; an option given here takes precedence."""
    items: Path | None = None
    """Items table, or dataset folder, whose columns the rules read: prices and stock change without encoding. By
    default the table that the model folder holds. A page shows the pictures and sounds that it names."""
    coverage: float | None = None
    """Show only the smallest set of items that holds the right answer with this probability, such as 0.9, and say so
    if nothing fits; of a calibrated model (`train` does so, and `calibrate`)."""
    explain: bool = False
    """Show what title, picture, sound, users, bundles, LLM and boost contributed to each score."""
    html: Path | None = None
    """Write a page of the answers, with scores, what contributed to them, and pictures and sounds (of a dataset folder
    as --items)."""
    json: bool = False
    """Print JSON."""
    device: str | None = None
    """cpu or cuda; a GPU if there is one, if not given."""

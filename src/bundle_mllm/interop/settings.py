"""Settings of `convert_checkpoint` and `export_stock`.

Knows nothing about weights; imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundle_mllm.settings import Settings


@dataclass(frozen=True, kw_only=True)
class OfficialTrainingOptions(Settings):
    """How the checkpoint was trained, which its files do not record: as in its training command."""

    fusion_layer_norm: bool = False
    """With `layernorm` among the official --components."""
    fusion_value_map: bool = False
    """With `w_v` among the official --components."""
    shows_separator: bool = True
    """Questions show the soft separator; not if it was trained with --del_sp=True."""


@dataclass(frozen=True)
class ConversionSettings(OfficialTrainingOptions):
    """Turn a checkpoint that the authors of Bundle-MLLM published into a model folder."""

    checkpoint: Path
    """The published checkpoint folder (adapter_model.bin, fusion.bin, ...)."""
    data: Path
    """The published data folder that it was trained on; only its items and their features are read."""
    base_model: str
    """Folder or Hub name of its base model, such as meta-llama/Llama-2-7b-hf."""
    output_dir: Path
    """The model folder to write: new or empty. It appears when it is complete."""


@dataclass(frozen=True)
class ExportSettings(Settings):
    """Fold a ranker into a stock causal language model that any LLM server runs, without this package."""

    model: str | Path
    """Model folder or Hub repository, or a LoRA adapter of one, which is merged."""
    output_dir: Path
    """The folder to write: new or empty. It appears when it is complete."""
    modalities: tuple[str, ...] | None = None
    """Modalities of the item tokens; all if not given."""

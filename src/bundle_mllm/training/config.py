"""Typed settings of a training run: what each stage trains, on which questions, with which optimizer.

Knows nothing about prompts, features or the model's code.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from bundle_mllm.errors import BundleMLLMError

SCRATCH = "scratch"
"""The `base_model` that needs no download: a small Llama, trained in full (see `training/scratch.py`)."""

RELATIONS = ("bundle_category", "bundle_item", "textual", "user_item")
"""What a matching can compare items by, see `training/relations.py`."""

ParameterGroup = Literal["lora", "backbone", "fusion", "projector", "separator"]


@dataclass(frozen=True)
class LoraSettings:
    """Adapter on the backbone. Defaults: official code (r 8, alpha 16, dropout 0.05, query and value maps)."""

    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    target_modules: tuple[str, ...] | None = None
    """Names of the linear maps to adapt; query and value, or the fused map that holds them, if not given."""


@dataclass(frozen=True)
class StageConfig:
    """What both stages have in common."""

    num_questions: int = 20_000
    """Training questions seen, each sampled anew from the training bundles; 0 skips the stage."""
    max_tokens: int | None = None
    """See fewer questions where they are long: about this many tokens in all, so that long titles take no longer."""
    num_candidates: tuple[int, int] = (10, 10)
    """Fewest and most options of a training question (2 to 26)."""
    hard_fraction: float = 0.5
    """Share of questions whose negatives match the answer in category and train frequency."""
    shows_items: bool = False
    """Whether questions show the soft separator and item token after each title (stage two) or titles only."""
    trains: tuple[ParameterGroup, ...] = ()
    """Parameter groups that train; all others are frozen. See `training/trainable.py` for the table."""
    alignment_steps: int = 0
    """Steps of alignment before the stage (ours, see `training/alignment.py`): of words where titles only are shown,
    of item embeddings and matching where items are shown. For backbones without pretraining."""
    alignment_questions: int = 48_000
    """Questions that the alignment of items draws its batches from: it reads no text, so it can see more of them."""
    batch_size: int = 16
    """Questions per forward and backward pass."""
    gradient_accumulation_steps: int = 1
    """Passes per optimizer step."""
    learning_rate: float = 3e-4
    """Highest learning rate (official code: 3e-4)."""
    lr_scheduler_type: str = "cosine"
    """How it falls, by transformers' names."""
    warmup_ratio: float = 0.03
    """Share of the steps in which it rises."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    checkpoints: int = 5
    """How often the stage validates and saves; the best by validation questions is kept."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    bf16: bool = False
    """Mixed precision."""
    lora: LoraSettings = field(default_factory=LoraSettings)

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the stage."""
        return self.num_questions // (self.batch_size * self.gradient_accumulation_steps)


@dataclass(frozen=True)
class StageOneConfig(StageConfig):
    """Bundle patterns from text (paper §3.3): titles only, LoRA on the backbone, then merged."""

    trains: tuple[ParameterGroup, ...] = ("lora",)


@dataclass(frozen=True)
class StageTwoConfig(StageConfig):
    """Multimodal semantics (paper §3.3): item tokens; fusion, projector and separator train, the backbone is frozen.

    Add `lora` to `trains` to keep an adapter training beside them.
    """

    shows_items: bool = True
    trains: tuple[ParameterGroup, ...] = ("fusion", "projector", "separator")


@dataclass(frozen=True)
class FusionSettings:
    """Fields of `BundleMLLMConfig` that a run may set. Defaults: official code; the improvements (ours) are on only
    where a recipe turns them on."""

    fusion_hidden_size: int = 64
    standardize_features: bool = False
    normalize_item_embeddings: bool = False
    matching_hidden_size: int | None = None
    matching_dropout: float = 0.1
    matching_relation_dropout: float = 0.1
    backbone_weight: float = 0.25
    """What the checkpoints are chosen with."""


@dataclass(frozen=True)
class RunConfig:
    """A whole run: data folder in, model folder out."""

    data: Path
    """Dataset folder (items, bundles, features)."""
    output_dir: Path
    """Where the model folder is written. A killed run started again with the same arguments continues."""
    base_model: str = SCRATCH
    """Hub name or local folder of a causal LM, or "scratch"."""
    modalities: tuple[str, ...] | None = None
    """Feature files to use, by modality name; all that the data folder holds if not given."""
    relations: tuple[str, ...] = RELATIONS
    """Modalities of which a matching also sees the bundles, users or words themselves, where the data folder has them,
    and the bundles of an item's category. The model folder then holds the pairs (users by number): leave out
    "user_item" if it is to be shared and they are not."""
    backbone_weights: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    """Weights of the backbone beside a matching that the validation questions choose from after the last stage."""
    allow_leakage: bool = False
    """Take a user log even if held-out bundles are among its users."""
    seed: int = 0
    """Seed of new weights, sampled questions, their order and dropout."""
    max_partial: int = 10
    """Most items of a partial bundle that a question shows."""
    validation_questions: int = 400
    """Validation questions (half uniform, half hard negatives) that choose the checkpoint of each stage."""
    validation_candidates: int = 10
    """Options of each validation question."""
    num_threads: int | None = None
    """CPU threads that one operation may use; PyTorch's choice if not given."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """Precision in which a downloaded backbone is loaded; "scratch" is float32."""
    fusion: FusionSettings = field(default_factory=FusionSettings)
    stage_one: StageOneConfig = field(default_factory=StageOneConfig)
    stage_two: StageTwoConfig = field(default_factory=StageTwoConfig)

    def __post_init__(self):
        if self.num_threads is not None and self.num_threads < 1:
            raise BundleMLLMError(f"num_threads is {self.num_threads}: give 1 or more, or leave it out.")
        for name in ("stage_one", "stage_two"):
            for size in ("batch_size", "gradient_accumulation_steps"):
                if (value := getattr(getattr(self, name), size)) < 1:
                    raise BundleMLLMError(f"{name}.{size} is {value}, so no step could be taken: give 1 or more.")
        if unknown := sorted(set(self.relations) - set(RELATIONS)):
            raise BundleMLLMError(
                f"relations are {list(self.relations)}, of which {unknown} have no groups that items could share: "
                f"choose from {', '.join(RELATIONS)}."
            )
        if self.fusion.matching_hidden_size and self.stage_two.max_steps and not self.stage_two.alignment_steps:
            raise BundleMLLMError(
                f"fusion.matching_hidden_size is {self.fusion.matching_hidden_size}, but the matching is trained by "
                "the alignment of stage two, which has no steps, so it would add random scores: set "
                "stage_two.alignment_steps, such as 1000, or leave the matching out."
            )
        for name in ("stage_one", "stage_two"):
            stage: StageConfig = getattr(self, name)
            low, high = stage.num_candidates
            if not 2 <= low <= high <= 26:
                raise BundleMLLMError(
                    f"{name}.num_candidates is {low}–{high}, but a question has 2 to 26 options (letters A–Z): "
                    "give the fewest and the most, such as 4 20."
                )
            if stage.num_questions and not stage.max_steps:
                raise BundleMLLMError(
                    f"{name}.num_questions is {stage.num_questions}, less than one batch of "
                    f"{stage.batch_size * stage.gradient_accumulation_steps}: no step would run. Raise it, or "
                    "set it to 0 to skip the stage."
                )
            if stage.num_questions and not stage.trains:
                raise BundleMLLMError(f"{name}.trains is empty: name groups, or set num_questions=0.")


def default_run(base_model: str, *, data: Path, output_dir: Path) -> RunConfig:
    """Return the default recipe for a base model.

    A pretrained backbone gets the paper's recipe. `scratch` has nothing to preserve: it trains in full in both
    stages, with larger steps, and with the feature standardization and item-embedding norm (both ours) that a
    backbone without pretraining profits from. One thread: operations of its size gain nothing from a second one, and
    on a busy machine threads that wait for each other lose much.
    """
    if base_model != SCRATCH:
        return RunConfig(data=data, output_dir=output_dir, base_model=base_model)
    full = dict(batch_size=32, learning_rate=1e-3, num_candidates=(2, 12), weight_decay=0.05, checkpoints=6)
    return RunConfig(
        data=data,
        output_dir=output_dir,
        base_model=base_model,
        num_threads=1,
        fusion=FusionSettings(
            standardize_features=True,
            normalize_item_embeddings=True,
            matching_hidden_size=64,
            matching_dropout=0.5,
        ),
        stage_one=StageOneConfig(
            num_questions=12_800, max_tokens=1_000_000, trains=("backbone",), alignment_steps=600, **full
        ),
        stage_two=StageTwoConfig(
            num_questions=24_000,
            max_tokens=2_250_000,
            trains=("backbone", "fusion", "projector", "separator"),
            alignment_steps=1_000,
            **full,
        ),
    )


def read_overrides(path: Path) -> dict[str, Any]:
    """Read a YAML file of run settings (nested like `RunConfig`)."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleMLLMError(f"The config file {path} does not exist: check --config.") from error
    except yaml.YAMLError as error:
        raise BundleMLLMError(f"The config file {path} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BundleMLLMError(f"The config file {path} holds a {type(values).__name__}; it must map names to values.")
    return values


def with_overrides(config: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """Return a copy of a config dataclass with (nested) values replaced.

    Raises:
        BundleMLLMError: If a name is not a field, or a value does not fit the field's type.
    """
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise BundleMLLMError(f"Unknown setting {prefix + name!r}: the settings here are {', '.join(hints)}.")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise BundleMLLMError(f"{prefix + name} is a group of settings; give a mapping, not {value!r}.")
            changes[name] = with_overrides(getattr(config, name), value, prefix=f"{prefix}{name}.")
        else:
            changes[name] = _fit(prefix + name, value, hints[name])
    return dataclasses.replace(config, **changes)


def _fit(name: str, value: Any, hint: Any) -> Any:
    """Bring a YAML value to a field's type (path, tuple, number, choice), or say why it does not fit."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is UnionType:  # with None, of every field here
        [wanted] = [each for each in inner if each is not NoneType]
        return None if value is None else _fit(name, value, wanted)
    if kind is Literal:
        if value not in inner:
            raise BundleMLLMError(f"{name} must be one of {', '.join(map(repr, inner))}, not {value!r}.")
        return value
    if kind is tuple:
        any_number = inner[-1] is Ellipsis
        if not isinstance(value, list) or (not any_number and len(value) != len(inner)):
            raise BundleMLLMError(f"{name} must be a list{'' if any_number else f' of {len(inner)}'}, not {value!r}.")
        hints = inner[:1] * len(value) if any_number else inner
        return tuple(_fit(name, each, of_each) for each, of_each in zip(value, hints, strict=True))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except ValueError as error:
            raise BundleMLLMError(f"{name} must be a number, not {value!r}.") from error
    if type(value) is not hint:
        raise BundleMLLMError(f"{name} must be of type {hint.__name__}, not {value!r}.")
    return value


def as_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON/YAML values."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))

"""Typed settings of a training run: retriever, stage one, stage two, and how they are joined.

Knows nothing about prompts, features or the models' code; imports neither torch nor transformers.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bundle_mllm.data.files import read_json, require_folder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.settings import NO_RANKER, SCRATCH, Settings, with_overrides

MEMBERSHIPS = ("attributes", "bundle_category", "bundle_item", "textual", "user_item")
"""Item-group memberships that a retriever can count; see `training/memberships.py`."""

_POSITIVE = (
    "batch_size gradient_accumulation_steps warm_start_questions hidden_size fusion_hidden_size r alpha upper_layers "
    "max_tokens max_title_tokens max_partial num_threads"
)
_NOT_NEGATIVE = (
    "steps num_questions copy_questions warm_start_steps num_validations validation_questions combination_questions "
    "calibration_questions weight_decay max_grad_norm"
)
_MOST = sys.float_info.max
_RANGES: dict[str, tuple[float, float, str]] = {
    **dict.fromkeys(_POSITIVE.split(), (1, _MOST, "1 or more")),
    **dict.fromkeys(_NOT_NEGATIVE.split(), (0, _MOST, "0 or more")),
    **dict.fromkeys(("hard_fraction", "warmup_ratio"), (0, 1, "0 to 1")),
    **dict.fromkeys(("dropout", "collaborative_dropout"), (0, 0.99, "0 to .99")),
    "learning_rate": (sys.float_info.min, _MOST, "a positive number, such as 3e-4"),
    "validation_candidates": (2, _MOST, "2 or more"),
}
"""Least and greatest value of settings, by name, and what to say about them."""

ParameterGroup = Literal["lora", "backbone", "fusion", "projector", "separator", "matching"]


@dataclass(frozen=True)
class LoraSettings(Settings):
    """Adapter on the backbone. Defaults: official code (r 8, alpha 16, dropout 0.05, query and value maps)."""

    r: int = 8
    """Rank."""
    alpha: int = 16
    """Scale, divided by the rank."""
    dropout: float = 0.05
    """Dropout before the adapter."""
    target_modules: tuple[str, ...] | None = None
    """Names of the linear maps to adapt; query and value, or the fused map that holds them, if not given."""
    upper_layers: int | None = None
    """How many of the uppermost layers are adapted; all if not given. No gradient is computed below them."""


@dataclass(frozen=True)
class FusionSettings(Settings):
    """Fields of `BundleMLLMConfig`. Defaults: official code; the improvements (ours) are on for scratch only."""

    fusion_hidden_size: int = 64
    """Common width of the modalities in the fusion."""
    standardize_features: bool = False
    """Standardize features over the catalog before they are encoded (ours)."""
    normalize_item_embeddings: bool = False
    """End the projector with an RMS norm at the scale of the backbone's embeddings (ours)."""


@dataclass(frozen=True)
class RetrieverSettings(Settings):
    """The retriever (ours): two towers over item features, and a small network that weighs co-occurrence."""

    steps: int | None = None
    """Optimizer steps of the towers; they are trained twice, and the network half as long. By default one for every
    four training bundles, 100 to 1,000. 0 leaves the retriever out."""
    num_questions: int = 48_000
    """Training questions that batches are drawn from."""
    num_candidates: tuple[int, int] = (2, 12)
    """Fewest and most options of a training question."""
    hard_fraction: float = 0.5
    """Share of questions whose negatives match the answer in category and train frequency."""
    batch_size: int = 256
    """Questions per step."""
    learning_rate: float = 2e-3
    """Highest learning rate."""
    weight_decay: float = 0.05
    """AdamW's weight decay."""
    hidden_size: int = 64
    """Width of the vectors of the towers."""
    dropout: float = 0.5
    """Dropout of content features (pictures, sounds, texts), which overfit."""
    collaborative_dropout: float = 0.1
    """Dropout of features of bundles and users, which are fitted out of fold."""
    memberships: tuple[str, ...] = MEMBERSHIPS
    """Groups whose shared members are counted, where the data folder has them. The model folder then holds the pairs
    (users by number): leave out "user_item" if it is to be shared and they are not."""

    def num_steps(self, num_bundles: int) -> int:
        """Return how many steps the towers take where there are so many training bundles."""
        return min(1_000, max(100, num_bundles // 4)) if self.steps is None else self.steps


@dataclass(frozen=True)
class StageConfig(Settings):
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
    warm_start_steps: int = 0
    """Steps that bring items of one bundle together before the stage (ours, see `training/warm_start.py`): words where
    titles only are shown, item tokens where items are shown. For backbones without pretraining."""
    warm_start_questions: int = 48_000
    """Questions that the warm start of item tokens draws its batches from."""
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
    num_validations: int = 5
    """How often the stage validates and saves; the best checkpoint by validation questions is kept."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    bf16: bool | None = None
    """Mixed precision, in training and validation; if not given, where GPU or processor has instructions for it."""
    lora: LoraSettings = field(default_factory=LoraSettings)

    @property
    def step_size(self) -> int:
        """Questions per optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the stage."""
        return self.num_questions // self.step_size


@dataclass(frozen=True)
class StageOneConfig(StageConfig):
    """Bundle patterns from text (paper §3.3): titles only, LoRA on the backbone, then merged."""

    trains: tuple[ParameterGroup, ...] = ("lora",)
    copy_questions: int = 0
    """How many of the training questions, the first, ask which option is one of the items shown (ours), at the rate
    1e-3. A small pretrained model learns from some hundreds which letter stands for which option; see the results."""


@dataclass(frozen=True)
class StageTwoConfig(StageConfig):
    """Multimodal semantics (paper §3.3): item tokens; fusion, projector and separator train, the backbone is frozen.

    Add `lora` to `trains` to keep an adapter training beside them.
    """

    shows_items: bool = True
    trains: tuple[ParameterGroup, ...] = ("fusion", "projector", "separator")


@dataclass(frozen=True, kw_only=True)
class InputOptions(Settings):
    """What the models are trained and validated on."""

    modalities: tuple[str, ...] | None = None
    """Feature files to use, by modality name; all that the data folder holds if not given."""
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
    combination_questions: int = 400
    """Questions about held-out training bundles on which the weight of the ranker beside the retriever is fitted."""
    calibration_questions: int = 500
    """Questions about validation bundles, at most one for each, that calibrate sets of answers with a guarantee
    (`complete --coverage`); 0 for none."""
    num_threads: int | None = None
    """CPU threads that one operation may use; PyTorch's choice if not given."""
    retriever: RetrieverSettings = field(default_factory=RetrieverSettings)

    def __post_init__(self):
        super().__post_init__()
        _check_ranges(self)
        retriever = self.retriever
        if unknown := sorted(set(retriever.memberships) - set(MEMBERSHIPS)):
            raise BundleMLLMError(
                f"retriever.memberships are {list(retriever.memberships)}, of which {unknown} have no groups that "
                f"items could share: choose from {', '.join(MEMBERSHIPS)}."
            )
        if not retriever.num_questions:
            raise BundleMLLMError("retriever.num_questions is 0, so no batch could be drawn: give 1 or more.")
        _check_num_candidates("retriever", retriever.num_candidates)


@dataclass(frozen=True)
class RunConfig(InputOptions):
    """A whole run: data folder in, model folder out."""

    data: Path
    """Dataset folder (items, bundles, features)."""
    output_dir: Path
    """Where the model folder is written. A killed run started again with the same arguments continues."""
    base_model: str = SCRATCH
    """Hub name or local folder of a causal LM, "scratch", or "none" for a retriever alone."""
    continue_from: Path | None = None
    """Model folder to continue on new bundles and items, such as each night, instead of a new training: output_dir
    receives a folder named after the day and the link `current` to it. The new weights are kept only if they are not
    worse on the validation bundles."""
    no_retriever: bool = False
    """Train the ranker alone, the paper's system."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """Precision of the weights of a downloaded backbone; "auto" is the checkpoint's with a GPU, float32 without."""
    scoring: Literal["letters", "options"] = "letters"
    """How the ranker answers: by the letter of an option, as the paper's, or by comparing the hidden states of options
    with those of the partial bundle (ours): then `num_candidates` are the options that a question brings to its batch.
    """
    max_title_tokens: int | None = None
    """Tokens of a title that a prompt shows: longer ones are cut; all are shown if not given."""
    retriever: RetrieverSettings = field(default_factory=RetrieverSettings, kw_only=True)
    fusion: FusionSettings = field(default_factory=FusionSettings)
    stage_one: StageOneConfig = field(default_factory=StageOneConfig)
    stage_two: StageTwoConfig = field(default_factory=StageTwoConfig)

    def __post_init__(self):
        super().__post_init__()
        if not self.trains_ranker and not self.trains_retriever:
            raise BundleMLLMError(
                f'base_model is "{NO_RANKER}" without a retriever, so nothing would be trained: choose one of them.'
            )
        if self.base_model == SCRATCH and self.scoring == "options":
            raise BundleMLLMError(
                'scoring is "options", which compares what a pretrained model knows, and the backbone "scratch" has '
                "seen no language: give another base_model."
            )
        if self.scoring == "options" and self.stage_one.copy_questions:
            raise BundleMLLMError(
                'stage_one.copy_questions teach letters, and a ranker with scoring "options" uses none: leave it 0.'
            )
        for name in ("stage_one", "stage_two"):
            _check_stage(name, getattr(self, name))

    @property
    def trains_ranker(self) -> bool:
        """Whether the run makes a ranker."""
        return self.base_model != NO_RANKER

    @property
    def trains_retriever(self) -> bool:
        """Whether the run makes a retriever."""
        return not self.no_retriever and self.retriever.steps != 0


@dataclass(frozen=True)
class AddRetrieverSettings(InputOptions):
    """Add a retriever to the folder of a ranker that was made elsewhere (`trl sft`, `convert`, the Hub).

    The ranker may have seen the bundles that its weight is fitted on, which overstates its weight.
    """

    model: Path
    """Model folder of the ranker; the retriever is written to its `retriever/`."""
    data: Path
    """Dataset folder with the same items in the same order."""
    retriever: RetrieverSettings = field(default_factory=RetrieverSettings, kw_only=True)


@dataclass(frozen=True)
class CalibrationSettings(Settings):
    """Calibrate a model on questions that it has not seen, so that its answers can be given with a guarantee.

    `train` calibrates on the validation bundles by itself. The guarantee is for questions that are drawn as these are.
    """

    model: Path
    """Model folder; its `combination.json` receives the calibration."""
    data: Path
    """Dataset folder whose items the questions name."""
    questions: Path
    """Question file (see `bundle-mllm questions`); of each bundle the first question counts."""
    device: str | None = None
    """cpu or cuda; a GPU if there is one, if not given."""


def _check_stage(name: str, stage: StageConfig) -> None:
    _check_num_candidates(name, stage.num_candidates)
    if isinstance(stage, StageOneConfig) and stage.copy_questions > stage.num_questions:
        raise BundleMLLMError(
            f"{name}.copy_questions is {stage.copy_questions}, but they are among the {stage.num_questions} training "
            f"questions of the stage: lower it, or raise {name}.num_questions."
        )
    if stage.num_questions and not stage.max_steps:
        raise BundleMLLMError(
            f"{name}.num_questions is {stage.num_questions}, less than one batch of {stage.step_size}, so no step "
            "would run: raise it, or set it to 0 to skip the stage."
        )
    if stage.num_questions and not stage.trains:
        raise BundleMLLMError(f"{name}.trains is empty: name groups, or set num_questions=0.")


def _check_ranges(settings: Settings, prefix: str = "") -> None:
    """Refuse numbers that no training can use, in groups of settings, too."""
    for name in (each.name for each in fields(settings)):
        value = getattr(settings, name)
        if is_dataclass(value):
            _check_ranges(value, f"{prefix}{name}.")  # pyright: ignore[reportArgumentType]: a group of settings
        elif value is not None and name in _RANGES:
            least, most, range_text = _RANGES[name]
            if not least <= value <= most:
                raise BundleMLLMError(
                    f"{prefix}{name} is {value}, with which nothing can be trained: give {range_text}."
                )


def _check_num_candidates(name: str, num_candidates: tuple[int, int]) -> None:
    low, high = num_candidates
    if not 2 <= low <= high <= 26:
        raise BundleMLLMError(
            f"{name}.num_candidates is {low}–{high}, but a question has 2 to 26 options (A–Z): give two, such as 4 20."
        )


def continued_run(folder: Path, *, data: str | Path, output_dir: str | Path) -> RunConfig:
    """Return the recipe that continues a model folder: that of its own training, shorter and more careful.

    A quarter of the retriever's steps, an eighth of stage two's questions, half the learning rates, and neither stage
    one nor warm starts (ours).

    Raises:
        BundleMLLMError: If `train` did not make the folder.
    """
    path = require_folder(folder, "give the output folder of `bundle-mllm train`") / "run.json"
    if not path.is_file():
        raise BundleMLLMError(
            f"{folder} has no run.json, so it is unknown how to continue its training: give the output folder of "
            "`bundle-mllm train`."
        )
    settings = {**read_json(path).get("settings", {}), "continue_from": folder}
    was_continued = read_json(path)["settings"].get("continue_from") is not None
    known = {each.name for each in fields(RunConfig)} - {"data", "output_dir"}
    base = default_run(settings.get("base_model", SCRATCH), data=data, output_dir=output_dir)
    run = with_overrides(base, {name: value for name, value in settings.items() if name in known})
    if was_continued:
        return run
    retriever, two = run.retriever, run.stage_two
    return replace(
        run,
        retriever=replace(
            retriever,
            num_questions=-(-retriever.num_questions // 4),
            learning_rate=retriever.learning_rate / 2,
        ),
        stage_one=replace(run.stage_one, num_questions=0, copy_questions=0, warm_start_steps=0),
        stage_two=replace(
            two,
            num_questions=max(two.step_size, two.num_questions // 8) if two.num_questions else 0,
            warm_start_steps=0,
            num_validations=2,
            learning_rate=two.learning_rate / 2,
        ),
    )


def default_run(base_model: str, *, data: str | Path, output_dir: str | Path) -> RunConfig:
    """Return the default recipe for a base model.

    A pretrained backbone gets the paper's recipe, with titles of up to 24 tokens (ours). `scratch` has nothing to
    preserve: it trains in full in both stages, with larger steps, and with the feature standardization and
    item-embedding norm (both ours) that a backbone without pretraining profits from. One thread: operations of its
    size gain nothing from a second one, and on a busy machine threads that wait for each other lose much.
    """
    paths: dict[str, Any] = {"data": data, "output_dir": output_dir, "base_model": base_model}
    if base_model == NO_RANKER:
        return RunConfig(**paths, num_threads=1)
    if base_model != SCRATCH:
        return RunConfig(**paths, max_title_tokens=24)
    full: dict[str, Any] = {
        "batch_size": 32,
        "learning_rate": 1e-3,
        "num_candidates": (2, 12),
        "weight_decay": 0.05,
        "num_validations": 6,
        "bf16": False,  # its products are too small to gain
    }
    return RunConfig(
        **paths,
        num_threads=1,
        fusion=FusionSettings(standardize_features=True, normalize_item_embeddings=True),
        stage_one=StageOneConfig(
            num_questions=12_800, max_tokens=1_000_000, trains=("backbone",), warm_start_steps=600, **full
        ),
        stage_two=StageTwoConfig(
            num_questions=24_000,
            max_tokens=2_250_000,
            trains=("backbone", "fusion", "projector", "separator"),
            warm_start_steps=1_000,
            **full,
        ),
    )

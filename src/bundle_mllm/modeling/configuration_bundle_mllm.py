"""Configurations of the two models: the ranker (the paper's Bundle-MLLM) and the retriever.

Knows nothing about weights, tokenizers, titles or files.
"""

import re
from dataclasses import fields
from typing import Any, ClassVar

from torch import nn
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .types_bundle_mllm import check_type, check_widths

FORMAT_VERSION = 2
"""Layout of model folders; 1 was one folder and one network for both models."""
CONTENT_BASED = ("attributes", "bundle_category", "textual")
"""Item-group memberships that follow from what an item is, not from who bundled or bought it. The number of its groups
carries no information, and would only set apart items that are added later, which have none."""

_PIPELINE = {"impl": "pipeline_bundle_mllm.BundleCompletionPipeline", "type": "text"}
_FORMAT_1_FIELDS = ("matching_hidden_size", "relations", "option_separator_token_id", "answer_distance")
_MODALITY_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


class _BundleConfig(PreTrainedConfig):
    """What both configurations share: version, code that travels along, catalog and modalities."""

    auto_classes: ClassVar[dict[str, Any]] = {}
    pipeline_class: ClassVar[str] = ""
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {}  # the backbone has its own; the default names modules of none

    format_version: int = FORMAT_VERSION
    num_items: int = 0
    items_hash: str | None = None
    modalities: dict[str, int] = None  # pyright: ignore[reportAssignmentType]: `__post_init__` sets it

    def __post_init__(self, **kwargs):
        inherited = {field.name for field in fields(PreTrainedConfig)}
        for field in fields(self):
            name, hint, value = field.name, field.type, getattr(self, field.name)
            if name not in inherited and not (value is None and field.default is None):
                check_type(name, value, hint, "the configuration")
        # With the package installed the pipeline registry serves the task; a config that carries `custom_pipelines`
        # would demand `trust_remote_code=True` all the same. Only code loaded from a repository needs the entry.
        if not __name__.startswith("transformers_modules."):
            kwargs.pop("custom_pipelines", None)
        old = [name for name in _FORMAT_1_FIELDS if kwargs.get(name)]
        if old or self.format_version > FORMAT_VERSION:
            version = 1 if old else self.format_version
            fix = "train it again (bundle-mllm train)" if old else "update bundle-mllm"
            raise ValueError(
                f"This model folder has format_version {version}, and this code reads {FORMAT_VERSION}: {fix}."
            )
        kwargs["auto_map"] = {
            name: [*ref] if isinstance(ref, list) else ref for name, ref in self.auto_classes.items()
        }
        super().__post_init__(**kwargs)
        self.modalities = {name: self.modalities[name] for name in sorted(self.modalities or {})}
        check_widths(self.modalities)
        for name in self.modalities:
            if not _MODALITY_NAME.fullmatch(name) or name in dir(nn.ModuleDict):
                raise ValueError(
                    f"Modality name {name!r} cannot name weights and files: use lower-case letters, digits and single "
                    'underscores, and no name of a torch module\'s own methods; for example "visual" or "user_item".'
                )
        if self.num_items < 0:
            raise ValueError(f"num_items is {self.num_items}; a catalog has 0 or more rows: give their number.")

    def check_positive(self, *names: str) -> None:
        """Refuse sizes of which no layer can be built."""
        for name in names:
            if (size := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {size}, so no layer can be built: give a positive integer.")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, with the pipeline entry that remote code needs."""
        pipeline = {"bundle-completion": {**_PIPELINE, "pt": [self.pipeline_class]}}
        return {**super().to_dict(), "custom_pipelines": pipeline}


class BundleMLLMConfig(_BundleConfig):
    """Describe the ranker, `BundleMLLMForCausalLM`.

    Args:
        text_config: Configuration of the backbone, the base model of any text `AutoModelForCausalLM` (default: Llama).
        num_items: Number of rows of the item catalog. `set_catalog` keeps it up to date.
        items_hash: `items_hash` of the processor whose items the rows are, so that a permuted or edited list of items
            is noticed. Saving model and processor together sets it; `set_catalog` removes it. Not checked without.
        modalities: Width of the item features of each modality. Kept in alphabetical order: that is the order of the
            columns of every presence mask, and JSON does not keep any other.
        mlp_modalities: The modalities whose features are L2-normalized and encoded by a three-layer MLP (`c_encoder`
            in the official code); any other passes a linear map (`bi_transformation`, `cf_transformation` there).
        fusion_hidden_size: Common width of the modalities in the fusion (official code).
        mlp_hidden_size: Width of the MLP's last hidden layer (official code); the first is as wide as the features.
        projector_hidden_size: Hidden width of the projector; by default twice `fusion_hidden_size` (official code).
        fusion_layer_norm: Whether a layer norm without parameters precedes the attention (`layernorm` in the official
            `components`).
        fusion_value_map: Whether the attention values are projected (`w_v` in the official `components`).
        standardize_features: Whether features are standardized by the mean and standard deviation of the catalog
            before they are encoded (ours; `set_catalog(..., fit_statistics=True)` computes both, and they are saved).
        normalize_item_embeddings: Whether an RMS norm follows the projector, so that an item token has the scale of
            the backbone's embeddings (ours).
        item_token_offset: First id of the virtual item vocabulary: id `item_token_offset + k` is row `k`.
        separator_token_id: Id that stands for the soft separator. Without one the separator is never shown.
        head_bias: Whether the language-model head has a bias (Phi, GPT-J).
        tie_word_embeddings: Whether the head shares the backbone's input embedding; by default as in `text_config`.
        freeze_backbone: Whether backbone and head are frozen after loading; fusion, projector and separator train.
        format_version: Layout of the model folder; a newer one is refused.

    Raises:
        ValueError: If a modality has an unusable name or width, a size is not positive, the virtual item vocabulary
            would begin inside the vocabulary of the backbone, or the folder has another layout.
    """

    model_type = "bundle_mllm"
    sub_configs_defaults: ClassVar = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}
    auto_classes: ClassVar = {
        "AutoConfig": "configuration_bundle_mllm.BundleMLLMConfig",
        "AutoModel": "modeling_bundle_mllm.BundleMLLMModel",
        "AutoModelForCausalLM": "modeling_bundle_mllm.BundleMLLMForCausalLM",
        "AutoTokenizer": [None, "tokenization_bundle_mllm.BundleMLLMTokenizerFast"],
        "AutoProcessor": "processing_bundle_mllm.BundleMLLMProcessor",
    }
    pipeline_class: ClassVar = "AutoModelForCausalLM"

    text_config: PreTrainedConfig = None  # pyright: ignore[reportAssignmentType]: `__post_init__` sets it
    mlp_modalities: list[str] | tuple[str, ...] = ("visual", "acoustic", "textual", "attributes")
    fusion_hidden_size: int = 64
    mlp_hidden_size: int = 256
    projector_hidden_size: int = None  # pyright: ignore[reportAssignmentType]: `__post_init__` sets it
    fusion_layer_norm: bool = False
    fusion_value_map: bool = False
    standardize_features: bool = False
    normalize_item_embeddings: bool = False
    item_token_offset: int = 1 << 20
    separator_token_id: int | None = None
    head_bias: bool = False
    tie_word_embeddings: bool | None = None
    freeze_backbone: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.mlp_modalities = sorted(self.mlp_modalities)
        if self.projector_hidden_size is None:
            self.projector_hidden_size = 2 * self.fusion_hidden_size
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        self.check_positive("fusion_hidden_size", "mlp_hidden_size", "projector_hidden_size")
        vocab_size = self.text_config.get_text_config().vocab_size
        if self.item_token_offset < vocab_size:
            raise ValueError(
                f"item_token_offset is {self.item_token_offset}, so some of the backbone's {vocab_size} text tokens "
                "would be read as items: choose an offset of at least their number."
            )


class BundleMLLMOptionConfig(BundleMLLMConfig):
    """Describe the ranker without letters, `BundleMLLMForOptionScoring` (ours).

    Args:
        matching_rank: Rank of the residual maps of hidden states.
        **kwargs: As in `BundleMLLMConfig`.
    """

    model_type = "bundle_mllm_options"
    auto_classes: ClassVar = {
        "AutoConfig": "configuration_bundle_mllm.BundleMLLMOptionConfig",
        "AutoModel": "option_scoring_bundle_mllm.BundleMLLMForOptionScoring",
        "AutoTokenizer": [None, "tokenization_bundle_mllm.BundleMLLMTokenizerFast"],
        "AutoProcessor": "processing_bundle_mllm.BundleMLLMProcessor",
    }
    pipeline_class: ClassVar = "AutoModel"

    matching_rank: int = 64

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.check_positive("matching_rank")


class BundleRetrieverConfig(_BundleConfig):
    """Describe the retriever, `BundleRetriever` (ours).

    Args:
        memberships: Number of item-group pairs of each kind of group: "bundle_item" (training bundles),
            "bundle_category" (training bundles of all items of an item's category), "user_item" (users), "textual"
            (words), "attributes" (names in other columns). `set_catalog` keeps the numbers up to date.
        hidden_size: Width of the vectors of the two towers; the stacker's layers have half of it.
        dropout: Dropout of content features, which overfit, and of their hidden units in the towers.
        collaborative_dropout: The same for modalities that are memberships of bundles or users: out-of-fold features
            do not overfit, and lose by more dropout.
        **kwargs: `num_items`, `items_hash`, `modalities` and `format_version` as in `BundleMLLMConfig`.

    Raises:
        ValueError: If a modality has an unusable name or width, a size is out of range, or the folder has another
            layout.
    """

    model_type = "bundle_retriever"
    auto_classes: ClassVar = {
        "AutoConfig": "configuration_bundle_mllm.BundleRetrieverConfig",
        "AutoModel": "retriever_bundle_mllm.BundleRetriever",
        "AutoProcessor": "item_processing_bundle_mllm.BundleItemProcessor",
    }
    pipeline_class: ClassVar = "AutoModel"

    memberships: dict[str, int] = None  # pyright: ignore[reportAssignmentType]: `__post_init__` sets it
    hidden_size: int = 64
    dropout: float = 0.5
    collaborative_dropout: float = 0.1

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.memberships = {name: self.memberships[name] for name in sorted(self.memberships or {})}
        self.check_positive("hidden_size")
        for name, number in self.memberships.items():
            check_type(f"memberships[{name!r}]", number, int, "the configuration")
            if number < 0:
                raise ValueError(f"memberships[{name!r}] of the configuration is {number}: give the number of pairs.")
        for name in ("dropout", "collaborative_dropout"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}, which is no share of units to drop: give 0 or more, below 1.")

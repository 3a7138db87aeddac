"""Configuration of Bundle-MLLM: the backbone, the item modalities, the fusion and the virtual item vocabulary.

Knows nothing about weights, tokenizers, titles or files.
"""

import re
from typing import ClassVar

from torch import nn
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

AUTO_MAP = {
    "AutoConfig": "configuration_bundle_mllm.BundleMLLMConfig",
    "AutoModel": "modeling_bundle_mllm.BundleMLLMModel",
    "AutoModelForCausalLM": "modeling_bundle_mllm.BundleMLLMForCausalLM",
    "AutoTokenizer": [None, "tokenization_bundle_mllm.BundleMLLMTokenizerFast"],
    "AutoProcessor": "processing_bundle_mllm.BundleMLLMProcessor",
}
CUSTOM_PIPELINES = {
    "bundle-completion": {
        "impl": "pipeline_bundle_mllm.BundleCompletionPipeline",
        "pt": ["AutoModelForCausalLM"],
        "type": "text",
    }
}
# With the package installed the pipeline registry serves the task; a config that carries `custom_pipelines` would
# demand `trust_remote_code=True` all the same. Only code that was loaded from a repository needs the entry.
_IS_REMOTE_CODE = __name__.startswith("transformers_modules.")
BUNDLE_CATEGORY = "bundle_category"
"""The relation that is no modality: the bundles that any item of an item's category is in."""


def modality_of(relation: str) -> str:
    """Return the modality that knows what a relation knows: itself, unless it is that of categories."""
    return "bundle_item" if relation == BUNDLE_CATEGORY else relation


_MODALITY_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


class BundleMLLMConfig(PreTrainedConfig):
    r"""Describe a `BundleMLLMModel`.

    Args:
        text_config (`dict` or `PreTrainedConfig`, *optional*, defaults to a Llama configuration):
            Configuration of the backbone, the base model of any text `AutoModelForCausalLM`.
        num_items (`int`, *optional*, defaults to 0):
            Number of rows of the item catalog. `set_catalog` keeps it up to date.
        items_hash (`str`, *optional*):
            `items_hash` of the processor whose items the rows are, so that a permuted or edited list of items is
            noticed. Saving model and processor together sets it; `set_catalog` removes it. Not checked without.
        modalities (`dict[str, int]`, *optional*, defaults to no modality):
            Width of the item features of each modality. Kept in alphabetical order: that is the order of the
            columns of every presence mask, and JSON does not keep any other.
        mlp_modalities (`list[str]`, *optional*, defaults to visual, acoustic and textual):
            The modalities whose features are L2-normalized and encoded by a three-layer MLP (`c_encoder` in the
            official code); every other one passes a linear map (`bi_transformation`, `cf_transformation` there).
        fusion_hidden_size (`int`, *optional*, defaults to 64):
            Common width of the modalities in the fusion (official code).
        mlp_hidden_size (`int`, *optional*, defaults to 256):
            Width of the last hidden layer of the MLP (official code); the first is as wide as the features.
        projector_hidden_size (`int`, *optional*, defaults to twice `fusion_hidden_size`):
            Hidden width of the projector (official code).
        fusion_layer_norm (`bool`, *optional*, defaults to `False`):
            Whether a layer norm without parameters precedes the attention (`layernorm` in the official `components`).
        fusion_value_map (`bool`, *optional*, defaults to `False`):
            Whether the attention values are projected (`w_v` in the official `components`).
        standardize_features (`bool`, *optional*, defaults to `False`):
            Whether features are standardized by the mean and standard deviation of the catalog before they are
            encoded (ours; `set_catalog(..., fit_statistics=True)` computes them, and they are saved with the model).
        normalize_item_embeddings (`bool`, *optional*, defaults to `False`):
            Whether an RMS norm follows the projector, so that an item token has the scale of the backbone's embeddings
            (ours).
        matching_hidden_size (`int`, *optional*):
            Width of the vectors that `BundleMLLMMatching` compares; without one there is no matching (ours). It needs
            `standardize_features`, `option_separator_token_id`, `answer_token_ids` and `answer_distance`.
        relations (`dict[str, int]`, *optional*, defaults to no relation):
            The modalities of which the catalog also knows the groups (bundles, users, words) of each item, and the
            number of such pairs; "bundle_category" (the bundles of all items of its category) may be among them. The
            matching compares items by the groups they share. `set_catalog` keeps the numbers up to date.
        backbone_weight (`float`, *optional*, defaults to 0.25):
            With a matching, the power of the backbone's probabilities in the product of the two: by itself a small
            backbone is surer of its answers than it should be.
        matching_dropout (`float`, *optional*, defaults to 0.1):
            Dropout of the matching's features and hidden units.
        matching_relation_dropout (`float`, *optional*, defaults to 0.1):
            The same for the modalities in `relations`, but for "textual". What a picture or a title goes with can be
            learned by heart; relations that are cross-fitted cannot, and lose by more dropout.
        item_token_offset (`int`, *optional*, defaults to `1 << 20`):
            First id of the virtual item vocabulary: id `item_token_offset + k` is row `k` of the catalog.
        separator_token_id (`int`, *optional*):
            Id that stands for the soft separator. Without one the separator is never shown.
        option_separator_token_id (`int`, *optional*):
            Id that stands for the soft separator, too, before the item of an option: by it the matching knows the
            options of a question from its partial bundle.
        answer_token_ids (`list[int]`, *optional*):
            Tokens of the answer letters, in the order of the options: whose logits the matching raises.
        answer_distance (`int`, *optional*):
            How many tokens behind the item of the last option a prompt ends: where the matching speaks.
        head_bias (`bool`, *optional*, defaults to `False`):
            Whether the language-model head has a bias (Phi, GPT-J).
        tie_word_embeddings (`bool`, *optional*):
            Whether the head shares the backbone's input embedding. Follows `text_config` unless given.
        freeze_backbone (`bool`, *optional*, defaults to `False`):
            Whether backbone and head are frozen after loading, so that fusion, projector and separator train alone.

    Raises:
        ValueError: A modality has an unusable name or width, a size is not positive, or the virtual item vocabulary
            would begin inside the vocabulary of the backbone.
    """

    model_type = "bundle_mllm"
    sub_configs_defaults: ClassVar = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}

    text_config: dict | PreTrainedConfig | None = None
    num_items: int = 0
    items_hash: str | None = None
    modalities: dict[str, int] | None = None
    mlp_modalities: list[str] | tuple[str, ...] = ("visual", "acoustic", "textual")
    fusion_hidden_size: int = 64
    mlp_hidden_size: int = 256
    projector_hidden_size: int | None = None
    fusion_layer_norm: bool = False
    fusion_value_map: bool = False
    standardize_features: bool = False
    normalize_item_embeddings: bool = False
    matching_hidden_size: int | None = None
    relations: dict[str, int] | None = None
    backbone_weight: float = 0.25
    matching_dropout: float = 0.1
    matching_relation_dropout: float = 0.1
    item_token_offset: int = 1 << 20
    separator_token_id: int | None = None
    option_separator_token_id: int | None = None
    answer_token_ids: list[int] | tuple[int, ...] | None = None
    answer_distance: int | None = None
    head_bias: bool = False
    tie_word_embeddings: bool | None = None
    freeze_backbone: bool = False

    def __post_init__(self, **kwargs):
        if not _IS_REMOTE_CODE:
            kwargs.pop("custom_pipelines", None)
        kwargs["auto_map"] = {name: list(ref) if isinstance(ref, list) else ref for name, ref in AUTO_MAP.items()}
        super().__post_init__(**kwargs)
        self.modalities = {name: self.modalities[name] for name in sorted(self.modalities or {})}
        self.mlp_modalities = sorted(self.mlp_modalities)
        self.relations = {name: self.relations[name] for name in sorted(self.relations or {})}
        if self.projector_hidden_size is None:
            self.projector_hidden_size = 2 * self.fusion_hidden_size
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        self._check_fields()

    def _check_fields(self) -> None:
        for name, width in self.modalities.items():
            if not _MODALITY_NAME.fullmatch(name) or name in dir(nn.ModuleDict):
                raise ValueError(
                    f"modality name {name!r} cannot name weights and files: use lower-case letters, digits and single "
                    'underscores, and no name of a torch module\'s own methods; for example "visual" or "user_item".'
                )
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                raise ValueError(
                    f"modality {name!r} has width {width!r}, so no encoder can be built for it: give the number of "
                    "columns of its feature matrix, a positive integer."
                )
        for name in ("fusion_hidden_size", "mlp_hidden_size", "projector_hidden_size"):
            if (size := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {size}, so no layer can be built: give a positive integer.")
        if self.matching_hidden_size is not None:
            if self.matching_hidden_size < 1 or not self.modalities:
                raise ValueError(
                    f"matching_hidden_size is {self.matching_hidden_size} with {len(self.modalities)} modalities, so "
                    "there is nothing to match by: give a positive integer and a modality, or None."
                )
            needed = ("option_separator_token_id", "answer_token_ids", "answer_distance")
            missing = [name for name in needed if getattr(self, name) is None]
            missing += [] if self.standardize_features else ["standardize_features"]
            if missing:
                raise ValueError(
                    f"matching_hidden_size is set without {', '.join(missing)}, so the matching would not find the "
                    "options or read raw features: take the values from the processor's `matching_fields()` and set "
                    "standardize_features=True, or set matching_hidden_size=None."
                )
        known = [*self.modalities, BUNDLE_CATEGORY]
        if self.relations and (self.matching_hidden_size is None or not set(self.relations) <= set(known)):
            raise ValueError(
                f"relations are {sorted(self.relations)}, which only a matching reads and only of a modality: set "
                f"matching_hidden_size, name some of {known}, or leave relations out."
            )
        if self.num_items < 0:
            raise ValueError(f"num_items is {self.num_items}; a catalog has 0 or more rows: give their number.")
        vocab_size = self.text_config.get_text_config().vocab_size
        if self.item_token_offset < vocab_size:
            raise ValueError(
                f"item_token_offset is {self.item_token_offset}, inside the backbone's vocabulary of {vocab_size} "
                "tokens, so text would be read as items: choose an offset of at least the vocabulary size."
            )

    def to_dict(self) -> dict:
        """Return the fields as a dictionary, with the pipeline entry that remote code needs."""
        return {**super().to_dict(), "custom_pipelines": CUSTOM_PIPELINES}


__all__ = ["BundleMLLMConfig"]

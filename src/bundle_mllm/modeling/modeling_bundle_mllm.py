"""The ranker, the paper's Bundle-MLLM: a text backbone that reads items as tokens, by fusion, projector and separator.

Knows nothing about titles, tokenizers, prompts or files of features: it sees ids, feature rows and presence masks.
"""

import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .base_bundle_mllm import BundlePreTrainedModel
from .catalog_bundle_mllm import BundleMLLMItemCatalog, num_extra_items
from .configuration_bundle_mllm import BundleMLLMConfig
from .items_bundle_mllm import BundleMLLMFusion, BundleMLLMFusionLinear, BundleMLLMProjector, BundleMLLMVector

if TYPE_CHECKING:  # never executed: transformers finds the files that travel with a model by searching for such lines
    from .pipeline_bundle_mllm import BundleCompletionPipeline  # noqa: F401
    from .processing_bundle_mllm import BundleMLLMProcessor  # noqa: F401
    from .retriever_bundle_mllm import BundleRetriever  # noqa: F401
    from .tokenization_bundle_mllm import BundleMLLMTokenizerFast  # noqa: F401

# transformers 5.24 renamed `past_key_values` to `cache`; both names are accepted on every version.
CACHE = next(name for name in ("cache", "past_key_values") if name in BaseModelOutputWithPast.__dataclass_fields__)

# What backbones do to the logits after their head, by the field of their configuration for it.
_LOGIT_DIVISORS = ("logits_scaling",)  # Granite
_LOGIT_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")  # Cohere, Falcon-H1, Muse Glimmer
_LOGIT_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap")  # Gemma 2 and later, RecurrentGemma


class BundleMLLMPreTrainedModel(BundlePreTrainedModel):
    """Initialization and freezing, with and without the head."""

    config: BundleMLLMConfig
    config_class = BundleMLLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement: ClassVar = ["cache", "past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False
    has_head = False
    how_to_make = ", or wrap a stock language model with BundleMLLMForCausalLM.from_backbone"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, BundleMLLMFusionLinear):
            init.xavier_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, BundleMLLMVector):
            init.xavier_uniform_(module.weight)
        else:
            super()._init_weights(module)

    @classmethod
    def may_ignore(cls, key: str) -> bool:
        """Return true for the head, where the class has none."""
        return not cls.has_head and key.startswith("lm_head.")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load a saved model, strictly; then freeze the backbone if the configuration says so; see the base class."""
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=output_loading_info, **kwargs
        )
        model = loaded[0] if output_loading_info else loaded
        model.freeze_backbone_if_asked()
        return loaded

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize the text embedding; see the base class.

        Raises:
            ValueError: If text tokens would have ids of items.
        """
        if (new_num_tokens or 0) > self.config.item_token_offset:
            raise ValueError(
                f"The text embedding cannot have {new_num_tokens} tokens, since ids from item_token_offset "
                f"{self.config.item_token_offset} on are items: add fewer tokens."
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    def freeze_backbone_if_asked(self) -> None:
        """Freeze the backbone and its head if `config.freeze_backbone` is set."""
        if self.config.freeze_backbone:
            for name, parameter in self.named_parameters():
                if "language_model." in name or name.startswith("lm_head."):
                    parameter.requires_grad_(False)


class BundleMLLMModel(BundleMLLMPreTrainedModel):
    """The backbone, and the virtual item vocabulary in front of it."""

    _embeds_text = False

    def __init__(self, config: BundleMLLMConfig):
        super().__init__(config)
        self.language_model: PreTrainedModel = AutoModel.from_config(config.text_config)
        per_layer_size = getattr(config.text_config, "hidden_size_per_layer_input", 0)  # Gemma 3n, small Gemma 4
        if per_layer_size and "per_layer_inputs" in inspect.signature(self.language_model.forward).parameters:
            raise ValueError(
                f"The backbone {config.text_config.model_type!r} embeds input_ids again in every layer, so items "
                "could not be read: choose a backbone that works from inputs_embeds alone."
            )
        self.build_item_modules()
        self.post_init()

    def build_item_modules(self) -> None:
        """Create catalog, fusion, projector and separator from the configuration, as torch initializes them."""
        self.catalog = BundleMLLMItemCatalog(self.config.modalities, self.config.num_items)
        self.fusion = BundleMLLMFusion(self.config)
        embedding_size = self.get_input_embeddings().weight.shape[1]
        self.projector = BundleMLLMProjector(self.config, embedding_size)
        self.separator = BundleMLLMVector(embedding_size)
        self.item_check = self.get_input_embeddings().register_forward_pre_hook(self._refuse_items)

    def _refuse_items(self, embedding: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Refuse ids of items and separators where the text embedding is not called by `embed`, which masks them."""
        if not self._embeds_text and inputs and inputs[0].numel():
            is_other = (inputs[0] >= self.config.item_token_offset) | (inputs[0] == self.config.separator_token_id)
            if is_other.any():
                raise ValueError(
                    "The text embedding was given item or separator tokens, which it does not hold, as PEFT's prompt "
                    "tuning and p-tuning do: use LoRA, or another method that adapts layers."
                )

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the text embedding of the backbone."""
        embedding: Any = self.language_model.get_input_embeddings()
        return embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text embedding of the backbone."""
        self.language_model.set_input_embeddings(value)

    def set_catalog(
        self,
        features: dict[str, torch.Tensor],
        present: dict[str, torch.Tensor] | None = None,
        fit_statistics: bool = False,
    ) -> None:
        """Replace the rows of the item catalog. New items are new rows; nothing is resized or retrained.

        Args:
            features: `[num_items, width]` of each modality; see `BundleMLLMItemCatalog.replace`.
            present: `[num_items]` of each modality, true where an item has it. All true where left out.
            fit_statistics: Also set the mean and standard deviation used by `standardize_features`; not for new items
                of a trained model.

        Raises:
            ValueError: If a modality is unknown, a shape is wrong, a value is not finite in a present row, or
                statistics are wanted of a configuration without `standardize_features`.
        """
        statistics = self.fusion.statistics
        if fit_statistics and statistics is None:
            raise ValueError(
                "fit_statistics=True has no use in a model with standardize_features=False: drop it, or create the "
                "model with standardize_features=True."
            )
        self.catalog.replace(features, present, self.fusion.no_features.weight.dtype)
        self.config.num_items, self.config.items_hash = self.catalog.num_items, None
        if fit_statistics and statistics is not None:
            statistics.fit(self.catalog)

    def get_item_embeddings(self, rows: torch.Tensor, extra_items: dict | None = None) -> torch.Tensor:
        """Embed the items of rows `[n]` as the backbone sees them, `[n, embedding_size]`: fusion, then projector.

        Rows beyond the catalog are those of `extra_items`; see `forward`.
        """
        return self.projector(self.fusion(*self.catalog.gather(rows, extra_items)))

    def embed(self, input_ids: torch.Tensor, extra_items: dict | None = None) -> torch.Tensor:
        """Embed text, separators and items, `[batch, length]` -> `[batch, length, embedding_size]`.

        Only the item rows that occur in `input_ids` are read, each once; without any, features are not touched.
        """
        embedding, offset = self.get_input_embeddings(), self.config.item_token_offset
        if input_ids.numel() == 0:
            return embedding(input_ids)
        is_item = input_ids >= offset
        separator_id = -1 if self.config.separator_token_id is None else self.config.separator_token_id
        is_separator = input_ids == separator_id
        text_ids = input_ids.masked_fill(is_item | is_separator, 0)
        highest, highest_text = torch.stack([input_ids.max(), text_ids.max()]).tolist()  # the one synchronization
        self._check_ids(input_ids, highest - offset, highest_text, extra_items)
        self._embeds_text = True
        try:
            embeds = embedding(text_ids)
        finally:
            self._embeds_text = False
        if separator_id >= 0:
            embeds = torch.where(is_separator.unsqueeze(-1), self.separator().to(embeds.dtype), embeds)
        if highest >= offset:
            rows, positions = torch.unique(input_ids[is_item] - offset, return_inverse=True)
            items = self.get_item_embeddings(rows, extra_items).to(device=embeds.device, dtype=embeds.dtype)
            embeds = embeds.masked_scatter(is_item.unsqueeze(-1), items[positions])
        return embeds

    def _check_ids(self, input_ids: torch.Tensor, row: int, text_id: int, extra_items: dict | None) -> None:
        offset, vocab_size = self.config.item_token_offset, self.config.get_text_config().vocab_size
        num_extra = 0 if extra_items is None else num_extra_items(extra_items)
        num_rows = self.catalog.num_rows + num_extra
        if row >= num_rows:
            count = int((input_ids >= offset + num_rows).sum())
            raise ValueError(
                f"{count} item tokens point past the catalog (row {row} of {num_rows}: {self.catalog.num_rows} in the "
                f"catalog and {num_extra} extra), so they have no features: use the processor that was saved with "
                "this model, pass extra_items, or call set_catalog with all items."
            )
        if text_id >= vocab_size:
            raise ValueError(
                f"token id {text_id} is neither text (below {vocab_size}), nor an item (from {offset}), nor the "
                f"separator ({self.config.separator_token_id}): use the tokenizer that was saved with this model."
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        extra_items: dict | None = None,
        positions_to_keep: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],  # pyright: ignore[reportGeneralTypeIssues]: it names position_ids, too
    ) -> tuple | BaseModelOutputWithPast:
        """Run the backbone on text and items.

        Args:
            input_ids: `[batch, length]`; `item_token_offset + k` is row `k` of the catalog.
            attention_mask: `[batch, length]`
            position_ids: `[batch, length]`
            cache: Keys and values of the backbone for earlier positions.
            past_key_values: The name of `cache` before transformers 5.24.
            inputs_embeds: `[batch, length, embedding_size]`, instead of `input_ids`.
            extra_items: Items that the catalog does not hold, for this call only; see `BundleMLLMItemCatalog.gather`.
                Row `j` of them has the id `item_token_offset + num_items + j`.
            positions_to_keep: `[batch, kept]` of each row; all if not given. A head then reads no other position.
            **kwargs: Passed to the backbone.

        Returns:
            The output of the backbone, with `last_hidden_state` `[batch, length or kept, hidden_size]`.

        Raises:
            ValueError: If both or neither of `input_ids` and `inputs_embeds` are given, or an id has no row.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("The model embeds one sequence: give exactly one of input_ids and inputs_embeds.")
        if input_ids is not None:
            inputs_embeds = self.embed(input_ids, extra_items)
        options: dict[str, Any] = {
            name: True for name in ("output_attentions", "output_hidden_states") if getattr(self.config, name, False)
        } | {**kwargs}
        if position_ids is not None:
            options["position_ids"] = position_ids
        if cache is not None and past_key_values is not None:
            raise ValueError("Both cache and past_key_values are given, two names of one argument: give one.")
        if (cache := past_key_values if cache is None else cache) is not None:
            options[_cache_name(self.language_model)] = cache
        outputs = self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **options)
        if positions_to_keep is not None:
            places = positions_to_keep.unsqueeze(-1)
            outputs.last_hidden_state = outputs.last_hidden_state.take_along_dim(places, dim=1)
        return outputs


class BundleMLLMForCausalLM(BundleMLLMPreTrainedModel, GenerationMixin):
    """A `BundleMLLMModel` and the head of its backbone."""

    has_head = True
    _tp_plan: ClassVar = {"lm_head": "colwise_gather_output"}
    _fsdp_plan: ClassVar = {"lm_head": "keep_full_weight"}
    lm_head: nn.Linear

    def __init__(self, config: BundleMLLMConfig):
        super().__init__(config)
        self.model = BundleMLLMModel(config)
        embedding = self.model.get_input_embeddings()
        vocab_size, embedding_size = embedding.weight.shape
        self.lm_head = nn.Linear(embedding_size, vocab_size, bias=config.head_bias)
        path = next(name for name, module in self.model.named_modules() if module is embedding)
        self._tied_weights_keys = {"lm_head.weight": f"model.{path}.weight"}
        self.post_init()
        self.freeze_backbone_if_asked()

    @classmethod
    def from_backbone(cls, backbone: PreTrainedModel, **config_kwargs) -> "BundleMLLMForCausalLM":
        """Take over the base model and the head of a causal language model (no copy), and add the item modules.

        Args:
            backbone: Any text `AutoModelForCausalLM` that works from `inputs_embeds`.
            **config_kwargs: Fields of `BundleMLLMConfig`.

        Returns:
            The model, in evaluation mode, on the backbone's device and in its dtype.

        Raises:
            ValueError: If the backbone is built in a way that this class would not reproduce.
        """
        base: Any = backbone.base_model
        head, name = backbone.get_output_embeddings(), type(backbone).__name__
        if base is backbone or not isinstance(head, nn.Linear):
            raise ValueError(
                f"{name} is no causal language model with a linear head, so letters would have no score: load the "
                "backbone by AutoModelForCausalLM."
            )
        embedding = base.get_input_embeddings()
        base.config.name_or_path = ""  # it would be saved, and may be a folder of this machine
        config = BundleMLLMConfig(
            text_config=base.config,
            head_bias=head.bias is not None,
            tie_word_embeddings=head.weight is embedding.weight,
            **config_kwargs,
        )
        config.dtype = embedding.weight.dtype
        with torch.device("meta"), init.meta_device_safe_creation_ops():
            model = cls(config)
        pairs = ((base, model.model.language_model), (head, model.lm_head))
        if any(_shapes(part) != _shapes(built) for part, built in pairs):
            raise ValueError(
                f"The weights of this {name} are not those its configuration describes, so it could not be loaded "
                "again after saving: merge adapters first, and load it by AutoModelForCausalLM."
            )
        model.model.language_model, model.lm_head = base, head
        model.model.build_item_modules()
        for part in (model.model.catalog, model.model.fusion, model.model.projector, model.model.separator):
            part.apply(model.model._init_weights).to(device=embedding.weight.device, dtype=embedding.weight.dtype)
        some_tokens = torch.arange(min(1024, embedding.num_embeddings), device=embedding.weight.device)
        some_tokens = some_tokens[some_tokens != config.separator_token_id]
        model.model.projector.init_scale_from(embedding(some_tokens))
        if backbone.can_generate():
            model.generation_config = backbone.generation_config
        model.freeze_backbone_if_asked()
        model.eval()
        model._check_same_logits(backbone)
        return model

    @torch.no_grad()
    def _check_same_logits(self, backbone: PreTrainedModel) -> None:
        """Compare both models on a few tokens: the one test that finds whatever a backbone does around its head."""
        if any(parameter.is_meta for parameter in backbone.parameters()):
            return
        probe = torch.arange(1, 9, device=self.lm_head.weight.device).remainder(self.lm_head.weight.shape[0])[None]
        expected, found = backbone.eval()(input_ids=probe).logits.float(), self(input_ids=probe).logits.float()
        if not torch.allclose(expected, found, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
            raise ValueError(
                f"{type(backbone).__name__} changes embeddings or logits in a way that is unknown here (by up to "
                f"{float((expected - found).abs().max()):.3g}), so scores would be wrong: choose another backbone."
            )

    def set_catalog(self, *args, **kwargs) -> None:
        """Replace the rows of the item catalog; see `BundleMLLMModel.set_catalog`."""
        self.model.set_catalog(*args, **kwargs)

    def catalog_rows(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the rows of the item catalog as keyword arguments of `set_catalog`."""
        features, present = self.model.catalog.rows()
        return {"features": features, "present": present}

    def get_item_embeddings(self, rows: torch.Tensor, extra_items: dict | None = None) -> torch.Tensor:
        """Embed items; see `BundleMLLMModel.get_item_embeddings`."""
        return self.model.get_item_embeddings(rows, extra_items)

    def __call__(self, *args, **kwargs) -> Any:
        """Call `forward`, or what TRL puts in its place, with labels of text alone."""
        return super().__call__(*args, **kwargs | self._text_only(kwargs))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        extra_items: dict | None = None,
        **kwargs: Unpack[TransformersKwargs],  # pyright: ignore[reportGeneralTypeIssues]: it names position_ids, too
    ) -> tuple | CausalLMOutputWithPast:
        """Return next-token logits, and the loss where labels are given.

        Arguments are those of `BundleMLLMModel.forward`, others go to the backbone and the loss; `labels` `[batch,
        length]` are -100 where a token is not to be learned (item and separator tokens count as that), and
        `logits_to_keep` is the number of last positions, or the positions, to return logits for; 0 for all.

        Returns:
            Loss and logits `[batch, length or logits_to_keep, vocab_size]`.
        """
        options: dict[str, Any] = {**kwargs}
        loss_kwargs = {key: options.pop(key) for key in ("num_items_in_batch", "shift_labels") if key in options}
        inputs: dict[str, Any] = {"inputs_embeds": inputs_embeds, "extra_items": extra_items, **options}
        inputs |= {"cache": cache, "past_key_values": past_key_values}
        outputs = self.model(input_ids, attention_mask, position_ids, **inputs)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self._finish_logits(self.lm_head(outputs.last_hidden_state[:, keep]))
        loss = None
        if labels is not None:
            loss_kwargs |= self._text_only({**loss_kwargs, "labels": labels})
            loss = self.loss_function(logits=logits, vocab_size=logits.shape[-1], **loss_kwargs)
        of_backbone = {"hidden_states": outputs.hidden_states, "attentions": outputs.attentions}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **of_backbone, **{CACHE: outputs.get(CACHE)})

    def prepare_inputs_for_generation(self, *args, **kwargs) -> dict[str, Any]:
        """Return the inputs of a step; see the base class.

        The cache has its older name: by another, PEFT 0.21 finds none, and adds a learned prefix or prompt again.
        """
        base: Any = super()
        inputs = base.prepare_inputs_for_generation(*args, **kwargs)
        return {"past_key_values" if name == CACHE else name: value for name, value in inputs.items()}

    def _text_only(self, kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return those of the arguments that are labels, with -100 for items and separators, which have no logits."""
        given = {name: kwargs[name] for name in ("labels", "shift_labels") if kwargs.get(name) is not None}
        offset, separator = self.config.item_token_offset, self.config.separator_token_id
        return {name: ids.masked_fill((ids >= offset) | (ids == separator), -100) for name, ids in given.items()}

    def last_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        """Score what comes after each prompt: the letters of the options are among the answers.

        What PEFT's prefix tuning has learned takes part in `forward` alone: `BundleCompleter` refuses such adapters.

        Args:
            input_ids: `[batch, length]` prompts, padded on either side; with a cache, what comes after it.
            attention_mask: `[batch, length of both]`, or `None` without padding.
            **kwargs: As for `forward`, for example `extra_items`.

        Returns:
            `[batch, vocab_size]` logits, the same numbers as `forward` gives at the last real position.
        """
        if attention_mask is None:
            hidden = self.model(input_ids=input_ids, **kwargs).last_hidden_state[:, -1]
            return self._finish_logits(self.lm_head(hidden))
        if "position_ids" in inspect.signature(self.model.language_model.forward).parameters:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            kwargs.setdefault("position_ids", positions[:, -input_ids.shape[1] :])
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        last = hidden.shape[1] - 1 - attention_mask.flip(-1).long().argmax(-1)  # [B]
        hidden = hidden[torch.arange(hidden.shape[0], device=hidden.device), last.to(hidden.device)]  # [B, H]
        return self._finish_logits(self.lm_head(hidden))

    def _finish_logits(self, logits: torch.Tensor) -> torch.Tensor:
        text_config = self.config.get_text_config()
        for name in _LOGIT_DIVISORS:
            logits = logits / (getattr(text_config, name, None) or 1.0)
        for name in _LOGIT_FACTORS:
            factor = getattr(text_config, name, None)
            logits = logits if factor is None else logits * factor
        for name in _LOGIT_SOFT_CAPS:
            cap = getattr(text_config, name, None)
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
        return logits


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in module.state_dict().items()}


def _cache_name(backbone: nn.Module) -> str:
    """Return the name under which a backbone takes its cache: one with code of its own may keep the older name."""
    names = inspect.signature(backbone.forward).parameters
    return CACHE if CACHE in names or "past_key_values" not in names else "past_key_values"

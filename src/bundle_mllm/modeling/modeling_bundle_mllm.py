"""PyTorch Bundle-MLLM: a text backbone that reads items as tokens, through fusion, projector and soft separator.

Knows nothing about titles, tokenizers, prompts or files of features: it sees ids, feature rows and presence masks.
"""

import inspect
import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_bundle_mllm import BundleMLLMConfig
from .items_bundle_mllm import (
    BundleMLLMFusion,
    BundleMLLMFusionLinear,
    BundleMLLMItemCatalog,
    BundleMLLMProjector,
    BundleMLLMProjectorLinear,
    BundleMLLMRelation,
    BundleMLLMTable,
    BundleMLLMVector,
    num_extra_items,
)
from .matching_bundle_mllm import BundleMLLMMatching, BundleMLLMMatchingLinear, log_softmax_by

if TYPE_CHECKING:  # never executed: transformers finds the files that travel with a model by searching for such lines
    from .pipeline_bundle_mllm import BundleCompletionPipeline  # noqa: F401
    from .processing_bundle_mllm import BundleMLLMProcessor  # noqa: F401
    from .tokenization_bundle_mllm import BundleMLLMTokenizerFast  # noqa: F401

# What backbones do to the logits after their head, by the field of their configuration that says so.
_LOGIT_DIVISORS = ("logits_scaling",)  # Granite
_LOGIT_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")  # Cohere, Falcon-H1, Muse Glimmer
_LOGIT_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap")  # Gemma 2 and later, RecurrentGemma


class BundleMLLMPreTrainedModel(PreTrainedModel):
    """Initialization, strict loading and freezing, shared by both models."""

    config: BundleMLLMConfig
    config_class = BundleMLLMConfig
    base_model_prefix = "model"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False
    has_head = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, BundleMLLMFusionLinear):
            init.xavier_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (BundleMLLMProjectorLinear, BundleMLLMMatchingLinear)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = module.in_features**-0.5
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, BundleMLLMVector):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, BundleMLLMMatching):
            init.constant_(module.temperature, 5.0)
            init.constant_(module.likeness, 1.0)
            init.zeros_(module.letters)
            if module.weigh is not None:
                init.zeros_(module.shared_mean)
                init.ones_(module.shared_std)
        elif isinstance(module, BundleMLLMTable):
            for buffer in module.buffers():
                init.constant_(buffer, module.fill)
        elif isinstance(module, BundleMLLMItemCatalog):
            init.zeros_(module.present)
        elif isinstance(module, BundleMLLMRelation):
            for buffer in module.buffers():
                init.zeros_(buffer)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """Load a saved model, strictly; then freeze the backbone if the configuration says so.

        Weights that are missing, left over or of another shape are errors, unless `key_mapping` says that the file
        holds something else (for example a stock backbone).

        Raises:
            ValueError: The checkpoint does not hold exactly the weights of this model.
        """
        strict = kwargs.get("key_mapping") is None
        if strict:
            kwargs["ignore_mismatched_sizes"] = True  # not ignored: reported below, by name
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        if strict:
            unexpected = {key for key in info["unexpected_keys"] if cls.has_head or not key.startswith("lm_head.")}
            problems = {
                "missing": sorted(info["missing_keys"]),
                "unexpected": sorted(unexpected),
                "of another shape": sorted(str(key) for key in info["mismatched_keys"]),
            }
            found = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in problems.items() if keys)
            if found:
                raise ValueError(
                    f"the weights in {str(pretrained_model_name_or_path)!r} are not those of this {cls.__name__}: "
                    f"{found}. The model would answer with random weights: load a folder that this class saved, or "
                    "wrap a stock language model with BundleMLLMForCausalLM.from_backbone."
                )
        model.freeze_backbone_if_asked()
        return (model, info) if output_loading_info else model

    def freeze_backbone_if_asked(self) -> None:
        """Freeze the backbone and its head if `config.freeze_backbone` is set."""
        if self.config.freeze_backbone:
            for name, parameter in self.named_parameters():
                if "language_model." in name or name.startswith("lm_head."):
                    parameter.requires_grad_(False)


class BundleMLLMModel(BundleMLLMPreTrainedModel):
    """The backbone, and the virtual item vocabulary in front of it."""

    def __init__(self, config: BundleMLLMConfig):
        super().__init__(config)
        self.language_model = AutoModel.from_config(config.text_config)
        per_layer_size = getattr(config.text_config, "hidden_size_per_layer_input", 0)  # Gemma 3n, small Gemma 4
        if per_layer_size and "per_layer_inputs" in inspect.signature(self.language_model.forward).parameters:
            raise ValueError(
                f"the backbone {config.text_config.model_type!r} embeds input_ids again in every layer, and an item "
                "has no id there, so items could not be read: choose a backbone that works from inputs_embeds alone."
            )
        self.build_item_modules()
        self.post_init()

    def build_item_modules(self) -> None:
        """Create catalog, fusion, projector and separator from the configuration, as torch initializes them."""
        self.catalog = BundleMLLMItemCatalog(self.config)
        self.fusion = BundleMLLMFusion(self.config)
        embedding_size = self.get_input_embeddings().weight.shape[1]
        self.projector = BundleMLLMProjector(self.config, embedding_size)
        self.separator = BundleMLLMVector(embedding_size)
        self.matching = None
        if self.config.matching_hidden_size is not None:
            self.matching = BundleMLLMMatching(self.config, embedding_size)

    def get_input_embeddings(self) -> nn.Module:
        """Return the text embedding of the backbone."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text embedding of the backbone."""
        self.language_model.set_input_embeddings(value)

    def set_catalog(
        self,
        features: dict[str, torch.Tensor],
        present: dict[str, torch.Tensor] | None = None,
        fit_statistics: bool = False,
        relations: dict[str, tuple[torch.LongTensor, ...]] | None = None,
    ) -> None:
        """Replace the rows of the item catalog. New items are new rows; nothing is resized or retrained.

        Args:
            features: [num_items, width] of each modality, any float type (kept, unless wider than the fusion's). A
                modality that is left out is absent for every item.
            present: [num_items] of each modality, true where an item has it. All true where left out.
            fit_statistics: Also set the mean and standard deviation used by `standardize_features`. Leave it off when
                a trained model gets new items.
            relations: Of each of `config.relations` the row and the number of the group (bundle, user, word) of each
                pair, [num_pairs] both. Where items share their groups (as those of a category do), the pairs hold
                numbers of nodes instead, and a third tensor [num_items] the node of each item, -1 for none. Items of a
                relation that is left out are in no group.

        Raises:
            ValueError: An unknown modality or relation, a wrong shape, a value that is not finite in a present row, or
                statistics asked of a configuration without `standardize_features`.
        """
        if fit_statistics and not self.config.standardize_features:
            raise ValueError(
                "fit_statistics=True, but the configuration has standardize_features=False, so the statistics would "
                "not be used: set standardize_features=True when the model is created, or drop fit_statistics."
            )
        self.catalog.replace(features, present, self.fusion.no_features.weight.dtype, relations)
        self.config.num_items, self.config.items_hash = self.catalog.num_items, None
        self.config.relations = {name: len(relation.groups) for name, relation in self.catalog.relations.items()}
        if fit_statistics:
            self.fusion.fit_statistics(self.catalog.features, self.catalog.present)

    def get_item_embeddings(self, rows: torch.LongTensor, extra_items: dict | None = None) -> torch.Tensor:
        """Embed items as the backbone sees them: `projector(fusion(features[rows]))`.

        Args:
            rows: [n] rows of the catalog (then of `extra_items`).
            extra_items: See `forward`.

        Returns:
            [n, embedding_size]
        """
        rows = rows.to(self.catalog.present.device)
        return self.projector(self.fusion(*self.catalog.gather(rows, extra_items)))

    def embed(self, input_ids: torch.LongTensor, extra_items: dict | None = None) -> torch.Tensor:
        """Embed text, separators and items, [batch, length] -> [batch, length, embedding_size].

        Only the item rows that occur in `input_ids` are read, each once; without any, features are not touched.
        """
        embedding, offset = self.get_input_embeddings(), self.config.item_token_offset
        if input_ids.numel() == 0:
            return embedding(input_ids)
        is_item = input_ids >= offset
        is_separator = torch.zeros_like(is_item)
        for token_id in (self.config.separator_token_id, self.config.option_separator_token_id):
            if token_id is not None:
                is_separator = is_separator | (input_ids == token_id)
        text_ids = input_ids.masked_fill(is_item | is_separator, 0)
        highest, highest_text = torch.stack([input_ids.max(), text_ids.max()]).tolist()  # the one synchronization
        self._check_ids(input_ids, highest - offset, highest_text, extra_items)
        embeds = embedding(text_ids)
        if self.config.separator_token_id is not None:
            embeds = torch.where(is_separator.unsqueeze(-1), self.separator().to(embeds.dtype), embeds)
        if highest >= offset:
            rows, positions = torch.unique(input_ids[is_item] - offset, return_inverse=True)
            items = self.get_item_embeddings(rows, extra_items).to(device=embeds.device, dtype=embeds.dtype)
            embeds = embeds.masked_scatter(is_item.unsqueeze(-1), items[positions])
        return embeds

    def match(
        self,
        rows: torch.LongTensor,
        *places: torch.LongTensor,
        extra_items: dict | None = None,
        compares: bool = True,
    ) -> torch.Tensor:
        """Score options by their features and groups, without the backbone; see `BundleMLLMMatching.forward`.

        Args:
            rows: [n] rows of the catalog (then of `extra_items`).
            *places: `shown`, `options`, `question_of_shown` and `question_of_option`, of indices below n.
            extra_items: See `forward`.
            compares: Whether shared groups count, too, where the model has relations.

        Returns:
            [num_options] float32, log-probabilities among the options of a question.
        """
        rows = rows.to(self.catalog.present.device)
        features, present = self.catalog.gather(rows, extra_items)
        shared = self.compare(rows, present, *places) if compares and self.config.relations else None
        scores = self.matching(self.fusion.prepare(features, present), present, shared, *places)
        return log_softmax_by(scores, places[3])

    def compare(self, rows: torch.LongTensor, present: torch.BoolTensor, *places: torch.LongTensor) -> torch.Tensor:
        """Count the groups that options share with partial bundles; see `BundleMLLMMatching.compare`.

        Args:
            rows: [n] rows of the catalog; those beyond it share nothing.
            present: [n, num_modalities]
            *places: See `match`.

        Returns:
            [num_options, num_shared] float32
        """
        return self.matching.compare(self.catalog.gather_edges(rows, present), len(rows), *places)

    def _add_matching(
        self, hidden: torch.Tensor, input_ids: torch.LongTensor, extra_items: dict | None
    ) -> torch.Tensor:
        """Let the matching speak in the hidden states [batch, length, width], where the prompts are answered."""
        is_item = input_ids >= self.config.item_token_offset
        after_option_separator = torch.zeros_like(is_item)
        after_option_separator[:, 1:] = input_ids[:, :-1] == self.config.option_separator_token_id
        is_option = is_item & after_option_separator
        last = is_option.shape[1] - 1 - is_option.flip(1).long().argmax(dim=1)  # [batch], of the last option
        end = last + self.config.answer_distance
        is_asked = is_option.any(dim=1) & (end < input_ids.shape[1])  # [batch]: not a continuation, for example
        if not is_asked.any():
            return hidden
        is_option, is_item = is_option & is_asked[:, None], is_item & is_asked[:, None]
        is_shown = is_item & ~after_option_separator
        if (is_shown & (is_option.cumsum(dim=1) > 0)).any():
            raise ValueError(
                "a row holds another prompt behind its options, so the matching would mix the two: give one prompt "
                "per row (packing=False)."
            )
        question_of_shown, shown_position = is_shown.nonzero(as_tuple=True)
        question, position = is_option.nonzero(as_tuple=True)
        ids = torch.cat([input_ids[question_of_shown, shown_position], input_ids[question, position]])
        rows, index = torch.unique(ids - self.config.item_token_offset, return_inverse=True)
        shown, options = index.split([len(shown_position), len(position)])
        scores = self.match(rows, shown, options, question_of_shown, question, extra_items=extra_items)
        letter = is_option.cumsum(dim=1)[question, position] - 1  # of the option in its question
        scores = scores + is_option.sum(dim=1).to(scores)[question].log()  # over 1 / K: nothing known, nothing said
        added = scores.unsqueeze(-1) * self.matching.letters.float()[letter]  # [num_options, width]
        weights = torch.ones_like(hidden[..., :1])
        weights[is_asked.nonzero(as_tuple=True)[0], end[is_asked]] = self.config.backbone_weight
        return (hidden * weights).index_put((question, end[question]), added.to(hidden), accumulate=True)

    def _check_ids(self, input_ids: torch.Tensor, row: int, text_id: int, extra_items: dict | None) -> None:
        offset, vocab_size = self.config.item_token_offset, self.config.get_text_config().vocab_size
        num_extra = 0 if extra_items is None else num_extra_items(extra_items)
        num_rows = self.catalog.num_items + num_extra
        if row >= num_rows:
            count = int((input_ids >= offset + num_rows).sum())
            raise ValueError(
                f"{count} item tokens point past the catalog (row {row} of {num_rows}: {self.catalog.num_items} "
                f"in the catalog and {num_extra} extra), so they have no features: use the processor that was saved "
                "with this model, pass extra_items, or call set_catalog with all items."
            )
        if text_id >= vocab_size:
            raise ValueError(
                f"token id {text_id} is neither text (below {vocab_size}), nor the separator "
                f"({self.config.separator_token_id}), nor an item (from {offset}), so it has no embedding: use the "
                "tokenizer that was saved with this model."
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        extra_items: dict | None = None,
        positions_to_keep: torch.LongTensor | None = None,
        **kwargs,
    ) -> tuple | BaseModelOutputWithPast:
        """Run the backbone on text and items.

        Args:
            input_ids: [batch, length]; `item_token_offset + k` is row `k` of the catalog.
            attention_mask: [batch, length]
            position_ids: [batch, length]
            past_key_values: Cache of the backbone.
            inputs_embeds: [batch, length, embedding_size], instead of `input_ids`.
            extra_items: Items that the catalog does not hold, for this call only: `{"features": {modality: [n,
                width]}, "present": [n, num_modalities] bool}` (`present` may be left out). Row `j` of them has the id
                `item_token_offset + num_items + j`.
            positions_to_keep: [batch, kept] of each row; all if not given. A head then reads no other position.
            **kwargs: Passed to the backbone.

        Returns:
            The output of the backbone, with `last_hidden_state` [batch, length or kept, hidden_size].

        Raises:
            ValueError: Both or neither of `input_ids` and `inputs_embeds`, or an id without a row.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds: the model embeds one sequence.")
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, extra_items)
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        if past_key_values is not None:
            kwargs["past_key_values"] = past_key_values
        outputs = self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
        if self.matching is not None and input_ids is not None and not self.training:
            outputs.last_hidden_state = self._add_matching(outputs.last_hidden_state, input_ids, extra_items)
        if positions_to_keep is not None:
            outputs.last_hidden_state = outputs.last_hidden_state.take_along_dim(
                positions_to_keep.unsqueeze(-1), dim=1
            )
        return outputs


class BundleMLLMForCausalLM(BundleMLLMPreTrainedModel, GenerationMixin):
    """A `BundleMLLMModel` and the head of its backbone."""

    has_head = True

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
            ValueError: The backbone is built in a way that this class would not reproduce.
        """
        base, head, name = backbone.base_model, backbone.get_output_embeddings(), type(backbone).__name__
        if base is backbone or not isinstance(head, nn.Linear):
            raise ValueError(
                f"{name} is no causal language model with a linear head, so there is nothing to score letters with: "
                "load the backbone by AutoModelForCausalLM."
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
        shapes = [{key: value.shape for key, value in part.state_dict().items()} for part in (base, head)]
        if shapes != [
            {key: value.shape for key, value in part.state_dict().items()}
            for part in (model.model.language_model, model.lm_head)
        ]:
            raise ValueError(
                f"the weights of this {name} are not those its configuration describes, so it could not be loaded "
                "again after saving: merge adapters first, and load it by AutoModelForCausalLM."
            )
        model.model.language_model, model.lm_head = base, head
        model.model.build_item_modules()
        item_modules = ("catalog", "fusion", "projector", "separator", "matching")
        for part in (part for name, part in model.model.named_children() if name in item_modules):
            part.apply(model.model._init_weights).to(device=embedding.weight.device, dtype=embedding.weight.dtype)
        some_tokens = torch.arange(min(1024, embedding.num_embeddings), device=embedding.weight.device)
        model.model.projector.match_scale(embedding(some_tokens))
        model.match_letters()
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
        vocab_size = self.lm_head.weight.shape[0]
        probe = torch.arange(1, 9, device=self.lm_head.weight.device).remainder(vocab_size).unsqueeze(0)
        expected, found = backbone.eval()(input_ids=probe).logits.float(), self(input_ids=probe).logits.float()
        if not torch.allclose(expected, found, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
            raise ValueError(
                f"{type(backbone).__name__} changes its embeddings or logits in a way that is not known here (largest "
                f"difference {float((expected - found).abs().max()):.3g}), so scores would be wrong: choose another "
                "backbone."
            )

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = value

    def match_letters(self) -> None:
        """Let the matching, if there is one, speak to the head as it is now: for when the head has changed."""
        if self.model.matching is not None:
            self.model.matching.match_letters(self.lm_head.weight, self.config.answer_token_ids)

    def set_catalog(self, *args, **kwargs) -> None:
        """Replace the rows of the item catalog; see `BundleMLLMModel.set_catalog`."""
        self.model.set_catalog(*args, **kwargs)

    def get_item_embeddings(self, rows: torch.LongTensor, extra_items: dict | None = None) -> torch.Tensor:
        """Embed items; see `BundleMLLMModel.get_item_embeddings`."""
        return self.model.get_item_embeddings(rows, extra_items)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        extra_items: dict | None = None,
        **kwargs,
    ) -> tuple | CausalLMOutputWithPast:
        """Return next-token logits, and the loss where labels are given; see `BundleMLLMModel.forward`.

        Args:
            input_ids: [batch, length]
            attention_mask: [batch, length]
            position_ids: [batch, length]
            past_key_values: Cache of the backbone.
            inputs_embeds: [batch, length, embedding_size], instead of `input_ids`.
            labels: [batch, length], -100 where a token is not to be learned (item and separator tokens always).
            logits_to_keep: Number of last positions, or the positions, to return logits for; 0 for all.
            extra_items: Items of this call only.
            **kwargs: Passed to the backbone and the loss.

        Returns:
            Loss and logits [batch, length or logits_to_keep, vocab_size].
        """
        loss_kwargs = {key: kwargs.pop(key) for key in ("num_items_in_batch", "shift_labels") if key in kwargs}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            extra_items=extra_items,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self._finish_logits(self.lm_head(outputs.last_hidden_state[:, keep]))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **loss_kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def option_logits(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        option_token_ids: torch.LongTensor,
        **kwargs,
    ) -> torch.Tensor:
        """Score the options of each question: one forward pass, the last hidden state times a few rows of the head.

        Args:
            input_ids: [batch, length] prompts, padded on either side.
            attention_mask: [batch, length], or `None` without padding.
            option_token_ids: [K], or [batch, K] for other options in each row: the tokens of the answer letters.
            **kwargs: As for `forward`, for example `extra_items`.

        Returns:
            [batch, K] logits, the same numbers as `forward` gives at the last real position.
        """
        hidden = self._last_hidden_state(input_ids, attention_mask, **kwargs)  # [B, H]
        options = option_token_ids.expand(hidden.shape[0], -1)  # [B, K]
        if type(self.lm_head) is not nn.Linear or self.lm_head.weight.is_meta:
            logits = self.lm_head(hidden)  # an adapter, quantized or offloaded weights: no rows to take
            return self._finish_logits(logits.gather(1, options.to(logits.device)))
        weight, bias = self.lm_head.weight, self.lm_head.bias
        options = options.to(weight.device)
        logits = torch.einsum("bh,bkh->bk", hidden.to(weight.device), weight[options])
        return self._finish_logits(logits if bias is None else logits + bias[options])

    def last_logits(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        """Return the logits of the whole vocabulary at the last real position, [batch, vocab_size]."""
        return self._finish_logits(self.lm_head(self._last_hidden_state(input_ids, attention_mask, **kwargs)))

    def _last_hidden_state(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs):
        if attention_mask is None:
            return self.model(input_ids=input_ids, **kwargs).last_hidden_state[:, -1]
        if "position_ids" in inspect.signature(self.model.language_model.forward).parameters:
            kwargs.setdefault("position_ids", (attention_mask.long().cumsum(-1) - 1).clamp(min=0))
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        last = attention_mask.shape[1] - 1 - attention_mask.flip(-1).long().argmax(-1)  # [B]
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last.to(hidden.device)]

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


__all__ = ["BundleMLLMForCausalLM", "BundleMLLMModel", "BundleMLLMPreTrainedModel"]

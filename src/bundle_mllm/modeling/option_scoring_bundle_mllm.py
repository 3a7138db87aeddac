"""A ranker without letters (ours): a language model reads each title alone; titles, and item tokens, are compared.

Knows nothing about titles, tokenizers, prompts or how batches are made.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import initialization as init
from transformers.utils.generic import ModelOutput, can_return_tuple

from .configuration_bundle_mllm import BundleMLLMOptionConfig
from .modeling_bundle_mllm import BundleMLLMForCausalLM, BundleMLLMModel, BundleMLLMPreTrainedModel
from .titles_bundle_mllm import TitleStates

WHITENING = 0.25
"""How far hidden states are whitened: 0 only standardizes them, 1 makes all directions equal (see the results)."""
FIRST_SCALE = 1 / 0.07
"""Factor of the cosines before training (CLIP's)."""


@dataclass
class BundleMLLMOptionOutput(ModelOutput):
    """Scores of options, higher is better; up to a constant of the question they are log-probabilities.

    Attributes:
        loss: Cross-entropy of the answers among the options, where `labels` are given.
        scores: `[batch, num_options]` float32, `-inf` where there is no option.
    """

    loss: torch.Tensor | None = None
    scores: torch.Tensor | None = None


class BundleMLLMResidualMap(nn.Module):
    """`x + B A x`, with A and B of low rank: the identity before training."""

    def __init__(self, size: int, rank: int):
        super().__init__()
        self.down = nn.Linear(size, rank, bias=False)
        self.up = nn.Linear(rank, size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[..., size]` to `[..., size]`."""
        return x + self.up(self.down(x))


class BundleMLLMMatching(nn.Module):
    """Compares partial bundles and options by one vector of each item.

    With `h` the vector of an item, partially whitened over the catalog, `Q` and `K` residual maps and `|x|` the norm,

        score(c) = s cos( sum_{p in P} Q h_p / |Q h_p| , K h_c )
    """

    mean: torch.Tensor
    whitening: torch.Tensor

    def __init__(self, size: int, rank: int):
        super().__init__()
        self.query, self.key = BundleMLLMResidualMap(size, rank), BundleMLLMResidualMap(size, rank)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("whitening", torch.eye(size))

    @torch.no_grad()
    def fit_statistics(self, states: torch.Tensor) -> None:
        """Whiten partially as the states `[n, size]` of some items ask for.

        Few directions, which say little, hold most of the variance of a language model's states. Each column is
        divided by its standard deviation, and each principal direction by its own to the power of `WHITENING`.
        """
        states = states.double()
        self.mean.copy_(states.mean(dim=0))
        std = states.std(dim=0, correction=0).clamp(min=1e-6)
        standard = (states - states.mean(dim=0)) / std
        variances, directions = torch.linalg.eigh(standard.T @ standard / len(standard))
        shrunk = directions * variances.clamp(min=1e-3).pow(-WHITENING / 2) @ directions.T
        self.whitening.copy_(shrunk / std.unsqueeze(1))

    def forward(self, states: torch.Tensor, partial: torch.Tensor, options: torch.Tensor) -> torch.Tensor:
        """Score `options` `[B, K]` beside `partial` `[B, P]`, indices of `states` `[n, size]`, -1 for none."""
        with torch.autocast(states.device.type, enabled=False):  # cosines need more than the 3 digits of bfloat16
            standard = ((states.float() - self.mean.float()) @ self.whitening.float()).to(self.mean.dtype)
            queries = functional.normalize(self.query(standard).float(), dim=-1)  # [n, size]
            keys = functional.normalize(self.key(standard).float(), dim=-1)  # [n, size]
            shown = queries[partial.clamp(min=0)] * (partial >= 0).unsqueeze(-1)  # [B, P, size]
            bundle = functional.normalize(shown.sum(dim=1), dim=-1)  # [B, size]
            cosines = (bundle @ keys.T).gather(1, options.clamp(min=0))  # [B, K]
            return (self.log_scale.float().exp() * cosines).masked_fill(options < 0, -torch.inf)


class BundleMLLMForOptionScoring(BundleMLLMPreTrainedModel):
    """A `BundleMLLMModel` whose titles, and item tokens where they are shown, are compared with a partial bundle's.

    A title is the mean of the hidden states of its tokens. An item token is its embedding, which fusion and projector
    make: a backbone that has never seen one hands on little of it (see the results). Each has a `BundleMLLMMatching`,
    and their scores are added. What is compared of an item depends on no other item: it is computed once, however many
    questions the item is in, and a list of options may have any length.
    """

    config: BundleMLLMOptionConfig
    config_class = BundleMLLMOptionConfig
    how_to_make = ", or take over a ranker with BundleMLLMForOptionScoring.from_ranker"

    def __init__(self, config: BundleMLLMOptionConfig):
        super().__init__(config)
        self.model = BundleMLLMModel(config)
        self.matching, self.item_matching = _matchings(self.model, config.matching_rank)
        self.kept_titles = TitleStates()  # for those who call `item_states`; `forward` uses what it is given alone
        self.post_init()
        self.freeze_backbone_if_asked()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, BundleMLLMMatching):
            init.constant_(module.log_scale, math.log(FIRST_SCALE))
            init.zeros_(module.mean)
            init.eye_(module.whitening)
        elif isinstance(module, BundleMLLMResidualMap):
            init.kaiming_uniform_(module.down.weight, a=math.sqrt(5))
            init.zeros_(module.up.weight)
        else:
            super()._init_weights(module)

    @classmethod
    def from_ranker(cls, ranker: BundleMLLMForCausalLM, matching_rank: int = 64) -> "BundleMLLMForOptionScoring":
        """Take over all of a ranker but its head (no copy), and add what compares hidden states.

        Args:
            ranker: The ranker.
            matching_rank: Rank of the residual maps.
        """
        left_out = ("model_type", "auto_map", "architectures", "custom_pipelines", "transformers_version")
        values = {name: value for name, value in ranker.config.to_dict().items() if name not in left_out}
        config = BundleMLLMOptionConfig(**values, matching_rank=matching_rank)
        config.dtype = ranker.config.dtype
        with torch.device("meta"), init.meta_device_safe_creation_ops():
            model = cls(config)
        model.model = ranker.model
        model.matching, model.item_matching = _matchings(ranker.model, matching_rank)
        for matching in (model.matching, model.item_matching):
            matching.apply(model._init_weights)
            matching.to(ranker.device, ranker.dtype)
        return model.eval()

    def set_catalog(self, *args, **kwargs) -> None:
        """Replace the rows of the item catalog; see `BundleMLLMModel.set_catalog`."""
        self.model.set_catalog(*args, **kwargs)

    def catalog_rows(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the rows of the item catalog as keyword arguments of `set_catalog`."""
        features, present = self.model.catalog.rows()
        return {"features": features, "present": present}

    def read_titles(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the mean hidden state of the words of each title, `[n, hidden_size]` float32.

        `input_ids` are the tokens of titles, `[n, length]`, padded on the right. An empty title is zeros.
        """
        is_read = attention_mask.clone()
        is_read[:, 0] = 1  # attention needs a token
        hidden = self.model(input_ids=input_ids, attention_mask=is_read).last_hidden_state.float()
        weights = attention_mask.unsqueeze(-1).float()  # [n, length, 1]
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)

    def item_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        extra_items: dict | None = None,
        titles: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return what is compared of items, `[n, hidden_size + embedding_size]`: title, then item token or zeros.

        Args:
            input_ids: `[n, length]` tokens of the items, padded on the right.
            attention_mask: `[n, length]`
            extra_items: See `BundleMLLMModel.forward`.
            titles: `[n, hidden_size]` what `read_titles` returned for their titles, which are read if not given.
        """
        is_item = input_ids >= self.config.item_token_offset  # [n, length]
        if titles is None:
            is_word = (attention_mask > 0) & ~is_item & (input_ids != self.config.separator_token_id)
            titles = self.read_titles(input_ids.masked_fill(~is_word, 0), is_word.long())
        items = titles.new_zeros(len(titles), self.model.get_input_embeddings().weight.shape[1])
        [embeds] = self.model.embed(input_ids[is_item].unsqueeze(0), extra_items)  # [number of item tokens, ...]
        items = items.index_put(is_item.nonzero(as_tuple=True)[:1], embeds.float())
        return torch.cat([titles, items], dim=-1)

    def compare(self, states: torch.Tensor, partial: torch.Tensor, options: torch.Tensor) -> torch.Tensor:
        """Score `options` `[B, K]` beside `partial` `[B, P]`, indices of `item_states`, -1 for none."""
        of_title = self.config.get_text_config().hidden_size
        titles, items = states[:, :of_title], states[:, of_title:]
        return self.matching(titles, partial, options) + self.item_matching(items, partial, options)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        partial: torch.Tensor,
        options: torch.Tensor,
        labels: torch.Tensor | None = None,
        extra_items: dict | None = None,
        titles: torch.Tensor | None = None,
    ) -> BundleMLLMOptionOutput:
        """Score the options of questions.

        Args:
            input_ids: `[n, length]` tokens of the items of all questions, each item once, padded on the right.
            attention_mask: `[n, length]`
            partial: `[batch, max_partial]` which of the items each partial bundle holds, -1 for none.
            options: `[batch, num_options]` the same of the options.
            labels: `[batch]` place of the answer among the options.
            extra_items: See `BundleMLLMModel.forward`.
            titles: See `item_states`.
        """
        states = self.item_states(input_ids, attention_mask, extra_items, titles)
        scores = self.compare(states, partial, options)
        loss = None if labels is None else functional.cross_entropy(scores, labels)
        return BundleMLLMOptionOutput(loss=loss, scores=scores)


def _matchings(model: BundleMLLMModel, rank: int) -> tuple[BundleMLLMMatching, BundleMLLMMatching]:
    """Return what compares the titles of a model, and what compares its item tokens."""
    sizes = model.config.get_text_config().hidden_size, model.get_input_embeddings().weight.shape[1]
    return BundleMLLMMatching(sizes[0], rank), BundleMLLMMatching(sizes[1], rank)

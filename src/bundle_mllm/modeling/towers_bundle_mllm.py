"""The trainable parts of the retriever: towers over item features, and the stacker that weighs co-occurrence.

Knows nothing about catalogs, groups of items or questions.
"""

import torch
from torch import nn
from torch.nn import functional

from .base_bundle_mllm import BundleLinear
from .catalog_bundle_mllm import BundleMLLMFeatureStatistics, mask_absent, mean_and_deviation
from .configuration_bundle_mllm import CONTENT_BASED, BundleRetrieverConfig


class BundleRetrieverFeatureMap(nn.Module):
    """A linear map of standardized features plus a small MLP: the linear part preserves their cosines."""

    def __init__(self, width: int, out_features: int, dropout: float, hidden_size: int):
        super().__init__()
        self.linear = BundleLinear(width, out_features)
        self.linear_1 = BundleLinear(width, 2 * hidden_size)
        self.linear_2 = BundleLinear(2 * hidden_size, out_features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map `[n, width]` to `[n, out_features]`."""
        features = self.dropout(features)
        return self.linear(features) + self.linear_2(self.dropout(functional.gelu(self.linear_1(features))))


class BundleRetrieverTowers(nn.Module):
    """Two towers over item features: a vector of the partial bundle and one of each item, whose product is the score.

    Every item has a query `q`, a key `k` and a bias `b`, each the sum over its present modalities of a map of that
    modality's standardized features. For the partial bundle P and the item c

        s(c) = t cos(sum_{p in P} q_p / |q_p|, k_c) + b_c + sum_m w_m mean_{p in P} cos(x_pm, x_cm)

    where `x_m` are the standardized features of modality m, and the scale `t` and the cosine weights `w` are learned.
    """

    def __init__(self, config: BundleRetrieverConfig):
        super().__init__()
        self.width, self.widths = config.hidden_size, list(config.modalities.values())
        self.statistics = BundleMLLMFeatureStatistics(config.modalities)
        self.maps = nn.ModuleDict()
        for name, dim in config.modalities.items():
            is_collaborative = name in config.memberships and name not in CONTENT_BASED
            dropout = config.collaborative_dropout if is_collaborative else config.dropout
            self.maps[name] = BundleRetrieverFeatureMap(dim, 2 * self.width + 1, dropout, config.hidden_size)
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.cosine_weight = nn.Parameter(torch.empty(len(self.maps)))

    def forward(self, features: dict[str, torch.Tensor], present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode n items from the features `[n, width]` of each modality and their presence `[n, num_modalities]`.

        Returns:
            Item vectors `[n, D]` float32, the concatenation of the unit key, the unit features of each modality and
            the bias; and the unit queries `[n, hidden_size]`.
        """
        mapped, units = self.logit_scale.new_zeros(len(present), 2 * self.width + 1), []
        for column, (name, encode) in enumerate(self.maps.items()):
            mask = present[:, column, None]
            prepared = self.statistics(name, mask_absent(features[name], present[:, column]))
            units.append(functional.normalize(prepared, dim=-1) * mask)
            mapped = mapped + encode(prepared.to(mapped.dtype)) * mask
        query, key, bias = mapped.float().split([self.width, self.width, 1], dim=-1)
        items = torch.cat([functional.normalize(key, dim=-1), *units, bias], dim=-1)
        return items, functional.normalize(query, dim=-1)

    def pool(self, items: torch.Tensor, queries: torch.Tensor, partial: torch.Tensor) -> torch.Tensor:
        """Make the vectors of partial bundles `[batch, D]`, whose product with an item vector is `s(c)`.

        Args:
            items: `[n, D]`, from `forward`.
            queries: `[n, hidden_size]`, from `forward`.
            partial: `[batch, max_partial]` indices below n, -1 for padding.
        """
        weights = (partial >= 0).float()  # [batch, max_partial]
        summed = (queries[partial.clamp(min=0)] * weights.unsqueeze(-1)).sum(dim=1)  # [batch, hidden_size]
        means = (items[partial.clamp(min=0), self.width : -1] * weights.unsqueeze(-1)).sum(dim=1)
        means = means / weights.sum(dim=1, keepdim=True).clamp(min=1)  # [batch, sum of widths]
        parts = means.split(self.widths, dim=-1)
        scaled = [weight * mean for weight, mean in zip(self.cosine_weight.float(), parts, strict=True)]
        towers = self.logit_scale.float() * functional.normalize(summed, dim=-1)
        return torch.cat([towers, *scaled, torch.ones_like(summed[:, :1])], dim=-1)


class BundleRetrieverStacker(nn.Module):
    """Weigh the score of the towers by co-occurrence: which groups an item shares with the partial bundle.

        score(c) = exp(a + a' z) s(c) + h(popularity of c) + [c shares a group with P] g(co-occurrence, s(c))

    with the standardized `z = log |P|` and two small networks `h` and `g`. It is trained after the towers, on bundles
    that they have not seen (stacking; Wolpert, 1992), since scores of bundles that they have seen are overconfident.
    Items that share no group need no network, so that a whole catalog costs one matrix product: `h` is computed once
    per item.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: BundleRetrieverConfig):
        super().__init__()
        self.popularity_columns: list[int] = []
        num_columns = 1  # log |P|, the last
        for name in config.memberships:
            if name not in CONTENT_BASED:
                self.popularity_columns.append(num_columns - 1)
            num_columns += 2 if name in CONTENT_BASED else 3
        self.register_buffer("mean", torch.zeros(num_columns))
        self.register_buffer("std", torch.ones(num_columns))
        width = config.hidden_size // 2 or 1
        self.slope = BundleLinear(1, 1)
        self.popularity = _mlp(len(self.popularity_columns), width) if self.popularity_columns else None
        self.co_occurrence = _mlp(num_columns + 1, width)

    def standardize(self, table: torch.Tensor, columns: slice | list[int] = slice(None)) -> torch.Tensor:
        """Standardize a table of co-occurrence `[..., num_columns]`, or some columns of one."""
        return (table - self.mean[columns].float()) / self.std[columns].float()

    def item_term(self, degrees: torch.Tensor) -> torch.Tensor:
        """Return `h` `[...]` of the standardized popularity columns `[..., num_popularity_columns]`."""
        if self.popularity is None:
            return degrees.new_zeros(degrees.shape[:-1])
        return self.popularity(degrees.to(self.slope.weight.dtype)).float().squeeze(-1)

    def slope_of(self, log_size: torch.Tensor) -> torch.Tensor:
        """Return the slope `exp(a + a' z)` `[...]` of the standardized `log |P|` `[...]`."""
        return self.slope(log_size.unsqueeze(-1).to(self.slope.weight.dtype)).float().squeeze(-1).exp()

    def shared_term(self, table: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `g` `[...]` of the standardized table `[..., num_columns]` and the scores of the towers `[...]`."""
        inputs = torch.cat([table, scores.unsqueeze(-1)], dim=-1)
        return self.co_occurrence(inputs.to(self.slope.weight.dtype)).float().squeeze(-1)

    @torch.no_grad()
    def fit_statistics(self, table: torch.Tensor) -> None:
        """Set mean and deviation to those of a table of co-occurrence `[n, num_columns]`."""
        mean, std = mean_and_deviation(table)
        self.mean.copy_(mean)
        self.std.copy_(std)


def _mlp(num_inputs: int, width: int) -> nn.Sequential:
    first, second = BundleLinear(num_inputs, width), BundleLinear(width, width)
    return nn.Sequential(first, nn.GELU(), second, nn.GELU(), BundleLinear(width, 1))

"""The retriever (ours): scores any item of the catalog against a partial bundle, from features and co-occurrence.

Knows nothing about language models, token ids, titles or files.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from .base_bundle_mllm import BundlePreTrainedModel
from .catalog_bundle_mllm import BundleMLLMFeatureStatistics, BundleMLLMItemCatalog, mask_absent
from .configuration_bundle_mllm import CONTENT_BASED, BundleRetrieverConfig
from .groups_bundle_mllm import BundleRetrieverGroups, ItemPairs, checked_pairs

if TYPE_CHECKING:  # never executed: transformers finds the files that travel with a model by searching for such lines
    from .pipeline_bundle_mllm import BundleCompletionPipeline  # noqa: F401

ROWS_AT_ONCE = 8_192
"""Catalog rows that are encoded at once."""


@dataclass
class BundleRetrieverOutput(ModelOutput):
    """Scores of items, higher is better; up to a constant of the question they are log-probabilities.

    Attributes:
        scores: `[batch, num_options]` float32, `-inf` where there is no option.
        rows: `[batch, num_options]` catalog rows, of `retrieve` only.
        log_normalizer: `[batch]`, of `retrieve` only: the logarithm of the sum of `exp(score)` over all allowed items.
        terms: Of `forward(..., return_terms=True)` only: `[batch, num_options]` of each part; they sum to `scores`.
    """

    scores: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    log_normalizer: torch.Tensor | None = None
    terms: dict[str, torch.Tensor] | None = None


class BundleRetrieverLinear(nn.Linear):
    """A linear map of the retriever; keeps torch's own initialization."""


class BundleRetrieverFeatureMap(nn.Module):
    """A linear map of standardized features plus a small MLP: the linear part preserves their cosines."""

    def __init__(self, width: int, out_features: int, dropout: float, hidden_size: int):
        super().__init__()
        self.linear = BundleRetrieverLinear(width, out_features)
        self.linear_1 = BundleRetrieverLinear(width, 2 * hidden_size)
        self.linear_2 = BundleRetrieverLinear(2 * hidden_size, out_features)
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
        """Encode n items.

        Args:
            features: `[n, width]` of each modality; rows of absent modalities are ignored.
            present: `[n, num_modalities]`

        Returns:
            Item vectors `[n, D]` float32, the concatenation of the unit key, the unit features of each modality and
            the bias; and the unit queries `[n, hidden_size]`.
        """
        mapped, units = None, []
        for column, (name, encode) in enumerate(self.maps.items()):
            mask = present[:, column, None]
            prepared = self.statistics(name, mask_absent(features[name], present[:, column]))
            units.append(functional.normalize(prepared, dim=-1) * mask)
            part = encode(prepared.to(self.logit_scale.dtype)) * mask
            mapped = part if mapped is None else mapped + part
        if mapped is None:
            mapped = self.logit_scale.new_zeros(len(present), 2 * self.width + 1)
        query, key, bias = mapped.float().split([self.width, self.width, 1], dim=-1)
        items = torch.cat([functional.normalize(key, dim=-1), *units, bias], dim=-1)
        return items, functional.normalize(query, dim=-1)

    def pool(self, items: torch.Tensor, queries: torch.Tensor, partial: torch.Tensor) -> torch.Tensor:
        """Make the vectors of partial bundles from those of their items.

        Args:
            items: `[n, D]`, from `forward`.
            queries: `[n, hidden_size]`, from `forward`.
            partial: `[batch, max_partial]` indices below n, -1 for padding.

        Returns:
            `[batch, D]`; its product with an item vector is `s(c)`.
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
        num_columns = 0
        for name in config.memberships:
            if name not in CONTENT_BASED:
                self.popularity_columns.append(num_columns)
            num_columns += 2 if name in CONTENT_BASED else 3
        num_columns += 1  # log |P|
        self.register_buffer("mean", torch.zeros(num_columns))
        self.register_buffer("std", torch.ones(num_columns))
        width = config.hidden_size // 2 or 1
        self.slope = BundleRetrieverLinear(1, 1)
        self.popularity = _mlp(len(self.popularity_columns), width) if self.popularity_columns else None
        self.co_occurrence = _mlp(num_columns + 1, width)

    def standardize(self, table: torch.Tensor) -> torch.Tensor:
        """Standardize a table of co-occurrence `[..., num_columns]`."""
        return (table - self.mean.float()) / self.std.float()

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
        std = table.std(dim=0, correction=0)
        self.mean.copy_(table.mean(dim=0))
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))


class _Index(NamedTuple):
    """What `retrieve` keeps of the catalog between calls."""

    items: torch.Tensor  # [num_items, D + 1], the last column is h
    queries: torch.Tensor  # [num_items, hidden_size]
    degrees: torch.Tensor  # [num_items, num_popularity_columns], standardized


class BundleRetriever(BundlePreTrainedModel):
    """Two towers over item features, and co-occurrence statistics that a small network weighs (ours).

    The score of an item does not depend on which other items are scored. `forward` scores given options, `retrieve`
    the whole catalog; both give the same scores. A partial bundle or an option may hold items that the catalog does
    not (`extra_items`): they are scored by their features at once, and share no group.
    """

    config: BundleRetrieverConfig
    config_class = BundleRetrieverConfig
    base_model_prefix = "retriever"
    main_input_name = "partial_rows"

    def __init__(self, config: BundleRetrieverConfig):
        super().__init__(config)
        self.catalog = BundleMLLMItemCatalog(config.modalities, config.num_items)
        self.groups = nn.ModuleDict(
            {name: BundleRetrieverGroups(config.num_items, pairs) for name, pairs in config.memberships.items()}
        )
        self.towers = BundleRetrieverTowers(config)
        self.stacker = BundleRetrieverStacker(config) if config.memberships else None
        self._index: _Index | None = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, BundleRetrieverLinear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = max(1, module.in_features) ** -0.5
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, BundleRetrieverTowers):
            init.constant_(module.logit_scale, 5.0)
            init.constant_(module.cosine_weight, 1.0)
        elif isinstance(module, BundleRetrieverStacker):
            init.zeros_(module.mean)
            init.ones_(module.std)
            init.zeros_(module.slope.weight)  # the slope starts at 1
            init.zeros_(module.slope.bias)
        elif isinstance(module, BundleRetrieverGroups):
            for buffer in module.buffers():
                init.zeros_(buffer)
        else:
            super()._init_weights(module)

    @property
    def memberships(self) -> dict[str, BundleRetrieverGroups]:
        """The groups of each kind of membership."""
        return cast("dict[str, BundleRetrieverGroups]", dict(self.groups.items()))

    def set_catalog(
        self,
        features: dict[str, torch.Tensor],
        present: dict[str, torch.Tensor] | None = None,
        memberships: dict[str, ItemPairs] | None = None,
        fit_statistics: bool = False,
    ) -> None:
        """Replace the rows of the item catalog and their groups. Nothing is resized or retrained.

        Args:
            features: `[num_items, width]` of each modality; see `BundleMLLMItemCatalog.replace`.
            present: `[num_items]` of each modality.
            memberships: Of each kind of group in `config.memberships` the pairs; items of a kind that is left out are
                in no group.
            fit_statistics: Also set the mean and standard deviation of the features. Leave it off when a trained model
                gets new items.

        Raises:
            ValueError: If a modality or membership is unknown, a shape is wrong, or a present value is not finite.
        """
        if unknown := sorted(set(memberships or {}) - set(self.groups)):
            raise ValueError(
                f"set_catalog got the memberships {unknown}, which this model does not read: it has "
                f"{sorted(self.groups)}; drop them, or create the model with them."
            )
        for pairs in (memberships or {}).values() if features else ():  # refuse wrong ones before anything is changed
            checked_pairs(len(next(iter(features.values()))), pairs)
        self.catalog.replace(features, present, self.towers.logit_scale.dtype)
        for name, groups in self.memberships.items():
            groups.replace(self.catalog.num_items, (memberships or {}).get(name))
        self.config.num_items, self.config.items_hash = self.catalog.num_items, None
        self.config.memberships = {name: groups.num_pairs for name, groups in self.memberships.items()}
        if fit_statistics:
            self.towers.statistics.fit(self.catalog)
        self._index = None

    def catalog_rows(self) -> dict[str, Any]:
        """Return the rows of the item catalog and their groups as keyword arguments of `set_catalog`."""
        features, present = self.catalog.rows()
        memberships = {name: groups.pairs() for name, groups in self.memberships.items()}
        return {"features": features, "present": present, "memberships": memberships}

    def forward(
        self,
        partial_rows: torch.Tensor,
        option_rows: torch.Tensor,
        extra_items: dict[str, Any] | None = None,
        return_terms: bool = False,
    ) -> BundleRetrieverOutput:
        """Score the options of a batch of questions.

        Args:
            partial_rows: `[batch, max_partial]` catalog rows of the partial bundles, -1 for padding.
            option_rows: `[batch, max_options]` catalog rows of the options, -1 for padding.
            extra_items: Items of this call only, from row `catalog.num_rows` on; see `BundleMLLMItemCatalog.gather`.
            return_terms: Whether to return what each part adds to the scores.
        """
        items, query, options = self._encode(partial_rows, option_rows, extra_items)
        products = query.unsqueeze(1) * items[options]  # [batch, max_options, D]
        scores = products.sum(dim=-1)
        terms = self._tower_terms(products) if return_terms else None
        if self.stacker is not None:
            table, shares = self.co_occurrence(partial_rows, option_rows)
            table = self.stacker.standardize(table)
            stacked = self.stacker.slope_of(table[..., -1]) * scores
            stacked = stacked + self.stacker.item_term(table[..., self.stacker.popularity_columns])
            stacked = stacked + self.stacker.shared_term(table, scores) * shares
            if terms is not None:
                terms["co_occurrence"] = stacked - scores
            scores = stacked
        return BundleRetrieverOutput(scores=scores.masked_fill(option_rows < 0, -torch.inf), terms=terms)

    def tower_scores(
        self, partial_rows: torch.Tensor, option_rows: torch.Tensor, extra_items: dict[str, Any] | None = None
    ) -> torch.Tensor:
        """Score options by the towers alone, `[batch, max_options]`; see `forward`."""
        items, query, options = self._encode(partial_rows, option_rows, extra_items)
        scores = torch.einsum("bd,bkd->bk", query, items[options])
        return scores.masked_fill(option_rows < 0, -torch.inf)

    def _encode(
        self, partial_rows: torch.Tensor, option_rows: torch.Tensor, extra_items: dict[str, Any] | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return item vectors `[n, D]` of all rows, each once, query vectors `[batch, D]` and the options' indices."""
        shown = torch.cat([partial_rows, option_rows], dim=1)
        rows, index = shown.clamp(min=0).unique(return_inverse=True)
        items, queries = self.towers(*self.catalog.gather(rows, extra_items))
        partial, options = index.to(items.device).split([partial_rows.shape[1], option_rows.shape[1]], dim=1)
        is_padding = partial_rows.to(items.device) < 0
        return items, self.towers.pool(items, queries, partial.masked_fill(is_padding, -1)), options

    def _tower_terms(self, products: torch.Tensor) -> dict[str, torch.Tensor]:
        widths = [self.towers.width, *self.towers.widths, 1]
        names = ["towers", *(f"cosine_{name}" for name in self.towers.maps), "bias"]
        return {name: part.sum(dim=-1) for name, part in zip(names, products.split(widths, dim=-1), strict=True)}

    def co_occurrence(
        self, partial_rows: torch.Tensor, option_rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Count the groups that each option shares with its partial bundle P, exactly.

        Of each kind of group, for the option c in the groups G_c:

            log(1 + |G_c|),
            mean_{p in P} sum_{g in G_p and G_c} |g|^(-1/2) / sqrt(|G_p| |G_c|),
            max_{g in G_c} |P in g| / |P|,

        that is, its popularity, its similarity to the partial bundle's items (as in item-based nearest neighbors) and
        the similarity of the group that is most like the partial bundle (as in user-based ones); last, log |P|.
        Memberships in `CONTENT_BASED` lack the first.

        Args:
            partial_rows: `[batch, max_partial]`, see `forward`.
            option_rows: `[batch, max_options]`

        Returns:
            The table `[batch, max_options, num_columns]` float32, and whether an option shares any group
            `[batch, max_options]`.
        """
        device = self.catalog.present.device
        partial_rows, option_rows = partial_rows.to(device), option_rows.to(device)
        question, _ = (partial_rows >= 0).nonzero(as_tuple=True)
        partial, options = partial_rows[partial_rows >= 0], option_rows[option_rows >= 0]
        question_of_option, _ = (option_rows >= 0).nonzero(as_tuple=True)
        size = question.bincount(minlength=len(partial_rows)).clamp(min=1)[question_of_option].float()
        columns, shares = [], torch.zeros(len(options), dtype=torch.bool, device=device)
        for name, groups in self.memberships.items():
            degree, owner, group, group_size = groups.gather(options, self.catalog.num_rows)
            keys, weight, count = self._partial_groups(groups, partial, question)
            wanted = (question_of_option[owner] << 32) | group
            found = torch.searchsorted(keys, wanted).clamp(max=max(len(keys) - 1, 0))
            hit = keys[found] == wanted if len(keys) else torch.zeros_like(wanted, dtype=torch.bool)
            owner, found, group_size = owner[hit], found[hit], group_size[hit]
            zeros = size.new_zeros(len(options))
            overlap = zeros.index_add(0, owner, weight[found] * group_size.float().rsqrt())
            overlap = overlap * degree.clamp(min=1).float().rsqrt()
            largest = zeros.scatter_reduce(0, owner, count[found], "amax")
            columns += [] if name in CONTENT_BASED else [degree.float().log1p()]
            columns += [overlap / size, largest / size]
            shares[owner] = True
        flat = torch.stack([*columns, size.log()], dim=-1)
        table = flat.new_zeros(*option_rows.shape, flat.shape[-1])
        table[option_rows >= 0] = flat
        shared = torch.zeros(option_rows.shape, dtype=torch.bool, device=device)
        shared[option_rows >= 0] = shares
        return table, shared

    def _partial_groups(
        self, groups: BundleRetrieverGroups, partial: torch.Tensor, question: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the groups of partial bundles.

        Args:
            groups: The memberships.
            partial: `[num_partial]` catalog rows.
            question: `[num_partial]` number of the question of each.

        Returns:
            Sorted keys `[num_keys]` (question << 32 | group), the sum of `|G_p|^(-1/2)` over the items of each, and
            their number.
        """
        degree, owner, group, _ = groups.gather(partial, self.catalog.num_rows)
        keys, key = ((question[owner] << 32) | group).unique(return_inverse=True)
        norm = degree.clamp(min=1).float().rsqrt()
        weight = norm.new_zeros(len(keys)).index_add(0, key, norm[owner])
        return keys, weight, key.bincount(minlength=len(keys)).float()

    @property
    @torch.no_grad()
    def index(self) -> _Index:
        """Item vectors and popularity of the whole catalog; made on first use, and again after a change."""
        if self._index is not None:
            return self._index
        was_training = self.training
        self.eval()
        rows = torch.arange(self.catalog.num_items, device=self.catalog.present.device)
        chunks = [self.towers(*self.catalog.gather(chunk)) for chunk in rows.split(ROWS_AT_ONCE)]
        items, queries = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        degrees = items.new_zeros(len(rows), 0)
        term = items.new_zeros(len(rows), 1)
        if self.stacker is not None:
            columns = self.stacker.popularity_columns
            counts = [
                g.degree(rows).float().log1p() for name, g in self.memberships.items() if name not in CONTENT_BASED
            ]
            if counts:
                degrees = torch.stack(counts, dim=-1)
                degrees = (degrees - self.stacker.mean[columns].float()) / self.stacker.std[columns].float()
                term = torch.cat([self.stacker.item_term(chunk) for chunk in degrees.split(ROWS_AT_ONCE)])[:, None]
        index = _Index(torch.cat([items, term], dim=-1), queries, degrees)
        self.train(was_training)
        self._index = None if was_training else index  # weights may change while a model trains
        return index

    @torch.no_grad()
    def retrieve(
        self,
        partial_rows: torch.Tensor,
        top_k: int,
        allowed: torch.Tensor | None = None,
        extra_items: dict[str, Any] | None = None,
    ) -> BundleRetrieverOutput:
        """Find the best items of the whole catalog, exactly: one matrix product, and counts where groups are shared.

        Args:
            partial_rows: `[batch, max_partial]` catalog rows of the partial bundles, -1 for padding. Their own items
                are never returned.
            top_k: How many items to return; all that are allowed if there are fewer (rows -1, scores `-inf` then).
            allowed: `[num_items]` or `[batch, num_items]` bool; all items if not given.
            extra_items: Items of this call only that the partial bundles hold; see `forward`.

        Returns:
            `rows`, `scores` (those of `forward`, to 1e-5), best first, and `log_normalizer`.
        """
        index, device = self.index, self.catalog.present.device
        partial_rows = partial_rows.to(device)
        is_partial, num_items = partial_rows >= 0, self.catalog.num_items
        if extra_items is None:
            query = self.towers.pool(index.items[:, :-1], index.queries, partial_rows)
        else:
            rows, place = partial_rows.clamp(min=0).unique(return_inverse=True)
            items, queries = self.towers(*self.catalog.gather(rows, extra_items))
            query = self.towers.pool(items, queries, place.masked_fill(~is_partial, -1))
        if self.stacker is None:
            scores = query @ index.items[:, :-1].T  # [batch, num_items]
        else:
            log_size = is_partial.sum(dim=1).clamp(min=1).float().log()
            log_size = (log_size - self.stacker.mean[-1].float()) / self.stacker.std[-1].float()  # [batch]
            slope = self.stacker.slope_of(log_size).unsqueeze(-1)
            scores = torch.cat([slope * query, torch.ones_like(slope)], dim=-1) @ index.items.T
            self._add_shared(scores, slope, partial_rows, log_size, index)
        in_catalog = is_partial & (partial_rows < num_items)
        question, _ = in_catalog.nonzero(as_tuple=True)
        scores[question, partial_rows[in_catalog]] = -torch.inf
        if allowed is not None:
            scores.masked_fill_(~allowed.to(device), -torch.inf)
        best = scores.topk(min(top_k, num_items), dim=-1)
        rows = best.indices.masked_fill(best.values.isinf(), -1)
        return BundleRetrieverOutput(scores=best.values, rows=rows, log_normalizer=scores.logsumexp(dim=-1))

    def _add_shared(
        self,
        scores: torch.Tensor,
        slope: torch.Tensor,
        partial_rows: torch.Tensor,
        log_size: torch.Tensor,
        index: _Index,
    ) -> None:
        """Add `g` to the scores `[batch, num_items]` of the items that share a group with the partial bundle."""
        num_items = self.catalog.num_items
        question, _ = (partial_rows >= 0).nonzero(as_tuple=True)
        partial = partial_rows[partial_rows >= 0]
        size = question.bincount(minlength=len(partial_rows)).clamp(min=1).float()  # [batch]
        shared: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        for name, groups in self.memberships.items():
            keys, weight, count = self._partial_groups(groups, partial, question)
            if not len(keys):
                continue
            owner, rows, group_size, degree = groups.members(keys & 0xFFFFFFFF)
            of_question = keys[owner] >> 32
            cells, cell = (of_question * num_items + rows).unique(return_inverse=True)
            zeros = weight.new_zeros(len(cells))
            overlap = zeros.index_add(0, cell, weight[owner] * (group_size.float() * degree.float()).rsqrt())
            largest = zeros.scatter_reduce(0, cell, count[owner], "amax")
            divisor = size[torch.div(cells, num_items, rounding_mode="floor")]
            shared[name] = cells, overlap / divisor, largest / divisor
        if not shared or self.stacker is None:
            return
        cells = torch.cat([cells for cells, _, _ in shared.values()]).unique()
        of_question, rows = torch.div(cells, num_items, rounding_mode="floor"), cells % num_items
        columns, popularity, standardize = [], iter(index.degrees[rows].unbind(dim=-1)), self.stacker
        for name in self.groups:
            columns += [] if name in CONTENT_BASED else [next(popularity)]
            for part in range(1, 3):
                column = torch.zeros(len(cells), device=cells.device)
                if name in shared:
                    column[torch.searchsorted(cells, shared[name][0])] = shared[name][part]
                place = len(columns)
                columns.append((column - standardize.mean[place].float()) / standardize.std[place].float())
        table = torch.stack([*columns, log_size[of_question]], dim=-1)
        found = scores.view(-1)[cells]
        towers = (found - index.items[rows, -1]) / slope[of_question, 0]
        scores.view(-1)[cells] = found + self.stacker.shared_term(table, towers)

    def train(self, mode: bool = True) -> "BundleRetriever":
        """Set the training mode; weights that may change make the index stale."""
        if mode:
            self._index = None
        return super().train(mode)

    def load_state_dict(self, *args, **kwargs):
        """Load weights; see the base class."""
        self._index = None
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, *args, **kwargs):
        self._index = None
        return super()._apply(*args, **kwargs)


def _mlp(num_inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        BundleRetrieverLinear(num_inputs, width),
        nn.GELU(),
        BundleRetrieverLinear(width, width),
        nn.GELU(),
        BundleRetrieverLinear(width, 1),
    )


__all__ = ["BundleRetriever", "BundleRetrieverConfig", "BundleRetrieverOutput"]

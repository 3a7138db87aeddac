"""The retriever (ours): scores any item of the catalog against a partial bundle, from features and co-occurrence.

Knows nothing about language models, token ids, titles or files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import ModelOutput, can_return_tuple

from .base_bundle_mllm import BundlePreTrainedModel
from .catalog_bundle_mllm import BundleMLLMItemCatalog
from .configuration_bundle_mllm import CONTENT_BASED, BundleRetrieverConfig
from .groups_bundle_mllm import BundleRetrieverGroups, ItemPairs, checked_pairs
from .towers_bundle_mllm import BundleRetrieverStacker, BundleRetrieverTowers

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
        log_normalizer: `[batch]` log of the sum of `exp(score)` over all allowed items, of `retrieve` only.
        terms: `[batch, num_options]` of each part, which sum to `scores`; of `forward(..., return_terms=True)` only.
    """

    scores: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    log_normalizer: torch.Tensor | None = None
    terms: dict[str, torch.Tensor] | None = None


class _Index(NamedTuple):
    """What `retrieve` keeps of the catalog between calls."""

    items: torch.Tensor  # [num_items, D + 1], the last column is h
    queries: torch.Tensor  # [num_items, hidden_size]
    degrees: torch.Tensor  # [num_items, num_popularity_columns]


class BundleRetriever(BundlePreTrainedModel):
    """Two towers over item features, and co-occurrence statistics that a small network weighs (ours).

    The score of an item does not depend on which other items are scored. `forward` scores given options, `retrieve`
    the whole catalog; both give the same scores. A partial bundle or an option may hold items that the catalog does
    not (`extra_items`): they are scored at once by their features and the groups that are given with them.
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
        if isinstance(module, BundleRetrieverTowers):
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
            fit_statistics: Also set the mean and standard deviation of the features; not for new items of a trained
                model.

        Raises:
            ValueError: If a modality or membership is unknown, a shape is wrong, or a present value is not finite.
        """
        memberships = memberships or {}
        if unknown := sorted(set(memberships) - set(self.groups)):
            raise ValueError(
                f"set_catalog got the memberships {unknown}, which this model does not read: it has "
                f"{sorted(self.groups)}; drop them, or create the model with them."
            )
        for pairs in memberships.values() if features else ():  # refuse wrong ones before anything is changed
            checked_pairs(len(next(iter(features.values()))), pairs)
        self.catalog.replace(features, present, self.towers.logit_scale.dtype)
        for name, groups in self.memberships.items():
            groups.replace(self.catalog.num_items, memberships.get(name))
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

    @can_return_tuple
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
                Where it has `groups`, they are the memberships of these items, by name.
            return_terms: Whether to return what each part adds to the scores.
        """
        items, query, options = self._encode(partial_rows, option_rows, extra_items)
        products = query.unsqueeze(1) * items[options]  # [batch, max_options, D]
        scores = products.sum(dim=-1)
        terms = None
        if return_terms:
            names = ["towers", *(f"cosine_{name}" for name in self.towers.maps), "bias"]
            parts = products.split([self.towers.width, *self.towers.widths, 1], dim=-1)
            terms = {name: part.sum(dim=-1) for name, part in zip(names, parts, strict=True)}
        if self.stacker is not None:
            table, shares = self.co_occurrence(partial_rows, option_rows, extra_items)
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

    def co_occurrence(
        self, partial_rows: torch.Tensor, option_rows: torch.Tensor, extra_items: dict[str, Any] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Count the groups that each option shares with its partial bundle P, exactly.

        Of each kind of group, for the option c in the groups G_c:

            log(1 + |G_c|),
            mean_{p in P} sum_{g in G_p and G_c} |g|^(-1/2) / sqrt(|G_p| |G_c|),
            max_{g in G_c} |P in g| / |P|,

        that is, its popularity, its similarity to the partial bundle's items (as in item-based nearest neighbors) and
        the similarity of the group that is most like the partial bundle (as in user-based ones); last, log |P|.
        Memberships in `CONTENT_BASED` lack the first.

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
        extra_groups = (extra_items or {}).get("groups") or {}
        for name, groups in self.memberships.items():
            extra = extra_groups.get(name)
            degree, owner, group, group_size = groups.gather(options, self.catalog.num_rows, extra)
            keys, weight, count = self._partial_groups(groups, partial, question, extra)
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
        self,
        groups: BundleRetrieverGroups,
        partial: torch.Tensor,
        question: torch.Tensor,
        extra: ItemPairs | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the groups of partial bundles as sorted keys (question << 32 | group) `[num_keys]`.

        Besides, of each key, the sum of `|G_p|^(-1/2)` over its items and their number. `partial` `[num_partial]` are
        catalog rows, `question` `[num_partial]` is the number of the question of each, and `extra` as in `gather`.
        """
        degree, owner, group, _ = groups.gather(partial, self.catalog.num_rows, extra)
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
        counts = [g.degree(rows).float().log1p() for name, g in self.memberships.items() if name not in CONTENT_BASED]
        degrees = torch.stack(counts, dim=-1) if counts else items.new_zeros(len(rows), 0)
        term = items.new_zeros(len(rows))
        if self.stacker is not None:
            columns = self.stacker.standardize(degrees, self.stacker.popularity_columns)
            term = torch.cat([self.stacker.item_term(chunk) for chunk in columns.split(ROWS_AT_ONCE)])
        index = _Index(torch.cat([items, term[:, None]], dim=-1), queries, degrees)
        self.train(was_training)
        self._index = None if was_training else index  # weights may change while a model trains
        return index

    @torch.no_grad()
    def catalog_scores(
        self,
        partial_rows: torch.Tensor,
        extra_items: dict[str, Any] | None = None,
        search: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Score the whole catalog: one matrix product, and counts where groups are shared.

        Args:
            partial_rows: `[batch, max_partial]` catalog rows of the partial bundles, -1 for padding.
            extra_items: Items of this call only that the partial bundles hold; see `forward`.
            search: Returns the catalog rows `[batch, k]`, -1 for none, whose vectors in `index` have large products
                with given ones `[batch, D + 1]`. Then only these, and items that share a group, are scored.

        Returns:
            `[batch, num_items]` float32, the scores of `forward` to 1e-5; `-inf` for the items of the partial bundle,
            and for those that are not scored.
        """
        index, device = self.index, self.catalog.present.device
        partial_rows = partial_rows.to(device)
        is_partial, num_items = partial_rows >= 0, self.catalog.num_items
        items, queries, place = index.items[:, :-1], index.queries, partial_rows
        if extra_items is not None:
            rows, place = partial_rows.clamp(min=0).unique(return_inverse=True)
            items, queries = self.towers(*self.catalog.gather(rows, extra_items))
        query = self.towers.pool(items, queries, place.masked_fill(~is_partial, -1))
        size = is_partial.sum(dim=1, keepdim=True).clamp(min=1).float()
        slope = torch.ones_like(size)
        if self.stacker is not None:
            slope = self.stacker.slope_of(self.stacker.standardize(size.log(), [-1])[:, 0]).unsqueeze(-1)
        query = torch.cat([slope * query, torch.ones_like(slope)], dim=-1)  # [batch, D + 1]
        if search is None:
            scores = query @ index.items.T  # [batch, num_items]
        else:
            scores = query.new_full((len(query), num_items), -torch.inf)
            found = search(query).to(device)
            of_question, _ = (found >= 0).nonzero(as_tuple=True)
            rows = found[found >= 0]
            scores[of_question, rows] = (index.items[rows] * query[of_question]).sum(dim=-1)
        if self.stacker is not None:
            extra_groups = (extra_items or {}).get("groups") or {}
            self._add_shared(self.stacker, scores, query, slope[:, 0], size[:, 0], partial_rows, index, extra_groups)
        in_catalog = is_partial & (partial_rows < num_items)
        question, _ = in_catalog.nonzero(as_tuple=True)
        scores[question, partial_rows[in_catalog]] = -torch.inf
        return scores

    @torch.no_grad()
    def retrieve(
        self,
        partial_rows: torch.Tensor,
        top_k: int,
        allowed: torch.Tensor | None = None,
        extra_items: dict[str, Any] | None = None,
    ) -> BundleRetrieverOutput:
        """Find the best items of the whole catalog, exactly; see `catalog_scores`.

        Args:
            partial_rows: `[batch, max_partial]` catalog rows of the partial bundles, -1 for padding; none is returned.
            top_k: How many items to return; all that are allowed if there are fewer (rows -1, scores `-inf` then).
            allowed: `[num_items]` or `[batch, num_items]` bool; all items if not given.
            extra_items: Items of this call only that the partial bundles hold; see `forward`.

        Returns:
            `rows`, `scores` (those of `forward`, to 1e-5), best first, and `log_normalizer`.
        """
        scores = self.catalog_scores(partial_rows, extra_items)
        if allowed is not None:
            scores.masked_fill_(~allowed.to(scores.device), -torch.inf)
        best = scores.topk(min(top_k, scores.shape[1]), dim=-1)
        rows = best.indices.masked_fill(best.values.isinf(), -1)
        return BundleRetrieverOutput(scores=best.values, rows=rows, log_normalizer=scores.logsumexp(dim=-1))

    @torch.no_grad()
    def similarity(self, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Compare items of the catalog, in rows `[a]` and `[b]`: how alike they are, not how well they go together.

        Returns:
            `[a, b]` mean cosine of the standardized features over the modalities that both items have; 0 for none.
        """
        present, units = self.catalog.present.float(), self.index.items[:, self.towers.width : -2]
        rows, others = rows.to(units.device), others.to(units.device)
        shared = present[rows] @ present[others].T
        return units[rows] @ units[others].T / shared.clamp(min=1)

    def _add_shared(
        self,
        stacker: BundleRetrieverStacker,
        scores: torch.Tensor,
        query: torch.Tensor,
        slope: torch.Tensor,
        size: torch.Tensor,
        partial_rows: torch.Tensor,
        index: _Index,
        extra_groups: dict[str, ItemPairs],
    ) -> None:
        """Add `g` to the scores `[batch, num_items]` of the items that share a group with the partial bundle."""
        num_items = self.catalog.num_items
        question, _ = (partial_rows >= 0).nonzero(as_tuple=True)
        partial = partial_rows[partial_rows >= 0]
        shared: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        for name, groups in self.memberships.items():
            keys, weight, count = self._partial_groups(groups, partial, question, extra_groups.get(name))
            owner, nodes, group_size, degree = groups.members(keys & 0xFFFFFFFF)
            found, of_pair = ((keys[owner] >> 32) * num_items + nodes).unique(return_inverse=True)
            zeros, divisor = weight.new_zeros(len(found)), size[found // num_items]
            overlap = zeros.index_add(0, of_pair, weight[owner] * (group_size.float() * degree.float()).rsqrt())
            largest = zeros.scatter_reduce(0, of_pair, count[owner], "amax")
            of_item, rows = groups.items(found % num_items)  # many, where they share a node
            cells = found[of_item] // num_items * num_items + rows
            shared[name] = cells, (overlap / divisor)[of_item], (largest / divisor)[of_item]
        is_shared = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        for cells, _, _ in shared.values():
            is_shared[cells] = True
        cells = is_shared.nonzero()[:, 0]
        place_of_cell = torch.empty(scores.numel(), dtype=torch.long, device=scores.device)
        place_of_cell[cells] = torch.arange(len(cells), device=scores.device)
        of_question, rows = cells // num_items, cells % num_items
        columns, popularity = [], iter(index.degrees[rows].unbind(dim=-1))
        for name, (some_cells, *values) in shared.items():
            columns += [] if name in CONTENT_BASED else [next(popularity)]
            places = place_of_cell[some_cells]
            columns += [value.new_zeros(len(cells)).index_copy(0, places, value) for value in values]
        table = stacker.standardize(torch.stack([*columns, size[of_question].log()], dim=-1))
        found = scores.view(-1)[cells]
        if missing := (found == -torch.inf).nonzero()[:, 0].tolist():  # not found by a search
            found[missing] = (index.items[rows[missing]] * query[of_question[missing]]).sum(dim=-1)
        towers = (found - index.items[rows, -1]) / slope[of_question]
        scores.view(-1)[cells] = found + stacker.shared_term(table, towers)

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

"""A set transformer in the manner of CLHE (Ma et al., WSDM 2024): attention over modalities, then over items.

Knows nothing about validation bundles or answers of questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from bundle_mllm.baselines.learning import ABSENT, NetworkBaseline, PartialBundleNetwork, PartialBundles, hold_out
from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.memberships import BUNDLE_ITEM, TEXTUAL, USER_ITEM, ItemGroups
from bundle_mllm.encoders.relational import TruncatedSVD
from bundle_mllm.encoders.textual import TfidfEncoder

MIN_BUNDLES = 2
"""Items of fewer bundles have no embedding: it would depend on the question's own bundle alone."""
TEMPERATURE = 0.2
CONTRASTED_ITEMS = 256


class SetTransformer(NetworkBaseline):
    """Score candidates by the inner product of their vectors with that of the items shown, by a hierarchical encoder.

    As in CLHE: an item is a set of vectors (features, user feedback, a trained embedding), mixed by a self-attention
    whose values are not projected and averaged; a bundle is a set of items, mixed by a transformer layer and averaged;
    items have other weights as candidates than as shown ones; the loss is the multinomial negative log-likelihood, and
    two contrastive losses (InfoNCE) between views with other modalities and items dropped.

    Ours: a random part of the bundle is shown and the rest predicted, as in questions; features stay apart instead of
    being added; an absent modality is masked, and only items of two training bundles or more have an embedding; user
    feedback is a truncated SVD of the log; the softmax is sampled (`learning`); and the network starts as the mean
    similarity of features, a better start than noise where bundles are few. Texts are the folder's `textual` features,
    or else TF-IDF.

    Args:
        seed: The same seed gives the same scores.
    """

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Train the network."""
        training, held_out = hold_out(folder, bundles, self.seed)
        trained = np.flatnonzero(np.bincount(np.concatenate(training)) >= MIN_BUNDLES)
        make = partial(_Network, _item_features(folder), trained, len(folder.catalog))
        self.train(make, training, held_out, len(folder.catalog))


def _item_features(folder: DatasetFolder) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return features `[num_items, dim]`, centered and of length 1, and presence `[num_items]` of each modality."""
    store = folder.features()
    features, present = ({}, {}) if store is None else store.load()
    inputs = {name: (features[name], present[name]) for name in features if name != BUNDLE_ITEM}  # embeddings have it
    if TEXTUAL not in inputs and any(folder.catalog.titles):
        text = TfidfEncoder().encode(folder)
        inputs[TEXTUAL] = torch.as_tensor(text.features), torch.as_tensor(text.present)
    if USER_ITEM not in inputs and folder.interactions is not None:
        users = ItemGroups.of_users(folder.interactions, len(folder.catalog))
        inputs[USER_ITEM] = torch.from_numpy(TruncatedSVD(64).fit(users)), torch.from_numpy(users.groups_per_node > 0)
    result = []
    for values, mask in inputs.values():
        if mask.any():
            centered = F.normalize(values.float() - values[mask].float().mean(dim=0), dim=1)
            result.append((centered * mask[:, None], mask))
    return result


class _ItemEncoder(nn.Module):
    """Vectors of one item -> attention among them -> their mean."""

    def __init__(self, widths: Sequence[int], num_trained: int, dim: int):
        super().__init__()
        self.project, self.bend = nn.ModuleList(), nn.ModuleList()
        for width in widths:
            project, last = nn.Linear(width, dim, bias=False), nn.Linear(dim, dim)
            nn.init.orthogonal_(project.weight)
            nn.init.zeros_(last.weight)
            self.project.append(project)
            self.bend.append(nn.Sequential(nn.Linear(width, dim), nn.ReLU(), last))
        self.embedding = nn.Embedding(max(1, num_trained), dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.query, self.key = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.scale = nn.Parameter(torch.ones(len(widths) + 1))

    def forward(self, inputs: Sequence[torch.Tensor], trained: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Encode items: `[n, dim]`, zero for an item without any vector.

        `inputs` are the features of each modality `[n, width]`, `trained` the number of each item's embedding `[n]`,
        and `mask` which of them count, `[n, modalities + 1]`, the embedding last.
        """
        each = zip(self.project, self.bend, inputs, strict=True)
        vectors = [project(values) + bend(values) for project, bend, values in each]
        tokens = torch.stack([*vectors, self.embedding(trained)], dim=1)  # [n, m, dim]
        tokens = F.normalize(tokens, dim=2) * self.scale[:, None] * mask[..., None]
        attention = self.query(tokens) @ self.key(tokens).transpose(1, 2) * tokens.shape[2] ** -0.5  # [n, m, m]
        attention = attention.masked_fill(~mask[:, None, :], -1e4).softmax(dim=2)
        mixed = (attention @ tokens) * mask[..., None]
        return mixed.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


class _Network(PartialBundleNetwork):
    """Items shown -> a vector of the bundle; candidates -> vectors; their inner products."""

    def __init__(
        self, features: list[tuple[torch.Tensor, torch.Tensor]], trained: np.ndarray, num_items: int, dim: int = 64
    ):
        super().__init__()
        self.features = [values for values, _ in features]
        number = torch.zeros(num_items, dtype=torch.long)
        number[trained] = torch.arange(len(trained))
        has_embedding = torch.zeros(num_items, dtype=torch.bool)
        has_embedding[trained] = True
        self.number, self.present = number, torch.stack([*(mask for _, mask in features), has_embedding], dim=1)
        widths = [values.shape[1] for values in self.features]
        self.shown_encoder = _ItemEncoder(widths, len(trained), dim)
        self.candidate_encoder = _ItemEncoder(widths, len(trained), dim)
        self.candidate_encoder.load_state_dict(self.shown_encoder.state_dict())  # the start: similar items score high
        self.mix = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.1, batch_first=True, norm_first=True)
        for last in (self.mix.self_attn.out_proj, self.mix.linear2):
            nn.init.zeros_(last.weight)
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.out.weight)
        self.view = nn.Linear(dim, dim)
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.drop_modality = 0.3
        self.drop_item = 0.3
        self.contrast = 0.1

    def loss(self, batch: PartialBundles, progress: float) -> torch.Tensor:
        """Return the likelihood of the items that are not shown, and the two contrastive losses."""
        bundles = self._bundles(batch.shown)
        logs = batch.log_probabilities(self._compare(bundles, batch.columns))
        likelihood = -((logs * batch.rest).sum(dim=1) / batch.rest.sum(dim=1)).mean()
        rows = batch.columns[torch.randperm(len(batch.columns))[:CONTRASTED_ITEMS]]
        of_items = self._contrast(self._items(self.shown_encoder, rows), self._items(self.shown_encoder, rows))
        kept = torch.where(torch.rand(batch.shown.shape) < self.drop_item, ABSENT, batch.shown)
        of_bundles = self._contrast(bundles, self._bundles(kept))
        return likelihood + self.contrast * (of_items + of_bundles)

    def logits(self, shown: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return the logits of some items."""
        return self._compare(self._bundles(shown), columns)

    def _items(self, encoder: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        mask = self.present[rows]
        if self.training:  # the vectors of an item are dropped one by one, but never all of them
            kept = mask & (torch.rand(mask.shape) >= self.drop_modality)
            mask = torch.where(kept.any(dim=1, keepdim=True), kept, mask)
        return encoder([values[rows] for values in self.features], self.number[rows], mask)

    def _bundles(self, shown: torch.Tensor) -> torch.Tensor:
        mask = shown != ABSENT
        mask[:, 0] |= ~mask.any(dim=1)  # an empty set is one empty item
        items = self._items(self.shown_encoder, shown.clamp(min=0).flatten()).unflatten(0, shown.shape)
        items = items * (shown != ABSENT).unsqueeze(-1)
        mixed = self.mix(items, src_key_padding_mask=~mask) * mask.unsqueeze(-1)
        return self.out(mixed.sum(dim=1) / mask.sum(dim=1, keepdim=True))

    def _compare(self, bundles: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return bundles @ self._items(self.candidate_encoder, columns).T * self.temperature.exp()

    def _contrast(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return InfoNCE, the cross-entropy of each vector's other view among those of all vectors."""
        one, other = (F.normalize(self.view(view), dim=1) for view in (one, other))
        return F.cross_entropy(one @ other.T / TEMPERATURE, torch.arange(len(one)))

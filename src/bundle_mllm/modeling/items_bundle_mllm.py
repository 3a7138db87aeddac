"""From feature rows to item embeddings: catalog, fusion and projector of Bundle-MLLM.

Knows nothing about the backbone, token ids, titles or files.
"""

import torch
from torch import nn
from torch.nn import functional

from .configuration_bundle_mllm import BundleMLLMConfig


class BundleMLLMFusionLinear(nn.Linear):
    """A linear map of the fusion; a class of its own because the official code initializes these by Xavier-normal."""


class BundleMLLMProjectorLinear(nn.Linear):
    """A linear map of the projector; keeps torch's own initialization, as in the official code."""


class BundleMLLMVector(nn.Embedding):
    """One learned vector. An embedding and not a bare parameter, so that PEFT's `modules_to_save` can train it."""

    def __init__(self, width: int):
        super().__init__(1, width)

    def forward(self) -> torch.Tensor:
        """Return the vector, [width]."""
        return self.weight[0]


class BundleMLLMTable(nn.Module):
    """One persistent buffer per modality, for example the feature matrices of the catalog."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], fill: float = 0.0):
        super().__init__()
        self.fill = fill
        for name, shape in shapes.items():
            self.register_buffer(name, torch.full(shape, fill))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._buffers[name]


class BundleMLLMRelation(nn.Module):
    """The groups (bundles, users, words) that each item is in, by number: the exact form of what features sum up.

    Items may share a node of the relation, such as their category, and then are in the same groups.
    """

    def __init__(self, num_items: int, num_edges: int):
        super().__init__()
        self.register_buffer("node_of_item", torch.arange(num_items, dtype=torch.int32))
        self.register_buffer("offsets", torch.zeros(num_items + 1, dtype=torch.long))
        self.register_buffer("groups", torch.zeros(num_edges, dtype=torch.int32))
        self.register_buffer("sizes", torch.ones(num_edges, dtype=torch.int32))

    def replace(
        self,
        num_items: int,
        nodes: torch.LongTensor,
        groups: torch.LongTensor,
        node_of_item: torch.LongTensor | None = None,
    ) -> None:
        """Replace all edges.

        Args:
            num_items: Length of the catalog.
            nodes: [num_edges] node of each edge: the row of an item, unless `node_of_item` is given.
            groups: [num_edges] number of the group, from 0.
            node_of_item: [num_items] the node that stands for each item, -1 for none.
        """
        if node_of_item is None:
            node_of_item = torch.arange(num_items)
        if nodes.shape != groups.shape or (len(nodes) and not 0 <= int(nodes.min()) <= int(nodes.max()) < num_items):
            raise ValueError(
                f"a relation has {len(nodes)} rows and {len(groups)} groups for {num_items} items, so some edges have "
                "no item: give one catalog row per group, from 0 to the number of items less one."
            )
        if node_of_item.shape != (num_items,) or bool(((node_of_item < -1) | (node_of_item >= num_items)).any()):
            raise ValueError(
                f"node_of_item has shape {list(node_of_item.shape)} for {num_items} items, or names a node outside "
                "-1 … num_items - 1, so some items would have another's groups: give one node per item."
            )
        device = self.offsets.device
        self.node_of_item = node_of_item.to(device=device, dtype=torch.int32)
        edges = torch.stack([nodes, groups]).unique(dim=1).to(device)  # sorted by node; repeated pairs count once
        self.offsets = torch.zeros(num_items + 1, dtype=torch.long, device=device)
        self.offsets[1:] = edges[0].bincount(minlength=num_items).cumsum(0)
        self.groups = edges[1].int()
        self.sizes = edges[1].bincount()[edges[1]].int() if edges.shape[1] else edges[1].int()

    def edges(self) -> tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]:
        """Return node and group of all edges [num_edges], and the node of each item, as `replace` takes them."""
        nodes = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return nodes.repeat_interleave(self.offsets.diff()), self.groups.long(), self.node_of_item.long()

    def gather(self, rows: torch.LongTensor) -> tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]:
        """Read the edges of the given rows, and no other; a row beyond the catalog has none.

        Args:
            rows: [n]

        Returns:
            [num_edges] each: index below n (rising), group, and size of the group (in nodes that have an edge to it).
        """
        num_items = len(self.node_of_item)
        if num_items == 0:
            rows = rows[:0]
        node = self.node_of_item[rows.clamp(max=num_items - 1)].long()
        node = torch.where(rows < num_items, node, -1)
        first, end = self.offsets[node.clamp(min=0)], self.offsets[node + 1]
        owner, edge = expand(first, torch.where(node < 0, 0, end - first))
        return owner, self.groups[edge].long(), self.sizes[edge].long()


def expand(first: torch.LongTensor, counts: torch.LongTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Count up: of each range `first[i], …, first[i] + counts[i] - 1` the number i, and its members, end to end."""
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) + (first - before)[owner]


class BundleMLLMItemCatalog(nn.Module):
    """Features, presence mask and groups of every item: the rows behind the virtual item vocabulary."""

    def __init__(self, config: BundleMLLMConfig):
        super().__init__()
        self.modalities = dict(config.modalities)
        self.features = BundleMLLMTable({name: (config.num_items, width) for name, width in self.modalities.items()})
        self.register_buffer("present", torch.zeros(config.num_items, len(self.modalities), dtype=torch.bool))
        self.relations = nn.ModuleDict(
            {name: BundleMLLMRelation(config.num_items, edges) for name, edges in config.relations.items()}
        )

    @property
    def num_items(self) -> int:
        """Number of rows."""
        return self.present.shape[0]

    def gather(
        self, rows: torch.LongTensor, extra_items: dict | None = None
    ) -> tuple[dict[str, torch.Tensor], torch.BoolTensor]:
        """Read the given rows, and no other.

        Args:
            rows: [n] rows of the catalog; row `num_items + j` is row `j` of `extra_items`.
            extra_items: Items of this call only, see `BundleMLLMModel.forward`.

        Returns:
            The features of each modality [n, width], and the presence mask [n, num_modalities].
        """
        if extra_items is None:
            return {name: self.features[name][rows] for name in self.modalities}, self.present[rows]
        extra, extra_present = self._check_extra_items(extra_items)
        if self.num_items == 0:
            return {name: extra[name][rows] for name in self.modalities}, extra_present[rows]
        is_extra = (rows >= self.num_items).unsqueeze(-1)  # [n, 1]
        catalog_rows = rows.clamp(max=self.num_items - 1)
        extra_rows = (rows - self.num_items).clamp(min=0)
        features = {
            name: torch.where(is_extra, extra[name][extra_rows].to(table.dtype), table[catalog_rows])
            for name, table in ((name, self.features[name]) for name in self.modalities)
        }
        return features, torch.where(is_extra, extra_present[extra_rows], self.present[catalog_rows])

    def gather_edges(
        self, rows: torch.LongTensor, present: torch.BoolTensor
    ) -> dict[str, tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]]:
        """Read of each relation the edges of the given rows; see `BundleMLLMRelation.gather`.

        Args:
            rows: [n] rows of the catalog; rows beyond it are in no group.
            present: [n, num_modalities]; an item whose modality is absent is in none of its groups.
        """
        edges, columns = {}, list(self.modalities)
        for name, relation in self.relations.items():
            edges[name] = relation.gather(rows)
            if name in columns:
                kept = present[edges[name][0], columns.index(name)]
                edges[name] = tuple(values[kept] for values in edges[name])
        return edges

    def _check_extra_items(self, extra_items: dict) -> tuple[dict[str, torch.Tensor], torch.BoolTensor]:
        device, given, present = self.present.device, extra_items["features"], extra_items.get("present")
        num_rows = num_extra_items(extra_items)
        _check_features(given, self.modalities, num_rows, "extra_items")
        if present is None:
            present = torch.tensor([[name in given for name in self.modalities]] * num_rows)
        if present.shape != (num_rows, len(self.modalities)):
            raise ValueError(
                f"extra_items['present'] has shape {list(present.shape)}, so it cannot mask the features of "
                f"{num_rows} items: give one row per item and one column for each of {list(self.modalities)}, in this "
                "order."
            )
        features = {
            name: given[name].to(device) if name in given else torch.zeros(num_rows, width, device=device)
            for name, width in self.modalities.items()
        }
        return features, present.to(device=device, dtype=torch.bool)

    def replace(
        self,
        features: dict[str, torch.Tensor],
        present: dict[str, torch.Tensor] | None,
        dtype: torch.dtype,
        relations: dict[str, tuple[torch.LongTensor, ...]] | None = None,
    ):
        """Replace all rows; see `BundleMLLMModel.set_catalog`."""
        if not features:
            raise ValueError("set_catalog got no features, so the catalog would be empty: give a matrix per modality.")
        num_items = len(next(iter(features.values())))
        _check_features(features, self.modalities, num_items, "set_catalog")
        device, present, mask = self.present.device, present or {}, []
        if unknown := sorted(set(present) - set(features)):
            raise ValueError(f"set_catalog got a presence mask for {unknown}, but no features: give both or neither.")
        for name, width in self.modalities.items():
            matrix = features.get(name)
            column = torch.full((num_items,), matrix is not None)
            if matrix is None:
                matrix = torch.zeros(num_items, width, dtype=dtype)
            elif name in present:
                column = present[name].to(device="cpu", dtype=torch.bool)
                if column.shape != (num_items,):
                    raise ValueError(
                        f"the presence mask of {name!r} has shape {list(column.shape)}, so it cannot say which of the "
                        f"{num_items} items have this modality: give one value per item."
                    )
            if matrix.dtype.itemsize > dtype.itemsize or not matrix.is_floating_point():
                matrix = matrix.to(dtype)
            matrix = matrix.detach().to(device).masked_fill(~column.to(device).unsqueeze(-1), 0.0)
            if bad := (~matrix.isfinite().all(dim=-1)).nonzero().flatten().tolist():
                raise ValueError(
                    f"the {name!r} features of {len(bad)} present items are not finite (first rows {bad[:3]}), so "
                    "every question that shows them would score NaN: repair them or mark these items as not present."
                )
            setattr(self.features, name, matrix)
            mask.append(column)
        self.present = torch.stack(mask, dim=1).to(device)
        if unknown := sorted(set(relations or {}) - set(self.relations)):
            raise ValueError(
                f"set_catalog got the relations {unknown}, which this model does not read: it has "
                f"{sorted(self.relations)}; drop them, or create the model with them."
            )
        nothing = torch.zeros(0, dtype=torch.long)
        for name, relation in self.relations.items():
            relation.replace(num_items, *(relations or {}).get(name, (nothing, nothing)))


class BundleMLLMFeatureMLP(nn.Module):
    """Encode L2-normalized features by three layers, `c_encoder` of the official code: d -> d -> 256 -> 64."""

    def __init__(self, width: int, config: BundleMLLMConfig):
        super().__init__()
        self.linear_1 = BundleMLLMFusionLinear(width, width)
        self.linear_2 = BundleMLLMFusionLinear(width, config.mlp_hidden_size)
        self.linear_3 = BundleMLLMFusionLinear(config.mlp_hidden_size, config.fusion_hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map [n, width] to [n, fusion_hidden_size]."""
        hidden = functional.relu(self.linear_1(_l2_normalize(features)))
        return self.linear_3(functional.relu(self.linear_2(hidden)))


class BundleMLLMFusion(nn.Module):
    """Fuse the modalities of an item by self-attention into one vector (paper, eq. 4-6; official `selfAttention`).

    With `x_m` the L2-normalized code of modality `m`: `y = mean_m softmax_n(q(x_m) k(x_n) / sqrt(d)) v(x_n)`, where
    `v` is the identity unless `fusion_value_map`. An absent modality is no key, no query and no part of the mean; an
    item without any modality is one learned vector.
    """

    def __init__(self, config: BundleMLLMConfig):
        super().__init__()
        width = config.fusion_hidden_size
        self.encoders = nn.ModuleDict(
            {
                name: BundleMLLMFeatureMLP(dim, config)
                if name in config.mlp_modalities
                else BundleMLLMFusionLinear(dim, width)
                for name, dim in config.modalities.items()
            }
        )
        self.layer_norm = nn.LayerNorm(width, elementwise_affine=False) if config.fusion_layer_norm else nn.Identity()
        self.query = BundleMLLMFusionLinear(width, width, bias=False)
        self.key = BundleMLLMFusionLinear(width, width, bias=False)
        self.value = BundleMLLMFusionLinear(width, width, bias=False) if config.fusion_value_map else nn.Identity()
        self.no_features = BundleMLLMVector(width)
        self.scale = width**-0.5
        self.standardize = config.standardize_features
        if self.standardize:
            shapes = {name: (dim,) for name, dim in config.modalities.items()}
            self.feature_mean = BundleMLLMTable(shapes)
            self.feature_std = BundleMLLMTable(shapes, fill=1.0)

    def forward(self, features: dict[str, torch.Tensor], present: torch.BoolTensor) -> torch.Tensor:
        """Fuse n items.

        Args:
            features: [n, width] of each modality; rows of absent modalities are ignored.
            present: [n, num_modalities], columns in the order of the configuration.

        Returns:
            [n, fusion_hidden_size]
        """
        no_features = self.no_features()
        if not self.encoders:
            return no_features.expand(present.shape[0], -1)
        codes = [
            _l2_normalize(encoder(prepared))
            for encoder, prepared in zip(self.encoders.values(), self.prepare(features, present).values(), strict=True)
        ]
        hidden = self.layer_norm(torch.stack(codes, dim=1))  # [n, M, d]
        nothing = ~present.any(dim=-1, keepdim=True)  # [n, 1]
        keys_allowed = (present | nothing).unsqueeze(1)  # [n, 1, M]; without a key the softmax would be NaN
        scores = (self.query(hidden) * self.scale) @ self.key(hidden).transpose(-1, -2)  # [n, M, M]
        attention = scores.masked_fill(~keys_allowed, -torch.inf).softmax(dim=-1)
        mixed = attention @ self.value(hidden)  # [n, M, d]
        weights = present.to(mixed.dtype) / present.sum(dim=-1, keepdim=True).clamp(min=1)  # [n, M]
        fused = (mixed * weights.unsqueeze(-1)).sum(dim=1)  # [n, d]
        return torch.where(nothing, no_features.to(fused.dtype), fused)

    def prepare(self, features: dict[str, torch.Tensor], present: torch.BoolTensor) -> dict[str, torch.Tensor]:
        """Return the features [n, width] of each modality as the encoders read them: standardized, if they are to."""
        prepared = {}
        for column, name in enumerate(self.encoders):
            # an absent row may hold anything, NaN included
            rows = torch.where(present[:, column, None], features[name], 0.0)
            if self.standardize:
                rows = (rows.float() - self.feature_mean[name].float()) / self.feature_std[name].float()
            prepared[name] = rows.to(self.no_features.weight.dtype)
        return prepared

    def fit_statistics(self, features: BundleMLLMTable, present: torch.BoolTensor) -> None:
        """Set mean and standard deviation of each modality to those of the present rows (1 where nothing varies)."""
        for column, name in enumerate(self.encoders):
            rows = features[name][present[:, column]].float()
            if len(rows):
                std = rows.std(dim=0, correction=0)
                self.feature_mean[name].copy_(rows.mean(dim=0))
                self.feature_std[name].copy_(torch.where(std > 1e-6, std, 1.0))


class BundleMLLMProjector(nn.Module):
    """Map a fused item to the width of the backbone's embeddings: linear, GELU, linear (official `projector`).

    With `normalize_item_embeddings` (ours) an RMS norm follows, whose weight starts at the backbone's own scale: an
    item token is then as loud as a word from the first step, whatever the features' scale.
    """

    def __init__(self, config: BundleMLLMConfig, embedding_size: int):
        super().__init__()
        self.linear_1 = BundleMLLMProjectorLinear(config.fusion_hidden_size, config.projector_hidden_size)
        self.linear_2 = BundleMLLMProjectorLinear(config.projector_hidden_size, embedding_size)
        self.norm = nn.RMSNorm(embedding_size, eps=1e-6) if config.normalize_item_embeddings else nn.Identity()

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        """Map [n, fusion_hidden_size] to [n, embedding_size]."""
        return self.norm(self.linear_2(functional.gelu(self.linear_1(fused))))

    @torch.no_grad()
    def match_scale(self, embeddings: torch.Tensor) -> None:
        """Start the norm, if there is one, at the root mean square of the embeddings [n, embedding_size]."""
        if isinstance(self.norm, nn.RMSNorm):
            self.norm.weight.fill_(embeddings.float().square().mean().sqrt())


def num_extra_items(extra_items: dict) -> int:
    """Return the number of items in `extra_items`, from its mask or its first feature matrix."""
    present = extra_items.get("present")
    return len(present if present is not None else next(iter(extra_items["features"].values())))


def _check_features(features: dict, modalities: dict[str, int], num_rows: int, source: str) -> None:
    for name, matrix in features.items():
        if name not in modalities:
            raise ValueError(
                f"{source} has features of {name!r}, which this model cannot read: it has {sorted(modalities)}; drop "
                "them, or create the model with that modality."
            )
        if matrix.shape != (num_rows, modalities[name]):
            raise ValueError(
                f"the {name!r} features of {source} have shape {list(matrix.shape)}, expected {num_rows} items x "
                f"{modalities[name]} columns: give one row per item, from the encoder this model was trained with."
            )


def _l2_normalize(vectors: torch.Tensor) -> torch.Tensor:
    return functional.normalize(vectors.float(), dim=-1).to(
        vectors.dtype
    )  # in float32: half has no room for the epsilon


__all__ = [
    "BundleMLLMFusion",
    "BundleMLLMFusionLinear",
    "BundleMLLMItemCatalog",
    "BundleMLLMProjector",
    "BundleMLLMProjectorLinear",
    "BundleMLLMRelation",
    "BundleMLLMTable",
    "BundleMLLMVector",
    "expand",
    "num_extra_items",
]

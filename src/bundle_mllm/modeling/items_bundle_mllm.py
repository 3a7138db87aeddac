"""From the features of an item to its one token: fusion and projector of Bundle-MLLM (paper, section 3.2).

Knows nothing about the backbone, the catalog, token ids or titles.
"""

import torch
from torch import nn
from torch.nn import functional

from .base_bundle_mllm import BundleLinear
from .catalog_bundle_mllm import BundleMLLMFeatureStatistics, mask_absent
from .configuration_bundle_mllm import BundleMLLMConfig


class BundleMLLMFusionLinear(nn.Linear):
    """A linear map of the fusion; a class of its own because the official code initializes these by Xavier-normal."""


class BundleMLLMVector(nn.Embedding):
    """One learned vector. An embedding and not a bare parameter, so that PEFT's `modules_to_save` can train it."""

    def __init__(self, width: int):
        super().__init__(1, width)

    def forward(self) -> torch.Tensor:
        """Return the vector, [width]."""
        return self.weight[0]


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
        self.statistics = BundleMLLMFeatureStatistics(config.modalities) if config.standardize_features else None

    def forward(self, features: dict[str, torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        """Fuse n items to `[n, fusion_hidden_size]`.

        Args:
            features: `[n, width]` of each modality; rows of absent modalities are ignored.
            present: `[n, num_modalities]`, columns in the order of the configuration.
        """
        no_features = self.no_features()
        if not self.encoders:
            return no_features.expand(present.shape[0], -1)
        codes = [
            _l2_normalize(encoder(self._prepare(name, column, features[name], present)))
            for column, (name, encoder) in enumerate(self.encoders.items())
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

    def _prepare(self, name: str, column: int, features: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        features = mask_absent(features, present[:, column])
        if self.statistics is not None:
            features = self.statistics(name, features)
        return features.to(self.no_features.weight.dtype)


class BundleMLLMProjector(nn.Module):
    """Map a fused item to the width of the backbone's embeddings: linear, GELU, linear (official `projector`).

    With `normalize_item_embeddings` (ours) an RMS norm follows, whose weight starts at the scale of the backbone's
    embeddings, so that an item token has the norm of a word from the first step.
    """

    def __init__(self, config: BundleMLLMConfig, embedding_size: int):
        super().__init__()
        self.linear_1 = BundleLinear(config.fusion_hidden_size, config.projector_hidden_size)
        self.linear_2 = BundleLinear(config.projector_hidden_size, embedding_size)
        self.norm = nn.RMSNorm(embedding_size, eps=1e-6) if config.normalize_item_embeddings else nn.Identity()

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        """Map [n, fusion_hidden_size] to [n, embedding_size]."""
        return self.norm(self.linear_2(functional.gelu(self.linear_1(fused))))

    @torch.no_grad()
    def init_scale_from(self, embeddings: torch.Tensor) -> None:
        """Start the norm, if there is one, at the root mean square of the embeddings [n, embedding_size]."""
        if isinstance(self.norm, nn.RMSNorm):
            self.norm.weight.fill_(embeddings.float().square().mean().sqrt())


def _l2_normalize(vectors: torch.Tensor) -> torch.Tensor:
    normalized = functional.normalize(vectors.float(), dim=-1)  # half precision has no room for the epsilon
    return normalized.to(vectors.dtype)

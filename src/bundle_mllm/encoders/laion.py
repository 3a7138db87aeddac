"""Read LAION's CLAP checkpoints (`.pt` files of the package laion-clap) into transformers' `ClapModel`.

It must not know sounds, items or encoders.
"""

from __future__ import annotations

import re
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bundle_mllm.errors import BundleMLLMError

if TYPE_CHECKING:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

_RENAMED = (
    (r"^logit_scale_(a|t)$", r"logit_scale_\1"),
    (r"^(audio|text)_projection\.0\.", r"\1_projection.linear1."),
    (r"^(audio|text)_projection\.2\.", r"\1_projection.linear2."),
    (r"^text_branch\.", "text_model."),
    (r"^audio_branch\.bn0\.", "audio_model.audio_encoder.batch_norm."),
    (r"^audio_branch\.(?=patch_embed\.|norm\.|layers\.)", "audio_model.audio_encoder."),
    (r"(layers\.\d+\.blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(layers\.\d+\.blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"(layers\.\d+\.blocks\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"(layers\.\d+\.blocks\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
    (r"(layers\.\d+\.blocks\.\d+)\.attn\.proj\.", r"\1.attention.output.dense."),
    (r"(layers\.\d+\.blocks\.\d+)\.attn\.(?=relative_position_)", r"\1.attention.self."),
)
"""LAION's names, and what transformers calls them; the joint `attn.qkv` is cut in three apart from these."""

_LEFT_OUT = (
    r"^(audio|text)_transform\.",  # heads of the training loss
    r"^audio_branch\.(tscam_conv|head)\.",  # classification of AudioSet
    r"^audio_branch\.(spectrogram_extractor|logmel_extractor)\.",  # constants; the mel filters are compared, see below
    r"\.attn_mask$",  # constant of shifted windows, computed anew
)
"""What LAION's files hold beyond the two towers and their projections."""

_COMPUTED = (r"\.relative_position_index$", r"\.(position_ids|token_type_ids)$")
"""What transformers computes when a file lacks it."""


def import_checkpoint(path: str) -> tuple[ClapModel, ClapFeatureExtractor]:
    """Read a checkpoint of HTSAT and RoBERTa, fused or not; its sizes are told by its shapes.

    Every key of the file is either used or known to have no part in an embedding, and every weight of the model comes
    from the file. The file is a pickle: it is read with `weights_only=True`, so nothing in it runs.

    Args:
        path: For example `630k-audioset-best.pt`.

    Returns:
        The model, in float32 on the CPU, and the extractor of the mel spectrograms that it was trained with.

    Raises:
        BundleMLLMError: If the file is missing, damaged or of another architecture.
    """
    from transformers import ClapModel

    source = _read(path)
    renamed = _rename(source, path)
    config = _config(renamed, path)
    model = ClapModel(config)
    state = model.state_dict()
    missing = [name for name in state if name not in renamed and not _matches(name, _COMPUTED)]
    unknown = [name for name in renamed if name not in state]
    shapes = [name for name, value in renamed.items() if name in state and state[name].shape != value.shape]
    for problem, names in (("lacks", missing), ("holds beyond what is known", unknown), ("misshapes", shapes)):
        if names:
            raise BundleMLLMError(
                f"{path} {problem} {len(names)} weights ({', '.join(names[:3])}, …): it is no checkpoint of HTSAT and "
                "RoBERTa as laion-clap writes it; take one of those, or a ClapModel folder (clap:PATH)."
            )
    model.load_state_dict({**state, **renamed})
    return model.eval(), _extractor(source, _is_fused(renamed), path)


def _read(path: str) -> dict[str, torch.Tensor]:
    if not Path(path).is_file():
        raise BundleMLLMError(f"There is no file {path}: give the path of a .pt checkpoint of laion-clap.")
    # Some of its files hold the epoch's metrics as numpy numbers, which run nothing when they are made.
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    harmless = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]
    try:
        with torch.serialization.safe_globals(harmless):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        raise BundleMLLMError(
            f"{path} cannot be read as tensors alone ({type(error).__name__}), so it is damaged or would run code: "
            "download it again, or, if you trust it, save what it holds under `state_dict` anew with torch.save."
        ) from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise BundleMLLMError(f"{path} does not map names to tensors: give a .pt checkpoint of laion-clap.")
    return {name.removeprefix("module."): value for name, value in found.items()}


def _rename(source: dict[str, torch.Tensor], path: str) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    for name, value in source.items():
        if _matches(name, _LEFT_OUT):
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if joint := re.fullmatch(r"(.*)\.attn\.qkv\.(weight|bias)", name):
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            renamed |= {f"{joint[1]}.attention.self.{part}.{joint[2]}": rows for part, rows in parts}
        else:
            renamed[name] = value
    if not any(name.startswith("audio_model.audio_encoder.layers.") for name in renamed):
        raise BundleMLLMError(
            f"{path} holds no HTSAT tower (its keys begin {', '.join(list(source)[:3])}): give a .pt checkpoint of "
            "laion-clap whose audio model is HTSAT."
        )
    return renamed


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _config(weights: dict[str, torch.Tensor], path: str) -> ClapConfig:
    """Tell the sizes of both towers from the shapes of their weights."""
    from transformers import ClapAudioConfig, ClapConfig, ClapTextConfig

    audio, text = "audio_model.audio_encoder", "text_model"
    try:
        width, _, patch, _ = weights[f"{audio}.patch_embed.proj.weight"].shape
        depths, heads = [], []
        for layer in range(_count(weights, rf"^{audio}\.layers\.(\d+)\.")):
            table = weights[f"{audio}.layers.{layer}.blocks.0.attention.self.relative_position_bias_table"]
            depths.append(_count(weights, rf"^{audio}\.layers\.{layer}\.blocks\.(\d+)\."))
            heads.append(table.shape[1])
            window = (isqrt(len(table)) + 1) // 2
        hidden = weights[f"{audio}.norm.weight"].shape[0]
        mlp = weights[f"{audio}.layers.0.blocks.0.intermediate.dense.weight"].shape[0]
        joint = weights["audio_projection.linear2.weight"].shape[0]
        fused = _is_fused(weights)
        words, text_width = weights[f"{text}.embeddings.word_embeddings.weight"].shape
        audio_config = ClapAudioConfig(
            window_size=window,
            num_mel_bins=weights[f"{audio}.batch_norm.weight"].shape[0],
            patch_size=patch,
            patch_stride=[patch, patch],
            patch_embeds_hidden_size=width,
            hidden_size=hidden,
            depths=depths,
            num_attention_heads=heads,
            mlp_ratio=mlp / width,
            projection_dim=joint,
            enable_fusion=fused,
            fusion_type="aff_2d" if fused else None,
        )
        text_config = ClapTextConfig(
            vocab_size=words,
            hidden_size=text_width,
            num_hidden_layers=_count(weights, rf"^{text}\.encoder\.layer\.(\d+)\."),
            num_attention_heads=max(1, text_width // 64),
            intermediate_size=weights[f"{text}.encoder.layer.0.intermediate.dense.weight"].shape[0],
            max_position_embeddings=len(weights[f"{text}.embeddings.position_embeddings.weight"]),
            type_vocab_size=len(weights[f"{text}.embeddings.token_type_embeddings.weight"]),
            projection_dim=joint,
        )
    except KeyError as error:
        raise BundleMLLMError(
            f"{path} lacks the weight {error}: it is no checkpoint of HTSAT and RoBERTa as laion-clap writes it; take "
            "one of those, or a ClapModel folder (clap:PATH)."
        ) from error
    return ClapConfig(audio_config=audio_config.to_dict(), text_config=text_config.to_dict(), projection_dim=joint)


def _is_fused(weights: dict[str, torch.Tensor]) -> bool:
    return "audio_model.audio_encoder.patch_embed.mel_conv2d.weight" in weights


def _count(weights: dict[str, torch.Tensor], pattern: str) -> int:
    return len({found[1] for name in weights if (found := re.search(pattern, name))})


def _extractor(source: dict[str, torch.Tensor], fused: bool, path: str) -> ClapFeatureExtractor:
    """Return the extractor of laion-clap's mel spectrograms, whose filters must be those that the file holds."""
    from transformers import ClapFeatureExtractor

    extractor = ClapFeatureExtractor(
        frequency_min=50, frequency_max=14_000, truncation="fusion" if fused else "rand_trunc", padding="repeatpad"
    )
    filters = source.get("audio_branch.logmel_extractor.melW")  # [513, 64]; an unfused model was trained with them
    if filters is not None:
        ours = torch.from_numpy(extractor.mel_filters_slaney)
        if filters.shape != ours.shape or not torch.allclose(filters.double(), ours.double(), atol=1e-5):
            raise BundleMLLMError(
                f"{path} was trained on other mel filters than laion-clap's (64 from 50 Hz to 14 kHz at 48 kHz), so "
                "its embeddings would be wrong: give one of laion-clap's own checkpoints."
            )
    return extractor

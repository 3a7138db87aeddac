"""Read LAION's CLAP checkpoints (`.pt` files of the package laion-clap) into transformers' `ClapModel`.

Knows nothing about sounds, items or encoders.
"""

from __future__ import annotations

import re
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from bundle_mllm.errors import BundleMLLMError

_AUDIO, _TEXT = "audio_model.audio_encoder.", "text_model."
_FUSION = f"{_AUDIO}patch_embed.mel_conv2d.weight"
_RENAMES = (  # LAION's names, and those of transformers
    (r"^(audio|text)_projection\.0\.", r"\1_projection.linear1."),
    (r"^(audio|text)_projection\.2\.", r"\1_projection.linear2."),
    (r"^text_branch\.", _TEXT),
    (r"^audio_branch\.bn0\.", f"{_AUDIO}batch_norm."),
    (r"^audio_branch\.", _AUDIO),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
)
_NO_PART = (  # in an embedding: heads of the training loss and of AudioSet, and constants
    r"^(audio|text)_transform\.|^audio_branch\.(tscam_conv|head|spectrogram_extractor|logmel_extractor)\.|\.attn_mask$"
)
_COMPUTED = ("relative_position_index", "position_ids", "token_type_ids")
"""What transformers computes when a file lacks it."""


def import_checkpoint(path: str) -> tuple[ClapModel, ClapFeatureExtractor]:
    """Read a checkpoint of HTSAT and RoBERTa, fused or not, of any size.

    Every key of the file is either used or known to have no part in an embedding, and every weight of the model comes
    from the file. The file is a pickle: it is read with `weights_only=True`, so nothing in it runs.

    Args:
        path: For example `630k-audioset-best.pt`.

    Returns:
        The model, in float32 on the CPU, and the extractor of the mel spectrograms that it was trained with.

    Raises:
        BundleMLLMError: If the file is missing, damaged or of another architecture.
    """
    source = _read(path)
    weights = _rename(source)
    try:
        model = ClapModel(_config(weights))
    except KeyError as error:
        raise _misfit(path, f"lacks the weight {error}") from error
    state = model.state_dict()
    for problem, names in (
        ("lacks", [name for name in state if name not in weights and not name.endswith(_COMPUTED)]),
        ("holds beyond what is known", [name for name in weights if name not in state]),
        ("misshapes", [name for name, value in weights.items() if name in state and state[name].shape != value.shape]),
    ):
        if names:
            raise _misfit(path, f"{problem} {len(names)} weights ({', '.join(names[:3])}, …)")
    model.load_state_dict({**state, **weights})
    return model.eval(), _extractor(source, _FUSION in weights, path)


def _misfit(path: str, problem: str) -> BundleMLLMError:
    return BundleMLLMError(
        f"{path} {problem}: it is no checkpoint of HTSAT and RoBERTa as laion-clap writes it; take one of those, or a "
        "ClapModel folder (clap:PATH)."
    )


def _read(path: str) -> dict[str, torch.Tensor]:
    if not Path(path).is_file():
        raise BundleMLLMError(f"There is no file {path}: give the path of a .pt checkpoint of laion-clap.")
    # Some of its files hold the epoch's metrics as numpy numbers, which run nothing when they are made.
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    harmless = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        raise BundleMLLMError(
            f"{path} cannot be read as tensors alone ({type(error).__name__}), so it is damaged or would run code: "
            "download it again, or, if you trust it, save what it holds under `state_dict` anew with torch.save."
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BundleMLLMError(f"{path} does not map names to tensors: give a .pt checkpoint of laion-clap.")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _rename(source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    for name, value in source.items():
        if re.search(_NO_PART, name):
            continue
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        before, joint, kind = name.rpartition(".qkv.")
        if joint:
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            renamed |= {f"{before}.{part}.{kind}": rows for part, rows in parts}
        else:
            renamed[name] = value
    return renamed


def _config(weights: dict[str, torch.Tensor]) -> ClapConfig:
    """Read the sizes of both towers off the shapes of their weights; a missing one raises a `KeyError`."""

    def count(pattern: str) -> int:
        return len({match[1] for name in weights if (match := re.match(pattern, name))})

    width, _, patch, _ = weights[f"{_AUDIO}patch_embed.proj.weight"].shape
    biases = f"{_AUDIO}layers.{{}}.blocks.0.attention.self.relative_position_bias_table"
    num_layers = count(rf"{_AUDIO}layers\.(\d+)\.")
    projection_dim = len(weights["audio_projection.linear2.weight"])
    is_fused = _FUSION in weights
    audio = {
        "window_size": (isqrt(len(weights[biases.format(0)])) + 1) // 2,
        "num_mel_bins": len(weights[f"{_AUDIO}batch_norm.weight"]),
        "patch_size": patch,
        "patch_stride": [patch, patch],
        "patch_embeds_hidden_size": width,
        "hidden_size": len(weights[f"{_AUDIO}norm.weight"]),
        "depths": [count(rf"{_AUDIO}layers\.{layer}\.blocks\.(\d+)\.") for layer in range(num_layers)],
        "num_attention_heads": [weights[biases.format(layer)].shape[1] for layer in range(num_layers)],
        "mlp_ratio": len(weights[f"{_AUDIO}layers.0.blocks.0.intermediate.dense.weight"]) / width,
        "projection_dim": projection_dim,
        "enable_fusion": is_fused,
        "fusion_type": "aff_2d" if is_fused else None,
    }
    vocab_size, text_width = weights[f"{_TEXT}embeddings.word_embeddings.weight"].shape
    text = {
        "vocab_size": vocab_size,
        "hidden_size": text_width,
        "num_hidden_layers": count(rf"{_TEXT}encoder\.layer\.(\d+)\."),
        "num_attention_heads": max(1, text_width // 64),
        "intermediate_size": len(weights[f"{_TEXT}encoder.layer.0.intermediate.dense.weight"]),
        "max_position_embeddings": len(weights[f"{_TEXT}embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(weights[f"{_TEXT}embeddings.token_type_embeddings.weight"]),
        "projection_dim": projection_dim,
    }
    return ClapConfig(audio_config=audio, text_config=text, projection_dim=projection_dim)


def _extractor(source: dict[str, torch.Tensor], is_fused: bool, path: str) -> ClapFeatureExtractor:
    """Return the extractor of laion-clap's mel spectrograms, whose filters must be those that the file holds."""
    extractor = ClapFeatureExtractor(
        frequency_min=50, frequency_max=14_000, truncation="fusion" if is_fused else "rand_trunc", padding="repeatpad"
    )
    filters = source.get("audio_branch.logmel_extractor.melW")  # [513, 64]; an unfused model was trained with them
    if filters is not None:
        expected = torch.from_numpy(extractor.mel_filters_slaney)
        if filters.shape != expected.shape or not torch.allclose(filters.double(), expected.double(), atol=1e-5):
            raise BundleMLLMError(
                f"{path} was trained on other mel filters than laion-clap's (64 from 50 Hz to 14 kHz at 48 kHz), so "
                "its embeddings would be wrong: give one of laion-clap's own checkpoints."
            )
    return extractor

"""Read the tensor files of others (`.pt`, `.bin`), which are pickles, without running what may be in them.

Knows nothing about what the tensors are.
"""

from __future__ import annotations

import os
import re
from typing import Any

import torch

from bundle_mllm.bounds import check
from bundle_mllm.data.files import require_file
from bundle_mllm.errors import BundleMLLMError


def load_matrix(path: str | os.PathLike) -> torch.Tensor:
    """Read a file of one matrix `[rows, columns]`, floating point and finite, to the CPU; refuse anything else."""
    matrix = _load(path)
    if not isinstance(matrix, torch.Tensor) or matrix.ndim != 2:
        kind = f"a tensor of {matrix.ndim} dimensions" if isinstance(matrix, torch.Tensor) else type(matrix).__name__
        raise BundleMLLMError(f"{path} holds {kind}, not one matrix [rows, columns]: write it again.")
    _check_values(matrix, str(path))
    if bad := (~matrix.isfinite().all(dim=1)).nonzero()[:, 0].tolist():
        raise BundleMLLMError(
            f"{path} holds NaN or infinity in {len(bad)} rows (first row {bad[0]}), which spoil scores: repair them."
        )
    return matrix.detach()


def load_weights(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Read a file that maps names to weights, floating point and finite, to the CPU; refuse anything else."""
    weights = _load(path)
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise BundleMLLMError(f"{path} does not map names to tensors, so it is no file of weights: write it again.")
    for name, value in weights.items():
        _check_values(value, f"{path}, {name!r},")
        if not value.isfinite().all():
            raise BundleMLLMError(f"{path}, {name!r}, holds NaN or infinity, so every score would be NaN: replace it.")
    return {name: value.detach() for name, value in weights.items()}


def _check_values(tensor: torch.Tensor, what: str) -> None:
    if tensor.layout != torch.strided or not tensor.is_floating_point():
        raise BundleMLLMError(f"{what} is {tensor.layout}, {tensor.dtype}: convert it to a dense float tensor.")
    check("tensor_values", tensor.numel(), what)
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():  # a view that repeats a few values
        raise BundleMLLMError(
            f"{what} claims {tensor.numel():,} values and holds fewer: save it again, `.contiguous()`."
        )


def _load(path: str | os.PathLike) -> Any:
    require_file(path, "check the folder, or download it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise BundleMLLMError(
                f"{path} holds the Python object {refused[1]}, which could run foreign code: save tensors alone."
            ) from error
        raise BundleMLLMError(
            f"{path} is no file of tensors, or damaged ({type(error).__name__}): copy it again."
        ) from error

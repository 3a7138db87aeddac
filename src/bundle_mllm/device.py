"""Where and in which precision models compute.

Knows nothing about the models.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import torch

from bundle_mllm.errors import BundleMLLMError


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device that is asked for, or the GPU if there is one.

    Raises:
        BundleMLLMError: If there is no such device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        raise BundleMLLMError(f"There is no device {str(device)!r} ({line}): take cpu, or cuda.") from error
    return device


def gains_by_bfloat16() -> bool:
    """Return whether GPU or processor multiplies bfloat16 natively; a processor that does not is several times slower.

    Measured (ours): 215 against 91 GFLOP/s in float32 on a thread with AVX-512-BF16, an eighth of float32 with AVX2.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_tile") or capabilities.get("bf16"))


def mixed_precision(enabled: bool) -> AbstractContextManager:
    """Compute matrix products in bfloat16 for a while, if `enabled`; weights stay as they are."""
    if not enabled:
        return nullcontext()
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", dtype=torch.bfloat16)


def peak_memory() -> float:
    """Return the most memory that was in use so far, GiB: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30

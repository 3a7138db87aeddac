"""Where models compute.

Knows nothing about what they are.
"""

from __future__ import annotations

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

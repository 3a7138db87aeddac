"""Notice a torchvision or torchaudio that does not fit torch, before transformers fails for it without saying why.

It must not know what they are used for.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec


def check_companions() -> None:
    """Import torchvision and torchaudio where they are installed, as transformers, TRL and PEFT will.

    Raises:
        ImportError: If one cannot be imported, as when it was built for CUDA and torch was not.
    """
    for name in ("torchvision", "torchaudio"):
        if find_spec(name) is None:
            continue
        try:
            import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            raise ImportError(
                f"{name} {version(name)} does not match torch {version('torch')} ({error}), which breaks "
                f"transformers, too: install the {name} of the same release and the same build as torch (both for the "
                f"CPU, or both for one version of CUDA), or uninstall it (bundle-mllm needs torchvision for open_clip "
                "only, and torchaudio for nothing)."
            ) from error

"""Notice a torchvision that does not fit the installed torch, before transformers fails for it without saying why.

It must not know what torchvision is used for.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec


def check_torchvision() -> None:
    """Import torchvision if it is installed, as transformers, TRL and PEFT will.

    Raises:
        ImportError: If it cannot be imported, as when it was built for CUDA and torch was not.
    """
    if find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            f"torchvision {version('torchvision')} does not match torch {version('torch')} ({error}), which breaks "
            "transformers, too: install the torchvision of the same release and the same build as torch (both for the "
            "CPU, or both for one version of CUDA), or uninstall torchvision; only open_clip needs it."
        ) from error

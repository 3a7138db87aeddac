"""Load pretrained weights for encoders, with one clear line on failure, and record which weights they are.

Knows nothing about any particular model.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name
from torch import nn
from transformers.utils import logging

from bundle_mllm.encoders.batches import BatchEncoder, Reading
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub_access import hub_problem


class PretrainedEncoder(BatchEncoder):
    """A batch encoder around a torch module, in bfloat16 on a GPU that computes in it and in float32 elsewhere.

    Args:
        model: The module.
        device: Where it runs.
        reader: See `BatchEncoder.reader`.
        name: Its name in the manifest.
        source: Name on the Hub, or folder or file.
        preprocessing: How a source becomes the model's input.
        library: The package whose version matters most.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        reader: Callable[[Any], Reading],
        *,
        name: str,
        source: str,
        preprocessing: Mapping[str, Any],
        library: str = "transformers",
    ):
        self.model = model.eval().requires_grad_(False).to(device)
        self.device, self.reader, self.name = device, reader, name
        self._half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.provenance = {
            "revision": hub_commit(source),
            "weights_sha256": weights_sha256(self.model),
            "preprocessing": dict(preprocessing),
            "precision": "bfloat16" if self._half else "float32",
            "versions": {name: version(name) for name in ("torch", library)},
        }

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the vectors, `[n, dim]`, of length 1."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            vectors = self.forward(inputs)
        return nn.functional.normalize(vectors.float(), dim=-1)

    def pool(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the mean direction of several windows, of length 1."""
        return nn.functional.normalize(windows.mean(dim=0), dim=0)

    @abstractmethod
    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run the model: inputs `[n, …]`, outputs `[n, dim]`, of any length."""


def source_name(source: str) -> str:
    """Return a model's name in the manifest: its own, or the last part of its path (the rest is the user's own)."""
    return Path(source).resolve().name if Path(source).exists() else source


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn whatever a library raises while it loads a model into one line.

    Raises:
        BundleMLLMError: If the block raises anything.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it lists the weights of towers that are not wanted
    try:
        yield
    except BundleMLLMError:
        raise
    except Exception as error:  # libraries and networks fail in any way
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = hub_problem(error) or (lines[0].rstrip(".:")[:300] if lines else type(error).__name__)
        raise BundleMLLMError(
            f"{what} cannot be loaded ({reason}): check its name, or the network (HF_HUB_OFFLINE=1 allows only the "
            "cache), or give a folder that holds the model."
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def load_tower(
    load: Callable[..., Any], source: str, *, what: str, may_lack: tuple[str, ...] = (), **options: Any
) -> nn.Module:
    """Load a transformers model in float32 by a class's `from_pretrained`, and refuse one with a random weight.

    Weights whose names begin as in `may_lack` are not used; missing ones become zero, the same each time.

    Raises:
        BundleMLLMError: If the model cannot be loaded, or its checkpoint lacks a weight.
    """
    with loading(what):
        model, info = load(source, dtype=torch.float32, output_loading_info=True, **options)
    unused = {name for name in info["missing_keys"] if name.startswith(may_lack)}
    for name in unused:
        model.get_parameter(name).data.zero_()
    missing = sorted(set(info["missing_keys"]) - unused)
    if missing:
        raise BundleMLLMError(
            f"{what} lacks {len(missing)} weights that its configuration asks for ({', '.join(missing[:3])}, …), "
            "which would be random: download it again, or take another checkpoint."
        )
    return model


def hub_commit(source: str) -> str | None:
    """Return the commit that a model's name refers to in the Hub's cache, or `None`."""
    if Path(source).exists():
        return None
    reference = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=source, repo_type="model") / "refs" / "main"
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def weights_sha256(model: nn.Module) -> str:
    """Return SHA-256 over names, shapes and bytes of all weights: the same model gives the same digest anywhere."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

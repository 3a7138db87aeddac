"""Embed texts or pictures with a model of the library sentence-transformers, by its own pooling.

Knows nothing about how such a model pools or normalizes: its folder says so, and the library reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, ClassVar, Literal

import torch

from bundle_mllm.encoders.batches import Reading
from bundle_mllm.encoders.pretrained import PretrainedEncoder, loading, source_name
from bundle_mllm.encoders.textual import MAX_TOKENS, tokenize
from bundle_mllm.encoders.visual import PICTURE_POLICY, read_for_transformers
from bundle_mllm.errors import BundleMLLMError


class _SentenceModel(PretrainedEncoder):
    """A model of sentence-transformers for one kind of input; vectors of length 1."""

    modality: str
    kind: ClassVar[Literal["text", "image"]]

    def __init__(self, model: str, device: torch.device):
        what = f"The {self.modality} encoder 'sentence_transformers:{model}'"
        try:
            library: Any = import_module("sentence_transformers")
        except ImportError as error:
            raise BundleMLLMError(
                f'{what} needs sentence-transformers: pip install "bundle-mllm[encoders]".'
            ) from error
        with loading(what):
            network = library.SentenceTransformer(model, device="cpu")
        if self.kind not in network.modalities:
            raise BundleMLLMError(
                f"{what} reads {', '.join(network.modalities)}: give a model that reads {self.kind}s."
            )
        reader, preprocessing = self.reading(network)
        super().__init__(
            network,
            device,
            reader,
            name=f"sentence_transformers:{source_name(model)}",
            source=model,
            preprocessing=preprocessing,
            library="sentence-transformers",
        )
        self.dim = network.get_embedding_dimension()

    def reading(self, network: Any) -> tuple[Callable[[Any], Reading], dict[str, Any]]:
        """Return the reader, and what it does for the manifest."""
        raise NotImplementedError

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the embeddings, `[n, dim]`."""
        return self.model({**inputs, "modality": self.kind})["sentence_embedding"]


class SentenceModelOfTexts(_SentenceModel):
    """Embed texts, each after the model's prompt for documents, if it has one; cut at the model's length.

    Args:
        model: Name on the Hub, or folder.
        device: Where the model runs.

    Raises:
        BundleMLLMError: If the library is not installed, or the model cannot be loaded or reads no texts.
    """

    modality, field, kind = "textual", "text", "text"

    def reading(self, network: Any) -> tuple[Callable[[Any], Reading], dict[str, Any]]:
        """Return the reader of texts, and what it does."""
        prompt = network.prompts.get("document") or ""
        longest = min(MAX_TOKENS, network.max_seq_length or MAX_TOKENS)
        reader = partial(read_text, network.tokenizer, longest, prompt)
        return reader, {"text": "title. category. description", "max_tokens": longest, "prompt": prompt}

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the embeddings, `[n, dim]`, without columns of padding alone."""
        used = inputs["attention_mask"].any(dim=0)
        return super().forward({name: value[:, used] for name, value in inputs.items()})


def read_text(tokenizer: Any, max_length: int, prompt: str, text: str) -> Reading:
    """Cut a text behind a prompt into tokens, padded to one length."""
    return tokenize(tokenizer, max_length, prompt + text)


class SentenceModelOfPictures(_SentenceModel):
    """Embed pictures with a model that reads both, such as CLIP.

    Args:
        model: Name on the Hub, or folder.
        device: Where the model runs.

    Raises:
        BundleMLLMError: If the library is not installed, or the model cannot be loaded or reads no pictures.
    """

    modality, field, kind = "visual", "image", "image"

    def reading(self, network: Any) -> tuple[Callable[[Any], Reading], dict[str, Any]]:
        """Return the reader of pictures, and what it does."""
        processor = network.processor.image_processor
        return partial(read_for_transformers, processor), {
            "pictures": PICTURE_POLICY,
            **json.loads(processor.to_json_string()),
        }

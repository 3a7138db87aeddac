"""Encode on Ray Data: tasks read files on all machines of a cluster, actors embed, this process saves the results.

Knows nothing about any particular encoder. All machines must reach the dataset folder under the same path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bundle_mllm.device import choose_device
from bundle_mllm.encoders.batches import BatchEncoder, Rows, Sources, embed_batch, read_batch
from bundle_mllm.ray_pool import map_on_ray


class EmbedActor:
    """Holds one copy of the model and embeds batches."""

    def __init__(self, make: Callable[[torch.device], BatchEncoder], batch_size: int, device: str):
        self._encoder, self._batch_size = make(choose_device(device)), batch_size

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        embedded = [embed_batch(self._encoder, batch, self._batch_size).to_host() for batch in rows["batch"]]
        return {"number": rows["number"], "rows": embedded}


def embed_on_ray(
    make: Callable[[torch.device], BatchEncoder],
    encoder: BatchEncoder,
    sources: Sources,
    batches: Sequence[Sequence[int]],
    batch_size: int,
) -> Iterator[tuple[int, Rows]]:
    """Encode batches on a Ray cluster, or on this machine without one; see [`batches.embed_batches`].

    Args:
        make: Makes the encoder on the machine that runs it.
        encoder: The same encoder in this process; only its reader and its type of device are used.
        sources: The sources of the catalog's items.
        batches: Rows of the catalog, for each batch.
        batch_size: Windows embedded at once.

    Yields:
        The number of each batch and its rows, in any order.

    Raises:
        BundleMLLMError: If Ray is not installed.
    """
    device, reader, root = encoder.device.type, encoder.reader, sources.root

    def read(row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["number"], "batch": read_batch(reader, root, row["sources"])}

    named = [
        {"number": number, "sources": [sources.of_item[row] or "" for row in rows]}
        for number, rows in enumerate(batches)
    ]
    arguments = make, batch_size, device
    for row in map_on_ray(named, EmbedActor, arguments, on_gpu=device == "cuda", prepare=read):
        yield int(row["number"]), row["rows"]

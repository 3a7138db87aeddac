"""Encode on Ray Data: tasks read files on all machines of a cluster, actors embed, this process saves the results.

Knows nothing about any particular encoder. All machines must reach the dataset folder under the same path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from bundle_mllm.device import choose_device
from bundle_mllm.encoders.batches import Batch, BatchEncoder, Reading, Rows, collate, embed_batch, read_source
from bundle_mllm.encoders.shards import Shards
from bundle_mllm.errors import BundleMLLMError


class ReadTask:
    """Reads one batch; runs on any machine."""

    def __init__(self, reader: Callable[[Any], Reading], root: Path | None):
        self._reader, self._root = reader, root

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        batch = collate([read_source(self._reader, self._root, source) for source in row["sources"]])
        return {"shard": row["shard"], "number": row["number"], "payload": save(batch.to_tensors())}


class EmbedActor:
    """Holds one copy of the model and embeds batches."""

    def __init__(self, make: Callable[[torch.device], BatchEncoder], batch_size: int, device: str):
        self._encoder, self._batch_size = make(choose_device(device)), batch_size

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        payloads = []
        for payload in rows["payload"]:
            batch = Batch.from_tensors(load(bytes(payload)))
            payloads.append(save(embed_batch(self._encoder, batch, self._batch_size).to_host().to_tensors()))
        return {"shard": rows["shard"], "number": rows["number"], "payload": payloads}


def encode_on_ray(
    make: Callable[[torch.device], BatchEncoder],
    encoder: BatchEncoder,
    root: Path | None,
    sources: Sequence[str | None],
    shards: Shards,
    pending: Sequence[int],
    batch_size: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, Rows]]:
    """Encode shards on a Ray cluster, or on this machine without one.

    Args:
        make: Makes the encoder on the machine that runs it.
        encoder: The same encoder in this process; only its reader and its type of device are used.
        root: See `source_root`.
        sources: The source of each item of the catalog.
        shards: How the items are cut up.
        pending: The shards to encode.
        batch_size: Windows embedded at once.
        advance: Called with the number of items of each finished batch.

    Yields:
        Shards as they are complete, in any order.

    Raises:
        BundleMLLMError: If Ray is not installed.
    """
    ray = _import_ray()
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    device = encoder.device.type
    on_gpu = device == "cuda"
    available = ray.cluster_resources()
    actors = int(available.get("GPU", 1)) if on_gpu else max(1, int(available.get("CPU", 1)) // 2)
    batches = [
        {"shard": shard, "number": number, "sources": [sources[row] or "" for row in rows]}
        for shard in pending
        for number, rows in enumerate(shards.batches(shard))
    ]
    results = (
        ray.data.from_items(batches)
        .map(ReadTask(encoder.reader, root).__call__)
        .map_batches(
            EmbedActor,
            fn_constructor_args=(make, batch_size, device),
            batch_size=1,
            num_gpus=1 if on_gpu else 0,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(actors, len(batches)))),
        )
    )
    parts: dict[int, dict[int, Rows]] = {shard: {} for shard in pending}
    for row in results.iter_rows():
        shard, rows = int(row["shard"]), Rows.from_tensors(load(bytes(row["payload"])))
        parts[shard][int(row["number"])] = rows
        advance(len(rows.present))
        if len(parts[shard]) == len(shards.batches(shard)):
            done = parts.pop(shard)
            yield shard, Rows.join([done[number] for number in sorted(done)])


def _import_ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise BundleMLLMError('engine="ray" needs Ray: pip install "bundle-mllm[ray]".') from error
    return ray

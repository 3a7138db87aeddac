"""Add, change and remove items of the served model folder, one request after the other among all workers.

Knows nothing about HTTP or how an item is encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bundle_mllm.completion.catalog import CatalogChange, update_catalog
from bundle_mllm.completion.new_items import NewItemEncoder
from bundle_mllm.data.catalog import MEDIA
from bundle_mllm.data.tables import write_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.serving.batching import BusyError
from bundle_mllm.serving.served_model import media_folder, write_media

LOCK_SECONDS = 30.0
"""Time that a change waits for those before it (ours)."""


def put_items(model: Path, items: Sequence[Mapping[str, Any]], device: str | None = None) -> CatalogChange:
    """Add items, and change the columns given of those that there are: all or none.

    Args:
        model: The model folder.
        items: The items; their pictures and sounds are bytes, which are not kept once they are encoded.
        device: Where the encoders' models run.

    Raises:
        BundleMLLMError: See `update_catalog`; or no encoder reads a picture or sound.
        BusyError: If other changes take long.
    """
    read = NewItemEncoder(model, device).read_columns
    if unread := sorted({name for item in items for name in MEDIA if item.get(name) and name not in read}):
        raise BundleMLLMError(f"The model reads no {' and no '.join(unread)}, which would be lost: leave it out.")
    with _one_at_a_time(model), media_folder() as folder:
        records = [{**item, **{name: path.name for name, path in write_media(item, folder).items()}} for item in items]
        write_records(folder / "items.jsonl", records)
        return update_catalog("put", model, folder, device)


def remove_items(model: Path, item_ids: Sequence[str]) -> CatalogChange:
    """Remove items, all or none; see [`put_items`]."""
    with _one_at_a_time(model), media_folder() as folder:
        write_records(folder / "items.jsonl", [{"item_id": item_id} for item_id in dict.fromkeys(item_ids)])
        return update_catalog("remove", model, folder)


@contextmanager
def _one_at_a_time(model: Path) -> Iterator[None]:
    """Wait until no other worker changes items."""
    try:
        with FileLock(model.with_name(f".{model.name}.lock"), timeout=LOCK_SECONDS):
            yield
    except Timeout as error:
        raise BusyError(LOCK_SECONDS) from error

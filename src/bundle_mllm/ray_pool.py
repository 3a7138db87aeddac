"""Hand rows to a pool of actors on a Ray cluster, or on this machine without one.

Knows nothing about what rows hold and what actors do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bundle_mllm.errors import BundleMLLMError


def map_on_ray(
    rows: Sequence[dict[str, Any]],
    actor: type,
    arguments: tuple[Any, ...],
    *,
    on_gpu: bool,
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Let a pool of actors map rows, one at a time.

    Args:
        rows: The rows.
        actor: Class of the actors; its instances are called with batches of one row.
        arguments: Of its constructor.
        on_gpu: Whether each actor has a GPU; otherwise there is one for every two processors.
        prepare: Changes each row first, in tasks on any machine of the cluster.

    Yields:
        The rows that the actors return, in any order.

    Raises:
        BundleMLLMError: If Ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise BundleMLLMError('engine="ray" needs Ray: pip install "bundle-mllm[ray]".') from error
    if not rows:
        return
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    available = ray.cluster_resources()
    actors = int(available.get("GPU", 1)) if on_gpu else max(1, int(available.get("CPU", 1)) // 2)
    data = ray.data.from_items(list(rows))
    if prepare is not None:
        data = data.map(prepare)
    yield from data.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=1,
        num_gpus=1 if on_gpu else 0,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(actors, len(rows)))),
    ).iter_rows()

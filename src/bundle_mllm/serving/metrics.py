"""What the service counts, for Prometheus; summed over all worker processes where there are several.

Knows nothing about models, or when something is counted.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of the folder in which the processes of a service share their counts."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of a worker."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter(
            "bundle_mllm_requests", "Requests by route, method and status", ("route", "method", "status"), registry=own
        )
        self.seconds = Histogram(
            "bundle_mllm_request_seconds", "Time to answer a request", ("route",), buckets=_SECONDS, registry=own
        )
        self.batches = Histogram(
            "bundle_mllm_batch_questions", "Questions answered together", buckets=_SIZES, registry=own
        )
        self.waiting = Gauge(
            "bundle_mllm_waiting_questions", "Questions in the queue", registry=own, multiprocess_mode="livesum"
        )
        self.items = Gauge(
            "bundle_mllm_items", "Items of the catalog", registry=own, multiprocess_mode="livemostrecent"
        )
        self.unranked = Counter(
            "bundle_mllm_unranked_answers", "Answers of the retriever alone, as the ranker failed", registry=own
        )
        self.unwritten = Counter(
            "bundle_mllm_unwritten_records", "Answers that could not be written into the log", registry=own
        )
        if FOLDER not in os.environ:
            for collector in (ProcessCollector, PlatformCollector, GCCollector):
                collector(registry=own)

    def text(self) -> bytes:
        """Return all counts in Prometheus' text format."""
        if FOLDER not in os.environ:
            return generate_latest(self._registry)
        folder = Path(os.environ[FOLDER])
        for pid in {int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_live*.db")}:
            if not _is_alive(pid):
                mark_process_dead(pid)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

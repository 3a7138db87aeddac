"""Settings of the service.

Knows nothing about HTTP or models; imports neither torch nor a web framework.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundle_mllm.errors import BundleMLLMError, check_at_least
from bundle_mllm.settings import Settings

MEBIBYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class QueueOptions(Settings):
    """Questions wait in a queue, and those that wait together are answered together."""

    batch_size: int = 32
    """Most questions that are answered together."""
    batch_window: float = 2.0
    """Milliseconds that a question waits for others while the model is idle."""
    max_waiting: int = 512
    """Most questions that wait in a worker; further ones get 429 and `Retry-After`."""
    time_limit: float = 4.0
    """Seconds within which a question is answered, or gets 429: at once where those before it take half of that, as
    the last ones went."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("batch_size", self.batch_size, 1, "no question would be answered")
        check_at_least("batch_window", self.batch_window, 0, "questions would be answered before they arrive")
        check_at_least("max_waiting", self.max_waiting, 1, "every question would be refused")
        check_at_least("time_limit", self.time_limit, 0.1, "every question would be refused")


@dataclass(frozen=True)
class ServiceSettings(QueueOptions):
    """Answer over HTTP: complete bundles, rank documents, add, change and remove items.

    Where the environment variable BUNDLE_MLLM_API_KEY or the file of --api-key-file has a key, all requests but those
    of health and documentation need it. Without one the service is there for this machine alone.
    """

    model: Path
    """Model folder, or a link to one, such as the `current` of `train --continue-from`, which is followed once, at the
    start."""
    host: str = "127.0.0.1"
    """Address to listen on; another one than this machine's own needs a key."""
    port: int = 8000
    """Port to listen on; 0 for any that is free."""
    workers: int = 1
    """Processes, each with the model in its memory; they share the port, and one that dies is replaced."""
    api_key_file: Path | None = None
    """File that holds the key."""
    log: Path | None = None
    """File that keeps each answer, by ids, and what users did with it, one JSON object a line: what `bundle-mllm
    feedback` reads. By default answers are not kept, and feedback is refused."""
    log_mib: int = 256
    """Size in MiB above which the log begins anew; the older part stays beside it, with the time in its name."""
    log_content: bool = False
    """Write the items of each question into the service's own log on standard error, too."""
    ranker: str | None = None
    """Server that runs the exported ranker (vLLM, SGLang), as openai:http://HOST/v1#MODEL. While it is down, the
    retriever answers alone, and each answer says so."""
    retrieval: Literal["exact", "approximate"] = "exact"
    """approximate: search the catalog by an index (faiss), which is made when items are loaded; see `complete`."""
    max_body_mib: int = 16
    """Largest request, MiB."""
    device: str | None = None
    """cpu or cuda; a GPU if there is one, if not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("workers", self.workers, 1, "nothing would answer")
        check_at_least("max_body_mib", self.max_body_mib, 1, "every request would be refused")
        check_at_least("log_mib", self.log_mib, 1, "the log would begin anew with each answer")
        if not 0 <= self.port < 1 << 16:
            raise BundleMLLMError(f"port is {self.port}, which is none: give 1 to 65535, or 0 for any that is free.")


@dataclass(frozen=True)
class FeedbackSettings(Settings):
    """Turn what users did with the answers of the service into training bundles.

    A bundle is the partial bundle of a question with those of its answers that were bought (or clicked). The table has
    the rows of a dataset folder's `bundles`: `bundle_id`, `items` and `split`, which is train.
    """

    log: Path
    """The log of `bundle-mllm serve --log`; its older parts beside it are read, too."""
    output: Path
    """Table to write (.jsonl, .csv, .parquet)."""
    clicked: bool = False
    """Take what was clicked, too, not only what was bought."""

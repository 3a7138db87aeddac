"""Settings of the app.

Knows nothing about models or pages; imports neither torch, transformers nor gradio.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundle_mllm.settings import Settings


@dataclass(frozen=True)
class AppSettings(Settings):
    """Open a model in the browser: pick items, see what completes the bundle and why, set rules, try your own item.

    Needs `pip install "bundle-mllm[app]"`. Only this machine can open the page unless --host says otherwise; there is
    no password.
    """

    model: str
    """Model folder or Hub repository."""
    data: Path | None = None
    """Dataset folder with the pictures and sounds that the items table names; without it items are shown by their
    titles. Nothing else of the folder is served."""
    compare: str | None = None
    """A second model folder or repository, whose answers are shown beside those of the first."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 7860
    """Port to listen on."""
    open: bool = False
    """Open the page in the browser of this machine."""
    device: str | None = None
    """Where the models run; a GPU if there is one, if not given."""

"""The record of a run, `run.json`: settings, inputs, versions and figures; it tells whether a run may be continued.

Knows nothing about models or how they are trained.
"""

from __future__ import annotations

import json
import platform
from collections import UserDict
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bundle_mllm.data.files import atomic_path, read_json
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.model_folder import RUN_RECORD, fingerprint
from bundle_mllm.progress import note
from bundle_mllm.settings import as_dict
from bundle_mllm.training.config import RunConfig

_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "safetensors", "tokenizers")
PACKAGES = ("bundle-mllm", *_PACKAGES)
CONTINUED = "continue_from"
"""The key of a run's inputs for the fingerprint of the model that it continues."""
_PLACES = {"data", "output_dir", "continue_from"}
"""Settings that only say where something is; what is there is compared by its content."""


class RunRecord(UserDict):
    """What `run.json` holds, as a dictionary."""

    def __init__(self, folder: Path, values: Mapping[str, Any]):
        super().__init__(values)
        self.folder = folder

    @classmethod
    def open(cls, config: RunConfig, data: DatasetFolder) -> RunRecord:
        """Read the record of the output folder, or begin it.

        Raises:
            BundleMLLMError: If another run was begun in the folder, or it holds other files.
        """
        settings, inputs, out = as_dict(config), data.input_hashes(), config.output_dir
        if config.continue_from is not None:
            inputs[CONTINUED] = fingerprint(config.continue_from) or str(config.continue_from)
        path = out / RUN_RECORD
        if path.exists() and not _has_begun(out):
            path.unlink()  # of a run that ended before its first step, for example for a mistake in its settings
        if path.exists():
            values = read_json(path)
            for what, now in (("settings", settings), ("inputs", inputs)):
                keys = {**values[what], **now}.keys() - (_PLACES if what == "settings" else set())
                if changed := sorted(key for key in keys if values[what].get(key) != now.get(key)):
                    raise BundleMLLMError(
                        f"{out} holds a run with other {what} (different: {', '.join(changed)}); continuing would mix "
                        "the two. Use another --output-dir, or delete that folder to start over."
                    )
            return cls(out, values)
        if out.exists() and not all(other.match(f".{RUN_RECORD}.*.tmp") for other in out.iterdir()):  # of a kill
            raise BundleMLLMError(
                f"{out} is not empty and holds no {RUN_RECORD}, so its files could be lost: use another --output-dir."
            )
        values = {
            "settings": settings,
            "inputs": inputs,
            "base_model_is_folder": Path(config.base_model).exists(),  # it may have the name of a Hub repository
            "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
            "finished": False,
        }
        record = cls(out, values)
        record.write()
        return record

    def write(self) -> None:
        """Write the record in one step."""
        with atomic_path(self.folder / RUN_RECORD) as temporary:
            temporary.write_text(json.dumps(self.data, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def print_figures(part: str, metrics: Mapping[str, float]) -> None:
        """Show the validation figures of a part beside the progress."""
        rate, error = metrics["hit_rate@1"], metrics["hit_rate@1_se"]
        note(f"{part}: hit_rate@1 {rate:.3f} ± {error:.3f} on {metrics['num_questions']} validation questions")


def is_finished(out: Path) -> bool:
    """Return whether an output folder holds a run that came to its end."""
    return (out / RUN_RECORD).is_file() and bool(read_json(out / RUN_RECORD).get("finished"))


def _has_begun(out: Path) -> bool:
    return (out / "training").exists() or read_json(out / RUN_RECORD).get("finished", True)

"""What `train` returns: the path of a model folder, which a notebook shows with the figures of the run.

Knows nothing about how a model is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle_mllm.data.files import read_json
from bundle_mllm.evaluation.tables import Metrics, value_text
from bundle_mllm.model_folder import RUN_RECORD
from bundle_mllm.pages import notebook_cell

_PARTS = {
    "retriever": "retriever",
    "stage_one": "ranker, stage one",
    "stage_two": "ranker, stage two",
    "both": "both",
}
"""The parts of a run's record, and what readers call them."""


class TrainedModel(type(Path())):
    """The path of the model folder that a run made."""

    def _repr_html_(self) -> str:
        record = read_run(self)
        rows = [
            [part, *(value_text(figures, name, 3) for name in ("hit_rate@1", "mrr")), f"{figures['num_questions']:,}"]
            for part, figures in validation_figures(record).items()
        ]
        title = f"Model folder {self}" + ("" if record.get("finished") else " (training is not finished)")
        head, caption = ["", "hit_rate@1", "MRR", "questions"], "On validation questions, which chose the checkpoints"
        return notebook_cell("table.html", title=title, head=head, rows=rows, caption=caption)


def read_run(folder: Path) -> dict[str, Any]:
    """Read the record of the run that made a model folder."""
    return read_json(folder / RUN_RECORD)


def validation_figures(record: Mapping[str, Any]) -> dict[str, Metrics]:
    """Return the validation figures of each part of a run, by what readers call it."""
    return {label: best for name, label in _PARTS.items() if (best := _best(record.get(name)))}


def _best(figures: Any) -> Metrics:
    """Return the figures of a part; of a stage, which has some for each checkpoint, those of the best."""
    if not isinstance(figures, list):
        return figures or {}
    entries = [{name.removeprefix("validation_"): value for name, value in entry.items()} for entry in figures]
    measured = [entry for entry in entries if "hit_rate@1" in entry]
    return max(measured, key=lambda entry: (entry["hit_rate@1"], entry["log_likelihood"]), default={})

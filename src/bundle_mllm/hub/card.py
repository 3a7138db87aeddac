"""Render the model card: what the model is, what was measured and how it was trained, for people and for the Hub.

Knows nothing about uploading, and measures nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.report_files import card_sections, metrics_files, read_report
from bundle_mllm.hub.repository import read_json
from bundle_mllm.model_folder import CONVERSION_RECORD, RUN_RECORD, SCRATCH, fingerprint

LIBRARY = "transformers"  # what loads the repository, and what the Hub's "use this model" button shows
PIPELINE_TAG = "text-generation"
"""The Hub knows a fixed list of tasks, and "bundle-completion" is not one of them. The model is a causal language
model (`generate` works), and "multiple-choice" is hidden among models."""
TAGS = ("bundle-mllm", "product-bundling", "recommendation", "multimodal", "custom_code", "arxiv:2407.11712")
LICENSE_UNKNOWN = "unknown"
RECORDS = (RUN_RECORD, CONVERSION_RECORD)
"""What says how a model folder was made: by `bundle-mllm train`, or by `bundle-mllm convert`."""
PAIR_NAMES = {
    "user_item": "item and user",
    "bundle_item": "item and training bundle",
    "bundle_category": "category and training bundle",
    "textual": "item and word",
}
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]*")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


@dataclass(frozen=True)
class Measurement:
    """One metrics file.

    Attributes:
        path: The file.
        values: What it holds, see `evaluate`.
        split: What the card calls its questions: the name of the question file as a split of a data set.
    """

    path: Path
    values: Mapping[str, Any]
    split: str

    @property
    def made(self) -> Mapping[str, Any]:
        """How the questions were made (split, negatives, seed), as far as the metrics say so."""
        made = (self.values.get("questions") or {}).get("made")
        return made if isinstance(made, Mapping) else {}


def read_measurements(model_dir: Path, paths: Sequence[Path] = ()) -> list[Measurement]:
    """Read metrics files: those given; where none is, those of a model folder but of baselines; else its report's.

    Raises:
        BundleMLLMError: A file is no metrics file, speaks of another model, or two speak of the same questions.
    """
    measurements: dict[str, Measurement] = {}
    files = [Path(path) for path in paths or sorted(model_dir.glob("metrics*.json"))]
    files = files or metrics_files(model_dir, read_report(model_dir))
    expected = fingerprint(model_dir) if files else None
    for path in files:
        values = read_json(path)
        if not paths and "baseline" in values:
            continue
        _check_metrics(path, values, model_dir, expected)
        questions = values.get("questions") or {}
        split = split_name(re.split(r"[/\\]", questions.get("path") or path.name)[-1])
        if (other := measurements.get(split)) is not None:
            if questions.get("sha256") == (other.values.get("questions") or {}).get("sha256"):
                raise BundleMLLMError(
                    f"{other.path} and {path} both measure the questions {split!r}, so it is unclear which figure "
                    "holds: give one of them."
                )
            split = f"{split}_{str(questions.get('sha256'))[:8]}"
        measurements[split] = Measurement(path, values, split)
    return list(measurements.values())


def split_name(file_name: str) -> str:
    """Return the name of a question file as one that `datasets` accepts for a split, which is never "all"."""
    name = re.sub(r"\W+", "_", file_name.split(".")[0]).strip("_") or "questions"
    return "all_questions" if name == "all" else name


def render_model_card(
    model_dir: Path,
    repo_id: str,
    measurements: Sequence[Measurement],
    *,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    license: str = LICENSE_UNKNOWN,
    allow_no_metrics: bool = False,
    report: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Render the card of a model folder.

    Args:
        model_dir: The folder; `config.json` and `items.jsonl` are read and, where it has one, its record.
        repo_id: The repository the card is for.
        measurements: What was measured.
        base_model: Hub name of the base model; by default what the run record says, unless that is a local folder.
        datasets: Hub names of the data sets it was trained on.
        license: The Hub's identifier of the license.
        allow_no_metrics: Whether a card without metrics is meant.
        report: The folder's report (see `read_report`), whose main figures the card shows.

    Returns:
        The card; its metadata have been read back once.

    Raises:
        BundleMLLMError: There are no metrics, a name or the license is malformed, or training has not finished.
    """
    if not measurements and not allow_no_metrics:
        raise BundleMLLMError(
            f"There are no metrics of {model_dir}, so its card would not say how good it is: run `bundle-mllm "
            f"evaluate --model {model_dir} … --output {model_dir / 'metrics.json'}` or `bundle-mllm report --model "
            f"{model_dir}`, give --metrics FILE, or say --allow-no-metrics."
        )
    check_license(license)
    for what, names in (("base model", [base_model] if base_model else []), ("data set", datasets)):
        for name in names:
            if not is_hub_name(name):
                raise BundleMLLMError(
                    f"The {what} {name!r} is no name on the Hub, so the card would link to nothing: write owner/name, "
                    "or leave it out."
                )
    config = read_json(model_dir / "config.json")
    record_path = find_record(model_dir)
    record = {} if record_path is None else read_json(record_path)
    if record.get("finished") is False:
        raise BundleMLLMError(
            f"The training run in {model_dir} is not finished: give the same `bundle-mllm train` command again first."
        )
    base_model = base_model or known_base_model(record)
    metadata = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=PIPELINE_TAG,
        license=license,
        base_model=base_model,
        datasets=list(datasets) or None,
        tags=list(TAGS),
        model_name=repo_id.split("/")[-1],
        eval_results=[result for m in measurements for result in _eval_results(m, datasets)],
    )
    if not measurements:
        metadata.eval_results, metadata.model_name = None, None
    stages = _stages(record)
    text = card_template("model_card.md").render(
        metadata=metadata.to_yaml(),
        repo_id=repo_id,
        name=repo_id.split("/")[-1],
        base_model_text=_base_model_text(base_model, record),
        data_text=", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in datasets)
        or escape_markdown(_data_name(record) or "not published"),
        num_items=config.get("num_items", 0),
        modalities=config.get("modalities") or {},
        matching=config.get("matching_hidden_size") is not None,
        relations=config.get("relations") or {},
        pair_names=PAIR_NAMES,
        dtype=str(config.get("dtype") or "float32"),
        license_text="not stated; those of base model and data apply" if license == LICENSE_UNKNOWN else license,
        example=_example(model_dir),
        measurements=[_row(m) for m in measurements],
        report_sections=card_sections(report),
        stages=stages,
        stage_rows=_stage_rows(stages),
        seed=(record.get("settings") or {}).get("seed", "unknown"),
        has_record=bool(record),
    )
    return ModelCard(text)


def check_license(license: str) -> None:
    """Check that a license can be one of the Hub's identifiers; whether it is one, the Hub says before the upload.

    Raises:
        BundleMLLMError: It cannot.
    """
    if not _LICENSE.fullmatch(license):
        raise BundleMLLMError(
            f'The license {license!r} is no identifier of the Hub: write one such as "apache-2.0", "cc-by-4.0", '
            f'"llama2", "other", or "{LICENSE_UNKNOWN}".'
        )


def find_record(model_dir: Path) -> Path | None:
    """Return the file that says how a model folder was made, if there is one."""
    return next((path for name in RECORDS if (path := model_dir / name).exists()), None)


def known_base_model(record: Mapping[str, Any]) -> str | None:
    """Return the base model of a run record if that is a name on the Hub: no folder of this machine, not "scratch"."""
    name = (record.get("settings") or record).get("base_model")
    if not isinstance(name, str) or name == SCRATCH or not is_hub_name(name):
        return None
    return None if record.get("base_model_is_folder", Path(name).exists()) else name


def is_hub_name(name: str) -> bool:
    """Return whether a repository of the Hub can have this name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def escape_markdown(value: Any) -> str:
    """Return a text as Markdown that shows it literally, on one line, also within a table."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))


def card_template(name: str) -> jinja2.Template:
    """Return a template of this folder, with the filters `md` (literal Markdown) and `json`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": escape_markdown, "json": json.dumps}
    return environment.get_template(name)


def _check_metrics(path: Path, values: Mapping[str, Any], model_dir: Path, expected: str | None) -> None:
    rate = values.get("hit_rate@1")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
        raise BundleMLLMError(
            f"{path} has {rate!r} as hit_rate@1, so it is no metrics file: write it with `bundle-mllm evaluate`."
        )
    measured = values.get("fingerprint")
    if measured is None or measured != expected:
        known = f"{path} measured {values.get('model')}, with other weights, items or wording than {model_dir} has"
        problem = f"{path} does not say which weights it measured" if measured is None else known
        raise BundleMLLMError(
            f"{problem}, so the card might report another model: run `bundle-mllm evaluate --model {model_dir}` again."
        )


def _eval_results(measurement: Measurement, datasets: Sequence[str]) -> list[EvalResult]:
    values, made = measurement.values, measurement.made
    name = datasets[0] if datasets else re.split(r"[/\\]", str(values.get("data") or "bundles").rstrip("/\\"))[-1]
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-") or "bundles"
    arguments = {field: values[field] for field in ("num_questions", "num_bundles") if field in values}
    arguments |= {field: (values.get("questions") or {}).get(field) for field in ("num_candidates", "sha256")}
    arguments |= {field: made[field] for field in ("negatives", "seed") if field in made}
    error = values.get("hit_rate@1_se")
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name="Bundle completion",
            dataset_type=name if datasets else slug,
            dataset_name=name,
            dataset_config="questions",
            dataset_split=split_name(str(made.get("split") or measurement.split)),
            metric_type=field,
            metric_name=f"{title} ({made['negatives']} negatives)" if "negatives" in made else title,
            metric_value=round(float(values[field]), 6),
            metric_args={**arguments, "standard_error": error if field == "hit_rate@1" and _finite(error) else None},
        )
        for field, title in (("hit_rate@1", "HitRate@1"), ("valid_ratio", "ValidRatio"))
        if _finite(values.get(field))
    ]


def _questions_text(measurement: Measurement) -> str:
    """Say what was asked: the split and kind of negatives where the metrics know them, and the file's name."""
    made = measurement.made
    known = [str(made["split"])] if made.get("split") else []
    known += [f"{made['negatives']} negatives"] if "negatives" in made else []
    return f"{', '.join(known)} ({measurement.split})" if known else measurement.split


def _row(measurement: Measurement) -> dict[str, str]:
    values = measurement.values
    error, valid, chance = (values.get(field) for field in ("hit_rate@1_se", "valid_ratio", "random_hit_rate@1"))
    options = (values.get("questions") or {}).get("num_candidates")
    counts = f"{values.get('num_questions', '?')} ({values.get('num_bundles', '?')})"
    return {
        "questions": _questions_text(measurement),
        "options": "–".join(map(str, dict.fromkeys(options))) if options else "not recorded",
        "hit_rate": f"{values['hit_rate@1']:.3f}" + (f" ± {error:.3f}" if _finite(error) else ""),
        "random": f"{chance:.3f}" if _finite(chance) else "not recorded",
        "valid_ratio": f"{valid:.3f}" if _finite(valid) else "not recorded",
        "counts": escape_markdown(counts),
    }


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _base_model_text(base_model: str | None, record: Mapping[str, Any]) -> str:
    if base_model is not None:
        return f"[{base_model}](https://huggingface.co/{base_model})"
    if (record.get("settings") or {}).get("base_model") == SCRATCH:
        return "none: a small Llama without pretraining on text"
    return "a language model that is not named here"


def _data_name(record: Mapping[str, Any]) -> str | None:
    data = (record.get("settings") or {}).get("data")
    return re.split(r"[/\\]", data.rstrip("/\\"))[-1] if isinstance(data, str) else None


def _example(model_dir: Path) -> dict[str, list[str]]:
    """Return a question about the first items of the catalog, for the code that shows how to ask."""
    with open(model_dir / "items.jsonl", encoding="utf-8") as file:
        ids = [json.loads(line)["item_id"] for line in islice(file, 5)]
    ids = ids if len(ids) >= 3 else ["ID", "ID", "ID"]
    split = 2 if len(ids) > 4 else 1
    return {"partial": ids[:split], "candidates": ids[split:]}


def _stages(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    titles = {"stage_one": "stage one (bundle patterns)", "stage_two": "stage two (multimodal semantics)"}
    settings = record.get("settings") or {}
    return [
        {"title": title, **settings[name], "validations": record.get(name) or []}
        for name, title in titles.items()
        if isinstance(settings.get(name), dict) and settings[name].get("num_questions")
    ]


def _stage_rows(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    rows = {
        "a question shows": lambda s: "titles and item tokens" if s["shows_items"] else "titles",
        "trained": lambda s: ", ".join(s["trains"]),
        "questions": lambda s: f"{s['num_questions']}",
        "options": lambda s: "–".join(map(str, dict.fromkeys(s["num_candidates"]))),
        "hard negatives": lambda s: f"{s['hard_fraction']:.0%}",
        "questions per step": lambda s: f"{s['batch_size'] * s['gradient_accumulation_steps']}",
        "learning rate": lambda s: f"{s['learning_rate']:g}, {s['lr_scheduler_type']}",
        "LoRA": lambda s: f"r {s['lora']['r']}, α {s['lora']['alpha']}" if "lora" in s["trains"] else "no",
        "precision": lambda s: "bf16 (mixed)" if s["bf16"] else "that of the weights",
        "validation HitRate@1": _best_validation,
    }
    try:
        return [(label, [value(stage) for stage in stages]) for label, value in rows.items()]
    except (KeyError, TypeError) as error:
        raise BundleMLLMError(
            f"The training record lacks {error}, so it was not written by `bundle-mllm train`: remove that from "
            "the model folder to publish without it."
        ) from error


def _best_validation(stage: Mapping[str, Any]) -> str:
    names = ("validation_hit_rate@1", "validation_log_likelihood")
    entries = [entry for entry in stage["validations"] if all(_finite(entry.get(name)) for name in names)]
    if not entries:
        return "none; last checkpoint"
    best = max(entries, key=lambda entry: tuple(entry[name] for name in names))
    return f"{best[names[0]]:.3f} ({best.get('validation_num_questions', '?')} questions), step {best['step']}"

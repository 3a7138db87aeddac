"""Render the model card: what the model is, what was measured and how it was trained, for readers and for the Hub.

Knows nothing about uploading, and measures nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bundle_mllm.data.files import read_json
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.records import METRICS, public_record, public_settings
from bundle_mllm.hub.report_files import card_sections, metrics_files
from bundle_mllm.hub.schema import WithheldError, hub_name, rebuild
from bundle_mllm.hub.settings import LICENSE_UNKNOWN, PublishSettings
from bundle_mllm.model_folder import CONVERSION_RECORD, RUN_RECORD, fingerprint
from bundle_mllm.modeling.completion_bundle_mllm import RETRIEVER_FOLDER
from bundle_mllm.modeling.configuration_bundle_mllm import BundleMLLMConfig, BundleRetrieverConfig
from bundle_mllm.settings import NO_RANKER, SCRATCH

TAGS = ("bundle-mllm", "product-bundling", "recommendation", "multimodal", "custom_code", "arxiv:2407.11712")
PAIR_NAMES = {
    "user_item": "item and user",
    "bundle_item": "item and training bundle",
    "bundle_category": "category and training bundle",
    "textual": "item and word",
    "attributes": "item and brand, tag or other name",
}
_STEPS = {
    "retriever": "retriever",
    "stage_one": "ranker, stage one (bundle patterns)",
    "stage_two": "ranker, stage two (multimodal semantics)",
}
_BASE_MODEL_TEXTS = {
    NO_RANKER: "none",
    SCRATCH: "none: a small Llama without pretraining on text",
}
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]*")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


@dataclass(frozen=True)
class Measurement:
    """One metrics file: its path, what is published of it, and the name of its question file as that of a split."""

    path: Path
    values: Mapping[str, Any]
    split: str

    @property
    def questions(self) -> Mapping[str, Any]:
        """File name, SHA-256, numbers of candidates and making of the questions, as far as recorded."""
        return self.values.get("questions") or {}

    @property
    def made(self) -> Mapping[str, Any]:
        """How the questions were made (split, negatives, seed), as far as recorded."""
        return self.questions.get("made") or {}

    def parts(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the metrics of ranker and retriever together and alone; or of the only part."""
        parts = self.values.get("parts") or {}
        rows = [(name, parts[name]) for name in ("both", "ranker", "retriever") if isinstance(parts.get(name), dict)]
        yield from rows if len(rows) > 1 else [(self.values.get("part", "model"), self.values)]


def read_measurements(model_dir: Path, paths: Sequence[Path] = ()) -> list[Measurement]:
    """Read metrics files: those given; else those of a model folder, without baselines and parts; else of its report.

    Raises:
        BundleMLLMError: If a file is no metrics file, or is of another model or a part of one, or two are of the same
            questions.
    """
    measurements: dict[str, Measurement] = {}
    files = {path: read_json(path) for path in paths or sorted(model_dir.glob("metrics*.json"))}
    if not paths:
        files = {path: given for path, given in files.items() if not {"baseline", "protocol"} & given.keys()}
        files = {path: given for path, given in files.items() if not _is_part(given)}
        files = files or {path: read_json(path) for path in metrics_files(model_dir)}
    expected = fingerprint(model_dir) if files else None
    for path, given in files.items():
        measurement = _measurement(path, given, model_dir, expected)
        split, digest = measurement.split, measurement.questions.get("sha256")
        if (other := measurements.get(split)) is not None:
            if digest == other.questions.get("sha256"):
                raise BundleMLLMError(f"{other.path} and {path} both measure the questions {split!r}: give one file.")
            split = f"{split}_{str(digest)[:8]}"
        measurements[split] = Measurement(path, measurement.values, split)
    return list(measurements.values())


def _is_part(metrics: Mapping[str, Any]) -> bool:
    """Return whether metrics are of the ranker or retriever of a model that holds both: a whole one lists `parts`."""
    return "part" in metrics and "parts" not in metrics


def _measurement(path: Path, given: Mapping[str, Any], model_dir: Path, expected: str | None) -> Measurement:
    values = rebuild(dict(given), METRICS)
    rate = values.get("hit_rate@1")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise BundleMLLMError(
            f"{path} is no metrics file, its hit_rate@1 is {given.get('hit_rate@1')!r}: use `bundle-mllm evaluate`."
        )
    if _is_part(given):
        raise BundleMLLMError(f"{path} is of one part of the model: give the metrics file of the whole model.")
    if (measured := values.get("fingerprint")) is None or measured != expected:
        other = f"measured other weights, items or wording than {model_dir} has"
        problem = "does not name the weights it measured" if measured is None else other
        raise BundleMLLMError(
            f"{path} {problem}, so the card might be of another model: run `bundle-mllm evaluate --model {model_dir}`."
        )
    return Measurement(path, values, split_name((values.get("questions") or {}).get("path") or path.name))


def split_name(file_name: str) -> str:
    """Return the name of a question file as one that `datasets` accepts for a split, which is never "all"."""
    name = re.sub(r"\W+", "_", file_name.split(".")[0]).strip("_") or "questions"
    return "all_questions" if name == "all" else name


def render_model_card(
    settings: PublishSettings, measurements: Sequence[Measurement], report: Mapping[str, Any] | None = None
) -> ModelCard:
    """Render the card of a model folder from the settings of `publish`, what was measured, and `read_report`.

    Raises:
        BundleMLLMError: If there are no metrics, a name or the license is malformed, or training has not finished.
    """
    model_dir, base_model, datasets = settings.model, settings.base_model, settings.datasets
    if not measurements and not settings.allow_no_metrics:
        raise BundleMLLMError(
            f"There are no metrics of {model_dir}, so its card would not state how good it is: run `bundle-mllm "
            f"evaluate` or `bundle-mllm report --model {model_dir}`, give --metrics FILE, or add --allow-no-metrics."
        )
    check_license(settings.license)
    for what, name in (*(("base model", name) for name in [base_model] if name), *(("data set", n) for n in datasets)):
        try:
            hub_name(name)
        except WithheldError as error:
            raise BundleMLLMError(
                f"The {what} {name!r} is no name on the Hub, so the card would link to nothing: write owner/name."
            ) from error
    record_path = find_record(model_dir)
    record = {} if record_path is None else public_record(read_json(record_path))
    if record.get("finished") is False:
        raise BundleMLLMError(f"The training in {model_dir} is not finished: repeat its `bundle-mllm train` first.")
    recorded_settings = record.get("settings") or {}
    recorded = recorded_settings.get("base_model") or record.get("base_model")
    base_model = base_model or (None if recorded in (SCRATCH, NO_RANKER) else recorded)
    config = public_settings(model_dir / "config.json")
    has_ranker = config.get("model_type") != BundleRetrieverConfig.model_type
    has_letters = config.get("model_type") == BundleMLLMConfig.model_type
    retriever = {} if has_ranker else config
    if (model_dir / RETRIEVER_FOLDER).is_dir():
        retriever = public_settings(model_dir / RETRIEVER_FOLDER / "config.json")
    name = settings.repo.split("/")[-1]
    tag = "text-generation" if has_letters else "feature-extraction"  # the Hub's list of tasks lacks bundle completion
    metadata = ModelCardData(
        library_name="transformers",  # what the Hub's "use this model" button shows
        pipeline_tag=tag,
        license=settings.license,
        base_model=base_model,
        datasets=list(datasets) or None,
        tags=list(TAGS),
        model_name=name if measurements else None,
        eval_results=[result for m in measurements for result in _eval_results(m, datasets, tag, has_letters)] or None,
    )
    trained = {"retriever": bool(retriever), "stage_one": has_ranker, "stage_two": has_ranker}
    steps = {
        _STEPS[part]: _published_step(step, record.get(part))
        for part, is_present in trained.items()
        if is_present and (step := recorded_settings.get(part)) and step.get("num_questions")
    }
    text = card_template("model_card.md").render(
        metadata=metadata.to_yaml(),
        repo_id=settings.repo,
        name=name,
        base_model_text=f"[{base_model}](https://huggingface.co/{base_model})"
        if base_model
        else _BASE_MODEL_TEXTS.get(str(recorded), "a language model that is not named here"),
        datasets=datasets,
        num_items=config.get("num_items") or 0,
        modalities={**(config.get("modalities") or {}), **(retriever.get("modalities") or {})},
        has_ranker=has_ranker,
        has_letters=has_letters,
        has_retriever=bool(retriever),
        memberships=retriever.get("memberships") or {},
        pair_names=PAIR_NAMES,
        dtype=str(config.get("dtype") or "float32"),
        license=None if settings.license == LICENSE_UNKNOWN else settings.license,
        example=_example(model_dir),
        rows=[row for m in measurements for row in _rows(m, has_letters)],
        report_sections=card_sections(report),
        steps=list(steps),
        setting_rows=_setting_rows(steps),
        seed=recorded_settings.get("seed", "unknown"),
        has_record=bool(record),
    )
    return ModelCard(text)


def check_license(license: str) -> None:
    """Refuse a license that cannot be one of the Hub's identifiers; whether it is one, the Hub checks later.

    Raises:
        BundleMLLMError: If it cannot be one.
    """
    if not _LICENSE.fullmatch(license):
        raise BundleMLLMError(
            f'The license {license!r} is no identifier of the Hub: write "apache-2.0", "other", "{LICENSE_UNKNOWN}", …'
        )


def find_record(model_dir: Path) -> Path | None:
    """Return the record of how a model folder was made, if there is one."""
    return next((path for name in (RUN_RECORD, CONVERSION_RECORD) if (path := model_dir / name).exists()), None)


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


def _eval_results(measurement: Measurement, datasets: Sequence[str], tag: str, has_letters: bool) -> list[EvalResult]:
    values, made = measurement.values, measurement.made
    arguments = {field: values[field] for field in ("num_questions", "num_bundles") if field in values}
    arguments |= {field: measurement.questions.get(field) for field in ("num_candidates", "sha256")}
    arguments |= {field: made[field] for field in ("negatives", "seed") if field in made}
    error, dataset = values.get("hit_rate@1_se"), datasets[0] if datasets else "bundles"
    return [
        EvalResult(
            task_type=tag,
            task_name="Bundle completion",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_config="questions",
            dataset_split=str(made.get("split") or measurement.split),
            metric_type=field,
            metric_name=f"{title} ({made['negatives']} negatives)" if "negatives" in made else title,
            metric_value=round(float(values[field]), 6),
            metric_args={**arguments, "standard_error": error if field == "hit_rate@1" else None},
        )
        for field, title in (("hit_rate@1", "HitRate@1"), ("valid_ratio", "ValidRatio"))
        if values.get(field) is not None and (has_letters or field != "valid_ratio")
    ]


def _rows(measurement: Measurement, has_letters: bool) -> Iterator[list[str]]:
    """Yield the row of each part in the table of results; only letters can be valid or not."""
    values = measurement.values
    forms = {"split": "{}", "negatives": "{} negatives"}
    known = [form.format(measurement.made[name]) for name, form in forms.items() if name in measurement.made]
    questions = f"{', '.join(known)} ({measurement.split})" if known else measurement.split
    options = "–".join(map(str, dict.fromkeys(measurement.questions.get("num_candidates") or ["not recorded"])))
    counts = f"{values.get('num_questions', '?')} ({values.get('num_bundles', '?')})"
    for part, metrics in measurement.parts():
        rate, error = _decimals(metrics.get("hit_rate@1")), metrics.get("hit_rate@1_se")
        rate += f" ± {_decimals(error)}" if error is not None else ""
        random, valid = (_decimals(each) for each in (values.get("random_hit_rate@1"), metrics.get("valid_ratio")))
        yield [questions, options, part, rate, random, valid if has_letters and part != "retriever" else "–", counts]


def _decimals(value: float | None) -> str:
    return "not recorded" if value is None else f"{value:.3f}"


def _example(model_dir: Path) -> dict[str, list[str]]:
    """Return a question about the first items of the catalog, for the code that shows how to ask."""
    with open(model_dir / "items.jsonl", encoding="utf-8") as file:
        ids = [json.loads(line)["item_id"] for line in islice(file, 5)]
    ids = ids if len(ids) >= 3 else ["ID", "ID", "ID"]
    split = 2 if len(ids) > 4 else 1
    return {"partial": ids[:split], "candidates": ids[split:]}


def _published_step(step: Mapping[str, Any], entries: Any) -> dict[str, Any]:
    """Return the settings of a step of training, and the best of its validations, which chose its checkpoint."""
    names = ("validation_hit_rate@1", "validation_log_likelihood", "step")
    known = [[entry.get(name) for name in names] for entry in _list(entries) if isinstance(entry, dict)]
    known = [each for each in known if all(isinstance(value, int | float) for value in each)]
    best = f"{max(known)[0]:.3f}, step {max(known)[2]}" if known else None
    shown = {name: value for name, value in step.items() if name != "lora" or name in _list(step.get("trains"))}
    return {**shown, "validation HitRate@1": best}


def _list(value: Any) -> list[Any]:
    """Return a list of a record; an empty one in place of anything else."""
    return value if isinstance(value, list) else []


def _setting_rows(steps: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the settings of all steps of training as a table, whose last row is the best validation."""
    names = dict.fromkeys(name for step in steps.values() for name, value in step.items() if value is not None)
    ordered = sorted(names, key=lambda name: name.startswith("validation "))
    return [[name, *(_cell(step.get(name)) for step in steps.values())] for name in ordered]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(entry)}" for name, entry in value.items() if entry is not None)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)

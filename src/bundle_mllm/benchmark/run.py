"""Run a benchmark: import, leakage check, fixed questions, baselines and models, table.

Knows nothing about the layouts of data sets, nor how a method scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers.utils import logging

from bundle_mllm.baselines.evaluate import baseline_path, evaluate_baselines
from bundle_mllm.baselines.registry import resolve_names
from bundle_mllm.benchmark.settings import BenchmarkSettings
from bundle_mllm.benchmark.table import BenchmarkDict, Measured, make_table
from bundle_mllm.data.files import atomic_path, read_json, sha256, write_json
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.leakage import measure_leakage
from bundle_mllm.data.manifest import manifest_path, read_question_manifest
from bundle_mllm.data.tables import find_table
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.evaluate import evaluate
from bundle_mllm.evaluation.results import load_metrics, part_path
from bundle_mllm.importers.bundlerec import import_bundlerec
from bundle_mllm.importers.official import import_official
from bundle_mllm.importers.polyvore import import_polyvore
from bundle_mllm.model_folder import fingerprint
from bundle_mllm.question_file import write_questions
from bundle_mllm.settings import as_dict, configured_by

logger = logging.get_logger(__name__)
LAYOUTS: Mapping[str, tuple[str, Callable[..., Any]]] = {
    "count.json": ("official", import_official),
    "bundle_item.csv": ("bundlerec", import_bundlerec),
    "train.json": ("polyvore", import_polyvore),
}
"""The file by which a published layout is known, its name and importer."""
WHOLE_CATALOG = "catalog"
"""The name of the questions without candidates among the sets of questions."""
RECORD, TABLE = "benchmark.json", "benchmark.md"
INPUTS = "inputs.json"
"""What the figures of an output folder were measured of: hashes of the data, and the version of the package."""


@configured_by(BenchmarkSettings)
def run_benchmark(settings: BenchmarkSettings) -> BenchmarkDict:
    """Measure baselines and models on a data set.

    There are questions with uniform and with hard negatives, the published question files of the split as they are,
    and the whole catalog for the partial bundles of the former.

    Returns:
        What benchmark.json holds: `data` (name, sizes, SHA-256 of its tables), `questions` (of each file SHA-256 and
        number), `leakage` (warnings), `rows` (of each method and set of questions the metric, its standard error, and
        the paired difference to the reference), `left_out` (baselines that the data cannot serve, and why),
        `settings`, `version`; and `table`, the text of benchmark.md.

    Raises:
        BundleMLLMError: If the layout is unknown, the data are not what they should be, the split has no bundle, the
            tables or questions are not those of an earlier run in this folder, or a model has other items.
    """
    output, folder = settings.output_dir, _open_data(settings)
    inputs = _check_inputs(output, folder)
    tables = inputs["files"]
    leakage = measure_leakage(folder)
    sets = _questions(settings, folder)
    measured: list[Measured] = []
    for model in settings.model:
        measured += _measure_model(model, folder, sets, output / "metrics")
    of_baselines, left_out = _measure_baselines(settings, folder, sets)
    measured += of_baselines
    splits = {split: len(folder.bundles[split]) for split in ("train", "validation", "test")}
    result: dict[str, Any] = {
        "data": {
            "name": _name(settings),
            "num_items": len(folder.catalog),
            "bundles": splits,
            "tables": tables,
        },
        "questions": {name: _describe(path) for name, path in sets.items() if name != WHOLE_CATALOG},
        "leakage": list(leakage.warnings),
        "left_out": left_out,
        "settings": {key: as_dict(settings)[key] for key in ("split", "num_candidates", "seed", "baselines")},
        "version": inputs["version"],
    }
    result["rows"], text = make_table(result, measured)
    write_json(output / RECORD, result)
    with atomic_path(output / TABLE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return BenchmarkDict(result, table=text)


def _open_data(settings: BenchmarkSettings) -> DatasetFolder:
    """Open a dataset folder, or import another layout once."""
    source, target = settings.source, settings.output_dir / "data"
    if source.is_dir() and find_table(source, "items") is not None:
        return DatasetFolder.open(source)
    if not target.is_dir():
        known = [importer for file, (_, importer) in LAYOUTS.items() if (source / file).is_file()]
        if len(known) != 1:
            layouts = ", ".join(f"{file} ({name})" for file, (name, _) in LAYOUTS.items())
            raise BundleMLLMError(
                f"{source} is no data set of a known layout: give a folder with one of {layouts}, or a dataset folder "
                "(`bundle-mllm import` makes one of other formats)."
            )
        logger.info(str(known[0](source, target)))
    return DatasetFolder.open(target)


def _check_inputs(output: Path, folder: DatasetFolder) -> dict[str, Any]:
    """Return the SHA-256 of tables and features, and the version of the package; note them before the first figure.

    Features may come later, after baselines that need none.

    Raises:
        BundleMLLMError: If they are not those of an earlier run, whose figures would be kept.
    """
    inputs = {"files": folder.input_hashes(), "version": version("bundle-mllm")}
    if (output / INPUTS).is_file():
        before = read_json(output / INPUTS)
        old, new = before["files"], inputs["files"]
        had_features = any(name.startswith("features/") for name in old)
        names = sorted(old.keys() | new.keys() if had_features else old.keys())
        changed = [name for name in names if old.get(name) != new.get(name)]
        if changed or before["version"] != inputs["version"]:
            what = ", ".join(changed) or f"bundle-mllm {before['version']}, now {inputs['version']}"
            raise BundleMLLMError(
                f"{output} holds figures of other data or of another version ({what}), which would stand beside new "
                "ones: give a new --output-dir."
            )
    write_json(output / INPUTS, inputs)
    return inputs


def _questions(settings: BenchmarkSettings, folder: DatasetFolder) -> dict[str, Path]:
    """Make the question files, or find that they are those of an earlier run; name the sets of questions."""
    sets: dict[str, Path] = {}
    for negatives in ("uniform", "hard"):
        path = sets[negatives] = settings.output_dir / "questions" / f"{settings.split}_{negatives}.jsonl"
        earlier = sha256(path) if path.is_file() else None
        kept = path.with_name(f"new-{path.name}")
        write_questions(
            data=folder.path,
            output=kept,
            split=settings.split,
            num_candidates=settings.num_candidates,
            negatives=negatives,
            seed=settings.seed,
        )
        if earlier not in (None, sha256(kept)):
            kept.unlink()
            manifest_path(kept).unlink()
            raise BundleMLLMError(
                f"{path} has other questions than these data and settings give, so figures would not compare: give a "
                "new --output-dir."
            )
        kept.replace(path)
        manifest_path(kept).replace(manifest_path(path))
    published = sorted((folder.path / "questions").glob(f"{settings.split}_*.jsonl"))
    sets |= {f"published_{path.stem.removeprefix(f'{settings.split}_')}": path for path in published}
    return sets | {WHOLE_CATALOG: sets["uniform"]}


def _measure_model(model: Path, folder: DatasetFolder, sets: Mapping[str, Path], metrics: Path) -> list[Measured]:
    """Measure ranker, retriever and both of a model, unless these weights are measured already."""
    print_of_model = fingerprint(model)
    name = f"{model.resolve().name}-{print_of_model[:8] if print_of_model else 'hub'}"
    measured: list[Measured] = []
    for questions, path in sets.items():
        output = metrics / f"{questions}.{name}.json"
        if not _is_measured(output, path):
            evaluate(model, folder.path, path, output, catalog=questions == WHOLE_CATALOG)
        values = load_metrics(output)
        for part in values["parts"]:
            file = output if part == values["part"] else part_path(output, part)
            measured.append(Measured(f"{model.resolve().name}: {part}", questions, file, part == values["part"]))
    return measured


def _measure_baselines(
    settings: BenchmarkSettings, folder: DatasetFolder, sets: Mapping[str, Path]
) -> tuple[list[Measured], dict[str, str]]:
    """Fit each baseline once and measure it on all sets of questions; return also why some are left out."""
    measured, left_out = [], {}
    for name, is_named in resolve_names(settings.baselines, folder).items():
        fitted: dict[str, Any] = {}
        for questions, path in sets.items():
            output = settings.output_dir / "metrics" / f"{questions}.json"
            file = baseline_path(output, name)
            if not _is_measured(file, path):
                options: dict[str, Any] = {"catalog": questions == WHOLE_CATALOG, "fitted": fitted}
                try:
                    evaluate_baselines(folder.path, path, (name,), output, **options)
                except BundleMLLMError as error:
                    if is_named and questions != WHOLE_CATALOG:
                        raise
                    key = f"{name}, {WHOLE_CATALOG}" if questions == WHOLE_CATALOG else name
                    left_out.setdefault(key, str(error).replace(str(folder.path), _name(settings)))
                    continue
            measured.append(Measured(name, questions, file, False))
    return measured, left_out


def _is_measured(file: Path, questions: Path) -> bool:
    return file.is_file() and load_metrics(file)["questions"]["sha256"] == sha256(questions)


def _describe(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as stream:
        return {"sha256": read_question_manifest(path)["sha256"], "number": sum(1 for _ in stream)}


def _name(settings: BenchmarkSettings) -> str:
    return settings.source.resolve().name

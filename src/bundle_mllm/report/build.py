"""Build a report on one or more models: measure, draw, write `report.json` and the page.

Knows nothing about training.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers.utils import logging

from bundle_mllm.completion.media import ItemMedia
from bundle_mllm.data.bundles import SPLITS
from bundle_mllm.data.files import check_unchanged, file_states, sha256, without_nan, write_json
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.manifest import manifest_path
from bundle_mllm.data.questions import MIN_CANDIDATES, spread
from bundle_mllm.errors import BundleMLLMError, check_at_least
from bundle_mllm.evaluation.evaluate import warm_items
from bundle_mllm.report import sections
from bundle_mllm.report.baselines import load_baselines
from bundle_mllm.report.figures import check_drawable, draw
from bundle_mllm.report.measure import PERMUTED, WHOLE, MeasuredModel
from bundle_mllm.report.page import ReportDict, describe_figure, labelled, question_labels, write_page
from bundle_mllm.report.questions import file_name, make_question_sets, open_question_sets
from bundle_mllm.report.settings import ReportSettings
from bundle_mllm.settings import as_dict, configured_by

logger = logging.get_logger(__name__)

REPORT = "report.json"
PACKAGES = ("bundle-mllm", "torch", "transformers", "matplotlib")


@configured_by(ReportSettings)
def build_report(options: ReportSettings) -> ReportDict:
    """Draw the paper's figures on a data set: by stage, by number of candidates, training, cold start, ablation, size.

    Beside these: what other methods find, and sets of answers with a guarantee.

    Every step writes what it measured under `measured/` in the report's folder; a report that was killed, or is made
    again, reads that back wherever model, questions and settings are the same. Each question file is scored once with
    the model as it is, once per stage and once per ablation (twice the number of modalities and titles); the lists of
    growing length cost up to 4,000 prompts each.

    Args:
        options: Whose fields are the arguments: see `ReportSettings`.

    Returns:
        What `report.json` holds: `models`, `data`, `questions`, `sections` (each with `rows`, `figure` and `alt`),
        `examples` (answers to some questions, right and wrong), `left_out` (sections that could not be made, and
        why), `settings`, `versions`, `seconds`. A notebook shows what was found.

    Raises:
        BundleMLLMError: If matplotlib is missing, a path or option is wrong, a model lacks an item, a metrics file is
            of other questions, a file is changed meanwhile, or the folder holds something else.
    """
    check_drawable()
    check_at_least("max_questions", options.max_questions, 1, "nothing would be measured")
    check_at_least("length_questions", options.length_questions, 1, "nothing would be measured")
    for size in options.sizes:
        check_at_least("A number of candidates", size, MIN_CANDIDATES, "it leaves nothing to choose")
    if not options.model:
        raise BundleMLLMError("There is no model to report on: give one or more model folders.")
    folder = DatasetFolder.open(options.data)
    target = options.model[0] / "report" if options.output_dir is None else options.output_dir
    tables = {path.name: sha256(path) for path in folder.tables()}
    key = {"bundle_mllm": version("bundle-mllm"), "tables": tables}
    before = file_states([*options.questions, *map(manifest_path, options.questions), *options.metrics])
    models = [
        MeasuredModel(path, name, target, folder, options, key)
        for path, name in zip(options.model, _names(options.model), strict=True)
    ]
    _check_target(target)
    paths = options.questions or make_question_sets(target / "questions", folder, options, options.seed)
    sets = open_question_sets(paths, folder)
    others = load_baselines(options.metrics, sets)
    for model in models:
        model.check_items(sets)

    first, train_items = models[0], warm_items(folder.bundles)
    stages = first.stages(sets)
    trained = {name: scored for name, scored in stages.items() if name != PERMUTED}
    has_lengths = bool(spread(folder.bundles[options.split], 1))
    rows = {
        "by_stage": sections.by_stage(sets, stages),
        "baselines": sections.baselines(sets, stages[WHOLE], others),
        "bayes_optimal": sections.bayes_optimal(sets, stages, others),
        "by_length": first.by_length() if has_lengths else [],
        "ablation": sections.ablation(sets, stages[WHOLE], first.ablations(sets)),
        "cold_start": sections.cold_start(sets, trained, train_items),
        "training": sections.training(first.history()),
        "position": sections.position(sets, stages[WHOLE], first.info["max_options"]),
        "prediction_sets": sections.prediction_sets(sets, [first.prediction_sets(each) for each in sets]),
        "backbones": sections.backbones(sets, [(m.about, m.whole(sets)) for m in models] if models[1:] else []),
    }
    rows = {name: without_nan(section) for name, section in rows.items()}
    seconds = {f"{model.name}: {step}": seconds for model in models for step, seconds in model.seconds.items()}
    result: dict[str, Any] = {
        "models": [model.about for model in models],
        "data": {
            "name": folder.path.resolve().name,
            "num_items": len(folder.catalog),
            "bundles": {name: len(folder.bundles[name]) for name in SPLITS},
            "tables": tables,
        },
        "questions": [
            {**each.summary(), "metrics": first.metrics_file(each).relative_to(target).as_posix()} for each in sets
        ],
        "sections": {},
        "examples": first.examples(sets[0]),
        "left_out": {name: _MISSING[name] for name, section in rows.items() if not section},
        "settings": {name: as_dict(options)[name] for name in ("split", "sizes", "length_questions", "seed")},
        "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "seconds": {"total": round(sum(seconds.values()), 1), "steps": seconds},
    }
    labels = question_labels(result["questions"])
    for name, section in rows.items():
        if section:
            figure = f"figures/{name}.png"
            shown = labelled(section, labels)
            draw(name, shown, {labels[each.name]: each.chance for each in sets}, target / figure)
            result["sections"][name] = {"figure": figure, "alt": describe_figure(name, shown), "rows": section}
    media = ItemMedia.open(folder.path)
    check_unchanged(before)
    for model in models:
        model.check_unchanged()
    write_json(target / REPORT, result)
    write_page(result, target, media)
    if media.missing:
        names = ", ".join(sorted(media.missing)[:3])
        logger.warning(f"{len(media.missing)} files that {folder.path} names cannot be shown, such as {names}.")
    return ReportDict(result)


_MISSING = {
    "by_length": "no number of candidates was given, or the split has no bundle of two items.",
    "ablation": "the model reads a single source of information, so none can be masked.",
    "training": "the model folder has no history of its training.",
    "prediction_sets": "the model is not calibrated, or the questions are about the bundles that calibrated it: give "
    "questions about others (--split test, or --questions).",
    "position": "there is no ranker, or every question has more candidates than one prompt and so no letters.",
    "baselines": "no metrics files of other methods were given (--metrics).",
    "bayes_optimal": "no metrics file of the best possible answers was given; they are known of invented data alone.",
    "backbones": "one model was given; give several to compare their sizes.",
}
"""Why a section may have no rows."""


def _names(models: Sequence[Path]) -> list[str]:
    """Return the folders' own names, with a number where several have the same."""
    names: list[str] = []
    for path in models:
        name = file_name(path.resolve().name) or "model"
        alike = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({alike + 1})" if alike else name)
    return names


def _check_target(target: Path) -> None:
    """Refuse a folder that something else than a report lies in."""
    own = {"questions", "measured", "figures", REPORT, "report.html"}
    others = sorted(path.name for path in target.glob("[!.]*") if path.name not in own)
    if target.is_file() or others:
        problem = f"holds {others[0]!r}" if others else "is a file"
        raise BundleMLLMError(
            f"{target} {problem} and is no report's folder, so files could be overwritten: give a new --output-dir."
        )

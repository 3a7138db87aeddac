"""The commands: each is a function of the API, the settings that are its options, and how its result is shown.

Knows nothing that the API does not offer. The modules that a command needs are imported when it runs.
"""

from __future__ import annotations

import json as json_format
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bundle_mllm.cli import show
from bundle_mllm.errors import BundleMLLMError

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        summary: One line for `bundle-mllm --help`.
        settings: Dataclasses whose fields are the options: MODULE:CLASS below the package, separated by blanks.
        run: Called with a value for each option; a function, or MODULE:FUNCTION below the package.
        show: Makes the text to print of the result and the options.
        defaults: Defaults of the command line where they differ from those of the fields.
        positional: Fields that are given without a name.
        recipe: Where defaults depend on other arguments: takes the arguments, returns the defaults and a description.
        continues: Whether the command keeps what it has done when it is interrupted, and goes on from there.
    """

    summary: str
    settings: str
    run: str | Callable[..., Any]
    show: Callable[[Any, Options], str] = lambda result, options: str(result)
    defaults: Options = field(default_factory=dict)
    positional: tuple[str, ...] = ()
    recipe: Callable[[Sequence[str]], tuple[Options, str | None]] | None = None
    continues: bool = False


def _synthetic(output_dir: Path, signal: Any, theme_purity: float | None, **options: Any) -> Any:
    from bundle_mllm.synthetic.settings import SyntheticSettings, one_signal
    from bundle_mllm.synthetic.write import make_synthetic

    settings = SyntheticSettings(**options) if signal is None else one_signal(signal, **options)
    if theme_purity is not None:
        settings = replace(settings, theme_purity=theme_purity)
    return make_synthetic(output_dir, settings)


def _best_accuracy(data: Path, questions: Path, output: Path, metrics: Sequence[Path], signals: Any) -> Any:
    from bundle_mllm.synthetic.bayes import bayes_optimal, share_of_bayes_optimal

    best = bayes_optimal(data, questions, output, signals=signals)["bayes_optimal"]
    return best, {path: share_of_bayes_optimal(path, output) for path in metrics}


def _encode(**options: Any) -> str:
    from bundle_mllm.encoders.encode import encode_folder
    from bundle_mllm.progress import progress_bars

    with progress_bars() as show_part:
        return str(encode_folder(**options, progress=show_part))


def _check(data: Path, **options: Any) -> Any:
    from bundle_mllm.data.folder import DatasetFolder
    from bundle_mllm.data.leakage import measure_leakage

    return measure_leakage(DatasetFolder.open(data), **options)


def _train(config: Path | None, **options: Any) -> Path:  # config: see _recipe
    from bundle_mllm.training.config import RunConfig
    from bundle_mllm.training.run import train

    return train(RunConfig(**options))


def _evaluate(
    model: Path | None,
    data: Path,
    questions: Path,
    baselines: tuple[str, ...],
    mask: tuple[str, ...],
    permute: tuple[str, ...],
    ranker: str | None,
    coverage: tuple[float, ...],
    **options: Any,
) -> str:
    if model is None and not baselines:
        raise BundleMLLMError("There is nothing to evaluate: give --model OUT, --baselines all, or both.")
    if model is None and (mask or permute or ranker or coverage):
        raise BundleMLLMError(
            "--mask, --permute, --ranker and --coverage are about a model, but there is none: give --model OUT."
        )
    from bundle_mllm.evaluation.tables import Row

    rows: dict[str, Row] = {}
    if model is not None:
        from bundle_mllm.evaluation.evaluate import evaluate

        altered: Options = {"mask": mask, "permute": permute, "ranker": ranker}
        metrics = evaluate(model, data, questions, **altered, coverage=coverage, **options)
        show.say(show.metrics(metrics, options))
        rows |= {part: Row(values) for part, values in metrics["parts"].items()}
    if baselines:
        from bundle_mllm.baselines.evaluate import BaselineResult, evaluate_baselines
        from bundle_mllm.evaluation.results import compare_metrics

        def report(result: BaselineResult) -> None:
            show.note(f"{result.name}: {result.skipped or f'{result.seconds:.1f} s, {result.path}'}")

        for result in evaluate_baselines(data, questions, baselines, report=report, **options):
            if result.metrics is not None:
                paired = model is not None and result.path is not None
                differences = compare_metrics(options["output"], str(result.path)) if paired else {}
                rows[result.name] = Row(result.metrics, result.seconds, differences)
    if (advice := show.advice(rows)) is not None:
        show.note(advice)
    return show.methods(rows) if baselines and rows else ""


def _complete(
    model: str,
    bundle: str | None,
    candidates: str | None,
    page: int,
    rules: Path | None,
    coverage: float | None,
    explain: bool,
    html: Path | None,
    json: bool,
    **options: Any,
) -> str:
    from bundle_mllm.completion.rules import Rules
    from bundle_mllm.completion.settings import BulkOptions

    given = {each.name: options.pop(each.name) for each in fields(Rules)}
    applied = replace(Rules() if rules is None else Rules.load(rules), **given)
    bulk = {each.name: options.pop(each.name) for each in fields(BulkOptions)}
    if (bundle is None) == (bulk["input"] is None and not bulk["every_item"]):
        raise BundleMLLMError("Which bundle, or bundles? Give one of --bundle ID,ID, --input FILE and --every-item.")
    if bundle is None:
        if candidates is not None or page != 1 or coverage is not None or explain or html or json:
            raise BundleMLLMError(
                "--candidates, --page, --coverage, --explain, --html and --json are about one --bundle: write "
                "`candidates` into the file of --input, and leave the others out."
            )
        from bundle_mllm.completion.bulk import complete_bulk
        from bundle_mllm.progress import progress_bars

        with progress_bars() as show_part:
            written = complete_bulk(model=model, rules=applied, progress=show_part, **bulk, **options)
        return f"answers: {written}"
    if ignored := [name for name in ("output", "layout", "engine") if bulk[name] != getattr(BulkOptions, name)]:
        raise BundleMLLMError(
            f"--{ignored[0]} is about many bundles, but --bundle is one: write it into a file of questions for "
            "--input, or read the answers from --json or --html."
        )
    from bundle_mllm.completion.complete import load_ruled_completer

    loading = {name: bulk[name] for name in ("ranker", "retrieval")}
    completer = load_ruled_completer(model, applied, options["items"], options["device"], **loading)
    question = {"partial": _entries(bundle), "candidates": None if candidates is None else _entries(candidates)}
    asked = {"top_k": options["top_k"], "page": page, "explain": explain or html is not None, "coverage": coverage}
    [answers] = completer.complete([question], batch_size=bulk["batch_size"], **asked)
    answers = replace(answers, notes=(*completer.rules.notes, *answers.notes))
    if html is not None:
        number = len(question["candidates"] or completer.completer.processor.item_ids)
        name = "/".join(Path(model).parts[-2:])
        answers.write_html(html, f"The best {len(answers.items)} of {number:,} items, by {name}.")
        show.note(f"page: {html}" + ("" if options["items"] else " (--items DATA adds pictures)"))
    if not explain:  # the page has explanations all the same
        for item in answers.items:
            item.pop("explanation", None)
    for note in answers.notes:
        show.note(note)
    return json_format.dumps(answers.items, ensure_ascii=False, indent=2) if json else show.ranking(answers.items)


def _entries(text: str) -> list[Any]:
    """Return item ids that are separated by commas, or new items and ids as JSON, such as a list."""
    entries: Any = [item_id for part in text.split(",") if (item_id := part.strip())]
    if any(entry.startswith(("[", "{")) for entry in entries):
        try:
            entries = json_format.loads(text if text.lstrip().startswith("[") else f"[{text}]")
        except ValueError as error:
            raise BundleMLLMError(
                f'{text!r} is no JSON list ({error}): write it as ["a12", {{"title": "linen shirt"}}].'
            ) from error
    if not entries or not all(isinstance(entry, str | dict) for entry in entries):
        raise BundleMLLMError(
            f'{text!r} names no item: give item ids such as a12,b7, or ["a12", {{"title": "linen shirt"}}].'
        )
    return entries


def _recipe(argv: Sequence[str]) -> tuple[Options, str]:
    """Return the defaults of `train`, which depend on --base-model and --config, and the description in its help."""
    from bundle_mllm.settings import SCRATCH, read_overrides, with_overrides
    from bundle_mllm.training.config import continued_run, default_run

    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")
    parser.add_argument("--base-model", "--base_model", nargs="?")
    parser.add_argument("--continue-from", "--continue_from", nargs="?")
    early, _ = parser.parse_known_args(argv)
    values = read_overrides(Path(early.config)) if early.config else {}
    base_model = early.base_model or values.get("base_model") or SCRATCH
    if folder := early.continue_from or values.get("continue_from"):
        run = with_overrides(continued_run(Path(folder), data=Path(), output_dir=Path()), values)
    else:
        run = with_overrides(default_run(base_model, data=Path(), output_dir=Path()), values)
    required = {"data", "output_dir"} - values.keys()
    return (
        {each.name: getattr(run, each.name) for each in fields(run) if each.name not in required},
        "Train a model on a dataset folder: a retriever; a ranker in stage one (bundle patterns from titles) and in "
        "stage two (multimodal semantics); and how both are joined.\n\nA killed run continues when it is started "
        f"again with the same arguments. The defaults are those for --base-model {base_model}; a pretrained backbone "
        f"and {SCRATCH} have recipes of their own.",
    )


def _rules(argv: Sequence[str]) -> tuple[Options, str | None]:
    """Return the defaults of `complete`, which depend on --rules."""
    from bundle_mllm.completion.rules import Rules

    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--rules", nargs="?")
    path = parser.parse_known_args(argv)[0].rules
    rules = Rules.load(path) if path else Rules()
    return {each.name: getattr(rules, each.name) for each in fields(rules)}, None


# fmt: off
COMMANDS = {
    "demo": Command("train on an invented catalog in minutes",
                    "cli.settings:DemoSettings", "demo:run_demo", show.demo),
    "synthetic": Command("invent a dataset folder with a known best accuracy",
                         "cli.settings:SyntheticCatalogSettings", _synthetic, show.synthetic),
    "best-accuracy": Command("compute the best possible accuracy on such a folder",
                             "cli.settings:BestAccuracySettings", _best_accuracy, show.best_accuracy),
    "import": Command("turn a data set of another format into a dataset folder",
                      "importers.settings:ImportSettings", "importers.dispatch:import_dataset",
                      positional=("source",)),
    "encode": Command("turn pictures, sounds, texts and interactions into features",
                      "encoders.settings:EncodingSettings", _encode, continues=True),
    "check": Command("show what features and interactions give away",
                     "data.settings:LeakageSettings", _check),
    "questions": Command("make a file of questions",
                         "data.settings:QuestionFileSettings", "question_file:write_questions", show.questions),
    "train": Command("train a model",
                     "training.config:RunConfig cli.settings:ConfigFileSettings", _train, show.trained,
                     recipe=_recipe, continues=True),
    "retriever": Command("add a retriever to the folder of a ranker",
                         "training.config:AddRetrieverSettings", "training.add_retriever:add_retriever",
                         show.retriever),
    "calibrate": Command("calibrate a model, so that its answers can be given with a guarantee",
                         "training.config:CalibrationSettings", "training.calibrate:calibrate", show.calibrated),
    "evaluate": Command("measure a model, baselines, or both on a question file",
                        "evaluation.settings:EvaluationSettings baselines.settings:BaselineSettings", _evaluate,
                        defaults={"model": None, "baselines": (), "output": Path("metrics.json")}),
    "compare": Command("compare two metrics files",
                       "evaluation.settings:ComparisonSettings", "evaluation.results:compare_metrics",
                       show.comparison),
    "benchmark": Command("measure baselines and models on a published data set, in one table",
                         "benchmark.settings:BenchmarkSettings", "benchmark.run:run_benchmark", show.benchmark,
                         continues=True),
    "report": Command("draw the paper's figures on your data",
                      "report.settings:ReportSettings", "report.build:build_report", show.report,
                      defaults={"progress": True}, continues=True),
    "complete": Command("complete one bundle or many, under the rules of a shop",
                        "cli.settings:CompletionSettings completion.rules:Rules", _complete, recipe=_rules,
                        continues=True),
    "app": Command("open a model in the browser",
                   "app.settings:AppSettings", "app.page:run_app", lambda *_: ""),
    "catalog": Command("add items to a model folder, update some or remove some",
                       "completion.settings:CatalogSettings", "completion.catalog:update_catalog",
                       positional=("action",)),
    "forget": Command("take users and orders out of a model folder, without training",
                      "completion.settings:ForgetSettings", "completion.forget:forget"),
    "serve": Command("answer over HTTP",
                     "serving.settings:ServiceSettings", "serving.serve:serve"),
    "feedback": Command("turn what users did with the answers of a service into training bundles",
                        "serving.settings:FeedbackSettings", "serving.feedback:write_feedback"),
    "publish": Command("publish a model folder on the Hub",
                       "hub.settings:PublishSettings", "hub.publish:publish", show.published),
    "publish-dataset": Command("publish a dataset folder on the Hub",
                               "hub.settings:DatasetPublishSettings", "hub.dataset:publish_dataset", show.published),
    "convert": Command("read an official checkpoint",
                       "interop.settings:ConversionSettings", "interop.convert:convert_checkpoint",
                       show.model_folder),
    "export": Command("write a stock language model for LLM servers",
                      "interop.settings:ExportSettings", "interop.export:export_stock", show.exported),
}
# fmt: on

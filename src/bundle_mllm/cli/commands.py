"""The commands: each calls the API with its options and prints the result.

Knows nothing that the API does not offer. The modules that a command needs are imported when it runs.
"""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bundle_mllm.cli import show
from bundle_mllm.errors import BundleMLLMError


def demo(**options: Any) -> None:
    from bundle_mllm.demo import run_demo

    print(show.demo(run_demo(**options)))


def synthetic(output_dir: Path, signal: Any, theme_purity: float | None, **options: Any) -> None:
    from bundle_mllm.synthetic.settings import SyntheticSettings, one_signal
    from bundle_mllm.synthetic.write import make_synthetic

    settings = SyntheticSettings(**options) if signal is None else one_signal(signal, **options)
    if theme_purity is not None:
        settings = replace(settings, theme_purity=theme_purity)
    made = make_synthetic(output_dir, settings)
    print(f"{len(made.item_ids)} invented items, {len(made.bundles['train'])} training bundles -> {output_dir}")


def best_accuracy(data: Path, questions: Path, output: Path, metrics: Sequence[Path], signals: Any) -> None:
    from bundle_mllm.synthetic.bayes import bayes_optimal, share_of_bayes_optimal

    best = bayes_optimal(data, questions, output, signals=signals)["bayes_optimal"]
    print(f"Bayes-optimal  {best['expected']:.4f} expected, {best['realized']:.4f} realized -> {output}")
    for path in metrics:
        share = share_of_bayes_optimal(path, output)
        print(
            f"share          {share['share']:.4f} ± {share['share_se']:.4f} of expected, "
            f"{share['share_of_realized']:.4f} of realized: {share['accuracy']:.4f} in {path}"
        )


def import_data(**options: Any) -> None:
    from bundle_mllm.importers.dispatch import import_dataset

    print(import_dataset(**options))


def encode(**options: Any) -> None:
    from bundle_mllm.encoders.encode import encode_folder
    from bundle_mllm.progress import ProgressBars

    with ProgressBars() as bars:
        summaries = encode_folder(**options, progress=bars.show)
    for summary in summaries.values():
        print(summary)


def check(data: Path, **options: Any) -> None:
    from bundle_mllm.data.folder import DatasetFolder
    from bundle_mllm.data.leakage import measure_leakage

    print(measure_leakage(DatasetFolder.open(data), **options))


def questions(**options: Any) -> None:
    from bundle_mllm.question_file import write_questions

    made = write_questions(**options)
    bundles = len({question.bundle_id for question in made})
    print(f"{len(made)} questions about {bundles} {options['split']} bundles -> {options['output']}")


def train(config: Path | None, **options: Any) -> None:  # config: see _recipe
    from bundle_mllm.training.config import RunConfig
    from bundle_mllm.training.run import train as run

    print(f"model folder: {run(RunConfig(**options))}")


def retriever(**options: Any) -> None:
    from bundle_mllm.training.add_retriever import add_retriever

    figures = add_retriever(**options)
    print(f"{show.parts(figures)}\nretriever added to {options['model']}")


def evaluate(
    model: Path | None,
    data: Path,
    questions: Path,
    baselines: Sequence[str],
    mask: Sequence[str],
    permute: Sequence[str],
    **options: Any,
) -> None:
    if model is None and not baselines:
        raise BundleMLLMError("There is nothing to evaluate: give --model OUT, --baselines all, or both.")
    if model is None and (mask or permute):
        raise BundleMLLMError("--mask and --permute change what a model sees, but there is none: give --model OUT.")
    rows: dict[str, tuple[Mapping[str, Any], float | None]] = {}
    if model is not None:
        from bundle_mllm.evaluation.evaluate import evaluate as run

        metrics = run(model, data, questions, mask=tuple(mask), permute=tuple(permute), **options)
        print(show.metrics(metrics, options["output"]))
        rows |= {part: (values, None) for part, values in metrics["parts"].items()}
    if baselines:
        from bundle_mllm.baselines.evaluate import BaselineResult, evaluate_baselines

        def report(result: BaselineResult) -> None:
            print(f"{result.name}: {result.skipped or f'{result.seconds:.1f} s, {result.path}'}", file=sys.stderr)

        for result in evaluate_baselines(data, questions, tuple(baselines), report=report, **options):
            if result.metrics is not None:
                rows[result.name] = result.metrics, result.seconds
        if rows:
            print(show.methods(rows))


def compare(a: Path, b: Path) -> None:
    from bundle_mllm.evaluation.results import compare_metrics

    print(show.comparison(compare_metrics(a, b)))


def report(**options: Any) -> None:
    from bundle_mllm.report.build import build_report

    result = build_report(**options)
    print(show.report_rows(result["sections"]["by_stage"]["rows"]))
    folder = options["output_dir"] or options["model"][0] / "report"
    print(f"measured in {result['seconds']['total']:.0f} s; the page: {folder / 'report.html'}")


def complete(
    model: str, bundle: str, candidates: str | None, top_k: int, explain: bool, json: bool, device: str | None
) -> None:
    from bundle_mllm.device import choose_device
    from bundle_mllm.model_folder import load_completer

    completer = load_completer(model, str(choose_device(device)))
    question = {"partial": _ids(bundle), "candidates": None if candidates is None else _ids(candidates)}
    ranked = completer.complete(question, top_k=top_k, explain=explain)
    print(json_format.dumps(ranked, ensure_ascii=False, indent=2) if json else show.ranking(ranked))


def publish(**options: Any) -> None:
    from bundle_mllm.hub.publish import publish as run

    print(show.published(run(**options)))


def publish_dataset(**options: Any) -> None:
    from bundle_mllm.hub.dataset import publish_dataset as run

    print(show.published(run(**options)))


def convert(**options: Any) -> None:
    from bundle_mllm.interop.convert import convert_checkpoint

    print(f"model folder: {convert_checkpoint(**options)}")


def export(model: str, output_dir: Path, **options: Any) -> None:
    from bundle_mllm.interop.export import EXPORT_RECORD, export_stock

    folder = export_stock(model, output_dir, **options)
    print(f"language model: {folder}")
    for part in json_format.loads((folder / EXPORT_RECORD).read_text(encoding="utf-8"))["left_behind"]:
        print(f"It is the ranker alone: the {part} stays in {model}.")


def _ids(text: str) -> list[str]:
    """Return item ids that are separated by commas, or a JSON list."""
    if not text.lstrip().startswith("["):
        ids = [part.strip() for part in text.split(",") if part.strip()]
        if not ids:
            raise BundleMLLMError(f"{text!r} names no item: give item ids separated by commas, such as a12,b7.")
        return ids
    try:
        ids = json_format.loads(text)
    except ValueError as error:
        raise BundleMLLMError(f'{text!r} is no JSON list ({error}): write it as ["a12", "b7"].') from error
    if not ids or not all(isinstance(item_id, str) for item_id in ids):
        raise BundleMLLMError(f'{text!r} is no list of item ids: write it as ["a12", "b7"].')
    return ids


def _recipe(argv: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return the defaults of `train`, which depend on --base-model and --config, and the description in its help."""
    from bundle_mllm.settings import SCRATCH, read_overrides, with_overrides
    from bundle_mllm.training.config import default_run

    early = {name: value for name in ("config", "base_model") if (value := _early(argv, name)) is not None}
    values = read_overrides(Path(early["config"])) if "config" in early else {}
    base_model = early.get("base_model") or values.get("base_model") or SCRATCH
    run = with_overrides(default_run(base_model, data=Path(), output_dir=Path()), values)
    defaults = {field.name: getattr(run, field.name) for field in fields(run)}
    required = {name for name in ("data", "output_dir") if name not in values}
    return (
        {name: value for name, value in defaults.items() if name not in required},
        "Train a model on a dataset folder: a retriever; a ranker in stage one (bundle patterns from titles) and in "
        "stage two (multimodal semantics); and how both are joined.\n\nA killed run continues when it is started "
        "again with the same arguments. The defaults are "
        f"those for --base-model {base_model}; a pretrained backbone and {SCRATCH} have recipes of their own.",
    )


def _early(argv: Sequence[str], name: str) -> str | None:
    """Return the value of an option that the defaults of others depend on."""
    value = None
    for position, argument in enumerate(argv):
        option, equals, given = argument.partition("=")
        if option.replace("_", "-") == f"--{name}".replace("_", "-"):
            if not equals and position + 1 == len(argv):
                raise BundleMLLMError(f"{option} needs a value.")
            value = given if equals else argv[position + 1]
    return value


@dataclass(frozen=True)
class Command:
    """One command."""

    summary: str
    """One line for `bundle-mllm --help`."""
    run: Callable[..., None]
    """Called with a value for each option."""
    settings: tuple[str, ...]
    """Dataclasses whose fields are the options, as MODULE:CLASS below the package."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of the command line where they differ from those of the fields."""
    positional: tuple[str, ...] = ()
    """Fields that are given without a name."""
    recipe: Callable[[Sequence[str]], tuple[Mapping[str, Any], str]] | None = None
    """Where defaults depend on other arguments: takes the arguments, returns the defaults and a description."""


COMMANDS = {
    "demo": Command("train on an invented catalog in minutes", demo, ("cli.settings:DemoSettings",)),
    "synthetic": Command(
        "invent a dataset folder with a known best accuracy", synthetic, ("cli.settings:SyntheticCatalogSettings",)
    ),
    "best-accuracy": Command(
        "compute the best possible accuracy on such a folder", best_accuracy, ("cli.settings:BestAccuracySettings",)
    ),
    "import": Command(
        "turn a data set of another format into a dataset folder",
        import_data,
        ("importers.settings:ImportSettings",),
        positional=("source",),
    ),
    "encode": Command(
        "turn pictures, sounds, texts and interactions into features", encode, ("encoders.settings:EncodingSettings",)
    ),
    "check": Command("show what features and interactions give away", check, ("data.settings:LeakageSettings",)),
    "questions": Command("make a file of questions", questions, ("data.settings:QuestionFileSettings",)),
    "train": Command(
        "train a model",
        train,
        ("training.config:RunConfig", "cli.settings:ConfigFileSettings"),
        recipe=_recipe,
    ),
    "retriever": Command(
        "add a retriever to the folder of a ranker", retriever, ("training.config:AddRetrieverSettings",)
    ),
    "evaluate": Command(
        "measure a model, baselines, or both on a question file",
        evaluate,
        ("evaluation.settings:EvaluationSettings", "baselines.settings:BaselineSettings"),
        {"model": None, "baselines": (), "output": Path("metrics.json")},
    ),
    "compare": Command("compare two metrics files", compare, ("evaluation.settings:ComparisonSettings",)),
    "report": Command(
        "draw the paper's figures on your data", report, ("report.settings:ReportSettings",), {"progress": True}
    ),
    "complete": Command("complete one bundle", complete, ("cli.settings:CompletionSettings",)),
    "publish": Command("publish a model folder on the Hub", publish, ("hub.settings:PublishSettings",)),
    "publish-dataset": Command(
        "publish a dataset folder on the Hub", publish_dataset, ("hub.settings:DatasetPublishSettings",)
    ),
    "convert": Command("read an official checkpoint", convert, ("interop.settings:ConversionSettings",)),
    "export": Command("write a stock language model for LLM servers", export, ("interop.settings:ExportSettings",)),
}

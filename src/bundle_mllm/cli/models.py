"""Commands on model folders: demo, train, evaluate, compare, report, complete.

Knows nothing that the Python API does not offer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bundle_mllm.errors import BundleMLLMError


def demo(output_dir: Path, seed: int = 0, domain: Literal["fashion", "playlist"] = "fashion") -> None:
    """Invent a small catalog, train both stages on it, evaluate, and complete one bundle (about five minutes).

    Args:
        output_dir: Receives data/ (the invented dataset folder), model/ (the trained model folder) and demo.json.
        seed: Seed of data, training and questions.
        domain: Outfits with pictures, or playlists with sounds.
    """
    from bundle_mllm.demo import render_report, run_demo

    print(render_report(run_demo(output_dir, domain=domain, seed=seed)))


def train() -> None:
    """Train a model: stage one (bundle patterns from titles), then stage two (multimodal semantics)."""


def run_train(argv: Sequence[str]) -> None:
    """Read the arguments of `train`, whose defaults depend on --base-model and --config, and run it."""
    from bundle_mllm.training.config import SCRATCH, RunConfig, default_run, read_overrides, with_overrides

    early = _early_arguments(argv, ("--config", "--base-model"))
    values = read_overrides(Path(early["--config"])) if "--config" in early else {}
    base_model = early.get("--base-model") or values.get("base_model") or SCRATCH
    default = with_overrides(default_run(base_model, data=tyro.MISSING, output_dir=tyro.MISSING), values)
    rest = _without(argv, "--config")
    description = (
        "Train a model on a dataset folder: stage one (bundle patterns from titles), then stage two (multimodal "
        "semantics). A killed run continues when it is started again with the same arguments. Every setting below can "
        "also stand in a YAML file given by --config FILE.yaml; what is given here wins. The defaults shown are those "
        f"for --base-model {base_model}; a pretrained backbone and {SCRATCH} have recipes of their own."
    )
    config = tyro.cli(RunConfig, prog="bundle-mllm train", description=description, args=rest, default=default)
    from bundle_mllm.training.run import train as run

    print(f"model folder: {run(config)}")


def evaluate(
    data: Path,
    questions: Path,
    model: Path | None = None,
    baselines: tuple[str, ...] = (),
    output: Path = Path("metrics.json"),
    batch_size: int = 32,
    permutations: int = 1,
    max_options: int | None = None,
    group_size: int | None = None,
    seed: int = 0,
    hidden: tuple[str, ...] = (),
    shuffled: tuple[str, ...] = (),
    device: str | None = None,
) -> None:
    """Score a question file and write hit rates, valid_ratio, ranks, calibration, slices and position bias.

    Args:
        data: Dataset folder whose items the questions name.
        questions: Question file (see `bundle-mllm questions`).
        model: Model folder (the output of `bundle-mllm train`).
        baselines: Methods to measure beside the model or without one, fitted to the training bundles: all, or some of
            random, popularity, co_occurrence, item_knn, item_knn_users, tfidf, category_pmi, similarity:MODALITY,
            lightgcn, lightgcn_users, multivae, set_transformer, boosted_ranker; and llm:NAME_OR_FOLDER, a language
            model that is told titles, zero-shot.
        output: Where the metrics of the model are written, the scores of every question beside it; those of a
            baseline go to metrics.popularity.json, and so on.
        batch_size: Questions per forward pass.
        permutations: Ask each question in this many orders of its candidates and average, against position bias.
        max_options: Longest list asked in one prompt, up to 26; what the model was trained on if not given. Longer
            ones are ranked in groups.
        group_size: Most candidates of a group.
        seed: Of candidate orders, groups, shuffling and baselines.
        hidden: What the model is not to know of any item, to see what it had from there: modalities, titles.
        shuffled: Modalities of which every item gets the features of another, for the same.
        device: cpu or cuda; a GPU if there is one, if not given.
    """
    from bundle_mllm.evaluation.evaluate import evaluate as run

    if model is None and not baselines:
        raise BundleMLLMError("There is nothing to evaluate: give --model OUT, --baselines all, or both.")
    if model is None and (hidden or shuffled):
        raise BundleMLLMError(
            "--hidden and --shuffled change what a model knows, but there is none: give --model OUT."
        )
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "permutations": permutations,
        "max_options": max_options,
        "group_size": group_size,
        "seed": seed,
        "device": device,
    }
    rows: dict[str, tuple[dict[str, Any], float | None]] = {}
    if model is not None:
        metrics = run(model, data, questions, output, hidden=hidden, shuffled=shuffled, **options)
        for name in ("hit_rate@1", "hit_rate@3", "hit_rate@5", "mrr"):
            print(f"{name:11}  {metrics[name]:.4f} ± {metrics[f'{name}_se']:.4f}")
        print(
            f"valid_ratio  {metrics['valid_ratio']:.4f}\n"
            f"questions    {metrics['num_questions']} about {metrics['num_bundles']} bundles\n"
            f"written to   {output}"
        )
        rows["model"] = metrics, None
    if baselines:
        from bundle_mllm.baselines import BaselineResult, evaluate_baselines

        def report(result: BaselineResult) -> None:
            print(f"{result.name}: {result.skipped or f'{result.seconds:.1f} s, {result.path}'}", file=sys.stderr)

        for result in evaluate_baselines(data, questions, baselines, output, report=report, **options):
            if result.metrics is not None:
                rows[result.name] = result.metrics, result.seconds
        _print_comparison(rows)


def compare(a: Path, b: Path) -> None:
    """Compare two metrics files of one question file: differences with paired standard errors, by bundle.

    Args:
        a: Metrics file of one run.
        b: Metrics file of the other.
    """
    from bundle_mllm.evaluation.results import compare_metrics

    for name, values in compare_metrics(a, b).items():
        if isinstance(values, dict) and "difference" in values:
            change = f"{values['difference']:+.4f} ± {values['se']:.4f}"
            print(f"{name:20} {values['a']:.4f} - {values['b']:.4f} = {change}")


def report(
    model: tuple[Path, ...],
    data: Path,
    output_dir: Path | None = None,
    questions: tuple[Path, ...] = (),
    metrics: tuple[Path, ...] = (),
    split: Literal["train", "validation", "test"] = "validation",
    max_questions: int = 400,
    num_candidates: int = 10,
    sizes: tuple[int, ...] | None = None,
    length_questions: int = 150,
    batch_size: int = 32,
    seed: int = 42,
    device: str | None = None,
) -> None:
    """Draw the paper's figures on your data: stages, number of candidates, training, cold start, ablation, size.

    Writes report.html (one page that needs nothing else), figures/*.png and report.json (every number). A report that
    was killed continues when the same command is given again. With the defaults and the scratch backbone it takes
    about ten minutes on one core; the number of questions decides.

    Args:
        model: Model folders. Everything is measured of the first; several are compared by their size.
        data: Dataset folder.
        output_dir: Folder of the report; by default report/ in the first model folder, where `publish` finds it.
        questions: Question files, each asked whole; by default a uniform and a hard one are made from the split.
        metrics: Metrics files of other methods on the same question files, to be shown beside the model.
        split: Whose bundles are asked about, where questions are made.
        max_questions: Questions in each file that is made.
        num_candidates: Options of a question in these files.
        sizes: Numbers of candidates of the figure by number of candidates; by default 2 5 10 15 20 26 50 100 1000.
        length_questions: Questions for each of these numbers; fewer where they would cost more than 4,000 prompts.
        batch_size: Prompts per forward pass.
        seed: Seed of questions, shuffling and groups.
        device: cpu or cuda; a GPU if there is one, if not given.
    """
    from bundle_mllm.evaluation.by_length import SIZES
    from bundle_mllm.report import build_report as run

    target = model[0] / "report" if output_dir is None else output_dir
    result = run(
        model,
        data,
        target,
        questions=questions,
        metrics=metrics,
        split=split,
        max_questions=max_questions,
        num_candidates=num_candidates,
        sizes=SIZES if sizes is None else sizes,
        length_questions=length_questions,
        batch_size=batch_size,
        seed=seed,
        device=device,
        progress=True,
    )
    for row in result["sections"]["by_stage"]["rows"]:
        error = f" ± {row['hit_rate@1_se']:.3f}" if row.get("hit_rate@1_se") is not None else ""
        print(f"{row['questions']:24}  {row['variant']:28}  {row['hit_rate@1']:.3f}{error}")
    print(f"measured in {result['seconds']['total']:.0f} s; the page: {target / 'report.html'}")


def complete(
    model: str,
    bundle: str,
    candidates: str | None = None,
    top_k: int = 5,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    device: str | None = None,
) -> None:
    """Rank candidates for a partial bundle.

    Args:
        model: Model folder or Hub repository.
        bundle: Ids of the items that the bundle has so far, separated by commas (a JSON list for ids with commas).
        candidates: Ids to choose from, separated by commas; the whole catalog if not given. More than 26 are ranked
            in groups, at about 0.15 questions per candidate.
        top_k: How many to print.
        as_json: Print JSON.
        device: cpu or cuda; a GPU if there is one, if not given.
    """
    from bundle_mllm.demo import render_ranking
    from bundle_mllm.device import choose_device
    from bundle_mllm.evaluation.ranking import rank_candidates
    from bundle_mllm.model_folder import load_model

    loaded, processor = load_model(model)
    loaded.to(choose_device(device))
    partial = _ids(bundle)
    chosen = None if candidates is None else _ids(candidates)
    ranked = rank_candidates(loaded, processor, partial, chosen, top_k=top_k)
    print(json.dumps(ranked, ensure_ascii=False, indent=2) if as_json else "\n".join(render_ranking(ranked)))


def _print_comparison(rows: Mapping[str, tuple[Mapping[str, Any], float | None]]) -> None:
    """Print the metrics and the seconds of several methods, the best first."""
    if not rows:
        return
    width = max(map(len, rows))
    print(f"\n{'':{width}}  hit_rate@1       ties at random   seconds")
    for name, (metrics, seconds) in sorted(rows.items(), key=lambda row: -row[1][0]["hit_rate@1_expected"]):
        hits = "  ".join(f"{metrics[key]:.4f} ± {metrics[f'{key}_se']:.4f}" for key in _HITS)
        print(f"{name:{width}}  {hits}  {'' if seconds is None else format(seconds, '7.1f')}".rstrip())


_HITS = ("hit_rate@1", "hit_rate@1_expected")


def _ids(text: str) -> list[str]:
    if text.lstrip().startswith("["):
        try:
            ids = json.loads(text)
        except ValueError as error:
            raise BundleMLLMError(f'{text!r} is no JSON list ({error}): write it as ["a12", "b7"].') from error
        if not ids or not all(isinstance(item_id, str) for item_id in ids):
            raise BundleMLLMError(f'{text!r} is no list of item ids: write it as ["a12", "b7"].')
        return ids
    ids = [part.strip() for part in text.split(",") if part.strip()]
    if not ids:
        raise BundleMLLMError(f"{text!r} names no item: give item ids separated by commas, such as a12,b7.")
    return ids


def _early_arguments(argv: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Read the options that choose the defaults, before the others can be parsed."""
    found: dict[str, str] = {}
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-")
        if name in names:
            if not equals and position + 1 == len(argv):
                raise BundleMLLMError(f"{name} needs a value.")
            found[name] = value if equals else argv[position + 1]
    return found


def _without(argv: Sequence[str], option: str) -> list[str]:
    rest = list(argv)
    for position, argument in enumerate(rest):
        if argument == option:
            return rest[:position] + rest[position + 2 :]
        if argument.startswith(option + "="):
            return rest[:position] + rest[position + 1 :]
    return rest

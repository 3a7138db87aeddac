"""The `bundle-mllm` command: thin wrappers that read arguments, call the Python API and print the result.

Knows nothing that the Python API does not offer.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from bundle_mllm.errors import BundleMLLMError

if TYPE_CHECKING:
    from bundle_mllm.hub.publish import PublishReport

DEBUG = "BUNDLE_MLLM_TRACEBACK"
"""Environment variable that shows the traceback of an error instead of its message alone."""


def demo(output_dir: Path, seed: int = 0, domain: Literal["fashion", "playlist"] = "fashion") -> None:
    """Invent a small studio, train both stages on it, evaluate, and complete one bundle (about five minutes).

    Args:
        output_dir: Receives data/ (the invented dataset folder), model/ (the trained model folder) and demo.json.
        seed: Seed of data, training and questions.
        domain: Outfits with pictures, or playlists with sounds.
    """
    from bundle_mllm.demo import render_report, run_demo

    print(render_report(run_demo(output_dir, domain=domain, seed=seed)))


def studio(
    output_dir: Path,
    needs: Literal["title", "visual", "user_item", "bundle_item"],
    seed: int = 0,
    fidelity: float = 0.9,
) -> None:
    """Invent a dataset folder whose best possible accuracy is known (see `ceiling`), to test a whole training run.

    Args:
        output_dir: The dataset folder to write.
        needs: The modality that tells which items go together; all others are there and tell nothing of it.
        seed: The same seed gives the same files, byte by byte.
        fidelity: Probability that an item of a bundle fits it; the best possible accuracy rises with it.
    """
    from bundle_mllm.data.studio_ceiling import make_ceiling_studio

    world = make_ceiling_studio(output_dir, needs, seed=seed, fidelity=fidelity)
    print(f"{len(world.item_ids)} invented items, {len(world.bundles['train'])} training bundles -> {output_dir}")


def ceiling(data: Path, questions: Path, output: Path = Path("ceiling.json"), metrics: tuple[Path, ...] = ()) -> None:
    """Compute the best possible hit rate on a question file about a folder that `studio` made.

    Args:
        data: Dataset folder that `bundle-mllm studio` made.
        questions: Question file with uniform negatives (see `bundle-mllm questions`).
        output: Where the best possible metrics are written, in the form of `evaluate`: `compare` reads them.
        metrics: Files of `bundle-mllm evaluate` on the same questions, whose share of the ceiling is printed.
    """
    from bundle_mllm.evaluation.ceiling import bayes_optimal, share_of_ceiling

    best = bayes_optimal(data, questions, output)["ceiling"]
    print(f"ceiling  {best['expected']:.4f} expected, {best['realized']:.4f} realized -> {output}")
    for path in metrics:
        found = share_of_ceiling(path, output)
        print(
            f"share    {found['share']:.4f} ± {found['share_se']:.4f} of expected, "
            f"{found['share_of_realized']:.4f} of realized: {found['accuracy']:.4f} in {path}"
        )


def questions(
    data: Path,
    output: Path,
    split: Literal["train", "validation", "test"] = "validation",
    num_candidates: int = 10,
    negatives: Literal["uniform", "hard"] = "uniform",
    partial: Literal["half", "leave_one_out"] = "half",
    questions_per_bundle: int = 2,
    num_questions: int | None = None,
    seed: int = 42,
    format: Literal["questions", "prompt-completion"] = "questions",
    model: Path | None = None,
    titles_only: bool = False,
) -> None:
    """Make a file of multiple-choice questions from the bundles of a split.

    Args:
        data: Dataset folder.
        output: File to write (.jsonl, .jsonl.gz, .csv or .parquet); a note beside it says how it was made.
        split: Whose bundles are asked about.
        num_candidates: Options per question; one of them is the answer. More than 26 are ranked in groups.
        negatives: Wrong options: drawn uniformly, or matched to the answer in category and train frequency.
        partial: Show half of the bundle, or all of it but the answer.
        questions_per_bundle: At most this many questions about one bundle.
        num_questions: Sample this many instead, each of another part of a bundle, as `train` does (train only).
        seed: The same seed gives the same file, byte by byte.
        format: "questions" for `bundle-mllm evaluate`; "prompt-completion" for `trl sft`.
        model: Model folder whose wording and chat template "prompt-completion" uses; plain wording if not given.
        titles_only: Leave out the item tokens in "prompt-completion" (stage one).
    """
    if format == "questions" and (model is not None or titles_only):
        raise BundleMLLMError(
            "--model and --titles-only decide how a question is worded, and `--format questions` holds no wording: "
            "add --format prompt-completion, or leave them out."
        )
    from bundle_mllm.data import (
        DatasetFolder,
        make_questions,
        sample_training_questions,
        save_questions,
        write_records,
    )
    from bundle_mllm.data.manifest import write_manifest

    folder = DatasetFolder.open(data)
    made_by: dict[str, Any] = {"num_candidates": num_candidates, "negatives": negatives, "seed": seed}
    if num_questions is None:
        made_by |= {"partial": partial, "questions_per_bundle": questions_per_bundle}
        made = make_questions(folder.bundles[split], folder.catalog, folder.bundles, **made_by)
    elif split != "train":
        raise BundleMLLMError(f"--num-questions samples training questions, not of {split}: add --split train.")
    else:
        made_by |= {"num_questions": num_questions}
        made = sample_training_questions(
            folder.bundles.train,
            folder.catalog,
            num_questions=num_questions,
            num_candidates=(num_candidates, num_candidates),
            hard_fraction=1.0 if negatives == "hard" else 0.0,
            seed=seed,
        )
    if not made:
        raise BundleMLLMError(f"{data} has no {split} bundle of two items: there is nothing to ask.")
    if format == "questions":
        save_questions(output, made)
        write_manifest(output, {"split": split, **made_by})
    else:
        from bundle_mllm.folder import load_processor
        from bundle_mllm.training.dataset import prompt_completion_dataset
        from bundle_mllm.training.scratch import scratch_processor

        processor = scratch_processor(folder.catalog) if model is None else load_processor(model)
        rows = prompt_completion_dataset(made, processor, shows_items=not titles_only, split=split)
        write_records(output, rows)
    print(f"{len(made)} questions about {len({q.bundle_id for q in made})} {split} bundles -> {output}")


def train() -> None:
    """Train a model: stage one (bundle patterns from titles), then stage two (multimodal semantics)."""
    # Listed here for `bundle-mllm --help`. Its defaults depend on its arguments, so `run_train` reads them first.


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
        seed: Of candidate orders, groups and baselines.
    """
    from bundle_mllm.evaluation.evaluate import evaluate as run

    if model is None and not baselines:
        raise BundleMLLMError("There is nothing to evaluate: give --model OUT, --baselines all, or both.")
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "permutations": permutations,
        "max_options": max_options,
        "group_size": group_size,
        "seed": seed,
    }
    rows: dict[str, tuple[dict[str, Any], float | None]] = {}
    if model is not None:
        metrics = run(model, data, questions, output, **options)
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
    """
    from bundle_mllm.evaluation.by_length import SIZES
    from bundle_mllm.evaluation.report import report as run

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
) -> None:
    """Rank candidates for a partial bundle.

    Args:
        model: Model folder or Hub repository.
        bundle: Ids of the items that the bundle has so far, separated by commas (a JSON list for ids with commas).
        candidates: Ids to choose from, separated by commas; the whole catalog if not given. More than 26 are ranked
            in groups, at about 0.15 questions per candidate.
        top_k: How many to print.
        as_json: Print JSON.
    """
    from bundle_mllm.demo import render_ranking
    from bundle_mllm.evaluation.ranking import rank_candidates
    from bundle_mllm.folder import load_model

    loaded, processor = load_model(model)
    partial = _ids(bundle)
    chosen = None if candidates is None else _ids(candidates)
    ranked = rank_candidates(loaded, processor, partial, chosen, top_k=top_k)
    print(json.dumps(ranked, ensure_ascii=False, indent=2) if as_json else "\n".join(render_ranking(ranked)))


def encode(
    data: Path,
    visual: str | None = None,
    acoustic: str | None = None,
    textual: str | None = None,
    relational: str | None = None,
    strict: bool = False,
    allow_leakage: bool = False,
    engine: Literal["local", "ray"] = "local",
    device: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> None:
    """Turn pictures, sounds, texts, user log and bundles of a dataset folder into item features, a file per modality.

    Without any choice: all that the folder has something of, by descriptors (pictures and sounds), tfidf, and
    relational encoders, none of which needs a download; features that are there and were made otherwise are kept. A
    run that was killed continues when the same command is given again. `accelerate launch -m bundle_mllm.cli encode`
    shares the work among processes. open_clip needs bundle-mllm[encoders], ray needs bundle-mllm[ray]; the table of
    encoders, their widths and the licenses of their weights is in docs/encoders.md.

    Args:
        data: Dataset folder; its features/ is written.
        visual: descriptor, open_clip:NAME/TAG, open_clip:hf-hub:ORG/NAME, open_clip:local-dir:PATH, or
            transformers:NAME (CLIP, SigLIP 2, BLIP-2, DINOv2; a Hub name or a folder).
        acoustic: descriptor, clap:NAME (a Hub name or a folder), or laion:PATH.pt (a checkpoint of LAION).
        textual: tfidf, or transformers:NAME (a sentence encoder; a Hub name or a folder).
        relational: user_item:lightgcn or user_item:svd (from the interactions), bundle_item:lightgcn or
            bundle_item:svd (from the training bundles, cross-fitted), or one of each, separated by a comma.
        strict: Stop at anything that would be left out, such as a file that cannot be read.
        allow_leakage: Encode user_item even if the interactions encode held-out bundles.
        engine: local, or ray (Ray Data: the cluster of RAY_ADDRESS, or this machine).
        device: Where models run; the GPU if there is one.
        batch_size: Items embedded at once.
        workers: Processes that read files.
    """
    from bundle_mllm.encoders.encode import encode_folder
    from bundle_mllm.progress import ProgressBars

    with ProgressBars() as bars:
        summaries = encode_folder(
            data,
            visual=visual,
            acoustic=acoustic,
            textual=textual,
            relational=relational or (),
            strict=strict,
            allow_leakage=allow_leakage,
            engine=engine,
            device=device,
            batch_size=batch_size,
            workers=workers,
            progress=bars.show,
        )
    for summary in summaries.values():
        print(summary)


def check(data: Path, num_questions: int = 1_000, seed: int = 0) -> None:
    """Show how well features and interactions alone answer training and validation questions.

    Features that answer training questions better than validation questions know the training bundles, and a model
    learns to trust them too much; interactions that answer nearly everything were made of the bundles.

    Args:
        data: Dataset folder.
        num_questions: At most this many questions of each kind.
        seed: The same seed asks the same questions.
    """
    from bundle_mllm.data import DatasetFolder
    from bundle_mllm.data.leakage import measure_leakage

    print(measure_leakage(DatasetFolder.open(data), num_questions=num_questions, seed=seed))


def publish(
    model: Path,
    repo: str,
    private: bool = False,
    dry_run: bool = False,
    metrics: tuple[Path, ...] = (),
    allow_no_metrics: bool = False,
    base_model: str | None = None,
    datasets: tuple[str, ...] = (),
    license: str = "unknown",
    output_dir: Path | None = None,
) -> None:
    """Publish a model folder on the Hub: write the repository and its card, verify it in a clean process, upload it.

    Needs a token with write access (`hf auth login`, or HF_TOKEN), except for a dry run. Everything is uploaded in one
    commit; a call that failed can be repeated.

    Args:
        model: Model folder (the output of `bundle-mllm train`).
        repo: Name of the repository, org/name.
        private: Make the repository private.
        dry_run: Write and verify the repository folder, list its files, and stop. No token, no network.
        metrics: Files of `bundle-mllm evaluate` for the card; the metrics*.json in the model folder if not given.
        allow_no_metrics: Publish although there are no metrics; the card says so.
        base_model: Hub name of the base model, if it was trained from a local folder.
        datasets: Hub names of the data sets it was trained on.
        license: The Hub's identifier of the license of the weights.
        output_dir: The repository folder; by default the model folder's name with "-hub" at its end.
    """
    from bundle_mllm.hub.publish import publish as run

    report = run(
        model,
        repo,
        private=private,
        dry_run=dry_run,
        metrics=metrics,
        allow_no_metrics=allow_no_metrics,
        base_model=base_model,
        datasets=datasets,
        license=license,
        output_dir=output_dir,
    )
    _print_report(report)


def publish_dataset(
    data: Path,
    repo: str,
    private: bool = False,
    dry_run: bool = False,
    include_interactions: bool = False,
    include_media: bool = False,
    license: str = "unknown",
    output_dir: Path | None = None,
) -> None:
    """Publish a dataset folder on the Hub, for `datasets.load_dataset` (items, bundles, questions) and `train`.

    Args:
        data: Dataset folder.
        repo: Name of the dataset repository, org/name.
        private: Make the repository private.
        dry_run: Write the repository folder, list its files, and stop. No token, no network.
        include_interactions: Publish the user log, too. It may be personal data.
        include_media: Publish pictures and sounds, too. They may be somebody's.
        license: The Hub's identifier of the license of the data.
        output_dir: The repository folder; by default the dataset folder's name with "-hub" at its end.
    """
    from bundle_mllm.hub.dataset import publish_dataset as run

    report = run(
        data,
        repo,
        private=private,
        dry_run=dry_run,
        include_interactions=include_interactions,
        include_media=include_media,
        license=license,
        output_dir=output_dir,
    )
    _print_report(report)


def convert(
    checkpoint: Path,
    data: Path,
    base_model: str,
    output_dir: Path,
    fusion_layer_norm: bool = False,
    fusion_value_map: bool = False,
    shows_separator: bool = True,
) -> None:
    """Turn a checkpoint that the authors of Bundle-MLLM published into a model folder.

    Its files do not say how it was trained; the last three options must be those of its training command.

    Args:
        checkpoint: The published checkpoint folder (adapter_model.bin, fusion.bin, ...).
        data: The published data folder that it was trained on.
        base_model: Folder or Hub name of its base model, such as meta-llama/Llama-2-7b-hf.
        output_dir: The model folder to write.
        fusion_layer_norm: It was trained with `layernorm` among the official --components.
        fusion_value_map: It was trained with `w_v` among the official --components.
        shows_separator: Questions show the soft separator; not so if it was trained with --del_sp=True.
    """
    from bundle_mllm.hub.convert import convert_checkpoint

    folder = convert_checkpoint(
        checkpoint,
        data,
        base_model,
        output_dir,
        fusion_layer_norm=fusion_layer_norm,
        fusion_value_map=fusion_value_map,
        shows_separator=shows_separator,
    )
    print(f"model folder: {folder}")


def import_data(
    source: tyro.conf.Positional[str],
    format: Literal["official", "bundlerec", "tabular", "huggingface"],
    output_dir: Path,
    columns: tuple[str, ...] = (),
    tables: tuple[str, ...] = (),
    fractions: tuple[float, float, float] | None = None,
    seed: int | None = None,
    interactions: Literal["none", "pretrain", "user_item"] | None = None,
    delimiter: str | None = None,
    media_dir: Path | None = None,
    revision: str | None = None,
    strict: bool = False,
) -> None:
    """Turn a data set of another format into a dataset folder.

    Args:
        source: Folder of the data set, or its name on the Hub.
        format: The layout that the authors of Bundle-MLLM published; that of BundleRec; tables of your own (CSV, JSON
            Lines, Parquet); or a data set of the Hub or of `datasets.save_to_disk`.
        output_dir: The dataset folder to write.
        columns: Columns that have other names, as FIELD=COLUMN, such as item_id=sku title=name bundles.items=products.
        tables: Tables that have other names, as TABLE=FILE, such as items=products.csv.
        fractions: Shares of train, validation and test, where the data have no splits (0.8 0.1 0.1).
        seed: Seed of these splits (42); bundles that are nearly the same stay on one side.
        interactions: Which of BundleRec's user logs to take (none).
        delimiter: What separates the cells of CSV files (a comma).
        media_dir: Folder that the paths of pictures and sounds are relative to (that of the items table).
        revision: Commit, branch or tag of a data set on the Hub.
        strict: Stop at anything that would be left out.
    """
    from bundle_mllm.data.readers import import_dataset, parse_pairs

    summary = import_dataset(
        format,
        source,
        output_dir,
        columns=parse_pairs("--columns", columns) or None,
        tables=parse_pairs("--tables", tables) or None,
        fractions=fractions,
        seed=seed,
        interactions=interactions,
        delimiter=delimiter,
        media_dir=media_dir,
        revision=revision,
        strict=strict or None,
    )
    print(summary)


def export(model: str, output_dir: Path, modalities: str | None = None, without_matching: bool = False) -> None:
    """Fold a model into a stock causal language model that any LLM server runs, without this package.

    Args:
        model: Model folder or Hub repository, or a LoRA adapter of one, which is merged.
        output_dir: The folder to write.
        modalities: Modalities of the item tokens, separated by commas; all if not given.
        without_matching: Export the backbone alone of a model that has a matching (those trained from "scratch").
    """
    from bundle_mllm.hub.export import export_stock

    chosen = None if modalities is None else [name.strip() for name in modalities.split(",") if name.strip()]
    folder = export_stock(model, output_dir, modalities=chosen, without_matching=without_matching)
    print(f"language model: {folder}")


COMMANDS = {
    "demo": demo,
    "studio": studio,
    "ceiling": ceiling,
    "questions": questions,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "report": report,
    "complete": complete,
    "import": import_data,
    "encode": encode,
    "check": check,
    "publish": publish,
    "publish-dataset": publish_dataset,
    "convert": convert,
    "export": export,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 for a mistake in what was given."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["train"]:
            run_train(argv[1:])
        else:
            tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="bundle-mllm", description=_DESCRIPTION, args=argv)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:  # what the package and the stack below raise for what they were given
        if os.environ.get(DEBUG):
            raise
        print(f"bundle-mllm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bundle-mllm: interrupted; start the same command again to continue.", file=sys.stderr)
        return 130
    return 0


_DESCRIPTION = "Product bundling with multimodal LLMs (Bundle-MLLM). `bundle-mllm COMMAND --help` explains a command."


def _print_report(report: PublishReport) -> None:
    for path, size in report.files.items():
        print(f"{size:>15,}  {path}")
    print(f"{report.size:>15,}  bytes in {len(report.files)} files of {report.folder}")
    if report.left_out:
        print(f"left out: {', '.join(report.left_out)}")
    if report.verification is not None:
        print(
            f"verified: {report.verification.num_questions} questions asked without this package, largest difference "
            f"{report.verification.largest_difference:.1e}"
        )
    print(f"published: {report.commit_url}" if report.commit_url else f"dry run: {report.repo_id} was not touched")


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


if __name__ == "__main__":
    sys.exit(main())

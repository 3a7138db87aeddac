"""Commands on dataset folders: invent, import, ask, encode, check.

Knows nothing that the Python API does not offer.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import tyro

from bundle_mllm.errors import BundleMLLMError


def synthetic(
    output_dir: Path,
    signal: Literal["title", "media", "user_item", "bundle_item"] | None = None,
    domain: Literal["fashion", "playlist"] = "fashion",
    seed: int = 0,
    theme_purity: float | None = None,
) -> None:
    """Invent a dataset folder whose best possible accuracy is known (see `best-accuracy`), to test a training run.

    Args:
        output_dir: The dataset folder to write.
        signal: The only signal that shows which items go together: titles, pictures or sounds, interactions, or
            nothing but the training bundles (which always do: train without `bundle_item` for the other three). If
            not given, titles, pictures or sounds, and interactions each show a part of it, as in the demo.
        domain: Items with pictures (fashion) or sounds (playlist).
        seed: The same seed gives the same files, byte by byte.
        theme_purity: Probability that an item of a bundle fits it; the best possible accuracy rises with it. .9 with
            one signal, 1 without.
    """
    from bundle_mllm.synthetic.settings import SyntheticSettings, one_signal
    from bundle_mllm.synthetic.write import make_synthetic

    if signal is None:
        settings = SyntheticSettings(domain=domain, seed=seed)
    else:
        settings = one_signal(signal, domain=domain, seed=seed)
    if theme_purity is not None:
        settings = replace(settings, theme_purity=theme_purity)
    catalog = make_synthetic(output_dir, settings)
    print(f"{len(catalog.item_ids)} invented items, {len(catalog.bundles['train'])} training bundles -> {output_dir}")


def best_accuracy(
    data: Path,
    questions: Path,
    output: Path = Path("best-accuracy.json"),
    metrics: tuple[Path, ...] = (),
    signals: tuple[Literal["title", "media", "user_item", "bundle_item"], ...] | None = None,
) -> None:
    """Compute the Bayes-optimal hit rate on a question file about a folder that `synthetic` made.

    Args:
        data: Dataset folder that `bundle-mllm synthetic` made.
        questions: Question file with uniform negatives (see `bundle-mllm questions`).
        output: Where the Bayes-optimal metrics are written, in the form of `evaluate`: `compare` reads them.
        metrics: Files of `bundle-mllm evaluate` on the same questions, whose share of the optimum is printed.
        signals: The signals that are known, such as titles alone; all that show which items go together if not given.
    """
    from bundle_mllm.synthetic.bayes import bayes_optimal, share_of_bayes_optimal

    best = bayes_optimal(data, questions, output, signals=signals)["bayes_optimal"]
    print(f"Bayes-optimal  {best['expected']:.4f} expected, {best['realized']:.4f} realized -> {output}")
    for path in metrics:
        share = share_of_bayes_optimal(path, output)
        print(
            f"share          {share['share']:.4f} ± {share['share_se']:.4f} of expected, "
            f"{share['share_of_realized']:.4f} of realized: {share['accuracy']:.4f} in {path}"
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
    from bundle_mllm.data.manifest import write_question_manifest
    from bundle_mllm.data.memberships import BUNDLE_ITEM

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
        write_question_manifest(output, {"split": split, **made_by})
    else:
        from bundle_mllm.model_folder import load_processor
        from bundle_mllm.training.dataset import prompt_completion_dataset
        from bundle_mllm.training.scratch import scratch_processor

        processor = scratch_processor(folder.catalog) if model is None else load_processor(model)
        if split == "train" and not titles_only and BUNDLE_ITEM in (processor.modalities or {}):
            print(
                f"Note: {model} has {BUNDLE_ITEM!r} features, which know the training bundles and so the answers "
                "to these questions; what trains on them will trust such features too much. `bundle-mllm train` shows "
                "features fitted without them; for `trl sft`, make the model with --modalities without them.",
                file=sys.stderr,
            )
        rows = prompt_completion_dataset(made, processor, shows_items=not titles_only, split=split)
        write_records(output, rows)
    print(f"{len(made)} questions about {len({q.bundle_id for q in made})} {split} bundles -> {output}")


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
    from bundle_mllm.importers import import_dataset, parse_pairs

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
        strict=strict,
    )
    print(summary)


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

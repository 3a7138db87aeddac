"""Commands that bring models and data sets to the Hub, from official checkpoints, and into LLM servers.

Knows nothing that the Python API does not offer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bundle_mllm.hub.publish import PublishReport


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
    share_user_log: bool = False,
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
        share_user_log: Publish a retriever that holds the pairs of user and item (users by number).
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
        share_user_log=share_user_log,
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
    columns: tuple[str, ...] = (),
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
        columns: Further columns of items, bundles and questions to publish, such as price.
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
        columns=columns,
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
    from bundle_mllm.interop.convert import convert_checkpoint

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


def export(model: str, output_dir: Path, modalities: str | None = None, without_matching: bool = False) -> None:
    """Fold a model into a stock causal language model that any LLM server runs, without this package.

    Args:
        model: Model folder or Hub repository, or a LoRA adapter of one, which is merged.
        output_dir: The folder to write.
        modalities: Modalities of the item tokens, separated by commas; all if not given.
        without_matching: Export the backbone alone of a model that has a matching (those trained from "scratch").
    """
    from bundle_mllm.interop.export import export_stock

    chosen = None if modalities is None else [name.strip() for name in modalities.split(",") if name.strip()]
    folder = export_stock(model, output_dir, modalities=chosen, without_matching=without_matching)
    print(f"language model: {folder}")


def _print_report(report: PublishReport) -> None:
    for path, size in report.files.items():
        print(f"{size:>15,}  {path}")
    print(f"{report.size:>15,}  bytes in {len(report.files)} files of {report.folder}")
    if report.left_out:
        print(f"left out: {', '.join(report.left_out)}")
    for note in report.notes:
        print(f"published as they are: {note}")
    if report.verification is not None:
        print(
            f"verified: {report.verification.num_questions} questions asked without this package, largest difference "
            f"{report.verification.largest_difference:.1e}"
        )
    print(f"published: {report.commit_url}" if report.commit_url else f"dry run: {report.repo_id} was not touched")

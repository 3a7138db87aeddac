"""Publish a model folder: write the repository, verify it in a clean process, upload it in one commit.

Knows nothing about how the model was trained.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.card import LICENSE_UNKNOWN, Measurement, find_record, read_measurements, render_model_card
from bundle_mllm.hub.integrity import check_code, check_complete
from bundle_mllm.hub.places import Places
from bundle_mllm.hub.report_files import FILES as REPORT_FILES
from bundle_mllm.hub.report_files import FOLDER as REPORT_FOLDER
from bundle_mllm.hub.report_files import read_report, write_report
from bundle_mllm.hub.repository import (
    CARD,
    PublishReport,
    link_or_copy,
    matches,
    read_json,
    repository_files,
    repository_folder,
    write_json,
    write_repository,
)
from bundle_mllm.hub.upload import check_login, check_repo_id, upload
from bundle_mllm.hub.verify import verify_repository

USER_ITEM = "user_item"

PUBLISHED_RECORD = "training_record.json"
TAKEN = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*_bundle_mllm.py",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_templates/*.jinja",
    "config.json",
    "generation_config.json",
    "items.jsonl",
    "merges.txt",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""The files of a model folder that belong in its repository; all others stay here."""
WRITTEN = (CARD, PUBLISHED_RECORD, "metrics*.json", *REPORT_FILES)


def publish(
    model_dir: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    metrics: Sequence[str | os.PathLike] = (),
    allow_no_metrics: bool = False,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    license: str = LICENSE_UNKNOWN,
    share_user_log: bool = False,
    output_dir: str | os.PathLike | None = None,
    commit_message: str = "Publish with bundle-mllm",
) -> PublishReport:
    """Publish a model folder on the Hub.

    Writes the repository folder (weights as hard links, so it takes no space), renders its card, verifies it by
    loading it without this package and comparing scores, and only then uploads it, in one commit. A call that failed
    can be repeated; what has arrived is not sent again.

    Args:
        model_dir: A model folder.
        repo_id: The repository, `owner/name`.
        private: Whether only its owner may see it.
        dry_run: Stop before uploading; needs no token and no network.
        metrics: Files of `bundle-mllm evaluate`; by default the `metrics*.json` in the model folder, or those of
            the report in it.
        allow_no_metrics: Publish a card without metrics.
        base_model: Hub name of the base model, where the run record names a local folder.
        datasets: Hub names of the data sets it was trained on.
        license: The Hub's identifier of the license of the weights.
        share_user_log: Publish a model that holds which users met which items.
        output_dir: The repository folder; by default `model_dir` with "-hub" at its end.
        commit_message: Title of the commit.

    Returns:
        The files with their sizes, what verification found, and the commit.

    Raises:
        BundleMLLMError: The name is none, there is no valid token, metrics are missing, a file is missing, cut short
            or unsafe, the model holds a user log that is not to be shared, the folder answers differently without
            this package, or the Hub cannot be reached. Then nothing has become visible.
    """
    source = Path(model_dir)
    check_repo_id(repo_id)
    if not source.is_dir():
        raise BundleMLLMError(f"{source} is no folder: give the output folder of `bundle-mllm train`.")
    check_complete(source)
    check_code(source)
    if not share_user_log:
        _check_no_user_log(source)
    measurements = read_measurements(source, [Path(path) for path in metrics])
    report = read_report(source)
    card = render_model_card(
        source,
        repo_id,
        measurements,
        base_model=base_model,
        datasets=datasets,
        license=license,
        allow_no_metrics=allow_no_metrics,
        report=report,
    )
    if not dry_run:
        check_login()  # before the minutes that verifying a large model takes
    folder = Path(output_dir) if output_dir is not None else repository_folder(source)
    record, places = find_record(source), Places(source, folder)
    taken = [path for path in _files_of(source) if matches(path.relative_to(source).as_posix(), TAKEN)]

    def write(target: Path) -> None:
        for path in taken:
            link_or_copy(path, target / path.relative_to(source))
        for name, measurement in _metrics_names(measurements).items():
            write_json(target / name, places.reduce(dict(measurement.values)))
        write_report(report, source, target, places)
        if record is not None:
            values = read_json(record)
            local = ["base_model"] if values.get("base_model_is_folder") else []
            write_json(target / PUBLISHED_RECORD, places.reduce(values, local))
        (target / CARD).write_text(str(card), encoding="utf-8")

    verified = []
    write_repository(
        folder, source, write, lambda target: verified.append(verify_repository(target, origins=[source, folder]))
    )
    files = repository_files(folder)
    commit_url = None
    if not dry_run:
        commit_url = upload(
            folder,
            files,
            repo_id,
            repo_type="model",
            private=private,
            message=commit_message,
            belongs=lambda name: matches(name, (*TAKEN, *WRITTEN)),
        )
    used = {*taken, *(path.parent for path in taken), record, *(m.path for m in measurements)}
    used |= {source / REPORT_FOLDER} if report is not None else set()
    left_out = tuple(sorted(path.name for path in source.iterdir() if path not in used and path.name[0] != "."))
    return PublishReport(repo_id, folder, files, left_out, verified[0], commit_url)


def _check_no_user_log(source: Path) -> None:
    """Refuse a model whose matching compares items by their users: it holds every pair."""
    pairs = (read_json(source / "config.json").get("relations") or {}).get(USER_ITEM, 0)
    if pairs:
        raise BundleMLLMError(
            f"{source} holds the {pairs} pairs of user and item of your interactions table (users by number, without "
            f"ids), and whoever downloads it can read them: train without {USER_ITEM} to leave them out, or add "
            "--share-user-log."
        )


def _files_of(folder: Path) -> list[Path]:
    """Return the files directly in a folder, and its chat templates."""
    return sorted(path for path in (*folder.iterdir(), *folder.glob("chat_templates/*")) if path.is_file())


def _metrics_names(measurements: Sequence[Measurement]) -> dict[str, Measurement]:
    if len(measurements) == 1:
        return {"metrics.json": measurements[0]}
    return {f"metrics_{measurement.split}.json": measurement for measurement in measurements}

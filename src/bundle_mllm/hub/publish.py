"""Publish a model folder: write the repository, verify it in a clean process, upload it in one commit.

Knows nothing about how the model was trained.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.card import LICENSE_UNKNOWN, Measurement, find_record, read_measurements, render_model_card
from bundle_mllm.hub.integrity import RETRIEVER, check_code, check_complete
from bundle_mllm.hub.records import place_public, public_record, public_settings
from bundle_mllm.hub.report_files import FILES as REPORT_FILES
from bundle_mllm.hub.report_files import FOLDER as REPORT_FOLDER
from bundle_mllm.hub.report_files import read_report, write_report
from bundle_mllm.hub.repository import (
    CARD,
    PublishReport,
    matches,
    read_json,
    write_json,
)
from bundle_mllm.hub.upload import check_repo_id, publish_folder
from bundle_mllm.hub.verify import Verification, verify_repository
from bundle_mllm.model_folder import fingerprint

PUBLISHED_RECORD = "training_record.json"
_MODEL = ("*.safetensors", "*.safetensors.index.json", "*_bundle_mllm.py", "config.json")
TAKEN = (
    *_MODEL,
    *(f"{RETRIEVER}/{pattern}" for pattern in _MODEL),
    "chat_template.jinja",
    "chat_templates/*.jinja",
    "generation_config.json",
    "items.jsonl",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""The files of a model folder that belong in its repository; all others stay here."""
_EARLIER = ("added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.model", "vocab.json", "vocab.txt")
WRITTEN = (*TAKEN, *_EARLIER, CARD, PUBLISHED_RECORD, "metrics*.json", *REPORT_FILES)
"""The files of a repository that this package writes, or wrote; those that are no longer there are deleted."""


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

    Writes the repository folder (weights as hard links, so it takes no space): the model's own files, and what an
    allow-list of typed fields lets pass of records, metrics and settings. Renders its card, verifies it by loading it
    without this package and comparing scores, and only then uploads it, in one commit. A call that failed can be
    repeated; what has arrived is not sent again.

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
        share_user_log: Publish a retriever that holds which users have which items.
        output_dir: The repository folder; by default `model_dir` with "-hub" at its end.
        commit_message: Title of the commit.

    Returns:
        The files with their sizes, what verification found, and the commit.

    Raises:
        BundleMLLMError: If the name is none, there is no valid token, metrics are missing, a file is missing, cut
            short or unsafe, code in the folder is not this package's, the model holds a user log that is not to be
            shared, the folder answers differently without this package, or the Hub cannot be reached. Then nothing has
            become visible.
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
    record = find_record(source)
    taken = [path for path in source.rglob("[!.]*") if matches(path.relative_to(source).as_posix(), TAKEN)]

    def write(target: Path) -> None:
        for path in taken:
            place_public(path, target / path.relative_to(source))
        for name, measurement in _metrics_names(measurements).items():
            write_json(target / name, {**measurement.values, "fingerprint": fingerprint(target)})
        if report is not None:
            write_report(report, source, target)
        if record is not None:
            write_json(target / PUBLISHED_RECORD, public_record(read_json(record)))
        (target / CARD).write_text(str(card), encoding="utf-8")

    verified: list[Verification] = []
    published = publish_folder(
        source,
        repo_id,
        write,
        lambda target: verified.append(verify_repository(target)),
        repo_type="model",
        written=WRITTEN,
        private=private,
        dry_run=dry_run,
        output_dir=output_dir,
        message=commit_message,
    )
    used = {*taken, *(path.parent for path in taken), record, *(m.path for m in measurements)}
    used |= {source / REPORT_FOLDER} if report is not None else set()
    paths = [*source.iterdir(), *source.glob(f"{RETRIEVER}/*")]
    names = sorted(path.relative_to(source).as_posix() for path in paths if path not in used and path.name[0] != ".")
    return replace(published, left_out=tuple(names), verification=verified[0])


def _check_no_user_log(source: Path) -> None:
    """Refuse a model whose retriever compares items by their users: it holds every pair."""
    part = source / RETRIEVER if (source / RETRIEVER).is_dir() else source
    config = public_settings(part / "config.json")
    pairs = (config.get("memberships") or config.get("relations") or {}).get("user_item")
    if pairs:
        raise BundleMLLMError(
            f"{part} holds the {pairs} pairs of user and item of your interactions table (users by number, without "
            "ids), and whoever downloads it can read them: train the retriever without the membership user_item to "
            "leave them out, or add --share-user-log."
        )


def _metrics_names(measurements: Sequence[Measurement]) -> dict[str, Measurement]:
    if len(measurements) == 1:
        return {"metrics.json": measurements[0]}
    return {f"metrics_{measurement.split}.json": measurement for measurement in measurements}

"""Publish a model folder: write the repository, verify it in a clean process, upload it in one commit.

Knows nothing about how the model was trained.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bundle_mllm.completion.item_table import GROUP_NAMES
from bundle_mllm.data.files import read_json, write_json
from bundle_mllm.encoders.fitted import ENCODERS_FOLDER
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.card import find_record, read_measurements, render_model_card
from bundle_mllm.hub.integrity import check_code, check_complete
from bundle_mllm.hub.records import place_public, public_encoder, public_record, public_settings
from bundle_mllm.hub.report_files import FILES as REPORT_FILES
from bundle_mllm.hub.report_files import FOLDER as REPORT_FOLDER
from bundle_mllm.hub.report_files import read_report, write_report
from bundle_mllm.hub.repository import CARD, PublishReport, matches
from bundle_mllm.hub.settings import PublishSettings
from bundle_mllm.hub.space import gradio_version, publish_space
from bundle_mllm.hub.upload import check_repo_id, publish_folder
from bundle_mllm.hub.verify import Verification, verify_repository
from bundle_mllm.model_folder import fingerprint
from bundle_mllm.modeling.combination_bundle_mllm import COMBINATION_FILE
from bundle_mllm.modeling.completion_bundle_mllm import RETRIEVER_FOLDER
from bundle_mllm.settings import configured_by

PUBLISHED_RECORD = "training_record.json"
_MODEL = ("*.safetensors", "*.safetensors.index.json", "*_bundle_mllm.py", "config.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_templates/*.jinja")
_ENCODERS = ("encoders/visual.json", "encoders/acoustic.json", "encoders/textual.*", GROUP_NAMES)
"""What encodes new items, as far as it tells no more than titles and texts do: columns such as prices stay here."""
_OTHERS = ("generation_config.json", "items.jsonl", "processor_config.json", COMBINATION_FILE, *_ENCODERS)
TAKEN = (*_MODEL, *(f"{RETRIEVER_FOLDER}/{pattern}" for pattern in _MODEL), *_TOKENIZER, *_OTHERS)
"""The files of a model folder that belong in its repository; all others stay here."""
_EARLIER = ("added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.model", "vocab.json", "vocab.txt")
WRITTEN = (*TAKEN, *_EARLIER, CARD, PUBLISHED_RECORD, "metrics*.json", *REPORT_FILES)
"""The files of a repository that this package writes, or wrote; those that are no longer there are deleted."""


@configured_by(PublishSettings)
def publish(settings: PublishSettings) -> PublishReport:
    """Publish a model folder on the Hub.

    Writes the repository folder: the model's own files, and what a list of typed fields lets pass of records, metrics
    and settings. Verifies it by comparing scores without this package, and only then uploads it, in one commit.

    Args:
        settings: Whose fields are the arguments: see `PublishSettings`.

    Returns:
        The files with their sizes, the result of verification, and the commit; the same of the Space, if there is one.

    Raises:
        BundleMLLMError: If the name is none, there is no valid token, metrics are missing, a file is missing, cut
            short or unsafe, the model holds a user log that is not to be shared, the folder answers differently
            without this package, or the Hub cannot be reached. Then nothing has become visible.
    """
    source = settings.model
    check_repo_id(settings.repo)
    if settings.space is not None:
        check_repo_id(settings.space)
        gradio_version()
    if not source.is_dir():
        raise BundleMLLMError(f"{source} is no folder: give the output folder of `bundle-mllm train`.")
    check_complete(source)
    check_code(source)
    if not settings.share_user_log:
        _check_no_user_log(source)
    measurements = read_measurements(source, settings.metrics)
    report = read_report(source)
    card = render_model_card(settings, measurements, report)
    record = find_record(source)
    files = [path for path in source.rglob("[!.]*") if path.is_file()]
    taken = [path for path in files if matches(path.relative_to(source).as_posix(), TAKEN) and is_public(path)]

    def write(target: Path) -> None:
        for path in taken:
            place_public(path, target / path.relative_to(source))
        for measurement in measurements:
            name = f"metrics_{measurement.split}.json" if len(measurements) > 1 else "metrics.json"
            write_json(target / name, {**measurement.values, "fingerprint": fingerprint(target)})
        if report is not None:
            write_report(report, source, target)
        if record is not None:
            write_json(target / PUBLISHED_RECORD, public_record(read_json(record)))
        (target / CARD).write_text(str(card), encoding="utf-8")

    verified: list[Verification] = []

    def check(target: Path) -> None:
        verified.append(verify_repository(target))

    published = publish_folder(source, settings.repo, settings, write, check, repo_type="model", written=WRITTEN)
    used = {*taken, *(path.parent for path in taken), record, *(m.path for m in measurements)}
    used |= {source / REPORT_FOLDER} if report is not None else set()
    paths = [*source.iterdir(), *source.glob(f"{RETRIEVER_FOLDER}/*")]
    names = sorted(path.relative_to(source).as_posix() for path in paths if path not in used and path.name[0] != ".")
    space = None if settings.space is None else publish_space(settings, settings.space)
    return replace(published, left_out=tuple(names), verification=verified[0], space=space)


def is_public(path: Path) -> bool:
    """Return whether others can use a file: that of an encoder only if they can make the encoder."""
    return path.parent.name != ENCODERS_FOLDER or public_encoder(path.with_suffix(".json")) is not None


def _check_no_user_log(source: Path) -> None:
    """Refuse a model whose retriever compares items by their users: it holds every pair."""
    part = source / RETRIEVER_FOLDER if (source / RETRIEVER_FOLDER).is_dir() else source
    memberships = public_settings(part / "config.json").get("memberships") or {}
    if pairs := memberships.get("user_item"):
        raise BundleMLLMError(
            f"{part} holds the {pairs} pairs of user and item of your interactions table (users by number), which "
            "anyone could read: train the retriever without the membership user_item, or add --share-user-log."
        )

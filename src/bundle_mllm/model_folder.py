"""The model folder: weights, catalogs, tokenizer, prompt wording and item titles of ranker and retriever in one place.

Knows nothing about how a model is trained or evaluated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from transformers import AutoConfig
from transformers.utils import CONFIG_NAME, hub

from bundle_mllm.data.files import read_json, sha256
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub_access import hub_problem
from bundle_mllm.modeling.combination_bundle_mllm import COMBINATION_FILE
from bundle_mllm.modeling.completion_bundle_mllm import RETRIEVER_FOLDER, BundleCompleter
from bundle_mllm.modeling.configuration_bundle_mllm import BundleMLLMConfig, BundleRetrieverConfig
from bundle_mllm.modeling.item_processing_bundle_mllm import HUB_ARGUMENTS, BundleItemProcessor
from bundle_mllm.modeling.loading_bundle_mllm import completer_of
from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
from bundle_mllm.modeling.option_scoring_bundle_mllm import BundleMLLMForOptionScoring
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor
from bundle_mllm.modeling.retriever_bundle_mllm import BundleRetriever
from bundle_mllm.served_ranker import EXPORT_RECORD, MAX_LETTERS, RankerAddress, ServedRanker

RUN_RECORD = "run.json"
"""How `bundle-mllm train` made a model folder."""
CONVERSION_RECORD = "conversion.json"
"""How `bundle-mllm convert` made a model folder."""
STAGE_ONE_MODEL, HISTORIES = "training/stage_one/model", "training/{stage}/history.json"
"""What a run leaves in its model folder beside the model: the ranker after stage one, and losses and validations."""
Ranker = BundleMLLMForCausalLM | BundleMLLMForOptionScoring
RANKERS: dict[str, Any] = {each.config_class.model_type: each for each in get_args(Ranker)}
"""Classes of rankers by the `model_type` of their configuration."""
_ITEMS = ("items.jsonl", "encoders/*", "group_names.json")
_WORDING = ("tokenizer.json", "processor_config.json", "chat_template.jinja")
_DECIDING = ("*.safetensors", *_ITEMS, COMBINATION_FILE, *_WORDING)
_UNREADABLE = Exception
"""What libraries raise for a folder that they cannot read: all kinds, and tokenizers `Exception` itself."""


def save_model(ranker: Ranker, processor: BundleMLLMProcessor, folder: str | Path) -> None:
    """Write the folder of a ranker and its processor, of which the items may have other titles than before.

    `BundleCompleter.save_pretrained` writes all else.
    """
    ranker.config.items_hash = processor.items_hash
    ranker.save_pretrained(folder)
    processor.save_pretrained(folder)


def load_completer(
    folder: str | Path, device: str | None = None, ranker: str | None = None, **kwargs: Any
) -> BundleCompleter:
    """Load a model folder or Hub repository: ranker, retriever or both, with their processor.

    Args:
        folder: Model folder or Hub repository.
        device: Where the models run; the CPU if not given.
        ranker: Address of the server that runs the exported ranker, see `RankerAddress`; the folder's own weights of
            the ranker are not read then. A prompt has up to 20 options there.
        **kwargs: For `from_pretrained`. What names files (`revision`, `token`, `cache_dir`, `local_files_only`,
            `subfolder`) holds for all parts, which are of one commit; all else, such as `dtype`, for the ranker or,
            without one, the retriever.

    Raises:
        BundleMLLMError: If there is no such folder or repository, it does not hold these models, its items are not
            those a model was saved with, or the ranker was not exported.
    """
    _check_exists(folder)
    files = _files_of_one_commit(folder, kwargs)
    kwargs |= files
    model: Any
    processor: Any
    try:
        if ranker is not None:
            model, processor = _served_ranker(ranker, folder, files), load_processor(folder, **files)
        elif is_retriever(folder, **files):
            processor = BundleItemProcessor.from_pretrained(folder, **files)
            model = BundleRetriever.from_pretrained(folder, **kwargs).eval()
        else:
            model, processor = load_ranker(folder, **kwargs)
        completer = completer_of(model, processor, str(folder), **files)
    except _UNREADABLE as error:
        raise _unreadable(folder, error) from error
    if ranker is not None:
        completer.processor.max_options = min(completer.processor.max_options, MAX_LETTERS)
    return completer if device is None else completer.to(device)


def _served_ranker(address: str, folder: str | Path, files: Mapping[str, Any]) -> ServedRanker:
    config: Any = AutoConfig.from_pretrained(folder, **files)
    if config.model_type != BundleMLLMConfig.model_type:
        raise BundleMLLMError(
            f"{folder} holds no ranker that answers by letters, so {address} cannot answer for it: leave it out."
        )
    record = hub.cached_file(str(folder), EXPORT_RECORD, **files, _raise_exceptions_for_missing_entries=False)
    if record is None:
        raise BundleMLLMError(
            f"{folder} has no {EXPORT_RECORD}, so nothing tells whether {address} has the same ranker: export it "
            "(bundle-mllm export), or copy the file from the exported folder."
        )
    return ServedRanker(RankerAddress.parse(address), config, read_json(Path(record)))


def load_ranker(folder: str | Path, **kwargs: Any) -> tuple[Ranker, BundleMLLMProcessor]:
    """Load the ranker of a model folder or Hub repository, and its processor; see [`load_completer`]."""
    _check_exists(folder)
    files = _files_of_one_commit(folder, kwargs)
    kwargs |= files
    try:
        model_type = AutoConfig.from_pretrained(folder, **files).model_type
        if model_type not in RANKERS:
            raise ValueError(f"its config.json is of a {model_type!r} model, not of a ranker")
        model = RANKERS[model_type].from_pretrained(folder, **kwargs)
    except _UNREADABLE as error:
        raise _unreadable(folder, error) from error
    processor = load_processor(folder, **files)
    check_same_items(model, processor, folder)
    return model.eval(), processor


def load_processor(folder: str | Path, **files: Any) -> BundleMLLMProcessor:
    """Load the processor of a ranker alone; see [`load_completer`]."""
    _check_exists(folder)
    try:
        return BundleMLLMProcessor.from_pretrained(folder, **files)
    except _UNREADABLE as error:
        raise _unreadable(folder, error) from error


def is_retriever(folder: str | Path, **files: Any) -> bool:
    """Return whether a model folder or Hub repository holds a retriever alone."""
    return AutoConfig.from_pretrained(folder, **files).model_type == BundleRetrieverConfig.model_type


def check_same_items(model: Any, processor: BundleItemProcessor, folder: str | Path) -> None:
    """Refuse a processor from `folder` whose items are not those that the model records.

    Raises:
        BundleMLLMError: If they are others, or in another order.
    """
    try:
        processor.check_model(model.config)
    except ValueError as error:
        raise BundleMLLMError(f"{folder}: {error}") from error


def fingerprint(folder: str | Path) -> str | None:
    """Return a SHA-256 over all that decides a model folder's answers: models, combination, items, tokenizer, wording.

    Returns:
        The hexadecimal digest, or `None` for a Hub repository, whose commit identifies it as well.
    """
    digest, top = hashlib.sha256(), Path(folder)
    found = False
    for part in (top, top / RETRIEVER_FOLDER):
        for path in _deciding_files(part):
            digest.update(f"{path.relative_to(top).as_posix()} {sha256(path)}\n".encode())
            found = True
        if found and (config := part / CONFIG_NAME).is_file():
            settings = read_json(config)
            settings.pop("transformers_version", None)  # of the writer
            digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest() if found else None


def model_files(folder: str | Path) -> list[Path]:
    """Return the files that decide a model folder's answers, and its configurations; none of a Hub repository."""
    parts = (Path(folder), Path(folder, RETRIEVER_FOLDER))
    return [path for part in parts if part.is_dir() for path in (*_deciding_files(part), part / CONFIG_NAME)]


def _deciding_files(part: Path) -> list[Path]:
    return sorted({path for pattern in _DECIDING for path in part.glob(pattern)})


def _files_of_one_commit(folder: str | Path, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return those arguments of `from_pretrained` that name files, with the commit that the revision is of now."""
    files = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
    where = {name: files[name] for name in ("token", "cache_dir", "local_files_only") if name in files}
    revision = hub.resolve_revision(folder, files.get("revision"), **where)
    return files if revision is None else files | {"revision": revision}


def _check_exists(folder: str | Path) -> None:
    """Refuse a mistyped path before the Hub is reached; a Hub name is `org/name`, without a folder `org` here."""
    path = Path(folder)
    may_be_hub_name = len(path.parts) == 2 and path.parts[0] not in (".", "..", "/") and not path.parent.is_dir()
    if not path.exists() and not may_be_hub_name:
        raise BundleMLLMError(
            f"There is no folder {folder}: give the output folder of `bundle-mllm train`, or the name of a Hub "
            "repository (org/name)."
        )


def _unreadable(folder: str | Path, error: Exception) -> BundleMLLMError:
    if isinstance(error, BundleMLLMError):
        return error
    reason = hub_problem(error) or " ".join(str(error).split()).rstrip(".")
    return BundleMLLMError(
        f"{folder} is no readable Bundle-MLLM model: {reason}. Give the output folder of `bundle-mllm train`, or the "
        "name of a Hub repository."
    )

"""Load the completer of a model folder or Hub repository: what stands beside a model.

Knows nothing about questions, scores or how an item is encoded.
"""

import os
from typing import Any

from transformers.utils import hub, logging

from .combination_bundle_mllm import COMBINATION_FILE, BundleCombination
from .completion_bundle_mllm import RETRIEVER_FOLDER, BundleCompleter
from .configuration_bundle_mllm import BundleRetrieverConfig
from .item_processing_bundle_mllm import BundleItemProcessor
from .retriever_bundle_mllm import BundleRetriever

logger = logging.get_logger(__name__)


def completer_of(model: Any, processor: BundleItemProcessor, name: str, **files: Any) -> BundleCompleter:
    """Return the completer of a model, with what stands beside it in its folder or repository.

    Args:
        model: A ranker, beside which there may be a retriever and the combination of both; or a retriever alone.
        processor: Its items.
        name: Model folder or Hub repository of both.
        **files: Which files of which repository, such as `revision`; see `HUB_ARGUMENTS`.

    Raises:
        ValueError: See `BundleCompleter` and `BundleCombination.from_pretrained`.
        OSError: If the retriever cannot be loaded.
    """
    if model.config.model_type == BundleRetrieverConfig.model_type:
        combination = BundleCombination.from_pretrained(name, **files) if _is_at_hand(name) else None
        completer = BundleCompleter(processor, retriever=model, combination=combination)
    else:
        completer = BundleCompleter(processor, model, **_load_others(name, **files))
    if _is_at_hand(name):
        completer.origin = name, files
    return completer


def _is_at_hand(name: str) -> bool:
    """Return whether a model is named after a folder or repository: not if it is in memory or its folder is gone."""
    return os.path.isdir(name) or bool(name and not os.path.isabs(name) and name.count("/") <= 1)


def _load_others(name: str, **files: Any) -> dict[str, Any]:
    """Load what stands beside a ranker, if anything: the "retriever" and the "combination" of both."""
    if not _is_at_hand(name):
        return {}
    others: dict[str, Any] = {"combination": BundleCombination.from_pretrained(name, **files)}
    files["subfolder"] = f"{files.get('subfolder', '')}/{RETRIEVER_FOLDER}".strip("/")
    if hub.cached_file(name, "config.json", **files, _raise_exceptions_for_missing_entries=False) is not None:
        BundleRetriever.register_for_auto_class("AutoModel")  # so that its code is saved with it, package or not
        if others["combination"] is None:
            logger.warning(
                f"{name} has no {COMBINATION_FILE}, so ranker and retriever count alike: fit their weights "
                "(bundle-mllm retriever), or copy the file if it was lost."
            )
        others["retriever"] = BundleRetriever.from_pretrained(name, **files).eval()
    return others

"""Add a retriever to the folder of a ranker that was made elsewhere.

Knows nothing about how the ranker was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bundle_mllm.completion.item_table import save_items
from bundle_mllm.data.files import require_folder, write_json, written_folder
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.model_folder import check_same_items, load_ranker
from bundle_mllm.modeling.combination_bundle_mllm import COMBINATION_FILE
from bundle_mllm.modeling.completion_bundle_mllm import RETRIEVER_FOLDER, BundleCompleter
from bundle_mllm.settings import configured_by
from bundle_mllm.training.calibrate import calibrated
from bundle_mllm.training.config import AddRetrieverSettings
from bundle_mllm.training.ranker import join
from bundle_mllm.training.retriever import make_retriever
from bundle_mllm.training.run import limited_threads
from bundle_mllm.training.run_data import RunData


@configured_by(AddRetrieverSettings)
def add_retriever(settings: AddRetrieverSettings) -> dict[str, dict[str, Any]]:
    """Train a retriever on a dataset folder, fit the weight of the ranker beside it, and write both down.

    The retriever is written to `retriever/` in the model folder, in one step; one that is there is replaced once the
    new one is complete. How both are joined is written to `combination.json`. The ranker's files stay as they are.

    Returns:
        The validation figures of "ranker", "retriever" and "both", and of the "combination".

    Raises:
        BundleMLLMError: If there is no such folder, its items are not those of the data, or there are no features.
    """
    require_folder(settings.model, "give a model folder; one on the Hub has to be downloaded first (hf download)")
    ranker, processor = load_ranker(settings.model)
    data = RunData(settings, DatasetFolder.open(settings.data))
    if differences := data.catalog.differences(processor.item_ids, processor.titles):
        raise BundleMLLMError(
            f"{settings.data} and {settings.model} do not have the same items in the same order with the same titles: "
            f"{', '.join(differences)}. Rows would be mixed up: give the data that the ranker was made for."
        )
    check_same_items(ranker, processor, settings.model)
    with limited_threads(settings.num_threads):
        data.note_features()
        retriever, held_out_scores = make_retriever(data)
        completer, figures = join(ranker, processor, retriever, held_out_scores, data)
        completer.combination = calibrated(completer, data.calibration_questions)
    retriever.config.items_hash = processor.items_hash
    save_items(settings.model, data.folder, completer.modalities, retriever.memberships)
    _replace_retriever(settings.model, completer)
    return figures


def _replace_retriever(folder: Path, completer: BundleCompleter) -> None:
    """Write the retriever and its combination with the ranker.

    The combination comes first: a folder in which a kill leaves it without its retriever is refused when loaded, and
    is made whole by the next call.
    """
    with written_folder(folder / RETRIEVER_FOLDER) as temporary:
        completer.retriever.save_pretrained(temporary)
        write_json(folder / COMBINATION_FILE, completer.combination.to_dict())

"""Take from a loaded model what it knows of its items, in part or for good: what it loses then, it had from there.

Knows nothing about questions, metrics or how the model was trained; nothing is trained again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.modeling.configuration_bundle_mllm import modality_of
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

if TYPE_CHECKING:
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM

TITLES = "titles"
"""What titles are called among the modalities."""


def ablations(sources: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return what is kept when each source of knowledge is dropped, and when each is alone.

    Args:
        sources: All of them, such as `("titles", "visual", "user_item")`.

    Returns:
        By label, such as `without visual` or `visual alone`, the sources that are kept. With two sources dropping one
        leaves the other alone, which is there once. Empty for a single source: nothing can be taken from it.
    """
    if len(sources) < 2:
        return {}
    dropped = {name: tuple(other for other in sources if other != name) for name in sources}
    kept = [*dropped.values(), *((name,) for name in sources)]
    missing = {kept: name for name, kept in dropped.items()}
    return {f"{k[0]} alone" if len(k) == 1 else f"without {missing[k]}": k for k in dict.fromkeys(kept)}


@contextmanager
def only(
    model: BundleMLLMForCausalLM, processor: BundleMLLMProcessor, kept: Sequence[str]
) -> Iterator[tuple[BundleMLLMForCausalLM, BundleMLLMProcessor]]:
    """Hide all but some sources of knowledge for a while.

    A modality that is hidden is absent for every item, as for an item that never had it; a hidden title is empty. The
    model was not trained without them, so this measures what this model relies on, not what another could reach.

    Args:
        model: The model; as it was after the block.
        processor: Its processor, which stays as it is.
        kept: Modalities of the model and, to keep titles, "titles".

    Yields:
        The model, and the processor to ask with.

    Raises:
        BundleMLLMError: One of `kept` is unknown.
    """
    catalog = model.model.catalog
    if unknown := sorted(set(kept) - {TITLES, *catalog.modalities}):
        raise BundleMLLMError(
            f"{unknown} cannot be kept, since this model knows {[TITLES, *catalog.modalities]}: choose among these."
        )
    with restored(model):
        features, present, relations = _rows(model)
        present = {name: mask & (name in kept) for name, mask in present.items()}
        relations = {name: edges for name, edges in relations.items() if modality_of(name) in kept}
        model.set_catalog(features, present, relations=relations)
        yield model, processor if TITLES in kept else without_titles(processor)


@contextmanager
def shuffled(
    model: BundleMLLMForCausalLM,
    processor: BundleMLLMProcessor,
    seed: int,
    modalities: Sequence[str] | None = None,
) -> Iterator[tuple[BundleMLLMForCausalLM, BundleMLLMProcessor]]:
    """Give every item the features of another for a while; see [`shuffle_features`]."""
    with restored(model):
        shuffle_features(model, seed, modalities)
        yield model, processor


def shuffle_features(model: BundleMLLMForCausalLM, seed: int, modalities: Sequence[str] | None = None) -> None:
    """Give every item the features of another, drawn at random: what the model loses, it had from them.

    Args:
        model: The model; changed in place.
        seed: Of the order.
        modalities: Which features, with the groups that belong to them; all if not given.

    Raises:
        BundleMLLMError: One of `modalities` is unknown.
    """
    known = list(model.model.catalog.modalities)
    if unknown := sorted(set(modalities or ()) - set(known)):
        raise BundleMLLMError(f"{unknown} cannot be shuffled, since this model knows {known}: choose among these.")
    moved = set(known if modalities is None else modalities)
    order = list(range(model.model.catalog.num_items))
    random.Random(seed).shuffle(order)
    rows = torch.tensor(order)
    features, present, relations = _rows(model)
    model.set_catalog(
        {name: matrix[rows] if name in moved else matrix for name, matrix in features.items()},
        {name: mask[rows] if name in moved else mask for name, mask in present.items()},
        relations={
            name: (*pairs, node_of_item[rows] if modality_of(name) in moved else node_of_item)
            for name, (*pairs, node_of_item) in relations.items()
        },
    )


@contextmanager
def restored(model: BundleMLLMForCausalLM) -> Iterator[None]:
    """Put the catalog back as it was when the block ends, whatever was done to it."""
    (features, present, relations), items_hash = _rows(model), model.config.items_hash
    try:
        yield
    finally:
        if features:
            model.set_catalog(features, present, relations=relations)
        model.config.items_hash = items_hash


def without_titles(processor: BundleMLLMProcessor) -> BundleMLLMProcessor:
    """Return a processor with the same wording over the same items, none of which has a title."""
    apart = ("auto_map", "processor_class")
    fields = {name: value for name, value in processor.to_dict().items() if name not in apart}
    fields |= {"item_ids": processor.item_ids, "titles": [""] * processor.num_items}
    return BundleMLLMProcessor(processor.tokenizer, chat_template=processor.chat_template, **fields)


def _rows(
    model: BundleMLLMForCausalLM,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, tuple[torch.LongTensor, ...]]]:
    """Return features and presence mask of each modality, and each relation's edges, as `set_catalog` takes them."""
    catalog = model.model.catalog
    features = {name: catalog.features[name] for name in catalog.modalities}
    relations = {name: relation.edges() for name, relation in catalog.relations.items()}
    return features, {name: catalog.present[:, column] for column, name in enumerate(catalog.modalities)}, relations

"""Hide or permute what a completer reads of the items, to measure what it relies on.

Knows nothing about questions or metrics.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from bundle_mllm.data.memberships import BUNDLE_CATEGORY, BUNDLE_ITEM
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter

TITLES = "titles"
"""Name of the titles among the modalities; only the ranker reads them."""


def sources(completer: BundleCompleter) -> list[str]:
    """Return all sources of information on items: titles, if there is a ranker, and the modalities of both models."""
    titles = [] if completer.ranker is None else [TITLES]
    return [*titles, *sorted({name for model in completer.models for name in model.config.modalities})]


def ablations(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return what is kept when each source of information is dropped, and when each is alone.

    Args:
        names: All of them, such as `("titles", "visual", "user_item")`.

    Returns:
        By label, such as `without visual` or `visual alone`, the sources that are kept. With two sources dropping one
        leaves the other alone, which is there once. Empty for a single source: nothing can be dropped.
    """
    if len(names) < 2:
        return {}
    dropped = {name: tuple(other for other in names if other != name) for name in names}
    kept = [*dropped.values(), *((name,) for name in names)]
    missing = {kept: name for name, kept in dropped.items()}
    return {f"{k[0]} alone" if len(k) == 1 else f"without {missing[k]}": k for k in dict.fromkeys(kept)}


@contextmanager
def masked(completer: BundleCompleter, mask: Sequence[str]) -> Iterator[BundleCompleter]:
    """Hide sources of information for a while.

    A modality that is hidden is absent for every item, as for an item that never had it, and so are the groups that
    belong to it; a hidden title is empty. The models were not trained without them, so this measures what these models
    rely on, not what others could reach.

    Args:
        completer: The models; as they were after the block.
        mask: Modalities and, to hide titles, "titles".

    Yields:
        The completer to score with.

    Raises:
        BundleMLLMError: If one of `mask` is unknown.
    """
    _check(mask, sources(completer), "hidden")
    with restored(completer):
        for model in completer.models:
            rows = model.catalog_rows()
            rows["present"] = {name: known & (name not in mask) for name, known in rows["present"].items()}
            for name in [name for name in rows.get("memberships", ()) if _modality_of(name) in mask]:
                del rows["memberships"][name]
            _replace(model, rows)
            model.config.items_hash = None
        processor = completer.processor.without_titles() if TITLES in mask else completer.processor
        yield BundleCompleter(processor, completer.ranker, completer.retriever, completer.combination)


@contextmanager
def permuted(
    completer: BundleCompleter, modalities: Sequence[str] | None = None, *, seed: int
) -> Iterator[BundleCompleter]:
    """Give every item the features of another, drawn at random, for a while (permutation importance).

    Args:
        completer: The models; as they were after the block.
        modalities: Which features, with the groups that belong to them; all if not given.
        seed: Of the order.

    Yields:
        The completer to score with.

    Raises:
        BundleMLLMError: If one of `modalities` is unknown.
    """
    known = [name for name in sources(completer) if name != TITLES]
    _check(modalities or (), known, "permuted")
    moved = set(known if modalities is None else modalities)
    order = list(range(completer.processor.num_items))
    random.Random(seed).shuffle(order)
    permutation = torch.tensor(order)
    with restored(completer):
        for model in completer.models:
            rows = model.catalog_rows()
            for kind in ("features", "present"):
                rows[kind] = {n: m[permutation] if n in moved else m for n, m in rows[kind].items()}
            for name, pairs in rows.get("memberships", {}).items():
                if _modality_of(name) in moved:
                    rows["memberships"][name] = pairs._replace(node_of_item=pairs.node_of_item[permutation])
            _replace(model, rows)
        yield completer


@contextmanager
def restored(completer: BundleCompleter) -> Iterator[None]:
    """Put the catalogs back as they were when the block ends."""
    before = [(model, model.config.items_hash, model.catalog_rows()) for model in completer.models]
    try:
        yield
    finally:
        for model, items_hash, rows in before:
            _replace(model, rows)
            model.config.items_hash = items_hash


def _replace(model: Any, rows: dict[str, Any]) -> None:
    if rows["features"]:
        model.set_catalog(**rows)


def _modality_of(membership: str) -> str:
    """Return the modality with the same information as a membership: itself, except for categories."""
    return BUNDLE_ITEM if membership == BUNDLE_CATEGORY else membership


def _check(names: Sequence[str], known: Sequence[str], what: str) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise BundleMLLMError(f"{unknown} cannot be {what}, since these models read {known}: choose among these.")

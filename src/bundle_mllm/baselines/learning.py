"""Train networks to complete partial bundles, by steps, and stop when held-out training bundles say so.

It must not know any network, nor a bundle outside the training split.

What is trained sees a random part of a bundle and gives logits to items. The softmax over the whole catalog, which
both MultiVAE and CLHE use, is estimated: its columns are all items of the batch's bundles and some others, drawn
uniformly, each of which stands for as many as there are (importance sampling), so that a step costs the same for a
large catalog.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from bundle_mllm.baselines.base import Asked, UnavailableError
from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import assign_folds

ABSENT = -1
"""Fills the places of short lists."""
HELD_OUT_FOLDS = 10
"""One bundle in so many, near-duplicates together, decides when to stop."""


@dataclass(frozen=True)
class Schedule:
    """How a network is trained.

    Attributes:
        epochs: At most so many passes over the bundles.
        patience: Stop after so many passes without a better held-out loss; the best weights are kept.
        batch_size: Bundles per step.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        num_sampled: Items drawn from the whole catalog as columns of the softmax, besides those of the batch.
        max_shown: At most this many items of a bundle are shown.
    """

    epochs: int = 60
    patience: int = 4
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    num_sampled: int = 1500
    max_shown: int = 10


@dataclass(frozen=True)
class PartialBundles:
    """A batch of bundles of which a part is shown.

    Attributes:
        shown: `[batch, longest]` rows of the items shown; `ABSENT` behind the last.
        columns: `[columns]` rows of the items that get logits, each once.
        log_weights: `[columns]` logarithm of how many items each stands for.
        members: `[batch, columns]` 1 where the bundle has the item.
        rest: `[batch, columns]` 1 where the bundle has the item and it is not shown.
    """

    shown: torch.Tensor
    columns: torch.Tensor
    log_weights: torch.Tensor
    members: torch.Tensor
    rest: torch.Tensor

    def log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of the columns among all items, estimated: `[batch, columns]`."""
        return logits - torch.logsumexp(logits + self.log_weights, dim=1, keepdim=True)


class PartialBundleNetwork(Protocol):
    """What [`train_network`] trains: a module that gives its loss, and the logits it would rank by."""

    def loss(self, batch: PartialBundles, progress: float) -> torch.Tensor:
        """Return the loss of a batch; `progress` is the share of all passes that are done."""
        ...

    def logits(self, shown: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return `[batch, columns]` logits of the same items for all."""
        ...


def pad(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return lists of rows as `[lists, longest]`, with `ABSENT` behind the last."""
    padded = torch.full((len(rows), max(map(len, rows))), ABSENT)
    for place, entry in enumerate(rows):
        padded[place, : len(entry)] = torch.tensor(entry)
    return padded


def askable_rows(folder: DatasetFolder, bundles: Sequence[Bundle]) -> dict[str, list[int]]:
    """Return the rows of the bundles of two items or more, by bundle id.

    Raises:
        UnavailableError: There is none.
    """
    rows = {bundle.bundle_id: folder.catalog.rows(bundle.items) for bundle in bundles if len(bundle.items) > 1}
    if not rows:
        raise UnavailableError(f"{folder.path} has no training bundle of two items: add bundles, or leave it out.")
    return rows


def hold_out(bundles: dict[str, list[int]], seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Set a tenth of the bundles aside, near-duplicates together; none where there are too few.

    Args:
        bundles: The rows of each bundle's items, by bundle id.
        seed: Chooses them.

    Returns:
        The rows of those that are left to train on, and of those that decide when to stop.
    """
    if len(bundles) < 2 * HELD_OUT_FOLDS:
        return list(bundles.values()), []
    folds = assign_folds(bundles, HELD_OUT_FOLDS, seed=seed)
    held_out = HELD_OUT_FOLDS - 1  # not 0, which has the largest group of near-duplicates
    training = [rows for bundle_id, rows in bundles.items() if folds[bundle_id] != held_out]
    return training, [rows for bundle_id, rows in bundles.items() if folds[bundle_id] == held_out]


def train_network(
    network: nn.Module,
    training: Sequence[list[int]],
    held_out: Sequence[list[int]],
    num_items: int,
    schedule: Schedule,
    seed: int,
) -> None:
    """Train a network in place and leave it in evaluation mode.

    Args:
        network: A [`PartialBundleNetwork`].
        training: The rows of each bundle's items, two or more.
        held_out: Those of the bundles that decide when to stop; without any, all passes are made.
        num_items: Length of the catalog.
        schedule: How to train.
        seed: The same seed gives the same weights. Random numbers of other users of torch are left alone.
    """
    rng = np.random.default_rng(seed)
    check = [_make_batch(part, num_items, schedule, rng) for part in _cut(held_out, 256)]
    best, best_state, waited = np.inf, None, 0
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay, foreach=True
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(schedule.epochs):
            network.train()
            order = rng.permutation(len(training))
            for chosen in _cut(order, schedule.batch_size):
                batch = _make_batch([training[i] for i in chosen], num_items, schedule, rng)
                optimizer.zero_grad(set_to_none=True)
                network.loss(batch, epoch / schedule.epochs).backward()
                optimizer.step()
            network.eval()
            if not check:
                continue
            loss = _held_out_loss(network, check)
            if loss < best:
                best, best_state, waited = loss, copy.deepcopy(network.state_dict()), 0
            elif (waited := waited + 1) == schedule.patience:
                break
    if best_state is not None:
        network.load_state_dict(best_state)


@torch.inference_mode()
def score_by_network(network: nn.Module, asked: Asked) -> np.ndarray:
    """Return the logits of all candidates, `[total]` float64, question by question."""
    scores = [np.empty(0)]
    for part in asked.batches(640):
        columns, place = np.unique(part.candidate, return_inverse=True)
        logits = network.logits(pad(part.partials), torch.from_numpy(columns))
        scores.append(logits.double().numpy()[part.question, place])
    return np.concatenate(scores)


def _cut(entries: Sequence, size: int) -> Iterator[Sequence]:
    return (entries[start : start + size] for start in range(0, len(entries), size))


def _make_batch(
    bundles: Sequence[list[int]], num_items: int, schedule: Schedule, rng: np.random.Generator
) -> PartialBundles:
    """Show a random part of each bundle, at least one item and never all, as training questions do."""
    shown, hidden = [], []
    for rows in bundles:
        order = rng.permutation(rows).tolist()
        number = int(rng.integers(1, min(len(rows) - 1, schedule.max_shown), endpoint=True))
        shown.append(order[:number])
        hidden.append(order[number:])
    own = np.unique(np.concatenate(bundles))
    others = np.setdiff1d(rng.integers(num_items, size=schedule.num_sampled), own)
    left = num_items - len(own)
    if left <= schedule.num_sampled:
        others = np.setdiff1d(np.arange(num_items), own)
    columns = np.concatenate([own, others])
    weights = np.zeros(len(columns), dtype=np.float32)
    weights[len(own) :] = np.log(max(1, left) / max(1, len(others)))
    members, rest = np.zeros((2, len(bundles), len(columns)), dtype=np.float32)
    for place, (visible, asked) in enumerate(zip(shown, hidden, strict=True)):
        members[place, np.searchsorted(own, [*visible, *asked])] = 1
        rest[place, np.searchsorted(own, asked)] = 1
    tensors = map(torch.from_numpy, (columns, weights, members, rest))
    return PartialBundles(pad(shown), *tensors)


@torch.inference_mode()
def _held_out_loss(network: nn.Module, check: Sequence[PartialBundles]) -> float:
    """Return the mean negative log-probability of the items that are not shown, bundle by bundle."""
    total = number = 0
    for batch in check:
        logs = batch.log_probabilities(network.logits(batch.shown, batch.columns))
        total += float(-((logs * batch.rest).sum(dim=1) / batch.rest.sum(dim=1)).sum())
        number += len(logs)
    return total / number

"""Train networks to complete partial bundles, and stop when the loss on held-out training bundles stops falling.

Knows nothing about any particular network, and of bundles outside the training split only whether these have
near-duplicates in it.

A network gets a random part of a bundle and gives logits to items. The softmax over the whole catalog, which both
MultiVAE and CLHE use, is estimated: its columns are all items of the batch's bundles and some others, drawn uniformly
and weighted by the number of items that each represents (importance sampling), so that the cost of a step does not
grow with the catalog.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bundle_mllm.baselines.base import QuestionBatch, UnavailableError
from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.folds import assign_folds
from bundle_mllm.encoders.batches import cut

ABSENT = -1
"""Pads short lists."""
HELD_OUT_FOLDS = 10
"""One bundle in so many, near-duplicates together, is held out to decide when to stop."""

ITEMS_AT_ONCE = 8_192
"""Items of a whole catalog that a network encodes at once."""


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
        log_weights: `[columns]` logarithm of the number of items that each represents.
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


class PartialBundleNetwork(nn.Module, ABC):
    """A module with a loss to train by, and logits to rank by."""

    @abstractmethod
    def loss(self, batch: PartialBundles, progress: float) -> torch.Tensor:
        """Return the loss of a batch; `progress` is the finished share of all passes."""

    @abstractmethod
    def logits(self, shown: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return the logits of the same items for all: `[batch, columns]`."""


def pad(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return lists of rows as `[lists, longest]`, with `ABSENT` behind the last."""
    tensors = [torch.tensor(entry, dtype=torch.long) for entry in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=ABSENT)


class NetworkBaseline(ABC):
    """A baseline that scores candidates by the logits of a network.

    Args:
        seed: The same seed gives the same scores.
    """

    reads_bundles = True
    schedule = Schedule()

    def __init__(self, seed: int = 0):
        self.seed = seed

    @abstractmethod
    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Train the network by [`~NetworkBaseline.train`]."""

    def train(
        self,
        make: Callable[[], PartialBundleNetwork],
        training: Sequence[list[int]],
        held_out: Sequence[list[int]],
        num_items: int,
    ) -> None:
        """Make a network and train it on the rows of each bundle's items, two or more.

        The held-out bundles decide when to stop; without any, all passes are made. The global random state of torch
        stays as it is.
        """
        schedule, rng = self.schedule, np.random.default_rng(self.seed)
        check = [_make_batch(part, num_items, schedule, rng) for part in cut(held_out, 256)]
        best, best_state, waited = np.inf, None, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self._network = make()
            optimizer = torch.optim.AdamW(
                network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay, foreach=True
            )
            torch.manual_seed(self.seed)
            for epoch in range(schedule.epochs):
                network.train()
                order = rng.permutation(len(training)).tolist()
                for drawn in cut(order, schedule.batch_size):
                    batch = _make_batch([training[i] for i in drawn], num_items, schedule, rng)
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
    def score(self, batch: QuestionBatch) -> np.ndarray:
        """Encode the items shown, and return the logits of the candidates."""
        columns, position = np.unique(batch.candidate_rows, return_inverse=True)
        logits = self._network.logits(pad(batch.partials), torch.from_numpy(columns))
        return logits.double().numpy()[batch.question_index, position]

    def score_catalog(self, batch: QuestionBatch) -> np.ndarray:
        """Encode the items shown, and return the logits of all items."""
        return self._logits(batch.partials, batch.num_items)

    @torch.inference_mode()
    def _logits(self, partials: Sequence[Sequence[int]], num_items: int) -> np.ndarray:
        chunks = torch.arange(num_items).split(ITEMS_AT_ONCE)
        return torch.cat([self._network.logits(pad(partials), rows) for rows in chunks], dim=1).double().numpy()


def hold_out(folder: DatasetFolder, bundles: Sequence[Bundle], seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Hold out a tenth of the bundles of two items or more, cut as the splits are; none of few bundles.

    Returns:
        The rows of each bundle to train on, and of each that decides when to stop.

    Raises:
        UnavailableError: If there is no bundle of two items.
    """
    items = {bundle.bundle_id: bundle.items for bundle in bundles if len(bundle.items) > 1}
    if not items:
        raise UnavailableError(f"{folder.path} has no training bundle of two items", "add bundles")
    held_out = HELD_OUT_FOLDS - 1  # not 0, which has the largest group of near-duplicates
    folds: dict[str, int] = {}
    if len(items) >= 2 * HELD_OUT_FOLDS:
        together = folder.near_duplicates_together
        folds = assign_folds(items, HELD_OUT_FOLDS, seed=seed, near_duplicates_together=together)
    parts: tuple[list[list[int]], list[list[int]]] = ([], [])
    for bundle_id, item_ids in items.items():
        parts[folds.get(bundle_id) == held_out].append(folder.catalog.rows(item_ids))
    return parts


def _make_batch(
    bundles: Sequence[list[int]], num_items: int, schedule: Schedule, rng: np.random.Generator
) -> PartialBundles:
    """Show a random part of each bundle, at least one item and not all, as in training questions."""
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
    for index, (partial, missing) in enumerate(zip(shown, hidden, strict=True)):
        members[index, np.searchsorted(own, [*partial, *missing])] = 1
        rest[index, np.searchsorted(own, missing)] = 1
    tensors = map(torch.from_numpy, (columns, weights, members, rest))
    return PartialBundles(pad(shown), *tensors)


@torch.inference_mode()
def _held_out_loss(network: PartialBundleNetwork, check: Sequence[PartialBundles]) -> float:
    """Return the mean negative log-probability of the items that are not shown, bundle by bundle."""
    total = number = 0
    for batch in check:
        logs = batch.log_probabilities(network.logits(batch.shown, batch.columns))
        total += float(-((logs * batch.rest).sum(dim=1) / batch.rest.sum(dim=1)).sum())
        number += len(logs)
    return total / number

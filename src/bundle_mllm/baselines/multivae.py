"""MultiVAE (Liang et al., WWW 2018): a variational autoencoder of bundles as bags of items.

Knows nothing about words or features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from bundle_mllm.baselines.base import QuestionBatch
from bundle_mllm.baselines.learning import (
    ABSENT,
    NetworkBaseline,
    PartialBundleNetwork,
    PartialBundles,
    Schedule,
    hold_out,
)
from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.folder import DatasetFolder

BETA = 0.2
"""Weight of the KL divergence after annealing (the paper's, §2.2.2)."""


class MultiVAE(NetworkBaseline):
    """Score candidates by the logits that a variational autoencoder gives them from the items shown.

    Encoder and decoder have one hidden layer of tanh, the likelihood is multinomial (eq. 2), and the weight of the KL
    divergence rises to 0.2, as in the paper. Ours: the input is a random part of a bundle, as in a question, instead
    of its dropout; widths for thousands of bundles instead of 100,000 users; the softmax is sampled (`learning`). The
    code of a question is the mean of its posterior. An item in no training bundle has no embedding: it scores below
    all others of its question.

    Args:
        seed: The same seed gives the same scores.
    """

    schedule = Schedule(patience=6)

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Train the network."""
        training, held_out = hold_out(folder, bundles, self.seed)
        known = np.unique(np.concatenate(training))
        self._number = np.full(len(folder.catalog), ABSENT)  # of each item among the known ones
        self._number[known] = np.arange(len(known))
        training = list(map(self._known_numbers, training))
        held_out = [numbers for numbers in map(self._known_numbers, held_out) if len(numbers) > 1]
        self.train(partial(_Network, len(known)), training, held_out, len(known))

    def score(self, batch: QuestionBatch) -> np.ndarray:
        """Encode the items shown and decode the candidates."""
        number = self._number[batch.candidate_rows]
        known = number != ABSENT
        partials = self._known_partials(batch)
        candidates = [entry.tolist() for entry in batch.split(np.maximum(number, 0))]
        scores = super().score(QuestionBatch(partials, candidates, len(self._number)))
        least = np.full(len(batch), np.inf)
        np.minimum.at(least, batch.question_index[known], scores[known])
        floor = np.where(np.isfinite(least), least, 1.0) - 1.0
        return np.where(known, scores, floor[batch.question_index])

    def score_catalog(self, batch: QuestionBatch) -> np.ndarray:
        """Decode all items that are in a training bundle; the others are last."""
        known = self._number != ABSENT
        logits = self._logits(self._known_partials(batch), int(known.sum()))  # in the order of rows
        scores = np.tile(logits.min(axis=1, keepdims=True) - 1.0, (1, batch.num_items))
        scores[:, known] = logits
        return scores

    def _known_partials(self, batch: QuestionBatch) -> list[list[int]]:
        return [self._known_numbers(rows) or [ABSENT] for rows in batch.partials]

    def _known_numbers(self, rows: Sequence[int]) -> list[int]:
        numbers = self._number[list(rows)]
        return numbers[numbers != ABSENT].tolist()


class _Network(PartialBundleNetwork):
    """Bag of items -> hidden -> mean and log variance of the code -> hidden -> logits."""

    def __init__(self, num_items: int, hidden: int = 128, dim: int = 64):
        super().__init__()
        self.read = nn.Embedding(num_items, hidden)
        self.read_bias = nn.Parameter(torch.zeros(hidden))
        self.encode = nn.Linear(hidden, 2 * dim)
        self.decode = nn.Linear(dim, hidden)
        self.write = nn.Embedding(num_items, hidden)
        self.write_bias = nn.Embedding(num_items, 1)
        for weights in (self.read, self.write):  # small, as Xavier's is for many items: with large random codes, the
            nn.init.normal_(weights.weight, std=0.02)  # network memorizes items and learns nothing from similar ones
        nn.init.zeros_(self.write_bias.weight)

    def loss(self, batch: PartialBundles, progress: float) -> torch.Tensor:
        """Return the negative evidence lower bound (eq. 5), per item of a bundle."""
        mean, log_variance = self._posterior(batch.shown)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        logs = batch.log_probabilities(self._decode(code, batch.columns))
        divergence = (log_variance.exp() + mean.square() - 1 - log_variance).sum(dim=1) / 2
        beta = BETA * min(1.0, 4 * progress)
        return ((beta * divergence - (logs * batch.members).sum(dim=1)) / batch.members.sum(dim=1)).mean()

    def logits(self, shown: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return the logits of some items."""
        return self._decode(self._posterior(shown)[0], columns)

    def _posterior(self, shown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mask = (shown != ABSENT).unsqueeze(-1)  # [batch, longest, 1]
        bag = (self.read(shown.clamp(min=0)) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1).sqrt()
        mean, log_variance = self.encode(torch.tanh(bag + self.read_bias)).chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)

    def _decode(self, code: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.decode(code))
        return F.linear(hidden, self.write(columns), self.write_bias(columns).squeeze(1))

"""MultiVAE (Liang et al., WWW 2018): a variational autoencoder of bundles as bags of items.

It must not know words or features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from bundle_mllm.baselines.base import Asked
from bundle_mllm.baselines.learning import (
    ABSENT,
    PartialBundles,
    Schedule,
    askable_rows,
    hold_out,
    score_by_network,
    train_network,
)
from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.folder import DatasetFolder

BETA = 0.2
"""Weight of the KL divergence after annealing (the paper's, §2.2.2)."""


class MultiVAE:
    """Score candidates by the logits that a variational autoencoder gives them from the items shown.

    Encoder and decoder have one hidden layer of tanh, the likelihood is multinomial (eq. 2), and the weight of the KL
    divergence rises to 0.2, as in the paper. Ours: the input is a random part of a bundle, as in a question, instead
    of its dropout; widths for thousands of bundles instead of 100,000 users; the softmax is sampled (`learning`). The
    code of a question is the mean of its posterior. An item in no training bundle has no place in the network: it
    scores below all others of its question.

    Args:
        seed: The same seed gives the same scores.
    """

    reads_bundles = True

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.schedule = Schedule(patience=6)

    def fit(self, folder: DatasetFolder, bundles: Sequence[Bundle]) -> None:
        """Train the network."""
        training, held_out = hold_out(askable_rows(folder, bundles), self.seed)
        known = np.unique(np.concatenate(training))
        self._number = np.full(len(folder.catalog), ABSENT)  # of each item among the known ones
        self._number[known] = np.arange(len(known))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._network = _Network(len(known))
        training = [self._number[rows].tolist() for rows in training]
        known_rows = (self._number[rows] for rows in held_out)
        held_out = [rows.tolist() for kept in known_rows if len(rows := kept[kept != ABSENT]) > 1]
        train_network(self._network, training, held_out, len(known), self.schedule, self.seed)

    def score(self, asked: Asked) -> np.ndarray:
        """Encode what is shown and decode the candidates."""
        numbers = (self._number[partial].tolist() for partial in asked.partials)
        partials = [[number for number in entry if number != ABSENT] or [ABSENT] for entry in numbers]
        number = self._number[asked.candidate]
        known = number != ABSENT
        candidates = [entry.tolist() for entry in asked.split(np.maximum(number, 0))]
        inner = Asked(partials, candidates, len(self._number))
        scores = score_by_network(self._network, inner)
        least = np.full(len(asked), np.inf)
        np.minimum.at(least, asked.question[known], scores[known])
        floor = np.where(np.isfinite(least), least, 1.0) - 1.0
        return np.where(known, scores, floor[asked.question])


class _Network(nn.Module):
    """Bag of items -> hidden -> mean and log variance of the code -> hidden -> logits."""

    def __init__(self, num_items: int, hidden: int = 128, dim: int = 64):
        super().__init__()
        self.read = nn.Embedding(num_items, hidden)
        self.read_bias = nn.Parameter(torch.zeros(hidden))
        self.encode = nn.Linear(hidden, 2 * dim)
        self.decode = nn.Linear(dim, hidden)
        self.write = nn.Embedding(num_items, hidden)
        self.write_bias = nn.Embedding(num_items, 1)
        for weights in (self.read, self.write):  # small, as Xavier's is for many items: large random codes of items
            nn.init.normal_(weights.weight, std=0.02)  # are remembered, and nothing is learned from like items
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
        there = (shown != ABSENT).unsqueeze(-1)  # [batch, longest, 1]
        bag = (self.read(shown.clamp(min=0)) * there).sum(dim=1) / there.sum(dim=1).clamp(min=1).sqrt()
        mean, log_variance = self.encode(torch.tanh(bag + self.read_bias)).chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)

    def _decode(self, code: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.decode(code))
        return F.linear(hidden, self.write(columns), self.write_bias(columns).squeeze(1))

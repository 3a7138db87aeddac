"""A plain optimization loop for small parts: AdamW, one learning-rate cycle, some steps down a loss.

Knows nothing about models or data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm


def minimize(loss: Callable[[], torch.Tensor], groups: Sequence[dict[str, Any]], steps: int, name: str) -> None:
    """Take optimizer steps down a loss.

    Args:
        loss: Returns the loss of a new batch.
        groups: Parameter groups of AdamW, each with its highest learning rate `lr` and `weight_decay`.
        steps: How many.
        name: What the progress bar shows.
    """
    optimizer = torch.optim.AdamW([dict(group) for group in groups])  # it writes into the groups
    rates = [group["lr"] for group in groups]
    total = max(2, steps)
    rising = 0.2 if total == 10 else 0.1  # OneCycleLR divides by the length of the rise, 0.1 * total - 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=total, pct_start=rising)
    for _ in tqdm(range(steps), desc=name):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()


@contextmanager
def training_only(model: nn.Module, parameters: Sequence[nn.Parameter], seed: int) -> Iterator[None]:
    """Let only some parameters of a model require gradients, in training mode and under a seed, for a while."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        model.train()
        try:
            yield
        finally:
            model.requires_grad_(True)
            model.eval()

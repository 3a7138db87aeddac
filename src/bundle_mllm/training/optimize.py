"""A plain optimization loop for small parts: AdamW with one learning-rate cycle.

Knows nothing about models or data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from bundle_mllm.progress import steps as shown_steps


def minimize(
    loss: Callable[[], torch.Tensor],
    parameters: Iterable[nn.Parameter],
    steps: int,
    name: str,
    *,
    lr: float,
    weight_decay: float,
) -> None:
    """Take optimizer steps down a loss.

    Args:
        loss: Returns the loss of a new batch.
        parameters: What is trained.
        steps: Number of steps.
        name: What the progress is shown as.
        lr: Highest learning rate.
        weight_decay: AdamW's weight decay.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    total = max(2, steps)
    rising = 0.2 if total == 10 else 0.1  # OneCycleLR divides by the length of the rise, 0.1 * total - 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total, pct_start=rising)
    for _ in shown_steps(range(steps), name):
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

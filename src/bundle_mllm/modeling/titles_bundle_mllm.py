"""Read titles by a ranker without letters, and keep what was read of them: it depends on no question.

Knows nothing about questions, processors or item tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

MOST_BYTES = 2**30
"""What is kept of titles at most: 400,000 of 640 numbers, 60,000 of 4,096."""


class TitleStates:
    """Hidden states of the titles that a ranker without letters has read, while its backbone stays as it is.

    They are read again after weights were changed by an optimizer or by loading, and in another precision. Those of a
    backbone with an adapter are not kept: it may be switched off, or merged, without any sign of it. Torch does
    not count changes of `.data` in place (`weight.data.mul_(2)`) either: replace `kept_titles` after one.

    Args:
        most_bytes: What is kept at most; the titles that were not asked for longest are dropped.
    """

    def __init__(self, most_bytes: int = MOST_BYTES):
        self.most_bytes = most_bytes
        self._kept: dict[Any, torch.Tensor] = {}  # by precision and tokens
        self._of: Any = None

    def read(
        self,
        ranker: Any,
        titles: Sequence[Sequence[int]],
        batch_size: int,
        progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    ) -> torch.Tensor:
        """Return `BundleMLLMForOptionScoring.read_titles` of titles, `[n, hidden_size]`, reading those that are new.

        Args:
            ranker: The ranker, or an adapter of it.
            titles: The tokens of each title.
            batch_size: Titles per forward pass.
            progress: Wraps the batches.
        """
        device = ranker.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        asked = [(precision, tuple(title)) for title in titles]
        if self._of != (now := _weights_of(ranker)) or now is None:
            self._kept, self._of = {}, now
        kept = {key: self._kept.pop(key, None) for key in dict.fromkeys(asked)}  # another thread may have taken it
        states = {key: state for key, state in kept.items() if state is not None}
        new = sorted({title for key in asked if key not in states for title in key[1:]}, key=lambda t: (len(t), t))
        for start in progress(range(0, len(new), batch_size)):
            chunk = new[start : start + batch_size]
            inputs = {name: tensor.to(ranker.device) for name, tensor in pad_right(chunk).items()}
            states |= zip(((precision, title) for title in chunk), ranker.read_titles(**inputs), strict=True)
        found = torch.stack([states[key] for key in asked])
        if now is not None:
            self._keep(states)
        return found

    def _keep(self, states: dict[Any, torch.Tensor]) -> None:
        self._kept |= states
        each = next(iter(states.values())).nbytes
        for key in list(self._kept)[: max(0, len(self._kept) - self.most_bytes // each)]:
            self._kept.pop(key, None)


def _weights_of(ranker: Any) -> Any:
    """Return what is another after weights of the backbone have changed; `None` if that would not be noticed."""
    if any(hasattr(module, "get_base_layer") for module in ranker.modules()):  # PEFT's
        return None
    weights = [each for name, each in ranker.named_parameters() if "language_model." in name]
    return [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in weights]


def pad_right(tokens: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask` `[n, length]` of lists of tokens, padded on the right by token 0."""
    length = max(1, *map(len, tokens))
    return {
        "input_ids": torch.tensor([[*each, *[0] * (length - len(each))] for each in tokens]),
        "attention_mask": torch.tensor([[1] * len(each) + [0] * (length - len(each)) for each in tokens]),
    }

"""Share the work among the processes that `accelerate launch` started, if it did.

It must not know what the work is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch

from bundle_mllm.device import choose_device
from bundle_mllm.errors import BundleMLLMError

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers tell how many processes there are."""
_PATIENCE = timedelta(days=2)
"""How long a process waits for the others: shares differ in length, and a wait that ends early ends the run."""


@dataclass(frozen=True)
class Launch:
    """This process among those that share the work.

    Attributes:
        device: Where this process computes.
        process_index: Its number.
        num_processes: How many there are.
    """

    device: torch.device
    process_index: int = 0
    num_processes: int = 1
    _state: PartialState | None = None

    @classmethod
    def join(cls, device: str | torch.device | None) -> Launch:
        """Join the other processes; alone, nothing of accelerate is touched.

        Args:
            device: Where to compute; the GPU that `accelerate launch` gives to this process, unless told otherwise.
        """
        launched = max(int(os.environ.get(name, "1")) for name in _SIZES)
        if launched == 1:
            return cls(choose_device(device))
        from accelerate import PartialState

        # Without a GPU, accelerate would let each process believe that it is alone unless it is told `cpu`.
        on_cpu = not torch.accelerator.is_available() or (device is not None and torch.device(device).type == "cpu")
        state = PartialState(cpu=on_cpu, timeout=_PATIENCE)
        if state.num_processes != launched:
            raise BundleMLLMError(
                f"{launched} processes were launched but accelerate sees {state.num_processes}, so each would do all "
                "the work: launch as many as there are GPUs, or all on the CPU (device cpu)."
            )
        return cls(choose_device(device or state.device), state.process_index, state.num_processes, state)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that does what is done once."""
        return self.process_index == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def from_main(self, compute: Callable[[], T]) -> T:
        """Return, in all processes, what `compute` returns in the main one.

        Raises:
            BundleMLLMError: In all processes, if `compute` raises it.
        """
        if self._state is None:
            return compute()
        from accelerate.utils import broadcast_object_list

        box: list = [None, None]
        if self.is_main:
            try:
                box[0] = compute()
            except BundleMLLMError as error:
                box[1] = str(error)
        broadcast_object_list(box)
        if box[1] is not None:
            raise BundleMLLMError(box[1])
        return box[0]

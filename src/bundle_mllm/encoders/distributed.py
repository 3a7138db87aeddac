"""Share work among the processes that `accelerate launch` started.

Knows nothing about what the work is.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from bundle_mllm.data.files import locked_folder
from bundle_mllm.device import choose_device
from bundle_mllm.errors import BundleMLLMError

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables in which launchers give the number of processes."""
_PATIENCE = timedelta(days=2)
"""How long a process waits for the others: shares differ in length, and a wait that ends early ends the run."""


@dataclass(frozen=True)
class Process:
    """This process among those that share the work: where it computes, its number from 0, and how many there are."""

    device: torch.device
    index: int = 0
    count: int = 1
    _state: PartialState | None = None

    @classmethod
    def join(cls, device: str | torch.device | None) -> Process:
        """Join the other processes; a single process needs nothing of accelerate.

        Without a device, this process computes on the GPU that `accelerate launch` gives to it.

        Raises:
            BundleMLLMError: If accelerate finds fewer processes than were launched.
        """
        launched = max(int(os.environ.get(name, "1")) for name in _SIZES)
        if launched == 1:
            return cls(choose_device(device))
        from accelerate import PartialState

        # Without a GPU and without `cpu`, accelerate would set up each process as the only one.
        on_cpu = not torch.accelerator.is_available() or (device is not None and torch.device(device).type == "cpu")
        if not torch.distributed.is_initialized():
            atexit.register(_leave)
        state = PartialState(cpu=on_cpu, timeout=_PATIENCE)
        if state.num_processes != launched:
            raise BundleMLLMError(
                f"{launched} processes were launched but accelerate counts {state.num_processes}, so each would do "
                "all the work: launch one per GPU, or all on the CPU (device cpu)."
            )
        return cls(choose_device(device or state.device), state.process_index, state.num_processes, state)

    @property
    def is_main(self) -> bool:
        """Whether this process does the work that is not shared."""
        return self.index == 0

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def from_main(self, compute: Callable[[], T]) -> T:
        """Return the result of `compute`, run in the main process, in all processes.

        Raises:
            BundleMLLMError: If `compute` raises it; in all processes.
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

    @contextmanager
    def locked(self, folder: Path) -> Iterator[None]:
        """Keep processes that do other work out of a folder: the main process locks it; see `locked_folder`."""
        with ExitStack() as stack:
            self.from_main(lambda: stack.enter_context(locked_folder(folder)))
            yield


def _leave() -> None:
    """End the threads of torch.distributed, which otherwise abort a finished process now and then."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

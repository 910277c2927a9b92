"""One training run on several processes, as `torchrun` starts them: who is who, and what all agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model.devices import pick_device

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process (``rank`` of ``count``) and its device. Process 0 prints, validates and writes files."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def agree(self, value: T) -> T:
        """Process 0's value, in all of them."""
        if self.count == 1:
            return value
        box = [value if self.main else None]
        dist.broadcast_object_list(box, src=0, device=self._meeting_place())
        return box[0]  # type: ignore[return-value]

    def gathered(self, value: T) -> list[T]:
        """Every process's value."""
        if self.count == 1:
            return [value]
        box: list[T | None] = [None] * self.count
        dist.all_gather_object(box, value)
        return box  # type: ignore[return-value]

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over all processes, element by element."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let process 0 through before the others: what it caches they find ready."""
        if self.count > 1 and not self.main:
            dist.barrier()
        yield
        if self.count > 1 and self.main:
            dist.barrier()

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network with gradients that are means over all processes.

        Guidance that is dropped from a batch leaves parameters without a gradient, which DDP must look for.
        """
        if self.count == 1:
            return network
        return DistributedDataParallel(network, find_unused_parameters=True)

    def exchanging(self, network: nn.Module, now: bool) -> AbstractContextManager[None]:
        """Within it, backward passes of a `parallel` network exchange gradients only with ``now``."""
        if isinstance(network, DistributedDataParallel) and not now:
            waiting: AbstractContextManager[None] = network.no_sync()
            return waiting
        return nullcontext()

    def _meeting_place(self) -> torch.device:
        return self.device if self.device.type == "cuda" else torch.device("cpu")


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that `torchrun` started (gloo on CPUs, nccl on GPUs), or be the only one.

    ``device`` is ``auto`` or a torch device; of several GPUs every process takes its own. Raises InputError
    for a device that cannot be used.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = pick_device(device)
    if count == 1:
        yield Processes(chosen)
        return
    if chosen.type == "cuda":
        chosen = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(chosen, rank, count)
    finally:
        dist.destroy_process_group()

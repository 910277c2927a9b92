"""Where tensors live."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import InputError


def pick_device(name: str | torch.device) -> torch.device:
    """The torch device of that name; ``auto`` is CUDA where there is one. Raises InputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device '{name}' cannot be used here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return device


@contextmanager
def within_memory(remedy: str) -> Iterator[None]:
    """Raise InputError with ``remedy`` when the machine or its GPU runs out of memory in here."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        allocation = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(
            error
        )
        if not allocation:
            raise
        raise InputError(f"not enough memory; {remedy}") from error

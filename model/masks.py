"""Stored object masks as the channels that the network takes."""

import numpy as np
import torch
from torch import Tensor

from pipeline.config import MASK_CHANNELS
from pipeline.errors import InputError


def by_source(mask: np.ndarray, sources: np.ndarray | None, count: int, sample: str) -> np.ndarray:
    """Bool (c, H, W) as merge.mode `unmerged` leaves them to (20 count, H, W), 20 channels for each source.

    ``sources``: uint32 (c,), bit s = seen in source s. Raises InputError where masks are merged after all.
    """
    bits = np.zeros(0, np.uint32) if sources is None else sources
    if mask[len(bits) :].any() or (bits & (bits - 1)).any() or not bits.all():
        raise InputError(
            f"sample '{sample}': its masks are merged, but model.guidance is unmerged: "
            "set merge.mode: unmerged and run `typer pipeline merge` again"
        )
    channels = np.zeros((count * MASK_CHANNELS, *mask.shape[1:]), dtype=bool)
    for source in range(count):
        own = np.flatnonzero(bits == 1 << source)
        channels[source * MASK_CHANNELS :][: len(own)] = mask[own]
    return channels


def mask_channels(mask: np.ndarray, sets: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bool (c, H, W) to the network's (20 sets, H, W) of 0 and 1; absent objects are empty channels."""
    channels = torch.zeros(sets * MASK_CHANNELS, *mask.shape[1:], dtype=dtype)
    channels[: len(mask)] = torch.from_numpy(np.ascontiguousarray(mask))
    return channels

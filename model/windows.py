"""Square windows of an image and back, for the windowed variants of Table 6; and the padding they need."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def extend(x: Tensor, multiple: int) -> Tensor:
    """Extend (B, C, H, W) at the bottom and right to multiples, mirrored where possible, else repeated."""
    height, width = x.shape[-2:]
    down, right = -height % multiple, -width % multiple
    if not (down or right):
        return x
    mode = "reflect" if down < height and right < width else "replicate"
    return F.pad(x, (0, right, 0, down), mode=mode)


def partition(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) to (B n, size, size, C): the n windows of an image lie side by side in the batch."""
    x = extend(x.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
    return x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3).flatten(0, 2)


def merge(windows: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `partition`: (B n, size, size, C) to (B, height, width, C), the extension cut off."""
    size = windows.shape[1]
    rows, columns = -(-height // size), -(-width // size)
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3)
    return x.flatten(1, 2).flatten(2, 3)[:, :height, :width]

"""The efficient scanning strategy (sect. 3.4): images to sequences, stacked along channels, and back.

A scan is a path over all pixels. Each strategy pairs paths with their reversal ("before and after flipping"):

1. two scans: rows in blocks of even index, columns in odd ones;
2. four scans: rows and columns;
3. eight scans: rows, columns, diagonals and anti-diagonals.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Path = Literal["rows", "columns", "diagonals", "antidiagonals"]


def paths(strategy: int, block: int) -> tuple[Path, ...]:
    """The paths of a block; every one is followed in both directions."""
    if strategy == 1:
        return ("rows",) if block % 2 == 0 else ("columns",)
    if strategy == 2:
        return ("rows", "columns")
    if strategy == 3:
        return ("rows", "columns", "diagonals", "antidiagonals")
    raise ValueError(f"scan strategy {strategy} is unknown: choose 1, 2 or 3")


def scan_ratio(strategy: int) -> int:
    """n of C = n C': how many scans are stacked."""
    return 2 * len(paths(strategy, 0))


def scan(x: Tensor, along: tuple[Path, ...]) -> Tensor:
    """(B, H, W, C') to (B, H W, n C'): for each path the forward scan, then the reversed one."""
    sequences = []
    for path in along:
        forward = _unfold(x, path)
        sequences += [forward, forward.flip(1)]
    return torch.cat(sequences, dim=-1)


def unscan(x: Tensor, along: tuple[Path, ...], height: int, width: int) -> Tensor:
    """(B, H W, n C') to (B, H, W, n C'): every scan's channels back at the pixels they came from."""
    images = []
    parts = x.chunk(2 * len(along), dim=-1)
    for path, forward, backward in zip(along, parts[::2], parts[1::2], strict=True):
        images += [_fold(forward, path, height, width), _fold(backward.flip(1), path, height, width)]
    return torch.cat(images, dim=-1)


def rescan(x: Tensor, along: tuple[Path, ...]) -> Tensor:
    """Inverse of `unscan`: (B, H, W, n C') to (B, H W, n C'), every scan's channels along that scan."""
    sequences = []
    parts = x.chunk(2 * len(along), dim=-1)
    for path, forward, backward in zip(along, parts[::2], parts[1::2], strict=True):
        sequences += [_unfold(forward, path), _unfold(backward, path).flip(1)]
    return torch.cat(sequences, dim=-1)


def _unfold(x: Tensor, path: Path) -> Tensor:
    if path == "rows":
        return x.flatten(1, 2)
    if path == "columns":
        return x.transpose(1, 2).flatten(1, 2)
    order, _ = _diagonal(x.shape[1], x.shape[2], path)
    return x.flatten(1, 2)[:, order.to(x.device)]


def _fold(x: Tensor, path: Path, height: int, width: int) -> Tensor:
    if path == "rows":
        return x.unflatten(1, (height, width))
    if path == "columns":
        return x.unflatten(1, (width, height)).transpose(1, 2)
    _, inverse = _diagonal(height, width, path)
    return x[:, inverse.to(x.device)].unflatten(1, (height, width))


@lru_cache(maxsize=64)
def _diagonal(height: int, width: int, path: Path) -> tuple[Tensor, Tensor]:
    """Pixel indices along the diagonals, from corner to opposite corner, and the inverse permutation."""
    row = torch.arange(height)[:, None]
    column = torch.arange(width)[None]
    line = row + column if path == "diagonals" else row + (width - 1 - column)
    order = torch.argsort((line * height + row).flatten())
    return order, torch.argsort(order)

"""Overlapping tiles of one size, and their fused images blended to one.

bi-WKV's decay depends on the number of tokens, so all tiles of an image have one size. Neighbours overlap;
each one's weight falls smoothly from 1 to 0 across the overlap, and the weights add up to 1 everywhere. Next
to its own border a tile weighs nothing: convolutions there see the padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import lcm, sqrt

import numpy as np

from pipeline.images import FloatArray

OVERLAP = 128  # pixels
MARGIN = 16  # pixels at a tile's border that have no weight
_LEAST = 4  # overlaps: a tile's side is at least this many
ALIGN = 8  # tiles start at multiples of this, where they can: the network halves the image up to three times


@dataclass(frozen=True)
class Tiling:
    """Tiles of ``tile`` (h, w) over an image of ``size`` (H, W), starting at ``rows`` and ``columns``."""

    size: tuple[int, int]
    tile: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)


@dataclass(frozen=True)
class Strip:
    """What a row of tiles finishes: rows ``top`` … of the fused image (C, h, W).

    ``carry`` (C, h', W) is what it adds to the rows below, ``index`` the number of the row of tiles.
    """

    index: int
    top: int
    pixels: FloatArray
    carry: FloatArray


def plan(size: tuple[int, int], pixels: float, ratio: int = 1, overlap: int = OVERLAP) -> Tiling:
    """Tiles of at most about ``pixels`` pixels; a single one where the image has no more.

    ``ratio``: where a source is smaller by it, tiles start and end on its pixels. Tiles are square where the
    image is large enough, never smaller than four overlaps, and evenly spread.
    """
    if size[0] * size[1] <= pixels:
        return Tiling(size, size, (0,), (0,))
    step = lcm(ALIGN, ratio)
    side = max(sqrt(pixels), pixels / min(size))  # a narrow image is cut across only
    sides = tuple(min(length, int(side)) for length in size)
    tile: list[int] = []
    starts: list[tuple[int, ...]] = []
    for length, wanted in zip(size, sides, strict=True):
        wanted = max(wanted, _LEAST * overlap)
        shared = overlap + step  # starts are rounded down, which widens the last gap by up to a step
        count = max(-(-(length - shared) // (wanted - shared)), 1)
        own = min(-(-(length + (count - 1) * shared) // (count * step)) * step, length)
        if own == length:
            tile.append(length)
            starts.append((0,))
            continue
        spread = (length - own) / (count - 1)
        tile.append(own)
        # The last tile ends where the image does, on a pixel of the smaller source all the same.
        starts.append((*(int(n * spread) // step * step for n in range(count - 1)), length - own))
    return Tiling(size, (tile[0], tile[1]), starts[0], starts[1])


def weights(starts: tuple[int, ...], side: int) -> FloatArray:
    """(tiles, side): each tile's weight along one axis, a raised cosine across every overlap."""
    result = np.ones((len(starts), side), np.float32)
    for before, (first, second) in enumerate(pairwise(starts)):
        shared = first + side - second
        margin = min(MARGIN, shared // 4)
        place = (np.arange(shared) + 0.5 - margin) / max(shared - 2 * margin, 1)
        rise = (0.5 - 0.5 * np.cos(np.pi * place.clip(0, 1))).astype(np.float32)
        result[before + 1, :shared] = rise
        result[before, side - shared :] *= 1 - rise
    total = np.zeros(starts[-1] + side, np.float32)  # 1, but where three small tiles meet
    for start, own in zip(starts, result, strict=True):
        total[start : start + side] += own
    return np.stack([own / total[start : start + side] for start, own in zip(starts, result, strict=True)])


def strips(
    tiling: Tiling,
    fused: Callable[[int, int], FloatArray],
    done: int = 0,
    carry: FloatArray | None = None,
) -> Iterator[Strip]:
    """Go through the tiles row by row; ``fused(top, left)`` gives one (C, h, w).

    To go on where a run was interrupted, give the number of rows of tiles that were ``done`` and the last
    one's ``carry``. A strip is the same however many are taken at once.
    """
    (height, width), (h, w) = tiling.size, tiling.tile
    vertical, horizontal = weights(tiling.rows, h), weights(tiling.columns, w)
    for index in range(done, len(tiling.rows)):
        top = tiling.rows[index]
        band: FloatArray | None = None
        for column, left in enumerate(tiling.columns):
            piece = fused(top, left)
            if band is None:
                band = np.zeros((piece.shape[0], h, width), np.float32)
                if carry is not None:
                    band[:, : carry.shape[1]] = carry
            band[:, :, left : left + w] += piece * (vertical[index][:, None] * horizontal[column])
        assert band is not None
        last = index + 1 == len(tiling.rows)
        ready = (height if last else tiling.rows[index + 1]) - top
        carry = band[:, ready:].copy()
        yield Strip(index, top, band[:, :ready], carry)

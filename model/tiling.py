"""Tiles of one size over an image, in pairs that mirror each other at the image's centre.

A scan is stacked with its reversal before keys and values are made of both (sect. 3.4), so what the network
does at a pixel depends on the pixel opposite. A tile is therefore fused together with its mirror image.
Neighbours overlap by what convolutions need to know of each other; every pixel is taken from one tile, well
inside of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

LEAST = 256  # pixels: a tile's side is at least this many, however small the budget


@dataclass(frozen=True)
class Axis:
    """Tiles of ``side`` pixels along ``length``; the n-th of ``starts`` mirrors the n-th from the end."""

    length: int
    side: int
    starts: tuple[int, ...]
    align: int

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Tile n is taken from cut n to cut n + 1, which lie in the middle of the overlaps."""
        ends = [start + self.side for start in self.starts[:-1]]
        middles = [
            (end + start) // 2 // self.align * self.align
            for end, start in zip(ends, self.starts[1:], strict=True)
        ]
        return (0, *middles, self.length)

    def own(self, index: int) -> slice:
        """The pixels that are taken from a tile."""
        return slice(self.cuts[index], self.cuts[index + 1])


@dataclass(frozen=True)
class Tile:
    """One tile by its numbers ``row`` and ``column``."""

    row: int
    column: int


@dataclass(frozen=True)
class Tiling:
    """Tiles over an image of ``size`` (H, W), continued to whole multiples of what the network halves."""

    size: tuple[int, int]
    rows: Axis
    columns: Axis

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def tile(self) -> tuple[int, int]:
        """(h, w) of every tile."""
        return self.rows.side, self.columns.side

    @cached_property
    def pairs(self) -> tuple[tuple[Tile, ...], ...]:
        """Every tile once: with its mirror image, or alone where it is its own."""
        across = len(self.columns.starts)
        tiles = [Tile(index // across, index % across) for index in range(len(self))]
        pairs: list[tuple[Tile, ...]] = [(tiles[n], tiles[-1 - n]) for n in range(len(tiles) // 2)]
        return (*pairs, (tiles[len(tiles) // 2],)) if len(tiles) % 2 else tuple(pairs)

    def corner(self, tile: Tile) -> tuple[int, int]:
        """(top, left) of a tile."""
        return self.rows.starts[tile.row], self.columns.starts[tile.column]

    def own(self, tile: Tile) -> tuple[slice, slice]:
        """Rows and columns of the image that are taken from a tile."""
        (height, width), rows, columns = self.size, self.rows.own(tile.row), self.columns.own(tile.column)
        return slice(rows.start, min(rows.stop, height)), slice(columns.start, min(columns.stop, width))


def plan(size: tuple[int, int], pixels: float, align: int, reach: int, least: int = LEAST) -> Tiling:
    """Tiles for a budget of ``pixels`` at once, two tiles that is; a single one where the image has no more.

    ``align``: tiles start and end at its multiples, beyond the image's end where that is none; ``reach``: how
    many pixels at its border a tile cannot know. Tiles are square where the image is large enough.
    """
    length = [-(-side // align) * align for side in size]
    if size[0] * size[1] <= pixels:
        rows, columns = (Axis(full, full, (0,), align) for full in length)
        return Tiling(size, rows, columns)
    side = max(sqrt(pixels / 2), pixels / 2 / min(length))  # a narrow image is cut across only
    rows, columns = (_axis(full, max(int(side), least, 4 * reach), align, reach) for full in length)
    return Tiling(size, rows, columns)


def _axis(length: int, side: int, align: int, reach: int) -> Axis:
    shared = -(-2 * reach // align) * align + 4 * align  # starts and cuts are rounded
    most = max(side // align * align, shared + align)
    if most >= length:
        return Axis(length, length, (0,), align)
    count = -(-(length - shared) // (most - shared))
    own = -(-(length + (count - 1) * shared) // (count * align)) * align
    if count % 2 and (length - own) // align % 2:
        own += align  # so that the tile in the middle is its own mirror image
    if own >= length:
        return Axis(length, length, (0,), align)
    first = [n * (length - own) // (count - 1) // align * align for n in range(count // 2)]
    middle = [(length - own) // 2] if count % 2 else []
    return Axis(length, own, (*first, *middle, *(length - own - start for start in reversed(first))), align)

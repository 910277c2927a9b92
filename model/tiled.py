"""Fuse an image in tiles: learn what they have to know of the whole of it, then fuse them pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from model.combine import Colour, combine, forwards
from model.masks import Masks
from model.tiling import Tile, Tiling
from model.whole import Shape, Whole
from pipeline.images import FloatArray

if TYPE_CHECKING:
    from model.inference import Fuser

ReadWindow = Callable[[int, int, int, int], FloatArray]
_KERNEL = 3  # pixels of a smaller source that bicubic interpolation looks at on either side, and one


@dataclass(frozen=True)
class Patches:
    """Windows of a sample's sources on the first one's grid of ``size`` (H, W).

    ``read``: for each source, (top, left, height, width) to (C, height, width) on its own grid, which is
    smaller by ``ratios``; ``bands``: C of each.
    """

    size: tuple[int, int]
    read: Sequence[ReadWindow]
    ratios: Sequence[int]
    bands: Sequence[int]

    def at(self, top: int, left: int, height: int, width: int) -> list[FloatArray]:
        """The window of every source, inside the image."""
        return [
            own(top, left, height, width)
            if ratio == 1
            else _enlarged(own, ratio, self.size, (top, left, height, width))
            for own, ratio in zip(self.read, self.ratios, strict=True)
        ]


def _enlarged(
    read: ReadWindow, ratio: int, size: tuple[int, int], window: tuple[int, int, int, int]
) -> FloatArray:
    """A window of the source as the network enlarges all of it."""
    spans = []
    for start, count, length in zip(window[:2], window[2:], size, strict=True):
        first = max(start // ratio - _KERNEL, 0)
        last = min(-(-(start + count) // ratio) + _KERNEL, length // ratio)
        spans.append((first, last - first, start - first * ratio, count))
    (top, h, down, rows), (left, w, right, columns) = spans
    small = torch.from_numpy(np.ascontiguousarray(read(top, left, h, w)))[None]
    large = F.interpolate(small, (h * ratio, w * ratio), mode="bicubic", align_corners=False)
    return large[0, :, down : down + rows, right : right + columns].numpy()


@dataclass
class TiledFusion:
    """One image being fused in tiles. ``masks`` by window; ``whole`` holds what is known so far."""

    patches: Patches
    fuser: Fuser
    text: NDArray[np.floating] | None
    masks: Masks | None
    colour: Colour
    tiling: Tiling
    shape: Shape
    whole: Whole = field(init=False)

    def __post_init__(self) -> None:
        self.whole = Whole(self.tiling, self.shape)

    @property
    def passes(self) -> int:
        """How often all tiles are gone through: for every fact, and to fuse them."""
        return self.shape.facts * forwards(self.patches.bands, self.fuser, self.colour) + 1

    def learn(self, report: Callable[[int], object] = lambda done: None) -> None:
        """Learn the next fact of the whole image, in one pass; ``report(done)`` counts its pairs of tiles."""
        self.whole.learn(self._combined, report)

    def fuse(self, pair: tuple[Tile, ...]) -> Iterator[tuple[slice, slice, FloatArray]]:
        """The rows, columns and pixels (C, h, w) of the image that a pair of tiles gives."""
        for tile, fused in zip(pair, self._combined(pair), strict=True):
            (rows, columns), (top, left) = self.tiling.own(tile), self.tiling.corner(tile)
            inside = fused[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            yield rows, columns, inside

    def _combined(self, pair: tuple[Tile, ...]) -> FloatArray:
        self.whole.window(pair)
        windows = [self._window(self.patches.at, tile) for tile in pair]
        images = [np.stack(own) for own in zip(*windows, strict=True)]
        masks = None
        if self.masks is not None:
            given = self.masks
            masks = np.stack([self._window(lambda *window: [given(*window)], tile)[0] for tile in pair])
        return combine(images, self.fuser, self.text, masks, self.colour, self.whole)

    def _window(self, read: Callable[..., list[NDArray[Any]]], tile: Tile) -> list[NDArray[Any]]:
        """Windows at a tile; beyond the image's end they go on as the network continues it (`extend`)."""
        (height, width), (h, w), (top, left) = self.tiling.size, self.tiling.tile, self.tiling.corner(tile)
        rows, columns = min(h, height - top), min(w, width - left)
        found = read(top, left, rows, columns)
        if (rows, columns) == (h, w):
            return found
        down, right = self.tiling.rows.length - height, self.tiling.columns.length - width
        mode = "reflect" if down < height and right < width else "edge"
        return [np.pad(own, ((0, 0), (0, h - rows), (0, w - columns)), mode) for own in found]  # type: ignore[call-overload]

"""Anti-aliased shapes and noise for the generated scenes of the demo data set.

Points are (x, y) in pixels, sizes (H, W); the centre of pixel (i, j) is x = j, y = i. A shape is a `Patch`:
the fraction of each pixel it covers, on the smallest rectangle of the canvas that holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Size = tuple[int, int]
Point = tuple[float, float]

FAR = 1e4  # metres: the depth of the sky
OWNED = 0.4  # a pixel belongs to an object that covers at least this much of it


@dataclass(frozen=True)
class Views:
    """One generated sample: (H, W) or (H, W, C) images in [0, 1] by role, and the truth known about it."""

    images: dict[str, Array]
    caption: str
    target: Array | None = None
    labels: tuple[str, ...] = ()
    masks: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Patch:
    """Coverage in [0, 1] of the canvas rectangle `rows` x `cols`."""

    rows: slice
    cols: slice
    cover: Array

    @property
    def y(self) -> Array:
        """Row coordinates of the patch, (h, 1)."""
        return np.arange(self.rows.start, self.rows.stop, dtype=float)[:, None]

    @property
    def x(self) -> Array:
        """Column coordinates of the patch, (1, w)."""
        return np.arange(self.cols.start, self.cols.stop, dtype=float)[None, :]


def _frame(size: Size, x0: float, y0: float, x1: float, y1: float) -> Patch:
    rows = slice(int(np.clip(np.floor(y0) - 1, 0, size[0])), int(np.clip(np.ceil(y1) + 2, 0, size[0])))
    cols = slice(int(np.clip(np.floor(x0) - 1, 0, size[1])), int(np.clip(np.ceil(x1) + 2, 0, size[1])))
    return Patch(rows, cols, np.zeros((max(rows.stop - rows.start, 0), max(cols.stop - cols.start, 0))))


def _covered(distance: Array) -> Array:
    return np.clip(0.5 - distance, 0.0, 1.0)


def rectangle(size: Size, x0: float, y0: float, x1: float, y1: float) -> Patch:
    """Upright rectangle with exact coverage on its edges."""
    frame = _frame(size, x0, y0, x1, y1)
    across = np.clip(np.minimum(frame.x + 0.5, x1) - np.maximum(frame.x - 0.5, x0), 0, 1)
    down = np.clip(np.minimum(frame.y + 0.5, y1) - np.maximum(frame.y - 0.5, y0), 0, 1)
    return Patch(frame.rows, frame.cols, down * across)


def ellipse(size: Size, x: float, y: float, rx: float, ry: float) -> Patch:
    """Ellipse with half axes rx, ry; coverage from the first-order distance to its edge."""
    frame = _frame(size, x - rx, y - ry, x + rx, y + ry)
    u, v = (frame.x - x) / rx, (frame.y - y) / ry
    level = np.hypot(u, v)
    slope = np.hypot(u / rx, v / ry) / np.maximum(level, 1e-6)
    return Patch(frame.rows, frame.cols, _covered((level - 1) / np.maximum(slope, 1e-6)))


def capsule(size: Size, start: Point, end: Point, r0: float, r1: float) -> Patch:
    """Limb from `start` (radius r0) to `end` (radius r1) with round ends."""
    reach = max(r0, r1)
    frame = _frame(
        size, min(start[0], end[0]) - reach, min(start[1], end[1]) - reach,
        max(start[0], end[0]) + reach, max(start[1], end[1]) + reach,
    )  # fmt: skip
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = ((frame.x - start[0]) * dx + (frame.y - start[1]) * dy) / max(dx * dx + dy * dy, 1e-9)
    along = np.clip(along, 0, 1)
    away = np.hypot(frame.x - start[0] - along * dx, frame.y - start[1] - along * dy)
    # A limb thinner than a pixel fades instead of vanishing between pixel centres.
    radius = r0 + along * (r1 - r0)
    cover = _covered(away - np.maximum(radius, 0.5)) * np.minimum(1, radius / 0.5)
    return Patch(frame.rows, frame.cols, cover)


def polygon(size: Size, points: Sequence[Point]) -> Patch:
    """Filled simple polygon; coverage from the signed distance to its edges (even-odd rule)."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    frame = _frame(size, min(xs), min(ys), max(xs), max(ys))
    if frame.cover.size == 0:
        return frame
    x, y = frame.x, frame.y
    squared = np.full(frame.cover.shape, np.inf)
    inside = np.zeros(frame.cover.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
        dx, dy = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
        squared = np.minimum(squared, (px - along * dx) ** 2 + (py - along * dy) ** 2)
        if dy:
            crosses = (y >= min(ay, by)) & (y < max(ay, by))
            inside ^= crosses & (x < ax + (y - ay) * dx / dy)
    return Patch(frame.rows, frame.cols, _covered(np.where(inside, -1.0, 1.0) * np.sqrt(squared)))


def blobs(size: Size, centres: Sequence[Point], radii: Sequence[float], noise: Array, rough: float) -> Patch:
    """Union of discs with an edge roughened by `noise` (H, W, unit deviation): a crown of leaves, a cloud."""
    reach = 1 + 0.6 * rough
    frame = _frame(
        size, min(c[0] - r * reach for c, r in zip(centres, radii, strict=True)),
        min(c[1] - r * reach for c, r in zip(centres, radii, strict=True)),
        max(c[0] + r * reach for c, r in zip(centres, radii, strict=True)),
        max(c[1] + r * reach for c, r in zip(centres, radii, strict=True)),
    )  # fmt: skip
    nearest = np.full(frame.cover.shape, np.inf)
    for (x, y), radius in zip(centres, radii, strict=True):
        nearest = np.minimum(nearest, np.hypot(frame.x - x, frame.y - y) - radius)
    ragged = nearest + rough * float(np.mean(radii)) * noise[frame.rows, frame.cols]
    return Patch(frame.rows, frame.cols, _covered(ragged))


def clouds(rng: np.random.Generator, size: Size, roughness: float = 1.6, scale: float = 0.0) -> Array:
    """Periodic noise with amplitude spectrum (f + 1/scale)^-roughness; mean 0, deviation 1.

    `scale` in pixels is the size of the largest structures (0: as large as the field).
    """
    fy, fx = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None, :]
    frequency = np.hypot(fy, fx)
    floor = 1.0 / (scale or max(size))
    spectrum = np.fft.rfft2(rng.standard_normal(size)) * (frequency + floor) ** -roughness
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=size)
    return noise / noise.std()


@dataclass
class Canvas:
    """What a scene is made of, per pixel.

    albedo (H, W, 3) reflectance · light (H, W, 3) own radiance · heat (H, W) thermal signal in [0, 1] · depth
    (H, W) in metres · owner (H, W) number of the object seen there (place in `labels` from 1), 0 for none.
    """

    size: Size
    labels: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.albedo: Array = np.zeros((*self.size, 3))
        self.light: Array = np.zeros((*self.size, 3))
        self.heat: Array = np.zeros(self.size)
        self.depth: Array = np.full(self.size, FAR)
        self.owner = np.zeros(self.size, dtype=np.int32)

    def add(self, label: str) -> int:
        """A new object; its number is given to `paint`."""
        self.labels.append(label)
        return len(self.labels)

    def paint(
        self,
        patch: Patch,
        colour: ArrayLike,
        heat: ArrayLike,
        depth: ArrayLike,
        *,
        light: ArrayLike = (0.0, 0.0, 0.0),
        owner: int | None = None,
    ) -> None:
        """Lay `patch` over what is there. Values are constants or arrays of the patch's size.

        `owner` None: the background (0) takes over the pixels; a number: that object does.
        """
        if patch.cover.size == 0:
            return
        at = (patch.rows, patch.cols)
        cover = patch.cover
        wide = cover[..., None]
        self.albedo[at] += wide * (np.asarray(colour) - self.albedo[at])
        self.light[at] += wide * (np.asarray(light) - self.light[at])
        self.heat[at] += cover * (np.asarray(heat) - self.heat[at])
        near = cover >= OWNED
        self.depth[at] = np.where(near, depth, self.depth[at])
        self.owner[at] = np.where(near, owner or 0, self.owner[at])

    def dim(self, patch: Patch, factor: float) -> None:
        """Darken the surface under `patch` (a shadow); heat and ownership stay."""
        self.albedo[patch.rows, patch.cols] *= (1 - (1 - factor) * patch.cover)[..., None]

    def masks(self, wanted: Sequence[str], least: int) -> tuple[list[str], NDArray[np.bool_]]:
        """Labels and visible masks (n, H, W) of the wanted objects that show at least `least` pixels."""
        found = [
            (label, self.owner == number)
            for number, label in enumerate(self.labels, 1)
            if label in wanted and np.count_nonzero(self.owner == number) >= least
        ]
        masks = np.stack([mask for _, mask in found]) if found else np.zeros((0, *self.size), dtype=bool)
        return [label for label, _ in found], masks

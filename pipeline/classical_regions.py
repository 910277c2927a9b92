"""Salient regions of one source: connected regions above many thresholds, measured all at once.

As with maximally stable regions, an object shows as a connected region at some level of a map in which it is
bright. Every region of every level is measured (contrast to its frame, compactness, symmetry); naming and
choosing among them is left to classical_objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.images import luminance

FloatArray = NDArray[np.float32]
Measure = NDArray[np.float64]
Box = tuple[int, int, int, int]

HEAD_SCANS = ("ct", "mri", "pet", "spect")
NIGHT = 0.25
"""Mean luminance of a visible image below which the scene counts as dark."""

LEVELS = 9
SMALLEST = 14
LARGEST_SHARE = 0.30
LEAST_CONTRAST = 0.35


@dataclass(frozen=True)
class Signal:
    """A map (H, W) in which the objects sought are bright, and what naming its regions needs."""

    values: FloatArray
    role: str
    night: bool
    vehicles: bool = False  # only vehicles stand out in it
    dark: bool = False  # the objects are darker than their surroundings in the image
    mirror: FloatArray | None = None  # head scans: the same map with left and right exchanged


def signals(pixels: FloatArray, role: str) -> list[Signal]:
    """The maps to search in one source (C, H, W) of the given role."""
    grey = luminance(pixels)
    night = float(grey.mean()) < NIGHT
    if role in HEAD_SCANS:
        return _head_signals(grey, role)
    if role in ("near", "far"):
        detail = np.abs(grey - ndimage.gaussian_filter(grey, 1.5))
        return [Signal(ndimage.gaussian_filter(detail, min(grey.shape) / 40), role, night)]
    local = grey - _around(grey, min(grey.shape) // 3)
    found = [Signal(local, role, night)]
    if role in ("visible", "infrared"):
        found.append(Signal(_edge_density(grey), role, night, vehicles=True))
    if role == "infrared":
        # Clothes cool parts of a body: a blur along the vertical joins head, trunk and legs.
        upright = ndimage.gaussian_filter(local, (min(grey.shape) / 70, 0.5))
        return [Signal(grey, role, night), Signal(upright, role, night), *found]
    if role == "visible" and night:
        return found
    found.append(Signal(-local, role, night, dark=True))
    if pixels.shape[0] == 3:
        chroma = pixels - pixels.mean(axis=0, keepdims=True)
        around = np.stack([_around(band, min(grey.shape) // 2) for band in chroma])
        colour = np.sqrt(((chroma - around) ** 2).sum(axis=0)).astype(np.float32)
        found.append(Signal(colour, role, night, dark=True))
    return found


def _around(grey: FloatArray, side: int) -> FloatArray:
    """Mean over a wide neighbourhood: two box filters, whose cost does not grow with their side."""
    side = max(3, side)
    return np.asarray(ndimage.uniform_filter(ndimage.uniform_filter(grey, side), side), dtype=np.float32)


def _edge_density(grey: FloatArray) -> FloatArray:
    """Edges per area: a vehicle is a dense patch of edges on a smooth road."""
    edges = np.hypot(ndimage.sobel(grey, axis=0), ndimage.sobel(grey, axis=1))
    limited = np.minimum(edges, np.percentile(edges, 97))
    return np.asarray(ndimage.gaussian_filter(limited, min(grey.shape) / 50), dtype=np.float32)


def _head_signals(grey: FloatArray, role: str) -> list[Signal]:
    """Bright structures, and dark ones inside the head; each with its mirror image about the head's axis."""
    head = ndimage.binary_fill_holes(ndimage.gaussian_filter(grey, 1.5) > 0.12 * grey.max())
    if not head.any():
        return []
    inside = ndimage.binary_erosion(head, iterations=max(3, min(grey.shape) // 16))
    level = float(np.median(grey[inside])) if inside.any() else 0.0
    dark = np.where(inside, np.maximum(level - grey, 0), 0).astype(np.float32)
    centre = round(float(np.nonzero(head)[1].mean()) * 2) - grey.shape[1] + 1
    found = []
    for values in (grey, dark):
        mirrored = np.roll(values[:, ::-1], centre, axis=1)
        found.append(Signal(values, role, night=False, dark=values is dark, mirror=_around(mirrored, 4)))
    return found


@dataclass(frozen=True)
class Candidate:
    """One region: box (x0, y0, x1, y1) half-open, pixels, and measures in [0, 1].

    ``contrast``: how clearly it stands out from the frame around it; ``core``: share of pixels whose four
    neighbours belong to it, low for ragged regions; ``mirrored``: the map's mean at the mirrored place over
    the mean here (1 without a mirror).
    """

    box: Box
    area: int
    contrast: float
    core: float
    mirrored: float


def candidates(signal: Signal) -> list[Candidate]:
    """Measure the regions of a map at every level."""
    values = signal.values
    low, high = np.percentile(values, [50, 99.9])
    # The floor keeps sensor noise of flat images from counting as contrast.
    reach = max(float(high - low), 0.08)
    smooth = np.asarray(ndimage.gaussian_filter(values, 0.7), dtype=np.float64)
    tables = _integral(smooth), _integral(smooth * smooth)
    levels = 7 if signal.role == "visible" or signal.vehicles else LEVELS
    found: list[Candidate] = []
    for level in low + reach * np.linspace(0.08, 0.92, levels) ** 1.3:
        found += _at_level(signal, smooth, tables, float(level), reach)
    return found


def _integral(image: Measure) -> Measure:
    return np.pad(image, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)


def _at_level(
    signal: Signal, smooth: Measure, tables: tuple[Measure, Measure], level: float, reach: float
) -> list[Candidate]:
    above = smooth > level
    labelled, count = ndimage.label(above)
    places = np.flatnonzero(above)
    numbers = labelled.ravel()[places]
    pixels = smooth.ravel()[places]

    def total(weights: NDArray[np.floating] | None = None) -> Measure:
        return np.bincount(numbers, weights, minlength=count + 1).astype(np.float64)

    area = total()
    chosen = np.flatnonzero((area >= SMALLEST) & (area <= LARGEST_SHARE * smooth.size))
    if not len(chosen):
        return []
    slices = ndimage.find_objects(labelled)
    box = np.array([[c[1].start, c[0].start, c[1].stop, c[0].stop] for c in (slices[n - 1] for n in chosen)])
    size, first, second = area[chosen], total(pixels)[chosen], total(pixels * pixels)[chosen]
    contrast = _contrast(box, size, first, second, tables, reach)
    # Neighbours above the level belong to the same region.
    inner = np.zeros(above.shape, dtype=bool)
    inner[1:-1, 1:-1] = above[:-2, 1:-1] & above[2:, 1:-1] & above[1:-1, :-2] & above[1:-1, 2:]
    core = np.bincount(numbers[inner.ravel()[places]], minlength=count + 1)[chosen] / size
    mirrored = np.ones(len(chosen))
    if signal.mirror is not None:
        mirrored = total(signal.mirror.ravel()[places])[chosen] / np.maximum(first, 1e-6)
    return [
        Candidate(
            tuple(box[i].tolist()), int(size[i]), float(contrast[i]), float(core[i]), float(mirrored[i])
        )
        for i in np.flatnonzero(contrast > LEAST_CONTRAST)
    ]


def _contrast(
    box: NDArray[np.int_],
    size: Measure,
    first: Measure,
    second: Measure,
    tables: tuple[Measure, Measure],
    reach: float,
) -> Measure:
    """Contrast of regions to the frames around them, from their sums and sums of squares; in [0, 1]."""
    height, width = tables[0].shape[0] - 1, tables[0].shape[1] - 1
    x0, y0, x1, y1 = box.T
    margin = 2 + np.maximum(x1 - x0, y1 - y0) // 5
    x0, x1 = np.maximum(0, x0 - margin), np.minimum(width, x1 + margin)
    y0, y1 = np.maximum(0, y0 - margin), np.minimum(height, y1 + margin)
    whole, squares = (t[y1, x1] - t[y0, x1] - t[y1, x0] + t[y0, x0] for t in tables)
    rest = np.maximum((y1 - y0) * (x1 - x0) - size, 1)
    mean, mean_around = first / size, (whole - first) / rest
    deviation = np.sqrt(np.maximum(second / size - mean**2, 0))
    deviation_around = np.sqrt(np.maximum((squares - second) / rest - mean_around**2, 0))
    step = mean - mean_around
    strength = np.clip(step / (0.4 * reach), 0, 1)
    separation = np.clip(step / (2.0 * (deviation + deviation_around) + 1e-3), 0, 1)
    return np.asarray(np.sqrt(strength * separation))

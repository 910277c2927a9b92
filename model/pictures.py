"""The report's pictures: images, objects and difference maps as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy.ndimage import binary_erosion

from pipeline.images import FloatArray, luminance

SIDE = 640  # pixels of the longer side of a picture on the page
MAP_SIDE = 400  # of a difference map
# Okabe and Ito's colours, told apart with every kind of colour vision, then lighter and darker companions.
PALETTE = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2",
    "#d55e00", "#cc79a7", "#8dd3c7", "#bebada", "#fb8072",
    "#80b1d3", "#b3de69", "#fccde5", "#bc80bd", "#ccebc5",
    "#ffed6f", "#a6761d", "#66a61e", "#e7298a", "#7570b3",
)  # fmt: skip
# Dark blue over violet and orange to pale yellow; lightness rises evenly, so that it also reads in grey.
RAMP = np.array(
    [
        [8, 8, 40],
        [60, 18, 110],
        [135, 35, 120],
        [205, 65, 85],
        [245, 125, 45],
        [252, 190, 60],
        [252, 253, 190],
    ]
)


@dataclass(frozen=True)
class Figure:
    """One picture of the page, encoded as a data URI; ``kind``: source, fused, target, masks or map."""

    label: str
    alt: str
    uri: str
    width: int
    height: int
    kind: str


def figure(kind: str, label: str, alt: str, pixels: NDArray[np.uint8], side: int = SIDE) -> Figure:
    """Encode uint8 (H, W, 3), reduced to ``side`` pixels."""
    picture = PillowImage.fromarray(pixels)
    picture.thumbnail((side, side), PillowImage.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=88, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Figure(label, alt, uri, picture.width, picture.height, kind)


def overlay(plane: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Luminance (H, W) in [0, 1] as dimmed grey, every mask (c, H, W) tinted and outlined in its colour."""
    picture = np.repeat(0.75 * plane[..., None].astype(np.float64), 3, axis=2)
    for mask, colour in zip(masks, PALETTE, strict=False):
        tint = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        picture[mask] = 0.5 * picture[mask] + 0.5 * tint
        picture[mask & ~binary_erosion(mask, border_value=1)] = tint
    return (255 * picture.clip(0, 1)).round().astype(np.uint8)


def difference(fused: FloatArray, other: FloatArray) -> FloatArray:
    """(H, W): mean over bands of |fused - other| where both have the same bands, else of their luminance."""
    if fused.shape == other.shape:
        return np.abs(fused - other).mean(axis=0, dtype=np.float32)
    return np.abs(luminance(fused) - luminance(other))


def common_peak(maps: Sequence[FloatArray]) -> float:
    """The value that maps shown side by side give the brightest colour: their largest 99.5th percentile."""
    return max([1 / 255, *(float(np.percentile(plane, 99.5)) for plane in maps)])


def coloured(plane: FloatArray, peak: float) -> NDArray[np.uint8]:
    """(H, W) from 0 to ``peak`` in pseudo-colour (Fig. 9): dark is none, pale is ``peak`` and more."""
    place = (plane / peak).clip(0, 1) * (len(RAMP) - 1)
    steps = np.arange(len(RAMP))
    channels = [np.interp(place, steps, RAMP[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)

"""Colour of fused images: BT.601 full-range YCbCr and the fusion of chrominance.

All arrays are float32 numpy with values in [0, 1]; 0.5 is the neutral chrominance.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.images import LUMA, luminance

CB_SCALE = 2 * (1 - LUMA[2])  # 1.772: B - Y spans [-0.886, 0.886]
CR_SCALE = 2 * (1 - LUMA[0])  # 1.402


def rgb_to_ycbcr(rgb: np.ndarray) -> np.ndarray:
    """(3, H, W) RGB to (3, H, W) Y, Cb, Cr, all in [0, 1] (BT.601, full range, no 16..235 head room)."""
    luma = luminance(rgb)
    return np.stack([luma, 0.5 + (rgb[2] - luma) / CB_SCALE, 0.5 + (rgb[0] - luma) / CR_SCALE])


def ycbcr_to_rgb(luma: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """(H, W) luma and (2, H, W) chrominance to (3, H, W) RGB in [0, 1].

    A fused luma may not have room for the sources' chrominance. Clipping R, G, B apart would change hue and
    brightness at such pixels; instead the chrominance is scaled towards neutral just as far as needed, so the
    luma is kept exactly and the hue does not drift.
    """
    luma = np.clip(luma.astype(np.float32), 0, 1)
    blue, red = CB_SCALE * (chroma[0] - 0.5), CR_SCALE * (chroma[1] - 0.5)
    green = -(LUMA[0] * red + LUMA[2] * blue) / LUMA[1]
    difference = np.stack([red, green, blue])  # of each primary to the luma
    room = np.where(difference > 0, 1 - luma, luma)
    size = np.abs(difference)
    fit = np.divide(room, size, out=np.ones_like(size), where=size > room).min(axis=0)
    return np.clip(luma + fit * difference, 0, 1).astype(np.float32)


def fuse_chroma(chroma: Sequence[np.ndarray]) -> np.ndarray:
    """Chrominance (2, H, W) of several sources into one: the mean of c weighted by |c - 0.5|.

    Where no source has colour the result is neutral, so grey sources contribute nothing.
    """
    stacked = np.stack(chroma).astype(np.float32)
    weight = np.abs(stacked - 0.5)
    total = weight.sum(axis=0)
    offset = ((stacked - 0.5) * weight).sum(axis=0)
    return 0.5 + np.divide(offset, total, out=np.zeros_like(total), where=total > 0)

"""What foundation models see: every source as an 8-bit RGB picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.images import Image, display

STRETCH = (1.0, 99.0)
"""Percentiles of a single-band image that become black and white: infrared and CT seldom use their range."""


def as_rgb8(image: Image) -> NDArray[np.uint8]:
    """Pixels (C, H, W) in [0, 1] as uint8 (H, W, 3).

    RGB stays as it is. A single band is stretched linearly between its 1st and 99th percentile and repeated;
    of many bands three are shown, stretched in the same way (`images.display`).
    """
    if image.pixels.shape[0] != 1:
        return display(image.pixels)
    low, high = np.percentile(image.pixels, STRETCH)
    if high - low < 1 / 255:
        return display(image.pixels)  # flat: a stretch would show noise
    return display(((image.pixels - low) / (high - low)).clip(0, 1).astype(np.float32))

"""Fusion rules without training: what a trained network has to beat.

Fusion tasks: rules on luminance planes (H, W). Sharpening tasks: rules on sources (C, H, W) of which one is
smaller by an integer ratio. All values in [0, 1].
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from model.guided_filter import guided_filter_fusion
from pipeline.errors import InputError
from pipeline.images import enlarge, luminance

FloatArray = NDArray[np.float32]

BINOMIAL = np.array([1, 4, 6, 4, 1], dtype=np.float32) / 16
COARSEST = 8  # pixels of the shorter side below which the pyramid stops


def average(planes: Sequence[FloatArray]) -> FloatArray:
    """Mean of the sources."""
    return np.mean(planes, axis=0, dtype=np.float32)


def maximum(planes: Sequence[FloatArray]) -> FloatArray:
    """Brightest source per pixel."""
    return np.max(planes, axis=0)


def _smooth(plane: FloatArray, gain: float = 1.0) -> FloatArray:
    taps = BINOMIAL * np.float32(gain)
    return correlate1d(correlate1d(plane, taps, axis=0, mode="mirror"), taps, axis=1, mode="mirror")


def _expand(plane: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Double the size: zeros between the pixels, then the binomial filter with gain 2 per axis."""
    spread = np.zeros(shape, np.float32)
    spread[::2, ::2] = plane
    return _smooth(spread, gain=2.0)


def laplacian_pyramid(planes: Sequence[FloatArray]) -> FloatArray:
    """Laplacian pyramid: the stronger detail of every level, the mean of the coarsest planes.

    Burt and Adelson 1983: each level is the plane minus its smoothed, halved and expanded self (5-tap
    binomial filter, mirrored border). Levels while the shorter side keeps 8 pixels. Clipped to [0, 1].
    """
    current = [np.asarray(plane, dtype=np.float32) for plane in planes]
    details: list[FloatArray] = []
    while min(current[0].shape) >= 2 * COARSEST:
        coarser = [_smooth(plane)[::2, ::2] for plane in current]
        levels = np.stack([p - _expand(c, p.shape) for p, c in zip(current, coarser, strict=True)])
        strongest = np.abs(levels).argmax(axis=0)
        details.append(np.take_along_axis(levels, strongest[None], axis=0)[0])
        current = coarser
    fused = average(current)
    for detail in reversed(details):
        fused = _expand(fused, detail.shape) + detail
    return fused.clip(0, 1)


def roles(sources: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray, int]:
    """The sharp source, the spectral (smaller) source and the ratio of their sizes.

    Raises InputError when that is no integer.
    """
    spectral, sharp = sorted(sources, key=lambda source: source.shape[1])
    ratio, rest = divmod(sharp.shape[1], spectral.shape[1])
    if rest or sharp.shape[1:] != (ratio * spectral.shape[1], ratio * spectral.shape[2]):
        raise InputError(
            f"sharpening needs sizes in one integer ratio, got {sharp.shape[1:]} and {spectral.shape[1:]}; "
            "crop or resample the smaller source"
        )
    return sharp, spectral, ratio


def bicubic(sources: Sequence[FloatArray]) -> FloatArray:
    """The low-resolution source enlarged with bicubic interpolation; the sharp source is not used."""
    sharp, spectral, _ = roles(sources)
    return enlarge(spectral, (sharp.shape[1], sharp.shape[2]))


def detail_injection(sources: Sequence[FloatArray]) -> FloatArray:
    """High-pass injection: bicubic plus, per band, gain times the sharp source's detail.

    The detail is the sharp source's intensity P minus P averaged over ratio x ratio blocks and enlarged
    (P_low); a band's gain is cov(band, P_low) / var(P_low), as in the Gram-Schmidt variants (Aiazzi et al.
    2007). Clipped to [0, 1].
    """
    sharp, spectral, ratio = roles(sources)
    enlarged = bicubic(sources)
    intensity = luminance(sharp)
    height, width = spectral.shape[1:]
    blocks = intensity.reshape(height, ratio, width, ratio).mean(axis=(1, 3), dtype=np.float32)
    low = enlarge(blocks[None], (sharp.shape[1], sharp.shape[2]))[0]
    centred = low - low.mean()
    variance = float((centred**2).mean())
    if variance == 0:
        return enlarged
    gain = (enlarged * centred).mean(axis=(1, 2)) / variance
    return (enlarged + gain[:, None, None] * (intensity - low)).clip(0, 1).astype(np.float32)


FUSION_BASELINES = {
    "average": average,
    "maximum": maximum,
    "laplacian_pyramid": laplacian_pyramid,
    "guided_filter": guided_filter_fusion,
}
SHARPENING_BASELINES = {"bicubic": bicubic, "detail_injection": detail_injection}

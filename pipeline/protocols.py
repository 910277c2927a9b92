"""How the field makes reduced-resolution data: Wald's protocol, its interpolation, hyperspectral simulation.

Images are (C, H, W) with values of any scale; nothing is clipped or rounded here. docs/protocols.md tells
where pixels lie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from pipeline.sensors import mtf_filters

Array = NDArray[np.float64]

# Half of the symmetric 23-tap kernel of Aiazzi et al., "Context-driven fusion of high spatial and spectral
# resolution images based on oversampled multiresolution analysis", IEEE TGRS 40(10), 2002: a half-band
# polynomial filter, every other coefficient is zero.
_HALF_BAND = np.zeros(12)
_HALF_BAND[0] = 1
_HALF_BAND[1::2] = 2 * np.array(
    [0.305334091185, -0.072698593239, 0.021809577942, -0.005192756653, 0.000807762146, -0.000060081482]
)
TAPS_23 = np.concatenate([_HALF_BAND[:0:-1], _HALF_BAND])


def wald(image: Array, gains: Sequence[float], ratio: int) -> Array:
    """Multispectral (C, H, W) -> (C, H / ratio, W / ratio): low-passed as the sensor does, then decimated.

    Source: Wald, Ranchin, Mangolini, "Fusion of satellite images of different spatial resolutions", PE&RS
    63(6), 1997, with the filters of `sensors.mtf_filter` and a replicated border. Kept are the pixels
    ratio // 2, ratio // 2 + ratio, …, as in the toolboxes: `interp23` puts them back to the same places.
    Raises ValueError when H or W is no multiple of the ratio, or the numbers of bands and gains differ.
    """
    _check(image, ratio)
    filters = mtf_filters(gains, ratio)
    return np.stack([_decimated(band, taps, ratio) for band, taps in zip(image, filters, strict=True)])


def _decimated(band: Array, taps: Array, ratio: int) -> Array:
    """Correlate (H, W) with taps (n, n) at the pixels that are kept."""
    wide = np.pad(band, len(taps) // 2, mode="edge")[ratio // 2 :, ratio // 2 :]
    height, width = (side // ratio for side in band.shape)
    low = np.zeros((height, width))
    for (row, column), tap in np.ndenumerate(taps):
        if tap:
            low += tap * wide[row : row + ratio * height : ratio, column : column + ratio * width : ratio]
    return low


def interp23(image: Array, ratio: int) -> Array:
    """(C, h, w) -> (C, ratio h, ratio w) with the 23-tap kernel; ``ratio`` is a power of two.

    Each doubling puts zeros between the pixels (the first time the old ones go to the odd positions, counted
    from 0, then to the even ones) and filters rows and columns, the border being circular. So pixel i comes
    to ratio / 2 + ratio i. Source: Aiazzi et al. 2002 (see above). Raises ValueError for other ratios.
    """
    doublings = ratio.bit_length() - 1
    if ratio < 2 or 2**doublings != ratio:
        raise ValueError(f"the ratio {ratio} is no power of two")
    for step in range(doublings):
        bands, height, width = image.shape
        wide = np.zeros((bands, 2 * height, 2 * width))
        start = 1 if step == 0 else 0
        wide[:, start::2, start::2] = image
        image = correlate1d(correlate1d(wide, TAPS_23, axis=1, mode="wrap"), TAPS_23, axis=2, mode="wrap")
    return image


def shrink(image: Array, ratio: int) -> Array:
    """(C, H, W) -> (C, H / ratio, W / ratio), as MATLAB's ``imresize(image, 1 / ratio)``.

    Bicubic (Keys 1981, a = -0.5), stretched by the ratio against aliasing, mirrored border; output pixel i is
    centred between the input pixels ratio i and ratio i + ratio - 1. Panchromatic images are reduced so.
    Raises ValueError when H or W is no multiple of the ratio.
    """
    _check(image, ratio)
    return _apply(image, *(_cubic_rows(length, ratio) for length in image.shape[1:]))


def _cubic_rows(length: int, ratio: int) -> Array:
    """Weights (length / ratio, length) of the stretched cubic."""
    count = length // ratio
    centres = ratio * np.arange(count) + (ratio - 1) / 2
    reach = 2 * ratio
    left = np.floor(centres - reach).astype(int)
    places = left[:, None] + np.arange(2 * reach + 2)
    x = np.abs(places - centres[:, None]) / ratio
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = np.mod(places, 2 * length)
    mirrored = np.where(mirrored >= length, 2 * length - 1 - mirrored, mirrored)
    rows = np.zeros((count, length))
    np.add.at(rows, (np.arange(count)[:, None], mirrored), weights)
    return rows


def gaussian(image: Array, ratio: int, sigma: float | None = None) -> Array:
    """Hyperspectral (C, H, W) -> (C, H / ratio, W / ratio): Gaussian blur, sampled at coarse pixels' centres.

    ``sigma`` in fine pixels; by default the full width at half maximum is the ratio, sigma = ratio / 2.3548.
    Source: Yokoya, Grohnfeldt, Chanussot, "Hyperspectral and multispectral data fusion: a comparative review
    of the recent literature", IEEE GRSM 5(2), 2017. At the border the Gaussian is cut and normalised.
    Raises ValueError when H or W is no multiple of the ratio.
    """
    _check(image, ratio)
    width = ratio / np.sqrt(8 * np.log(2)) if sigma is None else sigma

    def rows(length: int) -> Array:
        centres = ratio * np.arange(length // ratio)[:, None] + (ratio - 1) / 2
        weights = np.exp(-0.5 * ((np.arange(length)[None, :] - centres) / width) ** 2)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    return _apply(image, rows(image.shape[1]), rows(image.shape[2]))


def gaussian_sigma(gain: float, ratio: int) -> float:
    """The sigma, in fine pixels, of the Gaussian that passes ``gain`` at the coarse Nyquist frequency.

    exp(-2 (pi sigma f)²) = gain at f = 1 / (2 ratio), so sigma = ratio / pi sqrt(-2 ln gain).
    """
    return float(ratio / np.pi * np.sqrt(-2 * np.log(gain)))


def spectral_response(wavelengths: Array, centres: Sequence[float], widths: Sequence[float]) -> Array:
    """Response (M, C) of M broad bands to C narrow ones: Gaussians over the wavelengths, rows sum to 1.

    ``centres`` and ``widths`` (full width at half maximum) in the unit of ``wavelengths``. Source: Yokoya et
    al. 2017, who weight the narrow bands with the broad sensor's spectral response. Raises ValueError when a
    band lies beyond the wavelengths.
    """
    at = np.asarray(wavelengths, float)
    middle, sigma = np.asarray(centres, float)[:, None], np.asarray(widths, float)[:, None] / 2.3548
    if (middle < at.min() - 2.3548 * sigma / 2).any() or (middle > at.max() + 2.3548 * sigma / 2).any():
        raise ValueError("a band's centre lies beyond the wavelengths of the narrow bands")
    response = np.exp(-0.5 * ((at - middle) / sigma) ** 2)
    return np.asarray(response / response.sum(axis=1, keepdims=True))


def broad_bands(image: Array, response: Array) -> Array:
    """Hyperspectral (C, H, W) seen through a response (M, C): multispectral (M, H, W)."""
    return np.einsum("mc,chw->mhw", response, image, optimize=True)


def _apply(image: Array, rows: Array, columns: Array) -> Array:
    return np.einsum("ih,chw,jw->cij", rows, image, columns, optimize=True)


def _check(image: Array, ratio: int) -> None:
    height, width = image.shape[1:]
    if ratio < 2 or height % ratio or width % ratio:
        raise ValueError(f"an image of {height}x{width} pixels cannot be reduced by {ratio}; cut it first")

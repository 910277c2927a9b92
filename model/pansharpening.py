"""Classical pansharpening, one method of either family: component substitution and multiresolution analysis.

Sources (C, H, W) in [0, 1]: one panchromatic band, and the bands smaller by an integer ratio. Both methods as
in Vivone et al., "A critical comparison among pansharpening algorithms", IEEE TGRS 53(5), 2015.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from pipeline.images import FloatArray
from pipeline.protocols import interp23, wald
from pipeline.sensors import gains_of

Array = NDArray[np.float64]

MARGIN = 12  # coarse pixels by which an image is continued: more than the 23 taps reach when doubling twice
FLAT = 1e-9  # standard deviation below which an image has no detail, only rounding


def gsa(pan: FloatArray, ms: FloatArray, sensor: str = "other") -> FloatArray:
    """Adaptive Gram-Schmidt (GSA): Aiazzi, Baronti and Selva, IEEE TGRS 45(10), 2007.

    The intensity I = sum_k w_k MS_k + c is what the bands explain of the panchromatic image P: w and c by
    least squares at the bands' size, where P comes through the optics of ``sensor`` (the mean of its bands'
    gains) and is decimated. Then MS_k + g_k (P - I), with MS_k the enlarged bands, P at I's mean and
    g_k = cov(MS_k, I) / var(I). Raises InputError when the sensor has another number of bands.
    """
    ratio = pan.shape[1] // ms.shape[1]
    gain = float(np.mean(gains_of(sensor, len(ms))))
    low = wald(pan.astype(np.float64), (gain,), ratio)
    bands = np.concatenate([ms, np.ones_like(ms[:1])]).astype(np.float64).reshape(len(ms) + 1, -1)
    weights = np.linalg.lstsq(bands.T, low.reshape(-1), rcond=None)[0]
    enlarged = _enlarge(ms, ratio)
    intensity = np.einsum("k,khw->hw", weights[:-1], enlarged)
    intensity -= intensity.mean()
    variance = (intensity**2).mean()
    if variance <= FLAT**2:
        return _clipped(enlarged)
    gains = np.einsum("khw,hw->k", enlarged, intensity) / intensity.size / variance
    detail = pan[0] - pan[0].mean(dtype=np.float64) - intensity
    return _clipped(enlarged + gains[:, None, None] * detail)


def mtf_glp(pan: FloatArray, ms: FloatArray, sensor: str = "other") -> FloatArray:
    """Generalized Laplacian pyramid with filters matched to the sensor (MTF-GLP): Aiazzi et al. 2006.

    MS_k + P_k - L_k(P_k): MS_k the enlarged bands; L_k the filter of ``sensor``'s band k, decimation and
    23-tap enlargement; P_k the panchromatic image P matched to the band in mean and standard deviation, that
    of P being taken where the two are comparable: (P - mean P) std(MS_k) / std(L_k(P)) + mean(MS_k). The
    filters sum to a little less than 1; the means are kept out of them. Raises InputError when the sensor
    has another number of bands.
    """
    ratio = pan.shape[1] // ms.shape[1]
    gains = gains_of(sensor, len(ms))
    centred = pan.astype(np.float64) - pan.mean(dtype=np.float64)
    different = list(dict.fromkeys(gains))
    coarse = np.concatenate([wald(centred, (gain,), ratio) for gain in different])
    low = dict(zip(different, _enlarge(coarse, ratio), strict=True))
    fused = _enlarge(ms, ratio)
    for band, gain in zip(fused, gains, strict=True):
        spread = low[gain].std()
        if spread > FLAT:
            band += band.std() / spread * (centred[0] - low[gain])
    return _clipped(fused)


def _enlarge(image: NDArray[np.floating], ratio: int) -> Array:
    """(C, h, w) -> (C, ratio h, ratio w), pixel i to ratio // 2 + ratio i as `wald` took it.

    By the 23 taps, mirrored at the border instead of wrapped; by cubic splines for a ratio that is no power
    of two.
    """
    wide = np.pad(image.astype(np.float64), ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)), "symmetric")
    if ratio & (ratio - 1):
        size = (ratio * wide.shape[1], ratio * wide.shape[2])
        step, first = (1 / ratio, 1 / ratio), -(ratio // 2) / ratio
        large = np.stack([affine_transform(band, step, first, size, mode="mirror") for band in wide])
    else:
        large = interp23(wide, ratio)
    cut = slice(ratio * MARGIN, -ratio * MARGIN)
    return large[:, cut, cut]


def _clipped(image: Array) -> FloatArray:
    return image.clip(0, 1).astype(np.float32)


PANSHARPENING_BASELINES = {"gsa": gsa, "mtf_glp": mtf_glp}
"""Name -> rule of (panchromatic image, bands, sensor)."""

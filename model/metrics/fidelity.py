"""Visual information fidelity: VIF."""

import numpy as np

from model.metrics.planes import Plane, filter_valid, gaussian, on_planes

NOISE = 2.0  # variance of the visual noise, in grey levels squared
TINY = 1e-10


def _gain(source: Plane, fused: Plane, covariance: Plane) -> tuple[Plane, Plane, Plane]:
    """Gain g and residual variance of fused = g source + residual per window; flat windows carry nothing."""
    gain = covariance / (source + TINY)
    residual = fused - gain * covariance
    flat = source < TINY
    gain, residual, source = (
        np.where(flat, 0, gain),
        np.where(flat, fused, residual),
        np.where(flat, 0, source),
    )
    flat = fused < TINY
    gain, residual = np.where(flat, 0, gain), np.where(flat, 0, residual)
    inverted = gain < 0
    return np.where(inverted, 0, gain), np.maximum(np.where(inverted, fused, residual), TINY), source


@on_planes(min_side=41)
def visual_fidelity(first: Plane, second: Plane, fused: Plane) -> float:
    """VIF: pixel-domain visual information fidelity of the fused image to each source, summed.

    Definition: Sheikh and Bovik 2006 in its pixel form (`vifp_mscale`), source as reference: over 4 scales
    with Gaussian windows of 17, 9, 5, 3 taps (sigma = taps / 5), halved after filtering, sum log10(1 + g^2
    s^2 / (r + 2)) / sum log10(1 + s^2 / 2), s^2 source variance, g gain, r residual variance. Reference: Tang
    `vifp_af + vifp_bf`. Range 0..about 2 (more with contrast enhancement), higher is better. Not scale
    invariant. Input: luminance 0..255. Identical images: 2. A constant fused image: 0. A constant source
    (0/0), a side below 41 pixels, NaN pixels: NaN.
    """
    images = [first, second, fused]
    kept = np.zeros(2)
    total = np.zeros(2)
    for taps in (17, 9, 5, 3):
        window = gaussian(taps, taps / 5)
        if taps < 17:
            images = [filter_valid(image, window)[::2, ::2] for image in images]
        means = [filter_valid(image, window) for image in images]
        variances = [
            np.maximum(filter_valid(image**2, window) - mean**2, 0)
            for image, mean in zip(images, means, strict=True)
        ]
        for index in (0, 1):
            covariance = filter_valid(images[index] * images[2], window) - means[index] * means[2]
            gain, residual, variance = _gain(variances[index], variances[2], covariance)
            kept[index] += np.log10(1 + gain**2 * variance / (residual + NOISE)).sum()
            total[index] += np.log10(1 + variance / NOISE).sum()
    return float((kept / total).sum())

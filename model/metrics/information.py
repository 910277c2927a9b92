"""Metrics of information and correlation: MI, EN, CC, SCD."""

import numpy as np
from numpy.typing import NDArray

from model.metrics.planes import Plane, on_planes, quantise


def _entropy(counts: NDArray[np.int64]) -> float:
    """Shannon entropy in bits of a histogram."""
    probabilities = counts[counts > 0] / counts.sum()
    return float(-(probabilities * np.log2(probabilities)).sum())


def _histogram(levels: NDArray[np.int64], bins: int = 256) -> NDArray[np.int64]:
    return np.bincount(levels.ravel(), minlength=bins)


def _mutual(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """I(X, Y) = H(X) + H(Y) - H(X, Y) in bits, from the 256 x 256 joint histogram; never below 0."""
    joint = _histogram(first * 256 + second, 256 * 256).reshape(256, 256)
    return max(0.0, _entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint))


@on_planes()
def mutual_information(first: Plane, second: Plane, fused: Plane) -> float:
    """MI: I(first, fused) + I(second, fused), in bits.

    Definition: Qu, Zhang and Yan 2002. Reference: Tang `MI_evaluation` on doubles; VIFB `Mutinf` is the same
    in nats (times ln 2). Range 0..16, higher is better. Input: luminance 0..255, rounded to whole levels; 256
    bins. Identical images: twice the entropy. A constant image: 0. NaN pixels: NaN.
    """
    level = quantise(fused)
    return _mutual(quantise(first), level) + _mutual(quantise(second), level)


@on_planes()
def entropy(fused: Plane) -> float:
    """EN: Shannon entropy of the fused grey levels, in bits.

    Reference: Tang `entropy`, VIFB `Entropy`. Range 0..8, higher is better (noise raises it too). Input:
    luminance 0..255, rounded; 256 bins. A constant image: 0. NaN pixels: NaN.
    """
    return max(0.0, _entropy(_histogram(quantise(fused))))


def _correlation(first: Plane, second: Plane) -> float:
    """Pearson correlation over all pixels; NaN when one of the two is constant."""
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))


@on_planes()
def correlation(first: Plane, second: Plane, fused: Plane) -> float:
    """CC: mean of the Pearson correlations of the fused image with each source.

    Reference: Tang `CC_evaluation`. Range -1..1, higher is better. Input: luminance 0..255 (any affine scale
    gives the same). Identical images: 1. A constant image: NaN. NaN pixels: NaN.
    """
    return (_correlation(first, fused) + _correlation(second, fused)) / 2


@on_planes()
def difference_correlation(first: Plane, second: Plane, fused: Plane) -> float:
    """SCD: corr(fused - second, first) + corr(fused - first, second).

    Definition: Aslantas and Bendes 2015 (sum of the correlations of differences). Reference: Tang
    `analysis_SCD`. Range -2..2, higher is better. Input: luminance 0..255. NaN (0/0) when the fused image
    equals a source up to a constant, when a source is constant, or with NaN pixels.
    """
    return _correlation(fused - second, first) + _correlation(fused - first, second)

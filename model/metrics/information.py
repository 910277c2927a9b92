"""Metrics of information and correlation: MI, EN, CC, SCD, Qncie."""

import torch
from torch import Tensor

from model.metrics.planes import histogram, on_planes, quantise, stretch


def _entropy(counts: Tensor) -> Tensor:
    """Shannon entropy in bits of histograms (..., bin)."""
    probabilities = counts / counts.sum(-1, keepdim=True)
    return -torch.special.xlogy(probabilities, probabilities).sum(-1) / torch.log(counts.new_tensor(2.0))


def _mutual(first: Tensor, second: Tensor) -> Tensor:
    """I(X, Y) = H(X) + H(Y) - H(X, Y) in bits, from the 256 x 256 joint histogram; never below 0."""
    joint = histogram(first * 256 + second, 256 * 256)
    square = joint.unflatten(-1, (256, 256))
    return (_entropy(square.sum(-1)) + _entropy(square.sum(-2)) - _entropy(joint)).clamp_min(0)


@on_planes()
def mutual_information(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """MI: I(first, fused) + I(second, fused), in bits.

    Definition: Qu, Zhang and Yan 2002. Reference: Tang `MI_evaluation` on doubles; VIFB `Mutinf` is the same
    in nats (times ln 2). Range 0..16, higher is better. Input: luminance 0..255, rounded to whole levels; 256
    bins. Identical images: twice the entropy. A constant image: 0. NaN pixels: NaN.
    """
    level = quantise(fused)
    return _mutual(quantise(first), level) + _mutual(quantise(second), level)


@on_planes()
def entropy(fused: Tensor) -> Tensor:
    """EN: Shannon entropy of the fused grey levels, in bits.

    Reference: Tang `entropy`, VIFB `Entropy`. Range 0..8, higher is better (noise raises it too). Input:
    luminance 0..255, rounded; 256 bins. A constant image: 0. NaN pixels: NaN.
    """
    return _entropy(histogram(quantise(fused), 256)).clamp_min(0)


@on_planes()
def nonlinear_correlation(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """Qncie: nonlinear correlation information entropy of both sources and the fused image.

    Definition: Wang, Shen and Jin 2008. With the mutual information of each pair of images in units of 8 bits
    as their correlation and r the eigenvalues of that 3 x 3 matrix (1 on its diagonal): 1 + sum(r/3
    log2(r/3)) / 8. Reference: MEFB `Qncie`, liu `metricWang`. Range 0.8019 (no dependence: 1 - log2(3) / 8)
    to 1, higher is better. Input: luminance 0..255, stretched to 0..255 and rounded; 256 bins. Identical
    images: from their entropy, 1 only for 8 bits. A constant image: NaN (nothing to stretch; the reference
    stops with an error). NaN pixels: NaN.
    """
    images = (first, second, fused)
    a, b, f = (quantise(stretch(image).nan_to_num()) for image in images)
    correlation = torch.eye(3, dtype=first.dtype, device=first.device).repeat(*first.shape[:-2], 1, 1)
    for i, j, one, other in ((0, 1, a, b), (0, 2, a, f), (1, 2, b, f)):
        correlation[..., i, j] = correlation[..., j, i] = _mutual(one, other) / 8
    share = torch.linalg.eigvalsh(correlation).clamp_min(0) / 3
    value = 1 + torch.special.xlogy(share, share).sum(-1) / torch.log(share.new_tensor(256.0))
    varies = torch.stack([image.amax((-2, -1)) > image.amin((-2, -1)) for image in images]).all(0)
    return value.where(varies, torch.nan)


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation over the pixels of each plane; NaN when one of the two is constant."""
    varies = (first.amax((-2, -1)) > first.amin((-2, -1))) & (second.amax((-2, -1)) > second.amin((-2, -1)))
    first, second = (image - image.mean((-2, -1), keepdim=True) for image in (first, second))
    energy = (first**2).sum((-2, -1)) * (second**2).sum((-2, -1))
    return ((first * second).sum((-2, -1)) / energy.sqrt()).where(varies, torch.nan)


@on_planes()
def correlation(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """CC: mean of the Pearson correlations of the fused image with each source.

    Reference: Tang `CC_evaluation`. Range -1..1, higher is better. Input: luminance 0..255 (any affine scale
    gives the same). Identical images: 1. A constant image: NaN. NaN pixels: NaN.
    """
    return (pearson(first, fused) + pearson(second, fused)) / 2


@on_planes()
def difference_correlation(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """SCD: corr(fused - second, first) + corr(fused - first, second).

    Definition: Aslantas and Bendes 2015 (sum of the correlations of differences). Reference: Tang
    `analysis_SCD`. Range -2..2, higher is better. Input: luminance 0..255. NaN (0/0) when the fused image
    equals a source up to a constant, when a source is constant, or with NaN pixels.
    """
    return pearson(fused - second, first) + pearson(fused - first, second)

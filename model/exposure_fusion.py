"""Exposure fusion of Mertens, Kautz and Van Reeth (2007): the well exposed parts, blended without seams."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_MIDDLE, _SPREAD = 0.5, 0.2  # of the values that count as well exposed
_COARSEST = 8  # pixels of the shorter side below which the pyramids stop
_LEAST = 1e-12  # weight of what no exposure shows


def exposure_fusion(sources: Tensor) -> Tensor:
    """Blend exposures (S, B, C, H, W) in [0, 1] to one (B, C, H, W) in [0, 1], each band by itself.

    A pixel counts by its contrast, |Laplacian|, times its exposedness, exp(-(x - 0.5)^2 / (2 * 0.2^2)) (their
    eq. 1 without saturation, which single bands lack). The Laplacian pyramids of the sources are weighted
    with the Gaussian pyramids of these weights (Burt and Adelson 1983).
    """
    count = len(sources)
    images = sources.flatten(0, 2)[:, None]
    weights = _contrast(images) * torch.exp(-((images - _MIDDLE) ** 2) / (2 * _SPREAD**2)) + _LEAST
    weights = weights.unflatten(0, (count, -1))
    weights = (weights / weights.sum(dim=0)).flatten(0, 1)
    details = []
    while min(images.shape[-2:]) >= 2 * _COARSEST:
        coarser = _smooth(images)[..., ::2, ::2]
        details.append(_blend(images - _expand(coarser, images.shape), weights, count))
        images, weights = coarser, _smooth(weights)[..., ::2, ::2]
    fused = _blend(images, weights, count)
    for detail in reversed(details):
        fused = _expand(fused, detail.shape) + detail
    return fused.clamp(0, 1).view(sources.shape[1:])


def _contrast(images: Tensor) -> Tensor:
    kernel = images.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel[None, None]).abs()


def _blend(images: Tensor, weights: Tensor, count: int) -> Tensor:
    """(B C, 1, H, W) of (S B C, 1, H, W)."""
    return (images * weights).unflatten(0, (count, -1)).sum(dim=0)


def _smooth(images: Tensor) -> Tensor:
    """The binomial filter of five taps."""
    taps = images.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    rows = F.conv2d(F.pad(images, (0, 0, 2, 2), mode="reflect"), taps[None, None, :, None])
    return F.conv2d(F.pad(rows, (2, 2, 0, 0), mode="reflect"), taps[None, None, None])


def _expand(images: Tensor, shape: torch.Size) -> Tensor:
    """Twice the size: zeros between the pixels, then the filter, four times as strong."""
    spread = images.new_zeros((len(images), *shape[1:]))
    spread[..., ::2, ::2] = images
    return 4 * _smooth(spread)

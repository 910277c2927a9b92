"""Fusion with the guided filter: the usual training-free rival of fusion networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, laplace, uniform_filter

from pipeline.images import FloatArray

Plane = NDArray[np.float64]

BASE_WINDOW = 31
SALIENCY_SIGMA, SALIENCY_RADIUS = 5.0, 5
BASE_RADIUS, BASE_EPSILON = 45, 0.3
DETAIL_RADIUS, DETAIL_EPSILON = 7, 1e-6


def guided_filter_fusion(planes: Sequence[FloatArray]) -> FloatArray:
    """Two-scale fusion with guided-filter weights (Li, Kang and Hu 2013), with the values given there.

    Planes (H, W) in [0, 1]. Each is split into a base (mean over 31 x 31) and its detail. A pixel belongs to
    the plane whose smoothed |Laplacian| is the largest; these maps, filtered with the plane as guide (radius
    45, epsilon 0.3 for the base, 7 and 1e-6 for the detail) and made to sum to 1, weigh bases and details.
    """
    stack = np.stack(planes).astype(np.float64)
    saliency = np.stack(
        [gaussian_filter(np.abs(laplace(p)), SALIENCY_SIGMA, radius=SALIENCY_RADIUS) for p in stack]
    )
    chosen = saliency.argmax(axis=0)
    maps = [(chosen == number).astype(np.float64) for number in range(len(stack))]
    base = np.stack([uniform_filter(p, BASE_WINDOW) for p in stack])
    fused: Plane = np.zeros(stack.shape[1:])
    for layer, radius, epsilon in (
        (base, BASE_RADIUS, BASE_EPSILON),
        (stack - base, DETAIL_RADIUS, DETAIL_EPSILON),
    ):
        weights = np.stack([guided_filter(p, m, radius, epsilon) for p, m in zip(stack, maps, strict=True)])
        # A filtered map may leave [0, 1] a little; where all vanish, every plane counts alike.
        weights = weights.clip(0, 1) + 1e-12
        fused += (weights / weights.sum(axis=0) * layer).sum(axis=0)
    return fused.clip(0, 1).astype(np.float32)


def guided_filter(guide: Plane, plane: Plane, radius: int, epsilon: float) -> Plane:
    """Edge-preserving smoothing of ``plane`` along the edges of ``guide`` (He, Sun and Tang 2013, eq. 5-8).

    Both (H, W); windows of side 2 radius + 1, mirrored at the border; ``epsilon`` in squared units of guide.
    """

    def mean(x: Plane) -> Plane:
        averaged: Plane = uniform_filter(x, 2 * radius + 1, mode="reflect")
        return averaged

    mean_guide, mean_plane = mean(guide), mean(plane)
    covariance = mean(guide * plane) - mean_guide * mean_plane
    slope = covariance / (mean(guide * guide) - mean_guide**2 + epsilon)
    return mean(slope) * guide + mean(mean_plane - slope * mean_guide)

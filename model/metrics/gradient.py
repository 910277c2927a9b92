"""Metrics of detail and edges: SF, AG, SD, Qabf."""

from typing import Literal

import numpy as np

from model.metrics.planes import Plane, on_planes, sobel


@on_planes()
def spatial_frequency(fused: Plane, *, divisor: Literal["differences", "pixels"] = "differences") -> float:
    """SF: sqrt(RF^2 + CF^2), RF^2 and CF^2 the mean squared differences along rows and columns.

    Reference: Tang `SF_evaluation`, which averages over the differences of each direction; VIFB
    `Spatial_frequency` divides by the number of pixels instead (`divisor="pixels"`, 0.2 % lower on normal
    sizes). Range 0..360, higher is better (noise raises it too). Input: luminance 0..255. A constant image:
    0; a direction with a single pixel counts as 0. NaN pixels: NaN.
    """
    squares = 0.0
    for axis in (0, 1):
        differences = np.diff(fused, axis=axis)
        squares += (differences**2).sum() / max(1, fused.size if divisor == "pixels" else differences.size)
    return float(np.sqrt(squares))


@on_planes(min_side=2)
def average_gradient(fused: Plane) -> float:
    """AG: sum of sqrt((dx^2 + dy^2) / 2) over all pixels, divided by (H-1)(W-1); dx, dy central differences.

    Reference: Tang `AG_evaluation`, VIFB `Avg_gradient` (one-sided at the border). Range 0..255, higher is
    better. Input: luminance 0..255. A constant image: 0. A side of one pixel or NaN pixels: NaN.
    """
    dy, dx = np.gradient(fused)
    return float(np.sqrt((dx**2 + dy**2) / 2).sum() / ((fused.shape[0] - 1) * (fused.shape[1] - 1)))


@on_planes()
def standard_deviation(fused: Plane) -> float:
    """SD: population standard deviation of the fused image, in grey levels.

    Reference: Tang `SD_evaluation` on doubles, MEFB `SD`. Range 0..127.5, higher is better. Input: luminance
    0..255. A constant image: 0. NaN pixels: NaN.
    """
    return float(fused.std())


def _edges(plane: Plane) -> tuple[Plane, Plane]:
    """Edge strength and orientation in (-pi/2, pi/2], y upwards; pi/2 where the x derivative is 0.

    Because of that pi/2 the sense of y matters: downwards would change Qabf by up to 0.6 %.
    """
    x, y = sobel(plane)
    return np.hypot(x, y), np.where(x == 0, np.pi / 2, np.arctan(-y / x))


@on_planes()
def edge_preservation(first: Plane, second: Plane, fused: Plane) -> float:
    """Qabf: share of the sources' edges kept in the fused image, weighted by edge strength.

    Definition: Xydeas and Petrovic 2000. With Sobel strength g and orientation alpha, per source S G =
    min(gS, gF) / max(gS, gF), A = 1 - |alphaS - alphaF| / (pi/2), Q_S = [0.9994 / (1 + e^(-15 (G - 0.5)))]
    [0.9879 / (1 + e^(-22 (A - 0.8)))], Qabf = sum(Q_A gA + Q_B gB) / sum(gA + gB). Reference: VIFB `Qabf`,
    Tang `analysis_Qabf`, whose G = gF where gS = gF is kept (0 on flat ground). Range 0..0.9755, higher is
    better. Input: luminance 0..255, zero border. Identical images: about 0.975. Sources without any edge (all
    black): NaN. NaN pixels: NaN.
    """
    strength, orientation = _edges(fused)
    kept = total = 0.0
    for source in (first, second):
        source_strength, source_orientation = _edges(source)
        ratio = np.where(
            source_strength == strength,
            strength,
            np.minimum(source_strength, strength) / np.maximum(source_strength, strength),
        )
        agreement = 1 - np.abs(source_orientation - orientation) / (np.pi / 2)
        strength_kept = 0.9994 / (1 + np.exp(-15 * (ratio - 0.5)))
        orientation_kept = 0.9879 / (1 + np.exp(-22 * (agreement - 0.8)))
        kept += (strength_kept * orientation_kept * source_strength).sum()
        total += source_strength.sum()
    return float(np.float64(kept) / total)

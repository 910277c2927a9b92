"""Metrics of detail and edges: SF, AG, SD, Qabf, Nabf."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.metrics.planes import on_planes, sobel, sobel_valid


@on_planes()
def spatial_frequency(fused: Tensor, *, divisor: Literal["differences", "pixels"] = "differences") -> Tensor:
    """SF: sqrt(RF^2 + CF^2), RF^2 and CF^2 the mean squared differences along rows and columns.

    Reference: Tang `SF_evaluation`, which averages over the differences of each direction; VIFB
    `Spatial_frequency` divides by the number of pixels instead (`divisor="pixels"`, 0.2 % lower on normal
    sizes). Range 0..360, higher is better (noise raises it too). Input: luminance 0..255. A constant image:
    0; a direction with a single pixel counts as 0. NaN pixels: NaN.
    """
    squares = fused.new_zeros(fused.shape[:-2])
    pixels = fused.shape[-2] * fused.shape[-1]
    for axis in (-2, -1):
        count = pixels - pixels // fused.shape[axis]
        total = fused.diff(dim=axis).square_().sum((-2, -1))
        squares += total / max(1, pixels if divisor == "pixels" else count)
    return squares.sqrt()


@on_planes(min_side=2)
def average_gradient(fused: Tensor) -> Tensor:
    """AG: sum of sqrt((dx^2 + dy^2) / 2) over all pixels, divided by (H-1)(W-1); dx, dy central differences.

    Reference: Tang `AG_evaluation`, VIFB `Avg_gradient` (one-sided at the border). Range 0..255, higher is
    better. Input: luminance 0..255. A constant image: 0. A side of one pixel or NaN pixels: NaN.
    """
    dy, dx = torch.gradient(fused, dim=(-2, -1))
    height, width = fused.shape[-2:]
    return ((dx**2 + dy**2) / 2).sqrt_().sum((-2, -1)) / ((height - 1) * (width - 1))


@on_planes()
def standard_deviation(fused: Tensor) -> Tensor:
    """SD: population standard deviation of the fused image, in grey levels.

    Reference: Tang `SD_evaluation` on doubles, MEFB `SD`. Range 0..127.5, higher is better. Input: luminance
    0..255. A constant image: 0. NaN pixels: NaN.
    """
    return fused.std((-2, -1), correction=0)


def _edges(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Edge strength and orientation in (-pi/2, pi/2], y upwards; pi/2 where the x derivative is 0.

    Because of that pi/2 the sense of y matters: downwards would change Qabf by up to 0.6 %.
    """
    x, y = sobel(plane)
    orientation = torch.where(x == 0, np.pi / 2, (y / x).atan_().neg_())
    return x.square_().add_(y.square_()).sqrt_(), orientation


@on_planes()
def edge_preservation(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """Qabf: share of the sources' edges kept in the fused image, weighted by edge strength.

    Definition: Xydeas and Petrovic 2000. With Sobel strength g and orientation alpha, per source S G =
    min(gS, gF) / max(gS, gF), A = 1 - |alphaS - alphaF| / (pi/2), Q_S = [0.9994 / (1 + e^(-15 (G - 0.5)))]
    [0.9879 / (1 + e^(-22 (A - 0.8)))], Qabf = sum(Q_A gA + Q_B gB) / sum(gA + gB). Reference: VIFB `Qabf`,
    Tang `analysis_Qabf`, whose G = gF where gS = gF is kept (0 on flat ground). Range 0..0.9755, higher is
    better. Input: luminance 0..255, zero border. Identical images: about 0.975. Sources without any edge (all
    black): NaN. NaN pixels: NaN.
    """
    strength, orientation = _edges(fused)
    kept = total = fused.new_zeros(fused.shape[:-2])
    for source in (first, second):
        source_strength, source_orientation = _edges(source)
        ratio = torch.minimum(source_strength, strength).div_(torch.maximum(source_strength, strength))
        ratio = torch.where(source_strength == strength, strength, ratio)
        agreement = source_orientation.sub_(orientation).abs_().mul_(-2 / np.pi)  # A - 1
        # both sigmoids in one quotient: 1 + e^x of a strength above 255 may be infinite, its inverse is 0
        fading = ratio.sub_(0.5).mul_(-15).exp_().add_(1)
        fading.mul_(agreement.add_(0.2).mul_(-22).exp_().add_(1))
        kept = kept + (source_strength / fading).sum((-2, -1)) * (0.9994 * 0.9879)
        total = total + source_strength.sum((-2, -1))
    return kept / total


def _mirrored_edges(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Edge strength and orientation atan(x / y), 0 on flat ground, from Sobel derivatives over 8.

    The plane is mirrored about its outermost pixels.
    """
    plane = torch.cat([plane[..., 1:2, :], plane, plane[..., -2:-1, :]], -2)
    x, y = sobel_valid(torch.cat([plane[..., 1:2], plane, plane[..., -2:-1]], -1))
    orientation = torch.where((x == 0) & (y == 0), 0, (x / y).atan_())
    return torch.hypot(x, y).div_(8), orientation


@on_planes(min_side=2)
def artefacts(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """Nabf: share of edge strength in the fused image that stands in neither source.

    Definition: Shreyamsha Kumar 2013 (modified N^AB/F of Petrovic and Xydeas). With Sobel strength g (over 8)
    and orientation alpha = atan(x / y): G = min(gS, gF) / max(gS, gF), 0 where either is 0; A = 2 / pi
    | |alphaS - alphaF| - pi / 2 |; Q_S^2 = [0.9999 / (1 + e^(-19 (G - 0.5)))] [0.9995 / (1 + e^(-22 (A -
    0.5)))]; weight w_S = g^1.5 where g >= 2, else 0.001. Nabf is the sum over pixels with gF > gA and gF > gB
    of (1 - Q_A) w_A + (1 - Q_B) w_B, divided by the sum of w_A + w_B over all. Reference: Tang
    `analysis_nabf(f, a, b)`, that function's own order; the toolbox calls it with the first source as the
    fused image and prints that. Range 0..1, LOWER is better. Input: luminance 0..255, mirrored at the border.
    Identical images, a constant fused image: 0. A side of one pixel or NaN pixels: NaN.
    """
    strength, orientation = _mirrored_edges(fused)
    lost = weights = torch.zeros_like(fused)
    added = torch.ones_like(fused, dtype=torch.bool)
    for source in (first, second):
        source_strength, source_orientation = _mirrored_edges(source)
        ratio = torch.minimum(source_strength, strength) / torch.maximum(source_strength, strength)
        ratio = torch.where((source_strength == 0) | (strength == 0), 0, ratio)
        agreement = ((source_orientation - orientation).abs_() - np.pi / 2).abs_() * (2 / np.pi)
        strength_kept = 0.9999 / (1 + (-19 * (ratio - 0.5)).exp_())
        orientation_kept = 0.9995 / (1 + (-22 * (agreement - 0.5)).exp_())
        weight = torch.where(source_strength >= 2, source_strength**1.5, 0.001)
        lost = lost + (1 - (strength_kept * orientation_kept).sqrt_()) * weight
        weights = weights + weight
        added &= strength > source_strength
    return (lost * added).sum((-2, -1)) / weights.sum((-2, -1))

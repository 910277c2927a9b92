"""Metrics at full resolution, where there is no target: D_lambda_K, D_lambda, D_s, HQNR, QNR."""

from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.metrics.hypercomplex import BLOCK, hypercomplex_quality
from model.metrics.planes import as_planes, hand_back, on_planes
from model.metrics.sensors import expand, low_pass, shrink


def _block_quality(first: Tensor, second: Tensor) -> Tensor:
    """UQI of whole 32 x 32 blocks, averaged: 4 cov m n / ((v + w) (m^2 + n^2)) of planes (..., H, W).

    Incomplete blocks at the bottom and right are left out; a block without variance or mean gives NaN.
    """
    height, width = (side // BLOCK * BLOCK for side in first.shape[-2:])

    def parts(plane: Tensor) -> Tensor:
        plane = plane[..., :height, :width].unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
        return plane.movedim(-2, -3).flatten(-2)

    x, y = parts(first), parts(second)
    x_mean, y_mean = x.mean(-1), y.mean(-1)
    x, y = x - x_mean[..., None], y - y_mean[..., None]
    covariance, variances = (x * y).mean(-1), (x**2 + y**2).mean(-1)
    quality = 4 * covariance * x_mean * y_mean / variances / (x_mean**2 + y_mean**2)
    return quality.mean((-2, -1))


@on_planes(min_side=BLOCK, dimensions=3)
def filtered_spectral_distortion(
    expanded: Tensor, fused: Tensor, *, sensor: str, ratio: int = 4, levels: float = 2047.0
) -> Tensor:
    """D_lambda_K: spectral distortion of HQNR, 1 - Q2n of the fused image as the sensor would see it.

    Definition: Khan, Alparone and Chanussot 2009: Q2n(expanded multispectral bands, fused image through the
    sensor's optics), at full size. Reference: DLPan `D_lambda_K`; this is the D_lambda that papers print
    beside HQNR. Range 0..1, LOWER is better. Input: (band, H, W) on 0..1, times `levels` (1 for digital
    numbers). An image equal to its expanded bands is not 0: the optics blur it once more. A side below 32
    pixels or NaN pixels: NaN.
    """
    return 1 - hypercomplex_quality(expanded * levels, low_pass(fused, sensor, ratio) * levels)


@on_planes(min_side=BLOCK, dimensions=3)
def spectral_distortion(expanded: Tensor, fused: Tensor) -> Tensor:
    """D_lambda: spectral distortion of QNR, change of the similarity between bands.

    Definition: Alparone et al. 2008: mean over pairs of bands of |Q(f_i, f_j) - Q(ms_i, ms_j)|, Q the UQI of
    32 x 32 blocks, p = 1. Reference: DLPan `D_lambda(f, lms, ms, 32, 4, 1)`, which takes the expanded bands.
    Range 0..2, LOWER is better. Input: (band, H, W), any common scale. Identical images: 0. One band: NaN. A
    block without variance in both bands: NaN. A side below 32 pixels or NaN pixels: NaN.
    """
    changes = [
        (
            _block_quality(fused[..., i, :, :], fused[..., j, :, :])
            - _block_quality(expanded[..., i, :, :], expanded[..., j, :, :])
        ).abs()
        for i, j in combinations(range(fused.shape[-3]), 2)
    ]
    return torch.stack(changes).mean(0) if changes else fused.new_full(fused.shape[:-3], torch.nan)


@on_planes(min_side=BLOCK, dimensions=3)
def _spatial_distortion(expanded: Tensor, fused: Tensor, pan: Tensor, *, ratio: int) -> Tensor:
    blurred = expand(shrink(pan[..., :1, :, :], ratio), ratio).expand_as(fused)
    return (_block_quality(fused, pan) - _block_quality(expanded, blurred)).abs().mean(-1)


def spatial_distortion(expanded: Any, fused: Any, pan: Any, *, ratio: int = 4) -> Any:
    """D_s: spatial distortion, change of the bands' similarity to the panchromatic image.

    Definition: Alparone et al. 2008: mean over bands of |Q(f_b, pan) - Q(ms_b, pan at the bands'
    resolution)|, Q the UQI of 32 x 32 blocks, q = 1; the panchromatic image shrunk (bicubic, antialiased) and
    expanded (23 taps) again. Reference: DLPan `D_s(f, lms, ms, pan, 4, 32, 1)`. Range 0..2, LOWER is better.
    Input: bands (band, H, W) and pan (H, W), any common scale; sides divisible by `ratio`, a power of two.
    Blocks without any variance: NaN. A side below 32 pixels or NaN pixels: NaN.
    """
    if isinstance(fused, Tensor):
        return _spatial_distortion(expanded, fused, pan[..., None, :, :].expand_as(fused), ratio=ratio)
    wide = np.broadcast_to(np.asarray(pan)[..., None, :, :], np.shape(fused))
    return _spatial_distortion(expanded, fused, wide, ratio=ratio)


def full_resolution_metrics(
    pan: Any, ms: Any, fused: Any, *, sensor: str, ratio: int = 4, levels: float = 2047.0
) -> dict[str, Any]:
    """D_lambda_K, D_s, HQNR, D_lambda and QNR of one sharpened image, or of a batch.

    HQNR = (1 - D_lambda_K) (1 - D_s) (Aiazzi et al. 2014), QNR = (1 - D_lambda) (1 - D_s) (Alparone et al.
    2008); both range up to 1, higher is better. Reference: DLPan `HQNR`, `QNR`. `pan` (H, W), `ms` (band, h,
    w) and `fused` (band, H, W) on 0..1, times `levels` (1 for digital numbers); `sensor` a name of
    `pipeline.sensors.GAINS`, or `other` for a gain of 0.3 in every band. The authors of RWKVFusion take
    IKONOS for QB and GF2.
    """
    expanded = hand_back(expand(as_planes(ms), ratio), isinstance(fused, Tensor))
    filtered = filtered_spectral_distortion(expanded, fused, sensor=sensor, ratio=ratio, levels=levels)
    spectral = spectral_distortion(expanded, fused)
    spatial = spatial_distortion(expanded, fused, pan, ratio=ratio)
    return {
        "D_lambda_K": filtered,
        "D_s": spatial,
        "HQNR": (1 - filtered) * (1 - spatial),
        "D_lambda": spectral,
        "QNR": (1 - spectral) * (1 - spatial),
    }

"""Quality of all bands together: Q2n (Q4, Q8 …), the index of hypercomplex numbers, and UQI per band."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from model.metrics.planes import filter_valid, mirrored, on_planes

BLOCK = 32


@lru_cache
def multiplication_signs(size: int) -> np.ndarray:
    """Signs s of e_i e_j = s[i, j] e_(i xor j) for hypercomplex numbers of `size` = 2^n components.

    From reals by doubling, (a, b)(c, d) = (a c - d* b, a* d* + c b*), * the conjugate: the convention of the
    reference; beyond quaternions another one gives other values.
    """
    if size == 1:
        return np.ones((1, 1))
    half = multiplication_signs(size // 2)
    conjugate = np.where(np.arange(size // 2) == 0, 1.0, -1.0)
    rows, columns = conjugate[:, None], conjugate[None, :]
    return np.block([[half, rows * columns * half], [rows * half.T, -columns * half.T]])


def blocks(image: Tensor) -> Tensor:
    """Blocks of 32 x 32 of (..., band, H, W) as (..., block, band, pixel); sides mirrored to whole blocks."""
    height, width = image.shape[-2:]
    image = mirrored(mirrored(image, 0, -height % BLOCK, -2), 0, -width % BLOCK, -1)
    parts = image.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))  # ... band, y, row, x, column
    return parts.movedim((-4, -2), (-5, -4)).flatten(-2).flatten(-4, -3)


def hypercomplex_quality(target: Tensor, fused: Tensor) -> Tensor:
    """Q2n of (..., band, H, W) in digital numbers; see `q2n`."""
    target, fused = (blocks((image + 0.5).floor().clamp(0, 65535)) for image in (target, fused))
    bands, pixels = target.shape[-2:]
    size = 1 << (bands - 1).bit_length()
    mean, spread = target.mean(-1, keepdim=True), target.std(-1, keepdim=True)
    spread = spread.masked_fill(spread == 0, torch.finfo(torch.float64).eps)
    x, y = ((image - mean) / spread + 1 for image in (target, fused))
    # bands appended up to a power of two are 0 before, 1 after that scaling
    x, y = (torch.nn.functional.pad(image, (0, 0, 0, size - bands), value=1.0) for image in (x, y))
    conjugate = torch.full((size, 1), -1.0, dtype=x.dtype, device=x.device)
    conjugate[0] = 1
    y = y * conjugate
    x_mean, y_mean = x.mean(-1), y.mean(-1)
    products = (x - x_mean[..., None]) @ (y - y_mean[..., None]).mT / (pixels - 1)
    index = torch.arange(size, device=x.device)
    signs = torch.from_numpy(multiplication_signs(size)).to(x.device)
    partner = index[:, None] ^ index[None, :]  # component k of e_i e_j has j = i xor k
    covariance = (products * signs).gather(-1, partner.expand_as(products)).sum(-2)
    variances = ((x - x_mean[..., None]) ** 2).sum((-2, -1)) + ((y - y_mean[..., None]) ** 2).sum((-2, -1))
    variances = variances / (pixels - 1)
    squares = (x_mean**2).sum(-1), (y_mean**2).sum(-1)
    bias = 2 * (squares[0] * squares[1]).sqrt() / (squares[0] + squares[1])
    contrast = 2 * covariance.square().sum(-1).sqrt() / variances
    return (bias * torch.where(variances == 0, 1, contrast)).mean(-1)


@on_planes(dimensions=3)
def q2n(target: Tensor, fused: Tensor, *, levels: float = 2047.0) -> Tensor:
    """Q2n: quality of all bands as one hypercomplex number per pixel (Q4 of four bands, Q8 of eight).

    Definition: Garzelli and Nencini 2009: per block of 32 x 32, both images scaled by the target's band means
    and deviations, |covariance| / mean variance times the agreement of the means, averaged over blocks; bands
    of zeros up to a power of two, sides mirrored to whole blocks. Reference: DLPan `q2n(gt, f, 32, 32)`,
    which rounds to whole digital numbers first. Range 0..1, higher is better. Input: (band, H, W) on 0..1,
    times `levels` (2^bits - 1; 1 for images in digital numbers). Identical images: 1. A constant block counts
    by its means where both images are the same, else nearly 0. NaN pixels: NaN.
    """
    return hypercomplex_quality(target * levels, fused * levels)


@on_planes(min_side=BLOCK, dimensions=3)
def universal_quality(target: Tensor, fused: Tensor) -> Tensor:
    """Q_avg: universal image quality index of every band, averaged.

    Definition: Wang and Bovik 2002, 4 cov mT mF / ((vT + vF) (mT^2 + mF^2)) in every 32 x 32 window inside
    the image, 2 mT mF / (mT^2 + mF^2) where both are constant, 1 where both are zero. Reference: DLPan `Q`.
    Range -1..1, higher is better. Input: (band, H, W), any common scale. Identical images: 1. A side below 32
    pixels or NaN pixels: NaN.
    """
    window = (1.0,) * BLOCK
    count = BLOCK**2
    x, y = filter_valid(target, window), filter_valid(fused, window)
    energy = filter_valid(target**2 + fused**2, window)
    product, squares = x * y, x**2 + y**2
    numerator = 4 * (count * filter_valid(target * fused, window) - product) * product
    variances = count * energy - squares
    quality = torch.where(squares != 0, 2 * product / squares, 1)
    whole = variances * squares
    return torch.where(whole != 0, numerator / whole, quality).mean((-3, -2, -1))

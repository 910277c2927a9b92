"""Feature mutual information: FMI of pixels, gradients, wavelet and cosine coefficients."""

from collections.abc import Callable
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from model.metrics.planes import filter_axis, mirrored, on_planes

SIDE = 3  # windows are SIDE x SIDE
CHUNK = 1 << 15  # windows at once: what they need stays in the cache


def _feature_information(feature: Callable[[Tensor], Tensor], *images: Tensor) -> Tensor:
    """Mean of the two sources' FMI with the fused image; images (..., H, W)."""
    first, second, fused = (feature(image) for image in images)
    batch = fused.shape[:-2]
    planes = [image.reshape(-1, *image.shape[-2:]) for image in (first, second, fused)]
    values = [
        (_windows_information(a, f) + _windows_information(b, f)) / 2 for a, b, f in zip(*planes, strict=True)
    ]
    return torch.stack(values).reshape(batch)


def _windows_information(source: Tensor, fused: Tensor) -> Tensor:
    """Mean over all windows of two feature planes."""
    rows, columns = fused.shape[0] - SIDE + 1, fused.shape[1] - SIDE + 1
    step = max(1, (CHUNK if fused.device.type == "cpu" else 64 * CHUNK) // columns)
    total = fused.new_zeros(())
    for row in range(0, rows, step):
        part = slice(row, min(row + step, rows) + SIDE - 1)
        total += _information(_windows(source[part]), _windows(fused[part])).sum()
    return total / (rows * columns)


def _windows(plane: Tensor) -> Tensor:
    """The pixels of every window, column after column: (pixel, window)."""
    shifted = [
        plane[y : plane.shape[0] - SIDE + 1 + y, x : plane.shape[1] - SIDE + 1 + x]
        for x, y in product(range(SIDE), repeat=2)
    ]
    return torch.stack(shifted).flatten(1)


def _information(source: Tensor, fused: Tensor) -> Tensor:
    """2 I / (H + H) of every pair of windows (pixel, window), their pixels read as one distribution each.

    The joint distribution is a mixture: phi times the coupling that rises together (that falls, where the
    windows correlate negatively), 1 - phi times the independent one, phi = correlation of the two
    distributions over the correlation of the coupling.
    """
    equal = (source == fused).all(0)
    p, p_flat = _distribution(source)
    q, q_flat = _distribution(fused)
    correlation = _pearson(p, q).masked_fill_(p_flat | q_flat, 0)
    # the coupling that falls is the one that rises with the other distribution read backwards
    q = torch.where(correlation < 0, q.flip(0), q)
    zero = torch.zeros_like(p[:1])
    p_sums, q_sums = torch.cat([zero, p.cumsum(0)]), torch.cat([zero, q.cumsum(0)])
    covariance = -p_sums.sum(0) * q_sums.sum(0)
    for i, j in product(range(1, len(p_sums)), repeat=2):
        covariance += torch.minimum(p_sums[i], q_sums[j])
    coupling = covariance / (_spread(p) * _spread(q))
    phi = (correlation.abs() / coupling).nan_to_num_(0, 0, 0)
    entropies = -(torch.special.xlogy(p, p).sum(0) + torch.special.xlogy(q, q).sum(0))
    joint = torch.zeros_like(phi)
    for i, j in product(range(len(p)), repeat=2):
        together = torch.minimum(p_sums[i + 1], q_sums[j + 1])
        together.sub_(torch.maximum(p_sums[i], q_sums[j])).clamp_min_(0)
        mass = ((1 - phi) * p[i]).mul_(q[j]).addcmul_(phi, together)
        joint -= torch.special.xlogy(mass, mass.abs())
    shared = (2 * (entropies - joint) / entropies).nan_to_num_(0, 0, 0)
    return shared.masked_fill_(equal, 1)


def _distribution(window: Tensor) -> tuple[Tensor, Tensor]:
    """Windows stretched to 0..1 and divided by their sums, uniform where flat; and where they are flat."""
    low, high = window.amin(0), window.amax(0)
    flat = low == high
    stretched = torch.where(flat, 1, (window - low) / (high - low))
    return stretched / stretched.sum(0), flat


def _pearson(p: Tensor, q: Tensor) -> Tensor:
    p, q = p - p.mean(0), q - q.mean(0)
    return (p * q).sum(0) / ((p**2).sum(0) * (q**2).sum(0)).sqrt()


def _spread(p: Tensor) -> Tensor:
    """Standard deviation of the index under the distribution; 0 for a single pixel, rounding taken away."""
    index = torch.arange(1, len(p) + 1, dtype=p.dtype, device=p.device)[:, None]
    mean = (p * index).sum(0)
    return ((p * index**2).sum(0) - mean**2).clamp_min(0).sqrt()


def _cosine(plane: Tensor) -> Tensor:
    """Orthonormal two-dimensional DCT-II of the whole plane."""
    for axis in (-1, -2):
        x = plane.movedim(axis, -1)
        size = x.shape[-1]
        folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
        index = torch.arange(size, dtype=x.dtype, device=x.device)
        turned = torch.fft.fft(folded) * torch.polar(torch.ones_like(index), -np.pi * index / (2 * size))
        scaled = turned.real * (2 / size) ** 0.5
        scaled[..., 0] /= 2**0.5
        plane = scaled.movedim(-1, axis)
    return plane.contiguous()


@lru_cache
def meyer_filters() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Low and high pass of the discrete Meyer wavelet: 62 taps of Meyer's filter, from its closed form.

    The low pass has the response sqrt(2) up to pi/3, sqrt(2) cos(pi/2 nu(3 w / pi - 1)) up to 2 pi/3 and 0
    above, nu(x) = x^4 (35 - 84 x + 70 x^2 - 20 x^3); the high pass alternates its signs.
    """
    grid = (np.arange(1 << 14) + 0.5) / (1 << 14) * np.pi
    x = np.clip(3 * grid / np.pi - 1, 0, 1)
    response = np.sqrt(2) * np.cos(np.pi / 2 * x**4 * (35 - 84 * x + 70 * x**2 - 20 * x**3))
    offsets = np.arange(62) - 31
    low = (response * np.cos(offsets[:, None] * grid)).mean(1)
    high = (-1.0) ** np.arange(62) * low[::-1]
    return tuple(low.tolist()), tuple(high.tolist())


def _wavelet(plane: Tensor) -> Tensor:
    """One level of the discrete Meyer wavelet, [approximation, horizontal; vertical, diagonal] as one plane.

    The plane is mirrored with its outermost pixels repeated.
    """
    for axis in (-1, -2):
        bands = [_half_band(plane, taps, axis) for taps in meyer_filters()]
        plane = torch.cat(bands, axis)
    return plane


def _half_band(plane: Tensor, taps: tuple[float, ...], axis: int) -> Tensor:
    size, margin = plane.shape[axis], len(taps) - 1
    filtered = filter_axis(mirrored(plane, margin, margin, axis), taps[::-1], axis)
    odd = torch.arange(1, size + margin, 2, device=plane.device)
    return filtered.index_select(axis, odd)


@on_planes(min_side=3)
def pixel_information(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """FMI_pixel: mutual information of 3 x 3 windows of pixels, sources to fused image, 0..1.

    Definition: Haghighat and Razian 2014 (Fast-FMI). The pixels of a window, stretched to 0..1 and divided by
    their sum, are one distribution over 9 places (column after column); the joint one is estimated from the
    correlation of the two; 2 I / (H + H), mean over all windows and both sources; equal windows count as 1, a
    quotient 0/0 (a single bright pixel in both) as 0. Reference: Tang `analysis_fmi(a, b, f, 'none')`, with
    what it does where the estimate leaves the probabilities (phi above 1 in about half of all windows):
    logarithms of magnitudes. Range 0..1, higher is better. Input: luminance 0..255 (any affine scale gives
    the same). Identical images: 1. A constant fused image: about 0. A side below 3 pixels or NaN pixels: NaN.
    """
    return _feature_information(lambda plane: plane, first, second, fused)


@on_planes(min_side=3)
def gradient_information(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """FMI_gradient: FMI of the horizontal derivative (central differences, one-sided at the border).

    Definition, range, input and degenerate results as `pixel_information`, reference: Tang `analysis_fmi(…,
    'gradient')`, which takes only the first output of MATLAB's `gradient`.
    """
    return _feature_information(lambda plane: torch.gradient(plane, dim=-1)[0], first, second, fused)


@on_planes(min_side=3)
def wavelet_information(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """FMI_wavelet: FMI of the coefficients of one level of the discrete Meyer wavelet, its four bands tiled.

    Definition, range, input and degenerate results as `pixel_information`; after Tang `analysis_fmi(…,
    'wavelet')`, with the filter from Meyer's closed form in place of MATLAB's table `dmey`. Not compared with
    a reference: none was at hand.
    """
    return _feature_information(_wavelet, first, second, fused)


@on_planes(min_side=3)
def cosine_information(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """FMI_DCT: FMI of the coefficients of the two-dimensional DCT-II of the whole image.

    Definition, range, input and degenerate results as `pixel_information`, reference: Tang `analysis_fmi(…,
    'dct')`.
    """
    return _feature_information(_cosine, first, second, fused)

"""Metrics of structure and error against the sources: SSIM, MS-SSIM, MEF-SSIM, PSNR.

SSIM is written here because skimage's takes no tensors or batches and piq's takes 50 times as long in
float64; tests compare with both.
"""

import torch
from torch import Tensor

from model.metrics.planes import filter_valid, gaussian, on_planes

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang 2003, finest first


def similarity(first: Tensor, second: Tensor, peak: float = 255.0) -> tuple[Tensor, Tensor]:
    """Wang's SSIM and its contrast-structure part, means over all windows that lie inside the planes.

    Gaussian window 11 x 11 with sigma 1.5, K = (0.01, 0.03); planes (..., H, W) with sides of 11 or more.
    """
    window, luminance, contrast = gaussian(11, 1.5), (0.01 * peak) ** 2, (0.03 * peak) ** 2
    a, b = filter_valid(first, window), filter_valid(second, window)
    variances = filter_valid(first**2 + second**2, window) - a**2 - b**2
    covariance = filter_valid(first * second, window) - a * b
    structure = (2 * covariance + contrast) / (variances + contrast)
    full = (2 * a * b + luminance) / (a**2 + b**2 + luminance) * structure
    return full.mean((-2, -1)), structure.mean((-2, -1))


@on_planes(min_side=11)
def structural_sum(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """SSIM: SSIM(first, fused) + SSIM(second, fused).

    Definition: Wang et al. 2004, Gaussian window 11 x 11 with sigma 1.5, windows inside the image only, K =
    (0.01, 0.03), L = 255. Reference: VIFB `Ssim`, Wang's `ssim_index`. Range -2..2, higher is better; each
    term is at most 1. Input: luminance 0..255. Identical images: 2. Constant images are defined (the
    constants decide). A side below 11 pixels or NaN pixels: NaN.
    """
    return similarity(first, fused)[0] + similarity(second, fused)[0]


@on_planes(min_side=161)
def multiscale_sum(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """MS-SSIM: MS-SSIM(first, fused) + MS-SSIM(second, fused).

    Definition: Wang, Simoncelli and Bovik 2003: over 5 scales, each the 2 x 2 means of the one before, the
    product of the means of contrast-structure to the powers 0.0448, 0.2856, 0.3001, 0.2363, 0.1333, at the
    coarsest scale of the whole SSIM; negative means count as 0. Window and constants as in SSIM. Reference:
    Wang's own `msssim`; piq is the same on sides divisible by 16 and pads odd ones elsewhere. Not Tang's
    `MS_SSIM`, which is MEF-SSIM. Range 0..2, higher is better. Input:
    luminance 0..255. Identical images: 2. A side below 161 pixels or NaN pixels: NaN.
    """
    images = [first, second, fused]
    products = [torch.ones_like(first[..., 0, 0])] * 2
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale:
            images = [_halved(image) for image in images]
        for index in (0, 1):
            full, structure = similarity(images[index], images[2])
            part = full if scale == len(SCALE_WEIGHTS) - 1 else structure
            products[index] = products[index] * part.clamp_min(0) ** weight
    return products[0] + products[1]


def _halved(plane: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; the last row or column of an odd side counts twice."""
    plane = torch.cat([plane, plane[..., -1:, :]], -2) if plane.shape[-2] % 2 else plane
    plane = torch.cat([plane, plane[..., -1:]], -1) if plane.shape[-1] % 2 else plane
    return plane.unflatten(-1, (-1, 2)).mean(-1).unflatten(-2, (-1, 2)).mean(-2)


@on_planes()
def source_psnr(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """PSNR: 10 log10(255^2 / MSE), MSE the mean of the two mean squared errors against the sources, in dB.

    Reference: Tang `PSNR_evaluation` minus 48.13 dB (it divides an error on 0..1 into a peak of 255); VIFB's
    `Psnr` depends on the image size and is not followed. Range 0..inf, higher is better (the average of the
    sources is the optimum by definition). Input: luminance 0..255. Identical images: inf. NaN pixels: NaN.
    """
    error = ((first - fused) ** 2 + (second - fused) ** 2).mean((-2, -1)) / 2
    return 10 * torch.log10(255**2 / error)

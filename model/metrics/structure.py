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


def _exposure_structure(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """MEF-SSIM of one scale: the structure that the sources' patches ask for against the fused patch."""
    side, constant = 11, (0.03 * 255) ** 2
    count = side**2
    box = (1.0,) * side  # sums, not means: exact on whole grey levels, so that flat patches have no deviation
    sums = [filter_valid(image, box) for image in (first, second)]

    def energy(i: int, j: int) -> Tensor:
        """Sum over the patch of the product of deviations from the patches' means."""
        images = (first, second)
        return filter_valid(images[i] * images[j], box) - sums[i] * sums[j] / count

    first_energy, second_energy, common = energy(0, 0), energy(1, 1), energy(0, 1)
    deviations = [part.clamp_min(0).sqrt() for part in (first_energy, second_energy)]
    eps = torch.finfo(torch.float64).eps
    together = (first_energy + second_energy + 2 * common).clamp_min(0).sqrt()
    consistency = ((together + eps) / (deviations[0] + deviations[1] + eps)).clamp(eps, 1 - eps)
    power = torch.tan(torch.pi / 2 * consistency).clamp_max(10)
    strengths = [deviation + 0.001 for deviation in deviations]
    weights = [(strength / side) ** power + eps for strength in strengths]
    shares = [
        weight / (weights[0] + weights[1]) / strength
        for weight, strength in zip(weights, strengths, strict=True)
    ]
    # the wanted patch is a combination of the two patches' deviations, of the stronger one's length
    norm = shares[0] ** 2 * first_energy + shares[1] ** 2 * second_energy + 2 * shares[0] * shares[1] * common
    length = torch.maximum(*strengths) / norm.clamp_min(0).sqrt()
    a, b = (torch.where(norm > 0, share * length, 0) for share in shares)

    window = gaussian(side, 1.5)
    means = [filter_valid(image, window) for image in (first, second, fused)]

    def covariance(i: int, j: int) -> Tensor:
        images = (first, second, fused)
        return filter_valid(images[i] * images[j], window) - means[i] * means[j]

    wanted = a**2 * covariance(0, 0) + b**2 * covariance(1, 1) + 2 * a * b * covariance(0, 1)
    shared = a * covariance(0, 2) + b * covariance(1, 2)
    return ((2 * shared + constant) / (wanted + covariance(2, 2) + constant)).mean((-2, -1))


@on_planes(min_side=41)
def exposure_structure(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """MEF-SSIM: structure that patches of the exposures ask for, kept in the fused image.

    Definition: Ma, Zeng and Wang 2015. Per 11 x 11 patch the wanted structure is the sum of the sources' unit
    deviations weighted by (deviation / 11)^p, p = tan(pi/2 R) at most 10, R = |sum| / sum of | | of the
    deviations, of the length of the stronger one; compared with the fused patch by the contrast-structure
    part of SSIM (Gaussian window, sigma 1.5, K = 0.03, L = 255); over 3 scales the product of the means to
    the powers 0.0448, 0.2856, 0.3001 over their sum. Reference: Tang `analysis_ms_ssim` (called MS_SSIM
    there). Range 0..1, higher is better; negative means count as 0. Input: luminance 0..255. Identical
    images: about 1 (the length has 0.001 added). A side below 41 pixels or NaN pixels: NaN.
    """
    weights, images = SCALE_WEIGHTS[:3], [first, second, fused]
    product = torch.ones_like(first[..., 0, 0])
    for scale, weight in enumerate(weights):
        if scale:
            images = [_halved(image) for image in images]
        product = product * _exposure_structure(*images).clamp_min(0) ** (weight / sum(weights))
    return product


@on_planes()
def source_psnr(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """PSNR: 10 log10(255^2 / MSE), MSE the mean of the two mean squared errors against the sources, in dB.

    Reference: Tang `PSNR_evaluation` minus 48.13 dB (it divides an error on 0..1 into a peak of 255); VIFB's
    `Psnr` depends on the image size and is not followed. Range 0..inf, higher is better (the average of the
    sources is the optimum by definition). Input: luminance 0..255. Identical images: inf. NaN pixels: NaN.
    """
    error = ((first - fused) ** 2 + (second - fused) ** 2).mean((-2, -1)) / 2
    return 10 * torch.log10(255**2 / error)

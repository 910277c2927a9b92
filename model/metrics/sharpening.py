"""Metrics against a target, of sharpening above all: PSNR, SSIM, spectral angle, ERGAS, SCC."""

import torch
from torch import Tensor

from model.metrics.planes import on_planes, sobel
from model.metrics.structure import similarity


@on_planes(dimensions=3)
def psnr(target: Tensor, fused: Tensor, *, peak: float = 1.0) -> Tensor:
    """PSNR: 10 log10(peak^2 / MSE) per band, then the mean over bands, in dB.

    Reference: Efficient-MIF `quality_assess`. Range 0..inf, higher is better. Input: (band, H, W) on 0..peak.
    Identical images (or an identical band): inf. NaN pixels: NaN.
    """
    errors = ((target - fused) ** 2).mean((-2, -1))
    return (10 * torch.log10(peak**2 / errors)).mean(-1)


@on_planes(min_side=11, dimensions=3)
def ssim(target: Tensor, fused: Tensor, *, peak: float = 1.0) -> Tensor:
    """SSIM: Wang's index per band, then the mean over bands.

    Definition: Wang et al. 2004, Gaussian window 11 x 11 with sigma 1.5, windows inside the image only, K =
    (0.01, 0.03), L = peak. Reference: Efficient-MIF `quality_assess`. Range -1..1, higher is better. Input:
    (band, H, W) on 0..peak. Identical images: 1. A side below 11 pixels or NaN pixels: NaN.
    """
    return similarity(target, fused, peak)[0].mean(-1)


@on_planes(dimensions=3)
def spectral_angle(target: Tensor, fused: Tensor) -> Tensor:
    """Spectral angle (SAM): mean angle between the spectra of target and fused image, in degrees.

    Reference: DLPan `SAM`. Range 0..180 (0..90 for non-negative data), LOWER is better. Input: (band, H, W),
    any common scale. Pixels whose spectrum is zero in either image are left out; all of them zero: NaN.
    Identical images: 0 up to rounding (below 1e-5). One band: 0. NaN pixels: NaN.
    """
    products = (target * fused).sum(-3)
    norms = ((target**2).sum(-3) * (fused**2).sum(-3)).sqrt()
    seen = norms > 0
    angles = torch.rad2deg(torch.arccos((products / norms).clamp(-1, 1)))
    return angles.where(seen, 0).sum((-2, -1)) / seen.sum((-2, -1))


@on_planes(dimensions=3)
def ergas(target: Tensor, fused: Tensor, *, ratio: float) -> Tensor:
    """ERGAS: 100 / ratio * sqrt(mean over bands of MSE_b / mean(target_b)^2).

    Definition: Wald 2000. Reference: DLPan `ERGAS`. `ratio` is the (linear) resolution ratio, 4 for 4 x 4.
    Range 0..inf, LOWER is better. Input: (band, H, W), any common scale. Identical images: 0. A band whose
    target is zero on average: inf (NaN if its error is 0 too). NaN pixels: NaN.
    """
    errors = ((target - fused) ** 2).mean((-2, -1))
    return 100 / ratio * (errors / target.mean((-2, -1)) ** 2).mean(-1).sqrt()


@on_planes(min_side=3, dimensions=3)
def spatial_correlation(target: Tensor, fused: Tensor) -> Tensor:
    """SCC: cosine of the Sobel magnitudes of target and fused image, over all bands together.

    Definition: after Zhou, Civco and Silander 1998. Sobel magnitude of each band without its outermost rows
    and columns, zero border; sum(mT mF) / sqrt(sum(mT^2) sum(mF^2)), no mean removed. Reference: DLPan `SCC`
    (torchmetrics and sewar compute another quantity under this name). Range 0..1, higher is better. Input:
    (band, H, W), any common scale. Identical images: 1. An image of zeros: NaN. A side below 3 pixels or NaN
    pixels: NaN.
    """
    target, fused = (torch.hypot(*sobel(image[..., 1:-1, 1:-1])) for image in (target, fused))
    axes = (-3, -2, -1)
    return (target * fused).sum(axes) / ((target**2).sum(axes) * (fused**2).sum(axes)).sqrt()

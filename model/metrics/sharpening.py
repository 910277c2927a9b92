"""Metrics against a target, for sharpening and where a target exists: PSNR, SSIM, spectral angle, ERGAS."""

import numpy as np
from skimage.metrics import structural_similarity

from model.metrics.planes import Plane, on_planes


@on_planes(dimensions=3)
def psnr(target: Plane, fused: Plane, *, peak: float = 1.0) -> float:
    """PSNR: 10 log10(peak^2 / MSE) per band, then the mean over bands, in dB.

    Reference: Efficient-MIF `quality_assess`. Range 0..inf, higher is better. Input: (band, H, W) on 0..peak.
    Identical images (or an identical band): inf. NaN pixels: NaN.
    """
    errors = ((target - fused) ** 2).mean(axis=(1, 2))
    return float((10 * np.log10(peak**2 / errors)).mean())


@on_planes(min_side=11, dimensions=3)
def ssim(target: Plane, fused: Plane, *, peak: float = 1.0) -> float:
    """SSIM: Wang's index per band, then the mean over bands.

    Definition: Wang et al. 2004, Gaussian window 11 x 11 with sigma 1.5, windows inside the image only, K =
    (0.01, 0.03), L = peak. Reference: Efficient-MIF `quality_assess`. Range -1..1, higher is better. Input:
    (band, H, W) on 0..peak. Identical images: 1. A side below 11 pixels or NaN pixels: NaN.
    """
    return float(
        structural_similarity(
            target,
            fused,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=peak,
        )
    )


@on_planes(dimensions=3)
def spectral_angle(target: Plane, fused: Plane) -> float:
    """Spectral angle (SAM): mean angle between the spectra of target and fused image, in degrees.

    Reference: DLPan `SAM`. Range 0..180 (0..90 for non-negative data), LOWER is better. Input: (band, H, W),
    any common scale. Pixels whose spectrum is zero in either image are left out; all of them zero: NaN.
    Identical images: 0 up to rounding (below 1e-5). One band: 0. NaN pixels: NaN.
    """
    products = (target * fused).sum(axis=0)
    norms = np.sqrt((target**2).sum(axis=0) * (fused**2).sum(axis=0))
    seen = norms > 0
    if not seen.any():
        return float("nan")
    return float(np.degrees(np.arccos(np.clip(products[seen] / norms[seen], -1, 1))).mean())


@on_planes(dimensions=3)
def ergas(target: Plane, fused: Plane, *, ratio: float) -> float:
    """ERGAS: 100 / ratio * sqrt(mean over bands of MSE_b / mean(target_b)^2).

    Definition: Wald 2000. Reference: DLPan `ERGAS`. `ratio` is the (linear) resolution ratio, 4 for 4 x 4.
    Range 0..inf, LOWER is better. Input: (band, H, W), any common scale. Identical images: 0. A band whose
    target is zero on average: inf (NaN if its error is 0 too). NaN pixels: NaN.
    """
    errors = ((target - fused) ** 2).mean(axis=(1, 2))
    return float(100 / ratio * np.sqrt((errors / target.mean(axis=(1, 2)) ** 2).mean()))

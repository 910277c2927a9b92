"""Metrics of structure and error against the sources: SSIM, PSNR."""

import numpy as np
from skimage.metrics import structural_similarity

from model.metrics.planes import Plane, on_planes


@on_planes(min_side=11)
def structural_sum(first: Plane, second: Plane, fused: Plane) -> float:
    """SSIM: SSIM(first, fused) + SSIM(second, fused).

    Definition: Wang et al. 2004, Gaussian window 11 x 11 with sigma 1.5, windows inside the image only, K =
    (0.01, 0.03), L = 255. Reference: VIFB `Ssim`, Wang's `ssim_index`. Range -2..2, higher is better; each
    term is at most 1. Input: luminance 0..255. Identical images: 2. Constant images are defined (the
    constants decide). A side below 11 pixels or NaN pixels: NaN.
    """
    return sum(
        float(
            structural_similarity(
                source,
                fused,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=255,
            )
        )
        for source in (first, second)
    )


@on_planes()
def source_psnr(first: Plane, second: Plane, fused: Plane) -> float:
    """PSNR: 10 log10(255^2 / MSE), MSE the mean of the two mean squared errors against the sources, in dB.

    Reference: Tang `PSNR_evaluation` minus 48.13 dB (it divides an error on 0..1 into a peak of 255); VIFB's
    `Psnr` depends on the image size and is not followed. Range 0..inf, higher is better (the average of the
    sources is the optimum by definition). Input: luminance 0..255. Identical images: inf. NaN pixels: NaN.
    """
    error = (np.mean((first - fused) ** 2) + np.mean((second - fused) ** 2)) / 2
    return float(10 * np.log10(255**2 / error))

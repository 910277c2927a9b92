"""Visual information fidelity: VIF."""

import torch
from torch import Tensor

from model.metrics.planes import filter_valid, gaussian, on_planes

NOISE = 2.0  # variance of the visual noise, in grey levels squared
TINY = 1e-10


def _shares(source: Tensor, fused: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Information kept and information in the source, summed over windows: fused = g source + residual.

    Windows in which source or fused image is flat (variance below 1e-10), or that are inverted (g < 0), keep
    nothing.
    """
    gain = covariance / (source + TINY)
    flat = source < TINY
    gain = gain.masked_fill_(flat | (fused < TINY) | (gain < 0), 0)
    residual = (fused - gain * covariance).clamp_min_(TINY)
    kept = gain.square_().mul_(source).div_(residual.add_(NOISE)).log1p_()
    return kept.sum((-2, -1)), (source / NOISE).masked_fill_(flat, 0).log1p_().sum((-2, -1))


@on_planes(min_side=41)
def visual_fidelity(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """VIF: pixel-domain visual information fidelity of the fused image to each source, summed.

    Definition: Sheikh and Bovik 2006 in its pixel form (`vifp_mscale`), source as reference: over 4 scales
    with Gaussian windows of 17, 9, 5, 3 taps (sigma = taps / 5), halved after filtering, sum log(1 + g^2 s^2
    / (r + 2)) / sum log(1 + s^2 / 2), s^2 source variance, g gain, r residual variance. Reference: Tang
    `vifp_af + vifp_bf`. Range 0..about 2 (more with contrast enhancement), higher is better. Not scale
    invariant. Input: luminance 0..255. Identical images: 2. A constant fused image: 0. A constant source
    (0/0), a side below 41 pixels, NaN pixels: NaN.
    """
    images = [first, second, fused]
    kept = fused.new_zeros(2, *fused.shape[:-2])
    total = torch.zeros_like(kept)
    for taps in (17, 9, 5, 3):
        window = gaussian(taps, taps / 5)
        if taps < 17:
            images = [filter_valid(image, window)[..., ::2, ::2].contiguous() for image in images]
        means = [filter_valid(image, window) for image in images]
        variances = [
            (filter_valid(image**2, window) - mean**2).clamp_min_(0)
            for image, mean in zip(images, means, strict=True)
        ]
        for index in (0, 1):
            covariance = filter_valid(images[index] * images[2], window) - means[index] * means[2]
            scale = _shares(variances[index], variances[2], covariance)
            kept[index] += scale[0]
            total[index] += scale[1]
    return (kept / total).sum(0)

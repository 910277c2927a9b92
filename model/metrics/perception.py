"""Metrics of perceived quality: Qcb, Qcv, Qy."""

from functools import lru_cache

import torch
from torch import Tensor

from model.metrics.planes import (
    block_sums,
    filter_same,
    filter_spectrum,
    filter_valid,
    gaussian,
    on_planes,
    sobel,
    stretch,
)


def _radius(plane: Tensor, divisor: float) -> Tensor:
    """Radial frequency of every rfft2 bin: a (-1..1) grid times (W, H) / divisor."""
    height, width = plane.shape[-2:]
    y = 2 * torch.fft.fftfreq(height, dtype=plane.dtype, device=plane.device) * height / divisor
    x = 2 * torch.fft.rfftfreq(width, dtype=plane.dtype, device=plane.device) * width / divisor
    return torch.hypot(y[:, None], x[None, :])


def difference_of_gaussians(radius: Tensor) -> Tensor:
    """Contrast sensitivity of Qcb."""
    return torch.exp(-((radius / 15.3870) ** 2)) - 0.7622 * torch.exp(-((radius / 1.3456) ** 2))


def mannos_sakrison(radius: Tensor) -> Tensor:
    """Contrast sensitivity of Qcv, Mannos and Sakrison 1974."""
    radius = 0.144 * radius
    return 2.6 * (0.0192 + radius) * torch.exp(-(radius**1.1))


@lru_cache
def _unscaled_gaussian(sigma: float) -> tuple[float, ...]:
    """31 taps whose outer product is a Gaussian of amplitude 1 / (2 pi sigma^2), not renormalised."""
    offsets = torch.arange(-15, 16, dtype=torch.float64)
    return tuple((torch.exp(-(offsets**2) / (2 * sigma**2)) / ((2 * torch.pi) ** 0.5 * sigma)).tolist())


def masked_contrast(plane: Tensor) -> Tensor:
    """Masked local contrast C^3 / (C^2 + 1e-4), C = |G2 * I / (G4 * I) - 1|.

    31 x 31 Gaussians of sigma 2 and 4 with amplitude 1 / (2 pi sigma^2), not renormalised, zero border.
    """
    narrow, wide = (filter_same(plane, _unscaled_gaussian(sigma)) for sigma in (2.0, 4.0))
    contrast = narrow.div_(wide).sub_(1).abs_()
    return contrast**3 / contrast.square().add_(1e-4)


@on_planes()
def contrast_preservation(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """Qcb: perceptual contrast of the sources kept in the fused image.

    Definition: Chen and Blum 2009. Stretched to 0..255 and rounded; filtered with the contrast sensitivity
    exp(-(r/15.387)^2) - 0.7622 exp(-(r/1.3456)^2), r on the (-1..1) grid times (W, H)/30; masked contrast C'
    of 31 x 31 Gaussians (sigma 2 over 4), per source min(C'S, C'F) / max(C'S, C'F), weighted by C'S^2,
    averaged. Reference: VIFB `Qcb`, liu `metricChenBlum`. Range 0..1, higher is better. Input: luminance
    0..255. Identical images: 1. A constant image: NaN (nothing to stretch). NaN pixels: NaN. Where source and
    fused both have exactly no contrast the ratio is 1 (the reference gives NaN for the whole image).
    """
    sensitivity = difference_of_gaussians(_radius(fused, 30))
    a, b, f = (
        masked_contrast(filter_spectrum(stretch(image), sensitivity)) for image in (first, second, fused)
    )

    def kept(source: Tensor) -> Tensor:
        larger = torch.maximum(source, f)
        return torch.where(larger == 0, 1, torch.minimum(source, f).div_(larger))

    saliency = a**2 + b**2
    weight = torch.where(saliency == 0, 0.5, a.square() / saliency)
    return (weight * kept(a) + (1 - weight) * kept(b)).mean((-2, -1))


def edge_saliency(plane: Tensor) -> Tensor:
    """Sobel magnitude to the 5th power."""
    x, y = sobel(plane)
    energy = x.square_().add_(y.square_())
    return energy.square() * energy.sqrt()


@on_planes()
def perceived_error(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """Qcv: perceived error of the fused image, weighted by the sources' edges.

    Definition: Chen and Varshney 2007. Stretched to 0..255 and rounded; per 16 x 16 block the mean square of
    the difference filtered with 2.6 (0.0192 + 0.144 r) exp(-(0.144 r)^1.1), r on the (-1..1) grid times (W,
    H)/8, weighted by the sum of the source's Sobel magnitude to the 5th power. Incomplete blocks are padded
    with zeros and still divided by 256. Reference: VIFB `Qcv`, liu `metricChen`. Range 0..inf, LOWER is
    better. Input: luminance 0..255. Identical images: 0. A constant image: NaN (nothing to stretch). NaN
    pixels: NaN.
    """
    sensitivity = mannos_sakrison(_radius(fused, 8))
    fused = stretch(fused)
    error = total = fused.new_zeros(fused.shape[:-2])
    for source in (stretch(first), stretch(second)):
        weight = block_sums(edge_saliency(source), 16)
        difference = filter_spectrum(source - fused, sensitivity)
        error = error + (weight * block_sums(difference.square_(), 16) / 256).sum((-2, -1))
        total = total + weight.sum((-2, -1))
    return error / total


@on_planes(min_side=7)
def structure_choice(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """Qy: per window, structure kept from both sources where they agree, from the better kept one elsewhere.

    Definition: Yang et al. 2008. Gaussian windows 7 x 7 with sigma 1.5, inside the image only, C1 = C2 =
    2e-16; with lambda = va / (va + vb): lambda SSIM(a, f) + (1 - lambda) SSIM(b, f) where SSIM(a, b) >= 0.75,
    otherwise the larger of the two; mean over windows in which a source varies. Reference: MEFB `Qy` in its
    stable form: the printed form divides rounding noise by rounding noise in flat windows, so a variance
    below 1e-9 of the window's mean square is 0 here and so are its covariances. Range -1..1, higher is
    better. Input: luminance 0..255. Identical images: 1. No window in which a source varies, a side below 7
    pixels, NaN pixels: NaN.
    """
    window, tiny = gaussian(7, 1.5), 2e-16
    images = (first, second, fused)
    means = [filter_valid(image, window) for image in images]
    squares = [filter_valid(image**2, window) for image in images]
    variances = [
        (square - mean**2).where(square - mean**2 >= 1e-9 * square, 0)
        for square, mean in zip(squares, means, strict=True)
    ]

    def similarity(i: int, j: int) -> Tensor:
        covariance = filter_valid(images[i] * images[j], window).sub_(means[i] * means[j])
        covariance.masked_fill_((variances[i] == 0) | (variances[j] == 0), 0)
        light = (2 * means[i] * means[j] + tiny) / (means[i] ** 2 + means[j] ** 2 + tiny)
        return light * (2 * covariance + tiny) / (variances[i] + variances[j] + tiny)

    kept_first, kept_second = similarity(0, 2), similarity(1, 2)
    weight = variances[0] / (variances[0] + variances[1])
    both = weight * kept_first + (1 - weight) * kept_second
    quality = torch.where(similarity(0, 1) >= 0.75, both, torch.maximum(kept_first, kept_second))
    varies = (variances[0] > 0) | (variances[1] > 0)
    return quality.where(varies, 0).sum((-2, -1)) / varies.sum((-2, -1))

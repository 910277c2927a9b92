"""Metrics of perceived quality: Qcb, Qcv, Qy."""

import numpy as np
from scipy.fft import irfft2, rfft2

from model.metrics.planes import Plane, filter_same, filter_valid, gaussian, on_planes, sobel, stretch


def _radius(shape: tuple[int, ...], divisor: float) -> Plane:
    """Radial frequency of every rfft2 bin: a (-1..1) grid times (W, H) / divisor."""
    height, width = shape
    y = 2 * np.fft.fftfreq(height) * height / divisor
    x = 2 * np.fft.rfftfreq(width) * width / divisor
    return np.hypot(y[:, None], x[None, :])


def _contrast(plane: Plane) -> Plane:
    """Masked local contrast C^3 / (C^2 + 1e-4), C = |G2 * I / (G4 * I) - 1|.

    31 x 31 Gaussians of sigma 2 and 4 with amplitude 1 / (2 pi sigma^2), not renormalised, zero border.
    """
    offsets = np.arange(31) - 15.0
    narrow, wide = (
        filter_same(plane, np.exp(-(offsets**2) / (2 * sigma**2)) / (np.sqrt(2 * np.pi) * sigma))
        for sigma in (2.0, 4.0)
    )
    contrast = np.abs(narrow / wide - 1)
    return contrast**3 / (contrast**2 + 1e-4)


@on_planes()
def contrast_preservation(first: Plane, second: Plane, fused: Plane) -> float:
    """Qcb: perceptual contrast of the sources kept in the fused image.

    Definition: Chen and Blum 2009. Stretched to 0..255 and rounded; filtered with the contrast sensitivity
    exp(-(r/15.387)^2) - 0.7622 exp(-(r/1.3456)^2), r on the (-1..1) grid times (W, H)/30; masked contrast C'
    of 31 x 31 Gaussians (sigma 2 over 4), per source min(C'S, C'F) / max(C'S, C'F), weighted by C'S^2,
    averaged. Reference: VIFB `Qcb`, liu `metricChenBlum`. Range 0..1, higher is better. Input: luminance
    0..255. Identical images: 1. A constant image: NaN (nothing to stretch). NaN pixels: NaN. Where source and
    fused both have exactly no contrast the ratio is 1 (the reference gives NaN for the whole image).
    """
    radius = _radius(fused.shape, 30)
    sensitivity = np.exp(-((radius / 15.3870) ** 2)) - 0.7622 * np.exp(-((radius / 1.3456) ** 2))
    a, b, f = (
        _contrast(irfft2(rfft2(stretch(image)) * sensitivity, fused.shape))
        for image in (first, second, fused)
    )

    def kept(source: Plane) -> Plane:
        larger = np.maximum(source, f)
        return np.where(larger == 0, 1, np.minimum(source, f) / larger)

    saliency = a**2 + b**2
    weight = np.where(saliency == 0, 0.5, a**2 / saliency)
    return float((weight * kept(a) + (1 - weight) * kept(b)).mean())


def _block_sums(plane: Plane, size: int = 16) -> Plane:
    """Sums over size x size blocks; incomplete blocks at the bottom and right are padded with zeros."""
    rows = np.add.reduceat(plane, np.arange(0, plane.shape[0], size), axis=0)
    return np.add.reduceat(rows, np.arange(0, plane.shape[1], size), axis=1)


@on_planes()
def perceived_error(first: Plane, second: Plane, fused: Plane) -> float:
    """Qcv: perceived error of the fused image, weighted by the sources' edges.

    Definition: Chen and Varshney 2007. Stretched to 0..255 and rounded; per 16 x 16 block the mean square of
    the difference filtered with 2.6 (0.0192 + 0.144 r) exp(-(0.144 r)^1.1), r on the (-1..1) grid times (W,
    H)/8, weighted by the sum of the source's Sobel magnitude to the 5th power. Incomplete blocks are padded
    with zeros and still divided by 256. Reference: VIFB `Qcv`, liu `metricChen`. Range 0..inf, LOWER is
    better. Input: luminance 0..255. Identical images: 0. A constant image: NaN (nothing to stretch). NaN
    pixels: NaN.
    """
    radius = 0.144 * _radius(fused.shape, 8)
    sensitivity = 2.6 * (0.0192 + radius) * np.exp(-(radius**1.1))
    fused = stretch(fused)
    error = total = np.float64(0)
    for source in (stretch(first), stretch(second)):
        x, y = sobel(source)
        weight = _block_sums((x * x + y * y) ** 2 * np.hypot(x, y))
        difference = irfft2(rfft2(source - fused) * sensitivity, fused.shape)
        error += (weight * _block_sums(difference**2) / 256).sum()
        total += weight.sum()
    return float(error / total)


@on_planes(min_side=7)
def structure_choice(first: Plane, second: Plane, fused: Plane) -> float:
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
        np.where(square - mean**2 < 1e-9 * square, 0, square - mean**2)
        for square, mean in zip(squares, means, strict=True)
    ]

    def similarity(i: int, j: int) -> Plane:
        covariance = filter_valid(images[i] * images[j], window) - means[i] * means[j]
        covariance = np.where((variances[i] == 0) | (variances[j] == 0), 0, covariance)
        light = (2 * means[i] * means[j] + tiny) / (means[i] ** 2 + means[j] ** 2 + tiny)
        return light * (2 * covariance + tiny) / (variances[i] + variances[j] + tiny)

    kept_first, kept_second = similarity(0, 2), similarity(1, 2)
    weight = variances[0] / (variances[0] + variances[1])
    both = weight * kept_first + (1 - weight) * kept_second
    quality = np.where(similarity(0, 1) >= 0.75, both, np.maximum(kept_first, kept_second))
    varies = (variances[0] > 0) | (variances[1] > 0)
    return float(quality[varies].mean()) if varies.any() else float("nan")

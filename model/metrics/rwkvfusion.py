"""Profile `rwkvfusion`: what the evaluation script released with the paper computes, named after it.

Reference: `utils/metric_fusion.py` of 294coder/RWKVFusion, which works in float32; here float64. Every metric
takes colour images (3, H, W) on 0..255 (grey ones repeated) and is the mean over the three channels. Where it
is the same as in profile `reference`, that function is called.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from model.metrics.fidelity import visual_fidelity
from model.metrics.gradient import edge_preservation, spatial_frequency
from model.metrics.information import mutual_information
from model.metrics.perception import difference_of_gaussians, edge_saliency, mannos_sakrison, masked_contrast
from model.metrics.planes import (
    block_sums,
    filter_same,
    filter_spectrum,
    gaussian,
    on_planes,
    stretch,
)


def mean_of_channels(metric: Callable[..., Any]) -> Callable[..., Any]:
    """The metric of planes as one of images (..., 3, H, W)."""

    @wraps(metric)
    def measured(*images: Any) -> Any:
        return metric(*images).mean(-1)

    return measured


@mean_of_channels
def mutual_information_nats(first: Any, second: Any, fused: Any) -> Any:
    """MI in nats: that of profile `reference` times ln 2. Range 0..11.1, higher is better."""
    return mutual_information(first, second, fused) * math.log(2)


@mean_of_channels
def swapped_fidelity(first: Any, second: Any, fused: Any) -> Any:
    """VIF with its arguments swapped: the fused image as the reference of both sources.

    How much of the fused image each source holds, which a fused image without detail maximises. Otherwise as
    VIF of profile `reference`. Range 0..about 2. Identical images: 2. A constant fused image: NaN.
    """
    return (visual_fidelity(fused, fused, first) + visual_fidelity(fused, fused, second)) / 2


@mean_of_channels
def frequency(fused: Any) -> Any:
    """SF: that of profile `reference`. Range 0..360, higher is better. A constant image: 0."""
    return spatial_frequency(fused)


@mean_of_channels
def edges_kept(first: Any, second: Any, fused: Any) -> Any:
    """Qabf: that of profile `reference`. Range 0..0.9755, higher is better."""
    return edge_preservation(first, second, fused)


def _sensitivity(plane: Tensor, divisor: float, response: Callable[[Tensor], Tensor]) -> Tensor:
    """A response on the script's frequency grid, on the bins of rfft2.

    -0.5..0.5 inclusive in both directions, rows times width and columns times height over the divisor; the
    zero frequency lies between two places of an even grid. Of a real result only the even part counts.
    """
    height, width = plane.shape[-2:]
    y = torch.linspace(-0.5, 0.5, height, dtype=plane.dtype, device=plane.device) * width / divisor
    x = torch.linspace(-0.5, 0.5, width, dtype=plane.dtype, device=plane.device) * height / divisor
    whole = torch.fft.ifftshift(response(torch.hypot(y[:, None], x[None, :])))
    even = (whole + whole.flip((0, 1)).roll((1, 1), (0, 1))) / 2
    return even[:, : width // 2 + 1].contiguous()


@mean_of_channels
@on_planes()
def contrast_kept(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """Qcb on another frequency grid: -0.5..0.5, rows scaled by the width and columns by the height.

    Otherwise as Qcb of profile `reference` (median 1.3 % apart), pixels without any contrast left out. Range
    0..1, higher is better. Identical images: 1. A constant image: NaN.
    """
    sensitivity = _sensitivity(fused, 30, difference_of_gaussians)
    a, b, f = (
        masked_contrast(filter_spectrum(stretch(image), sensitivity)) for image in (first, second, fused)
    )
    weight = a**2 / (a**2 + b**2)
    kept_first, kept_second = (torch.minimum(s, f) / torch.maximum(s, f) for s in (a, b))
    quality = weight * kept_first + (1 - weight) * kept_second
    return quality.nanmean((-2, -1))


@mean_of_channels
@on_planes(min_side=16)
def error_of_whole_blocks(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """Qcv on the grid of `contrast_kept`, incomplete 16 x 16 blocks at the bottom and right left out.

    Otherwise as Qcv of profile `reference` (median 28 % apart). Range 0..inf, LOWER is better. Identical
    images: 0. A constant image, a side below 16 pixels: NaN.
    """
    sensitivity = _sensitivity(fused, 8, mannos_sakrison)
    height, width = (side // 16 * 16 for side in fused.shape[-2:])
    fused = stretch(fused)
    error = total = fused.new_zeros(fused.shape[:-2])
    for source in (stretch(first), stretch(second)):
        weight = block_sums(edge_saliency(source)[..., :height, :width], 16)
        difference = filter_spectrum(source - fused, sensitivity)[..., :height, :width]
        error = error + (weight * block_sums(difference.square(), 16) / 256).sum((-2, -1))
        total = total + weight.sum((-2, -1))
    return error / total


@mean_of_channels
@on_planes()
def padded_structure_choice(first: Tensor, second: Tensor, fused: Tensor) -> Tensor:
    """Qy with the constants of SSIM: C1 = 6.5025, C2 = 58.5225, 11 x 11 windows over a zero border.

    Otherwise as Qy of profile `reference` (median 8 % apart); windows without any variance are left out.
    Range -1..1, higher is better. Identical images: 1. All images constant: NaN.
    """
    window, luminance, contrast = gaussian(11, 1.5), 6.5025, 58.5225
    images = (first, second, fused)
    means = [filter_same(image, window) for image in images]
    variances = [filter_same(image**2, window) - mean**2 for image, mean in zip(images, means, strict=True)]

    def similarity(i: int, j: int) -> Tensor:
        covariance = filter_same(images[i] * images[j], window) - means[i] * means[j]
        light = (2 * means[i] * means[j] + luminance) / (means[i] ** 2 + means[j] ** 2 + luminance)
        return light * (2 * covariance + contrast) / (variances[i] + variances[j] + contrast)

    kept_first, kept_second = similarity(0, 2), similarity(1, 2)
    weight = variances[0] / (variances[0] + variances[1])
    both = weight * kept_first + (1 - weight) * kept_second
    return torch.where(similarity(0, 1) >= 0.75, both, torch.maximum(kept_first, kept_second)).nanmean(
        (-2, -1)
    )


SOURCE_METRICS: dict[str, Callable[..., Any]] = {
    "rwkvfusion_MI": mutual_information_nats,
    "rwkvfusion_VIF": swapped_fidelity,
    "rwkvfusion_Qabf": edges_kept,
    "rwkvfusion_Qcb": contrast_kept,
    "rwkvfusion_Qcv": error_of_whole_blocks,
    "rwkvfusion_Qy": padded_structure_choice,
}
FUSED_METRICS: dict[str, Callable[..., Any]] = {"rwkvfusion_SF": frequency}

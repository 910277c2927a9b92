"""The training losses, eq. 19-23. Images are (B, C, H, W) in [0, 1]; an L1 norm is a mean over elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import LossConfig
from model.exposure_fusion import exposure_fusion

_SIGMA = 1.5
_AROUND = 33  # pixels that a local mean is taken over
_C1, _C2 = 0.01**2, 0.03**2  # of SSIM for a data range of 1


def fusion_loss(
    fused: Tensor,
    sources: Sequence[Tensor],
    target: Tensor | None,
    config: LossConfig,
    masks: Tensor | None = None,
) -> dict[str, Tensor]:
    """The loss of a batch and its parts, unweighted; `loss` is what to minimise.

    With a target eq. 19: parts `l1`, `ssim`, and `colour` if it has a weight. Without one eq. 20: parts
    `intensity`, `ssim`, `gradient`, and `outside` if it has a weight; the sources then have the shape of the
    fused image, and sums over two sources are sums over all. ``masks`` (B, c, H, W), bool: what
    `config.mask_weight` is about.
    """
    if target is not None:
        l1 = F.l1_loss(fused, target)
        dissimilarity = 1 - ssim(fused, target, config.ssim_window)
        parts = {"loss": l1 + config.sharpening_ssim * dissimilarity, "l1": l1, "ssim": dissimilarity}
        if config.colour:
            parts["colour"] = colour_loss(fused, target)
            parts["loss"] = parts["loss"] + config.colour * parts["colour"]
        return parts
    weight = None
    if config.mask_weight and masks is not None:
        weight = 1 + config.mask_weight * masks.any(dim=1, keepdim=True).to(fused.dtype)
    intensity = intensity_loss(fused, sources, config.intensity_target, weight, config.detail)
    dissimilarity = torch.stack([1 - ssim(fused, source, config.ssim_window) for source in sources]).sum()
    gradient = gradient_loss(fused, sources, config.gradient_target, config.gradient_gain)
    loss = config.intensity * intensity + config.ssim * dissimilarity + config.gradient * gradient
    parts = {"loss": loss, "intensity": intensity, "ssim": dissimilarity, "gradient": gradient}
    if config.outside:
        parts["outside"] = (fused - fused.clamp(0, 1)).abs().mean()
        parts["loss"] = loss + config.outside * parts["outside"]
    return parts


def intensity_loss(
    fused: Tensor,
    sources: Sequence[Tensor],
    target: str = "sources",
    weight: Tensor | None = None,
    detail: float = 0.0,
) -> Tensor:
    """Eq. 21 for `sources`; else the distance to one image: to the brightest source at every pixel for
    `maximum`, to the blend of the sources for `exposure_fusion`.

    ``weight`` (B, 1, H, W): how much each pixel counts; 1 everywhere if not given. ``detail``: share of the
    mean of the other sources, less its mean over 33 x 33 pixels, that the maximum is to show besides. The
    plain maximum shows nothing of a source wherever another is brighter.
    """
    wanted = list(sources)
    if target == "maximum":
        wanted = [_brightest(torch.stack(wanted), detail)]
    elif target == "exposure_fusion":
        wanted = [exposure_fusion(torch.stack(wanted))]
    distances = [(fused - image).abs() for image in wanted]
    return torch.stack([(d if weight is None else weight * d).mean() for d in distances]).sum()


def _brightest(sources: Tensor, detail: float) -> Tensor:
    brightest = sources.amax(dim=0)
    if not detail:
        return brightest
    others = (sources.sum(dim=0) - brightest) / max(len(sources) - 1, 1)
    around = F.avg_pool2d(others, _AROUND, stride=1, padding=_AROUND // 2, count_include_pad=False)
    return (brightest + detail * (others - around)).clamp(0, 1)


def colour_loss(fused: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cos of the angle between the bands of a pixel and those of the target (0 to 2).

    The spectral angle mapper measures the angle itself, whose slope is infinite where it is 0.
    """
    return (1 - F.cosine_similarity(fused, target, dim=1, eps=1e-6)).mean()


def gradient_loss(
    fused: Tensor, sources: Sequence[Tensor], target: str = "magnitude", gain: float = 1.0
) -> Tensor:
    """Distance of the fused edges to ``gain`` times the strongest edge of any source at every pixel.

    ``magnitude`` is eq. 23: |Sobel_x| + |Sobel_y| alone. ``vector`` keeps sign and direction: both
    derivatives are compared with those of the source whose sum is the largest.
    """
    slopes = torch.stack([sobel(source) for source in sources])
    strength = slopes.abs().sum(dim=-3)
    if target == "magnitude":
        return F.l1_loss(sobel(fused).abs().sum(dim=-3), gain * strength.amax(dim=0))
    strongest = strength.argmax(dim=0, keepdim=True)[..., None, :, :].expand(1, *slopes.shape[1:])
    return 2 * F.l1_loss(sobel(fused), gain * slopes.gather(0, strongest)[0])


def sobel(x: Tensor) -> Tensor:
    """Derivatives (B, C, 2, H, W) along x and y of (B, C, H, W), by Sobel's kernels, borders replicated."""
    smooth, slope = x.new_tensor([1.0, 2.0, 1.0]), x.new_tensor([-1.0, 0.0, 1.0])
    kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None]
    padded = F.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernels).unflatten(0, x.shape[:2])


def ssim(x: Tensor, y: Tensor, window: int = 11) -> Tensor:
    """Mean structural similarity: Gaussian window (sigma 1.5) inside the image only, data range 1.

    On an image smaller than the window, the window shrinks to it.
    """
    kernels = [_gaussian(min(window, size), x) for size in x.shape[-2:]]
    maps = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 2)[:, None]
    maps = F.conv2d(F.conv2d(maps, kernels[0][..., None]), kernels[1][:, None])
    mean_x, mean_y, square_x, square_y, product = maps.view(5, -1, *maps.shape[-2:])
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    variance = square_x - mean_x**2 + square_y - mean_y**2
    contrast_structure = (2 * (product - mean_x * mean_y) + _C2) / (variance + _C2)
    return (luminance * contrast_structure).mean()


def _gaussian(size: int, like: Tensor) -> Tensor:
    """(1, 1, size), summing to 1."""
    place = torch.arange(size, device=like.device, dtype=like.dtype) - (size - 1) / 2
    weight = torch.exp(-(place**2) / (2 * _SIGMA**2))
    return (weight / weight.sum())[None, None]

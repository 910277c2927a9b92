"""The training losses, eq. 19-23. Images are (B, C, H, W) in [0, 1]; an L1 norm is a mean over elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import LossConfig

_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2  # of SSIM for a data range of 1


def fusion_loss(
    fused: Tensor, sources: Sequence[Tensor], target: Tensor | None, config: LossConfig
) -> dict[str, Tensor]:
    """The loss of a batch and its parts, unweighted; `loss` is what to minimise.

    With a target eq. 19: parts `l1`, `ssim`. Without one eq. 20: parts `intensity`, `ssim`, `gradient`; the
    sources then have the shape of the fused image, and sums over two sources are sums over all.
    """
    if target is not None:
        l1 = F.l1_loss(fused, target)
        dissimilarity = 1 - ssim(fused, target, config.ssim_window)
        return {"loss": l1 + config.sharpening_ssim * dissimilarity, "l1": l1, "ssim": dissimilarity}
    intensity = intensity_loss(fused, sources, config.intensity_target)
    dissimilarity = torch.stack([1 - ssim(fused, source, config.ssim_window) for source in sources]).sum()
    gradient = gradient_loss(fused, sources)
    loss = config.intensity * intensity + config.ssim * dissimilarity + config.gradient * gradient
    return {"loss": loss, "intensity": intensity, "ssim": dissimilarity, "gradient": gradient}


def intensity_loss(fused: Tensor, sources: Sequence[Tensor], target: str = "sources") -> Tensor:
    """Eq. 21 for `sources`; for `maximum` the distance to the brightest source at every pixel."""
    if target == "maximum":
        return F.l1_loss(fused, torch.stack(list(sources)).amax(dim=0))
    return torch.stack([F.l1_loss(fused, source) for source in sources]).sum()


def gradient_loss(fused: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Eq. 23: distance of the fused edges to the strongest edge of any source at every pixel."""
    return F.l1_loss(edges(fused), torch.stack([edges(source) for source in sources]).amax(dim=0))


def edges(x: Tensor) -> Tensor:
    """|Sobel_x| + |Sobel_y| per channel, same shape, borders replicated."""
    smooth, slope = x.new_tensor([1.0, 2.0, 1.0]), x.new_tensor([-1.0, 0.0, 1.0])
    kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None]
    padded = F.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernels).abs().sum(dim=1).view(x.shape)


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

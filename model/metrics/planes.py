"""What every metric starts from: float64 planes of one size on any device, windows and histograms over them.

Filters add shifted planes: on the CPU that is two to four times as fast as a convolution in float64, it costs
taps x pixels and runs on every device.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any

import numpy as np
import torch
from scipy import fft
from torch import Tensor
from torch.nn.functional import pad

from pipeline.errors import InputError

Metric = Callable[..., Any]


def on_planes(min_side: int = 1, dimensions: int = 2) -> Callable[[Callable[..., Tensor]], Metric]:
    """Give a metric its input contract: planes of one size, single or batched, arrays or tensors, in float64.

    The last `dimensions` axes are one image (H, W) or (band, H, W), the axes before them the batch. The
    result has the batch's shape: a float for one sample of arrays, an array for a batch of arrays, a float64
    tensor on the same device for tensors (on the CPU where the device has no float64). Arguments of different
    shape or with fewer axes raise InputError. A sample is NaN when any of its images has a NaN or infinite
    pixel; all are when height or width is below `min_side`.
    """

    def decorate(metric: Callable[..., Tensor]) -> Metric:
        @wraps(metric)
        def measured(*images: Any, **parameters: Any) -> Any:
            arrays = [as_planes(image) for image in images]
            if len({array.shape for array in arrays}) != 1 or arrays[0].ndim < dimensions:
                found = ", ".join(" x ".join(map(str, array.shape)) for array in arrays)
                raise InputError(
                    f"{metric.__name__}: needs images of one size with {dimensions} axes or a batch of them, "
                    f"got {found}; resize or convert them first"
                )
            tensors = isinstance(images[0], Tensor)
            return hand_back(_where_defined(metric, arrays, dimensions, min_side, parameters), tensors)

        return measured

    return decorate


def as_planes(image: Any) -> Tensor:
    """Any array or tensor as a float64 tensor without gradient, where it is."""
    if isinstance(image, Tensor):
        return image.detach().to("cpu" if image.device.type == "mps" else image.device, torch.float64)
    array = np.ascontiguousarray(image, dtype=np.float64)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def hand_back(values: Tensor, tensors: bool) -> Any:
    """Values as the caller's kind: a tensor for tensors, otherwise a float or an array."""
    if tensors:
        return values
    return float(values) if values.ndim == 0 else values.numpy()


def _where_defined(
    metric: Callable[..., Tensor],
    images: list[Tensor],
    dimensions: int,
    min_side: int,
    parameters: dict[str, Any],
) -> Tensor:
    batch = images[0].shape[: images[0].ndim - dimensions]
    undefined = torch.full(batch, torch.nan, dtype=torch.float64, device=images[0].device)
    if min(images[0].shape[-2:]) < min_side or images[0].numel() == 0:
        return undefined
    axes = tuple(range(-dimensions, 0))
    # the extremes are NaN or infinite when a pixel is
    finite = torch.stack([i.amin(axes).isfinite() & i.amax(axes).isfinite() for i in images]).all(0)
    if not finite.all():
        kept = finite.reshape(*batch, *(1,) * dimensions)
        images = [image.where(kept, torch.zeros_like(image)) for image in images]
    with torch.no_grad():
        return torch.where(finite, metric(*images, **parameters), undefined)


def quantise(plane: Tensor) -> Tensor:
    """Nearest grey level 0..255, halves upwards as MATLAB's round (torch would round them to even)."""
    return (plane + 0.5).floor_().clamp_(0, 255).long()


def stretch(plane: Tensor) -> Tensor:
    """Minimum and maximum to 0 and 255, then rounded; all NaN for a constant plane (0/0)."""
    low, high = plane.amin((-2, -1), keepdim=True), plane.amax((-2, -1), keepdim=True)
    return ((plane - low).div_(high - low).mul_(255)).add_(0.5).floor_()


def histogram(levels: Tensor, bins: int) -> Tensor:
    """How often each level 0..bins-1 occurs in every plane (..., H, W): (..., bins), float64."""
    batch = levels.shape[:-2]
    flat = levels.reshape(-1, levels.shape[-2] * levels.shape[-1])
    offsets = bins * torch.arange(len(flat), device=levels.device)[:, None]
    counts = torch.bincount((flat + offsets).flatten(), minlength=bins * len(flat))
    return counts.reshape(*batch, bins).double()


@lru_cache
def gaussian(size: int, sigma: float) -> tuple[float, ...]:
    """Taps of a normalised Gaussian window; the outer product with itself is the two-dimensional window."""
    offsets = np.arange(size) - (size - 1) / 2
    taps = np.exp(-(offsets**2) / (2 * sigma**2))
    return tuple((taps / taps.sum()).tolist())


def filter_axis(plane: Tensor, taps: Sequence[float], axis: int) -> Tensor:
    """Correlate along one axis, keeping only windows that lie inside the plane."""
    size = plane.shape[axis] - len(taps) + 1
    result = plane.narrow(axis, 0, size) * taps[0]
    for offset, tap in enumerate(taps[1:], 1):
        if tap != 0:
            result.add_(plane.narrow(axis, offset, size), alpha=tap)
    return result


def filter_valid(plane: Tensor, taps: Sequence[float]) -> Tensor:
    """Correlate rows and columns with the taps, keeping only windows that lie inside the plane."""
    return filter_axis(filter_axis(plane, taps, -2), taps, -1)


def filter_same(plane: Tensor, taps: Sequence[float]) -> Tensor:
    """Correlate rows and columns with the taps; outside the plane is zero. Same size."""
    margin = len(taps) // 2
    return filter_valid(pad(plane, (margin,) * 4), taps)


def sobel(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel derivatives along x and y, unnormalised ([1 2 1] by [-1 0 1]), zero outside the plane."""
    return sobel_valid(pad(plane, (1, 1, 1, 1)))


def sobel_valid(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel derivatives along x and y where the 3 x 3 window lies inside the plane."""
    smooth, difference = (1.0, 2.0, 1.0), (-1.0, 0.0, 1.0)
    x = filter_axis(filter_axis(plane, smooth, -2), difference, -1)
    y = filter_axis(filter_axis(plane, difference, -2), smooth, -1)
    return x, y


def mirrored(plane: Tensor, before: int, after: int, axis: int) -> Tensor:
    """The plane continued along one axis by its mirror image, outermost pixels repeated."""
    size = plane.shape[axis]
    index = torch.arange(-before, size + after, device=plane.device) % (2 * size)
    return plane.index_select(axis, torch.minimum(index, 2 * size - 1 - index))


def block_sums(plane: Tensor, size: int) -> Tensor:
    """Sums over size x size blocks; incomplete blocks at the bottom and right are padded with zeros."""
    height, width = plane.shape[-2:]
    padded = pad(plane, (0, -width % size, 0, -height % size))
    return padded.unflatten(-1, (-1, size)).sum(-1).unflatten(-2, (-1, size)).sum(-2)


def filter_spectrum(plane: Tensor, response: Tensor) -> Tensor:
    """Multiply the spectrum of every plane with a real, even response given on the bins of rfft2."""
    if plane.device.type == "cpu":  # scipy's real transforms take a third of the time of torch's
        spectrum = fft.rfft2(plane.numpy()) * response.numpy()
        return torch.from_numpy(fft.irfft2(spectrum, plane.shape[-2:]))
    return torch.fft.irfft2(torch.fft.rfft2(plane) * response, plane.shape[-2:])

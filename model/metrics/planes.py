"""What every metric starts from: float64 planes of one size, and Gaussian windows over them."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import correlate1d

from pipeline.errors import InputError

Plane = NDArray[np.float64]
Metric = TypeVar("Metric", bound=Callable[..., float])


def on_planes(min_side: int = 1, dimensions: int = 2) -> Callable[[Metric], Metric]:
    """Give a metric its input contract: float64 arrays of one size, NaN for what cannot be measured.

    The decorated function receives its positional arguments as float64 arrays with `dimensions` axes.
    Arguments of different shape, or with another number of axes, raise InputError. The result is NaN, without
    a call, when an argument has a NaN or infinite pixel or when height or width is below `min_side`.
    """

    def decorate(metric: Metric) -> Metric:
        @wraps(metric)
        def measured(*images: ArrayLike, **parameters: Any) -> float:
            arrays = [np.asarray(image, dtype=np.float64) for image in images]
            shapes = {array.shape for array in arrays}
            if len(shapes) != 1 or arrays[0].ndim != dimensions:
                found = ", ".join(" x ".join(map(str, array.shape)) for array in arrays)
                raise InputError(
                    f"{metric.__name__}: needs images of one size with {dimensions} axes, got {found}; "
                    "resize or convert them first"
                )
            if min(arrays[0].shape[-2:]) < min_side or not all(np.isfinite(array).all() for array in arrays):
                return float("nan")
            with np.errstate(divide="ignore", invalid="ignore"):
                return float(metric(*arrays, **parameters))

        return cast(Metric, measured)

    return decorate


def quantise(plane: Plane) -> NDArray[np.int64]:
    """Nearest grey level 0..255, halves upwards as MATLAB's round (numpy would round them to even)."""
    return np.clip(np.floor(plane + 0.5), 0, 255).astype(np.int64)


def stretch(plane: Plane) -> Plane:
    """Minimum and maximum to 0 and 255, then rounded; all NaN for a constant plane (0/0)."""
    low = plane.min()
    return np.floor((plane - low) / (plane.max() - low) * 255 + 0.5)


@lru_cache
def gaussian(size: int, sigma: float) -> Plane:
    """Taps of a normalised Gaussian window; the outer product with itself is the two-dimensional window."""
    offsets = np.arange(size) - (size - 1) / 2
    taps = np.exp(-(offsets**2) / (2 * sigma**2))
    return taps / taps.sum()


def filter_same(plane: Plane, taps: Plane) -> Plane:
    """Filter rows and columns with symmetric taps; outside the plane is zero. Same size."""
    return correlate1d(correlate1d(plane, taps, axis=0, mode="constant"), taps, axis=1, mode="constant")


def filter_valid(plane: Plane, taps: Plane) -> Plane:
    """Filter rows and columns with symmetric taps, keeping only windows that lie inside the plane."""
    margin = len(taps) // 2
    rows = correlate1d(plane, taps, axis=0, mode="constant")[margin : plane.shape[0] - margin]
    return correlate1d(rows, taps, axis=1, mode="constant")[:, margin : plane.shape[1] - margin]


def sobel(plane: Plane) -> tuple[Plane, Plane]:
    """Sobel derivatives along x and y, unnormalised ([1 2 1] by [-1 0 1]), zero outside the plane."""
    smooth, difference = np.array([1.0, 2.0, 1.0]), np.array([-1.0, 0.0, 1.0])
    x = correlate1d(correlate1d(plane, smooth, 0, mode="constant"), difference, 1, mode="constant")
    y = correlate1d(correlate1d(plane, difference, 0, mode="constant"), smooth, 1, mode="constant")
    return x, y

"""What a sensor's optics do to an image, and the two resamplings of the sharpening toolboxes."""

import numpy as np
import torch
from torch import Tensor

from model.metrics.planes import filter_axis, filter_spectrum, mirrored
from pipeline.errors import InputError
from pipeline.sensors import TAPS, gains_of, mtf_filters

# Deslauriers-Dubuc interpolation from 12 neighbours: the 23-tap half-band filter of Aiazzi et al. 2002
HALF_BAND = tuple(n / 524288 for n in (-63, 847, -5445, 22869, -76230, 320166))


def low_pass(image: Tensor, sensor: str, ratio: int) -> Tensor:
    """Every band of (..., band, H, W) as the sensor's multispectral optics pass it; borders are repeated.

    `sensor` is a name of `pipeline.sensors.GAINS`, or `other`. Raises InputError for an unknown sensor or one
    with another number of bands.
    """
    bands = image.shape[-3]
    filters = mtf_filters(gains_of(sensor, bands), ratio)
    margin = TAPS // 2
    rows, columns = (
        torch.arange(-margin, side + margin, device=image.device).clamp(0, side - 1)
        for side in image.shape[-2:]
    )
    wide = image[..., rows, :][..., columns]
    kernels = torch.zeros(bands, *wide.shape[-2:], dtype=image.dtype)
    kernels[:, :TAPS, :TAPS] = torch.from_numpy(filters)
    # centred on the origin the taps are symmetric, so that their spectrum is real
    spectrum = torch.fft.rfft2(kernels.roll((-margin, -margin), (-2, -1))).real
    filtered = filter_spectrum(wide, spectrum.contiguous().to(image.device))
    return filtered[..., margin:-margin, margin:-margin]


def expand(image: Tensor, ratio: int) -> Tensor:
    """(..., h, w) to (..., ratio h, ratio w) by the 23-tap half-band filter, a power of two; borders wrap.

    The first doubling puts the pixels at odd places, the others at even ones (DLPan `interp23tap`).
    """
    if ratio < 1 or ratio & (ratio - 1):
        raise InputError(f"a resolution ratio of {ratio} is not a power of two: expand the bands yourself")
    for step in range(ratio.bit_length() - 1):
        first = -6 if step == 0 else -5  # of the 12 pixels around the place before or after the first pixel
        for axis in (-2, -1):
            size = image.shape[axis]
            index = torch.arange(first, first + size + 11, device=image.device) % size
            between = filter_axis(image.index_select(axis, index), HALF_BAND + HALF_BAND[::-1], axis)
            pair = (between, image) if step == 0 else (image, between)
            image = torch.stack(pair, -1).flatten(-2) if axis == -1 else torch.stack(pair, -2).flatten(-3, -2)
    return image


def shrink(image: Tensor, ratio: int) -> Tensor:
    """(..., H, W) to (..., H / ratio, W / ratio), bicubic (a = -0.5) and antialiased as MATLAB's imresize."""
    distances = np.arange(-2 * ratio, 2 * ratio + 1) + (0.5 if ratio % 2 == 0 else 0.0)
    distances = np.abs(distances[np.abs(distances) < 2 * ratio]) / ratio
    near = 1.5 * distances**3 - 2.5 * distances**2 + 1
    far = -0.5 * distances**3 + 2.5 * distances**2 - 4 * distances + 2
    taps = np.where(distances <= 1, near, far)
    taps = tuple((taps / taps.sum()).tolist())
    before = (len(taps) - ratio) // 2
    for axis in (-2, -1):
        after = len(taps) - ratio - before
        wide = filter_axis(mirrored(image, before, after, axis), taps, axis)
        image = wide[..., ::ratio, :] if axis == -2 else wide[..., ::ratio]
    return image.contiguous()

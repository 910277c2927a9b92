"""Modulation transfer of satellite sensors, as low-pass filters matched to it.

Source: Vivone et al., "A critical comparison among pansharpening algorithms", IEEE TGRS 53(5), 2015, after
Aiazzi et al., "MTF-tailored multiscale fusion of high-resolution MS and Pan imagery", PE&RS 72(5), 2006. The
filter design and the gains are those of the toolboxes that the field compares with (DLPan-Toolbox).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Sensor
from pipeline.errors import InputError
from pipeline.manifest import nearest

Array = NDArray[np.float64]

TAPS = 41
"""Side of the filters in pixels, as in the toolboxes: enough for ratios up to 4."""

OTHER = 0.3
"""Gain of sensors whose own is not known; the toolbox uses it for GaoFen-2, too."""

GAINS: dict[Sensor, tuple[float, ...]] = {
    "qb": (0.34, 0.32, 0.30, 0.22),
    "ikonos": (0.26, 0.28, 0.29, 0.28),
    "geoeye1": (0.23, 0.23, 0.23, 0.23),
    "wv4": (0.23, 0.23, 0.23, 0.23),
    "wv2": (0.35, 0.35, 0.35, 0.35, 0.35, 0.35, 0.35, 0.27),
    "wv3": (0.325, 0.355, 0.360, 0.350, 0.365, 0.360, 0.335, 0.315),
    "gf2": (OTHER, OTHER, OTHER, OTHER),
}
"""Sensor -> gain of each multispectral band at its Nyquist frequency, in the order of the bands."""

EDGES: dict[Sensor, tuple[tuple[int, int], ...]] = {
    "qb": ((450, 520), (520, 600), (630, 690), (760, 900)),
    "ikonos": ((445, 516), (506, 595), (632, 698), (757, 853)),
    "geoeye1": ((450, 510), (510, 580), (655, 690), (780, 920)),
    "wv4": ((450, 510), (510, 580), (655, 690), (780, 920)),
    "wv2": (
        *((400, 450), (450, 510), (510, 580), (585, 625)),
        *((630, 690), (705, 745), (770, 895), (860, 1040)),
    ),
    "wv3": (
        *((400, 450), (450, 510), (510, 580), (585, 625)),
        *((630, 690), (705, 745), (770, 895), (860, 1040)),
    ),
    "gf2": ((450, 520), (520, 590), (630, 690), (770, 890)),
}
"""Sensor -> nominal edges of its multispectral bands in nanometres, as the operators publish them."""

SENSORS: tuple[Sensor, ...] = (*GAINS, "other")


def check_sensor(sensor: str) -> Sensor:
    """The sensor of this name, in upper or lower case. Raises InputError for an unknown one."""
    for known in SENSORS:
        if known == sensor.casefold():
            return known
    raise InputError(f"unknown sensor '{sensor}'.{nearest(sensor.casefold(), SENSORS)}")


def gains_of(sensor: str, bands: int) -> tuple[float, ...]:
    """Gains of a sensor's bands at Nyquist; ``other`` has `OTHER` in any number of bands.

    Raises InputError for an unknown sensor, or when it has another number of bands.
    """
    known = check_sensor(sensor)
    if known == "other":
        return (OTHER,) * bands
    if len(GAINS[known]) != bands:
        raise InputError(
            f"the sensor '{known}' has {len(GAINS[known])} bands, the image {bands}; "
            f"name its own sensor, or 'other' for a gain of {OTHER} in every band"
        )
    return GAINS[known]


def mtf_filter(gain: float, ratio: int, taps: int = TAPS) -> Array:
    """Filter (taps, taps) whose response at the coarse Nyquist frequency, 1 / (2 ratio), is about ``gain``.

    The desired response is a Gaussian over the frequencies, exp(-f² / (2 a²)) with f in samples of the
    response, (taps - 1) / 2 of them up to Nyquist, and a = (taps - 1) / (2 ratio) / sqrt(-2 ln gain). It is
    transformed back and windowed with a Kaiser window (beta 0.5) of the radius (Huang's method, MATLAB's
    ``fwind1``). As in the toolboxes the filter is not normalised: it sums to 0.998 to 0.999.
    """
    half = (taps - 1) // 2
    steps = np.arange(-half, half + 1)
    spread = half / ratio / np.sqrt(-2 * np.log(gain))
    radius = np.hypot(steps[:, None], steps[None, :])
    response = np.exp(-0.5 * (radius / spread) ** 2)
    response[response < np.finfo(float).eps * response.max()] = 0
    impulse = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(response))).real
    window = np.interp(radius / half, steps[half:] / half, np.kaiser(taps, 0.5)[half:], right=0)
    return np.asarray(impulse * window)


def mtf_filters(gains: Sequence[float], ratio: int) -> Array:
    """Filters (band, TAPS, TAPS) of all bands of a sensor."""
    return np.stack([mtf_filter(gain, ratio) for gain in gains])

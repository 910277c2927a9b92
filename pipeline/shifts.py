"""How far a source seems to be shifted against another, whatever they measure: phase correlation of edges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from pipeline.images import FloatArray

SHIFT_WINDOW = 1024
"""Pixels of an image, from its middle, that a shift is estimated from, on either axis."""

_EDGE_SIGMA = 1.5  # pixels: scale of the gradients, and of the low-pass on the correlation
_CONTRAST_SIGMA = 8.0  # pixels: neighbourhood in which edges are made equally strong
_SEARCH = 40  # pixels: greater shifts are not looked for
_STILL = 3  # pixels: shifts that count as none
_CLEAR = 5.0  # standard deviations by which a shift must correlate better than none


def estimate_shift(first: FloatArray, second: FloatArray) -> tuple[int, int] | None:
    """Rows and columns by which ``second`` (H, W) lies below and right of ``first``, up to 40 pixels.

    Gradient magnitudes, divided by their local mean so that a weak edge of one modality counts as much as a
    strong edge of the other, are correlated by phase (Kuglin and Hines, 1975). None when no shift stands out
    against all shifts of at most 3 pixels, as between modalities that have few edges in common.
    """
    spectra = [fft.rfft2(_edges(plane)) for plane in (first, second)]
    cross = spectra[1] * np.conj(spectra[0])
    rows = fft.fftfreq(first.shape[0])[:, None]
    columns = fft.rfftfreq(first.shape[1])[None, :]
    smooth = np.exp(-2 * (np.pi * _EDGE_SIGMA) ** 2 * (rows**2 + columns**2))
    correlation = fft.fftshift(fft.irfft2(cross / (np.abs(cross) + 1e-12) * smooth, s=first.shape))
    centre = [length // 2 for length in first.shape]
    reach = min(_SEARCH, *(length - 1 for length in centre))
    if reach <= _STILL:
        return None
    searched = _around(correlation, centre, reach)
    still = _around(correlation, centre, _STILL).max()
    if searched.max() - still < _CLEAR * searched.std():
        return None
    row, column = np.unravel_index(searched.argmax(), searched.shape)
    return int(row) - reach, int(column) - reach


def _edges(plane: FloatArray) -> NDArray[np.floating]:
    gradient = ndimage.gaussian_gradient_magnitude(plane, _EDGE_SIGMA)
    even = gradient / (ndimage.gaussian_filter(gradient, _CONTRAST_SIGMA) + 1e-3)
    window = np.hanning(plane.shape[0])[:, None] * np.hanning(plane.shape[1])[None, :]
    edges: NDArray[np.floating] = (even - even.mean()) * window
    return edges


def _around(values: NDArray[np.floating], centre: list[int], reach: int) -> NDArray[np.floating]:
    row, column = centre
    return values[row - reach : row + reach + 1, column - reach : column + reach + 1]

"""Reduced resolution: against the toolboxes' arrays, and against what the formulas promise."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle_cases import pan_cases
from scipy.ndimage import gaussian_filter

from pipeline import protocols
from pipeline.errors import InputError
from pipeline.sensors import GAINS, TAPS, gains_of, mtf_filter


@pytest.mark.parametrize("case", pan_cases())
def test_wald_and_interp23_are_the_toolboxes(case: dict[str, Any]) -> None:
    """`ms` was made from `gt` and `lms` from `ms` by the published MATLAB functions; files are float32."""
    gt, ms, lms = (np.load(case[name]).astype(float).transpose(2, 0, 1) for name in ("gt", "ms", "lms"))
    gains = gains_of(case["sensor"].lower(), len(gt))
    rounding = 2.0**-24 * gt.max()
    np.testing.assert_allclose(protocols.wald(gt, gains, case["ratio"]), ms, rtol=0, atol=1.01 * rounding)
    # lms comes from ms before that was rounded to float32, hence twice.
    np.testing.assert_allclose(protocols.interp23(ms, case["ratio"]), lms, rtol=0, atol=4 * rounding)


def response(taps: np.ndarray, frequency: float) -> float:
    """Amplitude that a filter (n, n) gives a horizontal wave of so many cycles per pixel."""
    at = np.arange(len(taps)) - len(taps) // 2
    return float((taps.sum(axis=0) * np.cos(2 * np.pi * frequency * at)).sum())


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("gain", sorted({gain for gains in GAINS.values() for gain in gains}))
def test_a_filter_passes_its_gain_at_the_coarse_nyquist_frequency(gain: float, ratio: int) -> None:
    taps = mtf_filter(gain, ratio)
    assert taps.shape == (TAPS, TAPS)
    np.testing.assert_allclose(taps, taps.T, atol=1e-17)
    np.testing.assert_allclose(taps, taps[::-1, ::-1], atol=1e-17)
    # Over (TAPS - 1) / 2 samples the toolbox lays the response out, over TAPS it transforms: 40 / 41 of the
    # frequency, and the window smooths a little.
    assert abs(response(taps, 1 / (2 * ratio)) - gain) < 0.025
    assert 0.996 < taps.sum() < 1


def test_sensors_and_their_bands_are_checked() -> None:
    assert gains_of("other", 5) == (0.3,) * 5
    with pytest.raises(InputError, match="has 8 bands, the image 4"):
        gains_of("wv3", 4)
    with pytest.raises(InputError, match="Did you mean 'ikonos'"):
        gains_of("iconos", 4)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([2, 4, 8]), st.integers(0, 2**32 - 1))
def test_interp23_keeps_the_old_pixels_where_wald_takes_them(h: int, w: int, ratio: int, seed: int) -> None:
    image = np.random.default_rng(seed).random((2, h, w))
    large = protocols.interp23(image, ratio)
    assert large.shape == (2, ratio * h, ratio * w)
    np.testing.assert_allclose(large[:, ratio // 2 :: ratio, ratio // 2 :: ratio], image, atol=1e-10)


@pytest.mark.parametrize("cycles", [1, 3, 6])
def test_interp23_reproduces_band_limited_signals(cycles: int) -> None:
    length, ratio = 32, 4
    fine = (np.arange(length * ratio) - ratio / 2) / ratio  # in coarse pixels
    coarse_wave = np.cos(2 * np.pi * cycles * np.arange(length) / length)
    wave = np.cos(2 * np.pi * cycles * fine / length)
    large = protocols.interp23(np.outer(coarse_wave, coarse_wave)[None], ratio)[0]
    np.testing.assert_allclose(large, np.outer(wave, wave), atol=5e-3)


@pytest.mark.parametrize("ratio", [1, 3, 6, 0])
def test_interp23_takes_powers_of_two(ratio: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        protocols.interp23(np.zeros((1, 4, 4)), ratio)


@pytest.mark.parametrize("ratio", [2, 4, 5])
def test_shrink_is_antialiased_bicubic(ratio: int) -> None:
    image = np.random.default_rng(0).random((2, 20 * ratio, 15 * ratio))
    small = protocols.shrink(image, ratio)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None], scale_factor=1 / ratio, mode="bicubic", antialias=True
    )[0].numpy()
    inner = (slice(None), slice(2, -2), slice(2, -2))  # PyTorch cuts the kernel at the border, MATLAB mirrors
    np.testing.assert_allclose(small[inner], expected[inner], atol=1e-12)


def test_shrink_mirrors_at_the_border() -> None:
    image = np.random.default_rng(0).random((1, 16, 16))
    mirrored = np.pad(image, ((0, 0), (16, 16), (16, 16)), mode="symmetric")
    np.testing.assert_allclose(
        protocols.shrink(image, 4), protocols.shrink(mirrored, 4)[:, 4:-4, 4:-4], atol=1e-12
    )


@given(st.integers(1, 6), st.integers(1, 6), st.integers(2, 8))
def test_constant_images_stay_constant(h: int, w: int, ratio: int) -> None:
    image = np.full((2, h * ratio, w * ratio), 0.625)
    for small in (protocols.shrink(image, ratio), protocols.gaussian(image, ratio)):
        assert small.shape == (2, h, w)
        np.testing.assert_allclose(small, 0.625, atol=1e-12)
    coarse = protocols.wald(image, (0.3, 0.22), ratio)
    assert coarse.shape == (2, h, w)
    if ratio <= 4:  # the toolbox's filters sum to a little below 1, and are too small for larger ratios
        np.testing.assert_allclose(coarse, 0.625, rtol=5e-3)


@pytest.mark.parametrize("reduce", [protocols.shrink, protocols.gaussian])
def test_reduced_pixels_lie_between_the_fine_ones(reduce: Any) -> None:
    """A ramp keeps its value at the middle of each coarse pixel."""
    ramp = np.broadcast_to(np.arange(64.0), (1, 64, 64))
    small = reduce(ramp, 4)[0]
    np.testing.assert_allclose(small[:, 4:-4], np.broadcast_to(4 * np.arange(16) + 1.5, (16, 16))[:, 4:-4])


@pytest.mark.parametrize("ratio", [4, 8])
@pytest.mark.parametrize("gain", [0.2, 0.3, 0.4])
def test_a_gaussian_passes_its_gain_at_nyquist(gain: float, ratio: int) -> None:
    length = 32 * ratio
    phase = np.arange(length) - (ratio - 1) / 2
    wave = np.cos(np.pi / ratio * phase)  # 1, -1, 1, … at the coarse pixels' centres
    small = protocols.gaussian(
        np.broadcast_to(wave, (1, length, length)), ratio, protocols.gaussian_sigma(gain, ratio)
    )
    np.testing.assert_allclose(np.abs(small[0, 16, 8:-8]), gain, rtol=2e-3)


def test_a_gaussian_is_scipys_where_pixels_coincide() -> None:
    image = np.random.default_rng(0).random((3, 60, 45))
    expected = gaussian_filter(image, (0, 2.0, 2.0), truncate=12, mode="constant")
    weight = gaussian_filter(np.ones_like(image), (0, 2.0, 2.0), truncate=12, mode="constant")
    np.testing.assert_allclose(
        protocols.gaussian(image, 5, sigma=2.0), (expected / weight)[:, 2::5, 2::5], atol=1e-12
    )


def test_the_default_blur_is_as_wide_as_a_coarse_pixel() -> None:
    image = np.zeros((1, 45, 45))
    image[0, 22, 22] = 1
    wide = protocols.gaussian(image, 9)[0]
    assert wide.shape == (5, 5)
    half = protocols.gaussian(np.roll(image, 4, axis=2), 9)[0, 2, 2]  # a pixel nearly half a width away
    expected = np.exp(-4 * np.log(2) * (4 / 9) ** 2)
    assert half / wide[2, 2] == pytest.approx(expected, rel=1e-6)


def test_broad_bands_weight_the_narrow_ones() -> None:
    wavelengths = np.linspace(0.4, 0.9, 51)
    response_ = protocols.spectral_response(wavelengths, (0.5, 0.7), (0.05, 0.1))
    assert response_.shape == (2, 51)
    np.testing.assert_allclose(response_.sum(axis=1), 1)
    np.testing.assert_allclose(response_ @ wavelengths, (0.5, 0.7), atol=1e-3)
    peak = response_[1] / response_[1].max()
    assert peak[np.argmin(abs(wavelengths - 0.65))] == pytest.approx(0.5, abs=1e-3)
    cube = np.broadcast_to(wavelengths[:, None, None], (51, 3, 2))
    np.testing.assert_allclose(protocols.broad_bands(cube, response_)[1], 0.7, atol=1e-3)
    with pytest.raises(ValueError, match="beyond the wavelengths"):
        protocols.spectral_response(wavelengths, (1.2,), (0.05,))


@pytest.mark.parametrize("reduce", ["wald", "shrink", "gaussian"])
@pytest.mark.parametrize(("shape", "ratio"), [((1, 10, 8), 4), ((1, 8, 10), 4), ((1, 8, 8), 1)])
def test_sizes_that_do_not_fit_are_refused(reduce: str, shape: tuple[int, ...], ratio: int) -> None:
    arguments: tuple[Any, ...] = ((0.3,), ratio) if reduce == "wald" else (ratio,)
    with pytest.raises(ValueError, match="cannot be reduced by"):
        getattr(protocols, reduce)(np.zeros(shape), *arguments)

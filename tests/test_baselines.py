"""The simple fusion rules: exact on what can be worked out by hand, defined for every size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from model import baselines
from model.guided_filter import guided_filter
from pipeline.errors import InputError


def planes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def test_average_and_maximum() -> None:
    a, b = planes(2, 5, 7)
    np.testing.assert_allclose(baselines.average([a, b]), (a + b) / 2, rtol=1e-6)
    np.testing.assert_array_equal(baselines.maximum([a, b]), np.where(a > b, a, b))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70))
def test_a_pyramid_of_identical_sources_gives_the_source_back(height: int, width: int) -> None:
    a = planes(height, width)
    np.testing.assert_allclose(baselines.laplacian_pyramid([a, a]), a, atol=1e-5)


def test_the_pyramid_takes_the_sharp_half_of_each_source() -> None:
    sharp = gaussian_filter(planes(96, 96), 0.7)
    soft = gaussian_filter(sharp, 3)
    near, far = sharp.copy(), sharp.copy()
    near[:, 48:], far[:, :48] = soft[:, 48:], soft[:, :48]
    error = {
        name: float(np.abs(rule([near, far]) - sharp).mean())
        for name, rule in baselines.FUSION_BASELINES.items()
    }
    assert error["laplacian_pyramid"] < 0.3 * error["average"]
    assert error["guided_filter"] < 0.3 * error["average"]


def test_the_guided_filter_is_the_linear_model_of_every_window() -> None:
    """He et al. 2013, eq. 5-8, window by window, on the pixels whose windows all lie inside."""
    guide, plane = planes(2, 17, 15, seed=5).astype(np.float64)
    radius, epsilon = 2, 0.01
    slopes, offsets = np.zeros((2, 17, 15))
    for i in range(radius, 17 - radius):
        for j in range(radius, 15 - radius):
            window = np.s_[i - radius : i + radius + 1, j - radius : j + radius + 1]
            g, p = guide[window], plane[window]
            slopes[i, j] = ((g * p).mean() - g.mean() * p.mean()) / (g.var() + epsilon)
            offsets[i, j] = p.mean() - slopes[i, j] * g.mean()
    filtered = guided_filter(guide, plane, radius, epsilon)
    for i in range(2 * radius, 17 - 2 * radius):
        for j in range(2 * radius, 15 - 2 * radius):
            window = np.s_[i - radius : i + radius + 1, j - radius : j + radius + 1]
            expected = slopes[window].mean() * guide[i, j] + offsets[window].mean()
            assert filtered[i, j] == pytest.approx(expected, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_guided_filter_fusion_of_identical_sources_gives_the_source_back(height: int, width: int) -> None:
    a = planes(height, width)
    np.testing.assert_allclose(baselines.FUSION_BASELINES["guided_filter"]([a, a, a]), a, atol=1e-5)


def cube(size: int = 32, bands: int = 4) -> np.ndarray:
    """A target whose bands are multiples of one textured plane."""
    texture = 0.2 + 0.6 * planes(size, size, seed=3)
    return np.stack([texture * (band + 1) / bands for band in range(bands)])


def test_injection_sharpens_more_than_bicubic() -> None:
    target = cube()
    pan = target.mean(0, keepdims=True)
    ms = target.reshape(4, 8, 4, 8, 4).mean((2, 4))
    errors = {
        name: float(np.abs(rule([pan, ms]) - target).mean())
        for name, rule in baselines.SHARPENING_BASELINES.items()
    }
    assert errors["detail_injection"] < 0.5 * errors["bicubic"]


def test_sharpening_is_indifferent_to_the_order_and_keeps_a_flat_scene() -> None:
    target = cube()
    pan, ms = target.mean(0, keepdims=True), target.reshape(4, 8, 4, 8, 4).mean((2, 4))
    for rule in baselines.SHARPENING_BASELINES.values():
        np.testing.assert_array_equal(rule([pan, ms]), rule([ms, pan]))
        flat = rule([np.full((1, 16, 24), 0.5, np.float32), np.full((3, 4, 6), 0.3, np.float32)])
        assert flat.shape == (3, 16, 24)
        np.testing.assert_allclose(flat, 0.3, atol=1e-6)


def test_sizes_without_an_integer_ratio_are_refused() -> None:
    with pytest.raises(InputError, match="integer ratio"):
        baselines.bicubic([planes(1, 16, 16), planes(4, 5, 4)])

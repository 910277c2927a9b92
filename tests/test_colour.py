"""Colour: published values of YCbCr, round trips, and chrominance fused by its distance from grey."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.colour import fuse_chroma, rgb_to_ycbcr, ycbcr_to_rgb
from pipeline.images import luminance

PRIMARIES = {  # ITU-T T.871 (JFIF), full range, in 255ths
    (255, 0, 0): (76.245, 84.972, 255.5),
    (0, 255, 0): (149.685, 43.528, 20.735),
    (0, 0, 255): (29.07, 255.5, 107.265),
    (255, 255, 255): (255, 127.5, 127.5),
}


@pytest.mark.parametrize(("rgb", "expected"), PRIMARIES.items())
def test_primaries_have_the_published_values(rgb: tuple[int, ...], expected: tuple[float, ...]) -> None:
    image = np.array(rgb, dtype=np.float32).reshape(3, 1, 1) / 255
    shift = np.array([0, 0, 0])
    assert np.allclose(255 * rgb_to_ycbcr(image).ravel() + shift, np.array(expected), atol=0.55)


@given(seed=st.integers(0, 10**6), height=st.integers(1, 40), width=st.integers(1, 40))
def test_round_trip_gives_the_same_8_bit_image(seed: int, height: int, width: int) -> None:
    levels = np.random.default_rng(seed).integers(0, 256, (3, height, width))
    ycc = rgb_to_ycbcr((levels / 255).astype(np.float32))
    back = ycbcr_to_rgb(ycc[0], ycc[1:])
    assert np.array_equal(np.rint(back * 255), levels)


@given(seed=st.integers(0, 10**6), level=st.floats(0, 1))
def test_any_luma_is_kept_and_hue_does_not_drift(seed: int, level: float) -> None:
    """Whatever luma the network gives: the result has it, and R - Y, G - Y, B - Y keep their proportions."""
    source = np.random.default_rng(seed).random((3, 6, 7), dtype=np.float32)
    ycc = rgb_to_ycbcr(source)
    luma = np.full((6, 7), level, dtype=np.float32)
    result = ycbcr_to_rgb(luma, ycc[1:])
    assert result.min() >= 0
    assert result.max() <= 1
    assert np.allclose(luminance(result), luma, atol=1e-5)
    before, after = source - luminance(source), result - luma
    assert np.allclose(np.cross(before, after, axis=0), 0, atol=1e-5)
    assert ((before * after).sum(axis=0) >= -1e-6).all()


def test_grey_sources_add_no_chrominance() -> None:
    colour = np.random.default_rng(0).random((2, 5, 5), dtype=np.float32)
    assert np.allclose(fuse_chroma([colour, np.full_like(colour, 0.5)]), colour, atol=1e-6)
    assert np.all(fuse_chroma([np.full_like(colour, 0.5)] * 2) == 0.5)


def test_chrominance_is_weighted_by_its_distance_from_grey() -> None:
    strong, weak = np.full((2, 1, 1), 0.9, np.float32), np.full((2, 1, 1), 0.6, np.float32)
    expected = (0.4 * 0.9 + 0.1 * 0.6) / 0.5
    assert np.allclose(fuse_chroma([strong, weak]), expected)

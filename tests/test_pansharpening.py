"""GSA and MTF-GLP: against their formulas worked out pixel by pixel, and against what a method must do."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_cases import pan_cases

from model.metrics import sharpening
from model.pansharpening import PANSHARPENING_BASELINES, gsa, mtf_glp
from pipeline.errors import InputError
from pipeline.images import FloatArray
from pipeline.protocols import wald
from pipeline.sensors import gains_of, mtf_filter


def scene(height: int, width: int, bands: int, ratio: int, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Panchromatic image (1, H, W) and bands (C, H / ratio, W / ratio) of unrelated random values."""
    random = np.random.default_rng(seed)
    pan = random.random((1, ratio * height, ratio * width), dtype=np.float32)
    return pan, 0.3 + 0.4 * random.random((bands, height, width), dtype=np.float32)


def filtered(plane: np.ndarray, gain: float, ratio: int) -> np.ndarray:
    """The kept pixels ratio // 2 + ratio i of a plane behind the sensor's optics, its border repeated."""
    taps, wide = mtf_filter(gain, ratio), np.pad(plane, 20, mode="edge")
    low = np.zeros((plane.shape[0] // ratio, plane.shape[1] // ratio))
    for i, j in np.ndindex(*low.shape):
        y, x = ratio // 2 + ratio * i, ratio // 2 + ratio * j
        low[i, j] = (taps * wide[y : y + 41, x : x + 41]).sum()
    return low


def doubled(lines: np.ndarray, first: int) -> np.ndarray:
    """Twice as many rows: the old ones from `first` on, between them the polynomial through 12 neighbours."""
    size = len(lines)
    wide = np.pad(lines, ((6, 6), (0, 0)), mode="symmetric")
    nodes = np.arange(12)
    weights = [
        np.prod([(5.5 - other) / (node - other) for other in nodes if other != node]) for node in nodes
    ]
    large = np.zeros((2 * size, lines.shape[1]))
    large[first::2] = lines
    for i in range(size):
        start = i if first == 1 else i + 1  # the new row lies before or after the old one
        large[2 * i + 1 - first] = weights @ wide[start : start + 12]
    return large


def enlarged(plane: np.ndarray) -> np.ndarray:
    """Four times the size of a plane that is continued by its mirror image."""
    wide = np.pad(plane, 20, mode="symmetric")
    for first in (1, 0):
        wide = doubled(doubled(wide, first).T, first).T
    return wide[80:-80, 80:-80]


def test_gsa_is_its_formula() -> None:
    pan, ms = scene(5, 4, 2, 4)
    pan = 0.4 + 0.2 * pan
    low = filtered(pan[0], (0.34 + 0.32 + 0.30 + 0.22) / 4, 4)
    four = np.concatenate([ms, ms[::-1] ** 2])
    columns = np.stack([*four, np.ones_like(low)]).reshape(5, -1).astype(float)
    weights = np.linalg.solve(columns @ columns.T, columns @ low.ravel())
    up = np.stack([enlarged(band) for band in four])
    intensity = sum(w * band for w, band in zip(weights, up, strict=False)) + weights[-1]
    detail = pan[0] - pan[0].mean(dtype=float) + intensity.mean() - intensity
    gains = [np.cov(band.ravel(), intensity.ravel())[0, 1] / intensity.var(ddof=1) for band in up]
    expected = np.stack([band + gain * detail for band, gain in zip(up, gains, strict=True)])
    assert (expected.clip(0, 1) == expected).mean() > 0.5
    np.testing.assert_allclose(gsa(pan, four, "QB"), expected.clip(0, 1), atol=2e-6)


def test_mtf_glp_is_its_formula() -> None:
    pan, ms = scene(4, 5, 4, 4, seed=1)
    pan = 0.4 + 0.2 * pan
    expected = []
    for band, gain in zip(ms, gains_of("ikonos", 4), strict=True):
        up, low = enlarged(band), enlarged(filtered(pan[0] - pan[0].mean(dtype=float), gain, 4))
        matched = (pan[0] - pan[0].mean(dtype=float)) * up.std() / low.std() + up.mean()
        expected.append(up + matched - (low * up.std() / low.std() + up.mean()))
    np.testing.assert_allclose(mtf_glp(pan, ms, "ikonos"), np.clip(expected, 0, 1), atol=2e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(2, 8), st.integers(0, 99))
def test_any_size_and_ratio_is_sharpened(height: int, width: int, bands: int, ratio: int, seed: int) -> None:
    pan, ms = scene(height, width, bands, ratio, seed)
    flat = np.full_like(pan, 0.5), np.broadcast_to(np.float32(0.3), ms.shape)
    for method in PANSHARPENING_BASELINES.values():
        fused = method(pan, ms)
        assert fused.shape == (bands, *pan.shape[1:])
        assert fused.dtype == np.float32
        assert 0 <= fused.min() <= fused.max() <= 1
        np.testing.assert_allclose(method(*flat), 0.3, atol=1e-6)
        turned = method(pan.swapaxes(1, 2), ms.swapaxes(1, 2)).swapaxes(1, 2)
        np.testing.assert_allclose(turned, fused, atol=1e-4)


@pytest.mark.parametrize("ratio", [2, 3, 4, 6])
def test_detail_of_a_common_texture_is_brought_back(ratio: int) -> None:
    """Bands that are multiples of one texture: the panchromatic image tells all of their detail."""
    random = np.random.default_rng(2)
    texture = 0.5 + 0.15 * random.standard_normal((24 * ratio, 20 * ratio)).cumsum(0).cumsum(1) / 40
    target = (texture[None] * np.array([0.5, 0.8, 1.0])[:, None, None]).clip(0.05, 0.95)
    pan = target.mean(axis=0, keepdims=True).astype(np.float32)
    ms = wald(target, (0.3, 0.3, 0.3), ratio).astype(np.float32)
    without = mtf_glp(np.full_like(pan, 0.5), ms)  # a panchromatic image that tells nothing
    for method in PANSHARPENING_BASELINES.values():
        error = np.abs(method(pan, ms) - target).mean()
        assert error < 0.35 * np.abs(without - target).mean()


def test_a_sensor_of_other_bands_is_refused() -> None:
    pan, ms = scene(4, 4, 4, 4)
    for method in PANSHARPENING_BASELINES.values():
        with pytest.raises(InputError, match="'wv3' has 8 bands, the image 4"):
            method(pan, ms, "WV3")


@pytest.mark.parametrize("case", pan_cases())
def test_both_beat_the_enlarged_bands(case: dict[str, Any]) -> None:
    """On the reference arrays: `lms` are the bands that the toolbox enlarged."""
    peak = 2.0 ** case["bits"] - 1
    gt, ms, lms = (np.load(case[name]).transpose(2, 0, 1) / peak for name in ("gt", "ms", "lms"))
    pan = (np.load(case["pan"])[None] / peak).astype(np.float32)
    error = sharpening.ergas(gt, lms, ratio=4)
    for method in PANSHARPENING_BASELINES.values():
        fused = method(pan, ms.astype(np.float32), case["sensor"])
        assert sharpening.ergas(gt, fused, ratio=4) < 0.3 * error

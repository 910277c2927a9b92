"""Exposure fusion against its formulas in numpy, and what it is there for."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate, correlate1d

from model.config import LossConfig
from model.exposure_fusion import exposure_fusion
from model.losses import fusion_loss


def smooth(plane: np.ndarray) -> np.ndarray:
    taps = np.array([1, 4, 6, 4, 1]) / 16
    return correlate1d(correlate1d(plane, taps, axis=0, mode="mirror"), taps, axis=1, mode="mirror")


def enlarge(plane: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    spread = np.zeros(shape)
    spread[::2, ::2] = plane
    return 4 * smooth(spread)


def fused_in_numpy(planes: list[np.ndarray]) -> np.ndarray:
    """Mertens et al. 2007, eq. 1 to 4, with contrast and exposedness."""
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    weights = [
        np.abs(correlate(p, kernel, mode="nearest")) * np.exp(-((p - 0.5) ** 2) / 0.08) + 1e-12
        for p in planes
    ]
    weights = [w / sum(weights) for w in weights]
    levels = []
    while min(planes[0].shape) >= 16:
        smaller = [smooth(p)[::2, ::2] for p in planes]
        parts = zip(weights, planes, smaller, strict=True)
        levels.append(sum(w * (p - enlarge(s, p.shape)) for w, p, s in parts))
        planes, weights = smaller, [smooth(w)[::2, ::2] for w in weights]
    fused = sum(w * p for w, p in zip(weights, planes, strict=True))
    for level in reversed(levels):
        fused = enlarge(fused, level.shape) + level
    return fused.clip(0, 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 3), st.integers(1, 70), st.integers(1, 70), st.integers(0, 99))
def test_it_is_the_formula_for_every_band(count: int, height: int, width: int, seed: int) -> None:
    sources = np.random.default_rng(seed).random((count, 2, 3, height, width))
    fused = exposure_fusion(torch.from_numpy(sources)).numpy()
    assert fused.shape == (2, 3, height, width)
    for b in range(2):
        for c in range(3):
            np.testing.assert_allclose(fused[b, c], fused_in_numpy(list(sources[:, b, c])), atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70))
def test_one_exposure_twice_is_that_exposure(height: int, width: int) -> None:
    source = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(exposure_fusion(torch.stack([source, source])), source, atol=1e-5, rtol=0)


def test_a_white_window_shows_what_the_dark_exposure_saw() -> None:
    """A room with a window: the long exposure shows the room, the short one the trees outside."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    scene = (0.5 + 0.15 * torch.sin(rows / 2) * torch.cos(columns / 3))[None, None]
    bright, dark = scene.clone(), 0.02 * scene
    bright[..., 16:48, 16:48], dark[..., 16:48, 16:48] = 1, scene[..., 16:48, 16:48]
    fused = exposure_fusion(torch.stack([bright, dark]))
    inside, outside = (..., slice(20, 44), slice(20, 44)), (..., slice(0, 8))
    for place in (inside, outside):
        mixed = (bright[place] + dark[place]) / 2
        assert (fused[place] - scene[place]).abs().mean() < 0.4 * (mixed - scene[place]).abs().mean()
    config = LossConfig(intensity_target="exposure_fusion")
    assert float(fusion_loss(fused, [bright, dark], None, config)["intensity"]) == 0

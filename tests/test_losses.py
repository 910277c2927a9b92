"""Each loss against its formula in plain numpy loops."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import LossConfig
from model.losses import colour_loss, fusion_loss, gradient_loss, intensity_loss, sobel, ssim


@pytest.fixture
def images() -> Callable[..., list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape, count=3: [torch.rand(*shape, generator=generator) for _ in range(count)]


def slow_ssim(x: np.ndarray, y: np.ndarray, window: int) -> float:
    place = np.arange(window) - (window - 1) / 2
    line = np.exp(-(place**2) / (2 * 1.5**2))
    weight = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    for i in range(x.shape[0] - window + 1):
        for j in range(x.shape[1] - window + 1):
            a, b = x[i : i + window, j : j + window], y[i : i + window, j : j + window]
            ma, mb = (weight * a).sum(), (weight * b).sum()
            va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
            cov = (weight * (a - ma) * (b - mb)).sum()
            top = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
            values.append(top / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return float(np.mean(values))


def slow_sobel(x: np.ndarray) -> np.ndarray:
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    padded = np.pad(x, 1, mode="edge")
    out = np.zeros((2, *x.shape), dtype=x.dtype)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            patch = padded[i : i + 3, j : j + 3]
            out[:, i, j] = (patch * kernel).sum(), (patch * kernel.T).sum()
    return out


def slow_edges(x: np.ndarray) -> np.ndarray:
    return np.abs(slow_sobel(x)).sum(axis=0)


@pytest.mark.parametrize("window", [5, 11])
def test_ssim_is_the_windowed_formula(images: Callable[..., list[Tensor]], window: int) -> None:
    x, y = images(2, 2, 19, 15, count=2)
    y = (x + 0.3 * y).clamp(max=1)
    pairs = zip(x.flatten(0, 1), y.flatten(0, 1), strict=True)
    expected = np.mean([slow_ssim(a.double().numpy(), b.double().numpy(), window) for a, b in pairs])
    assert float(ssim(x, y, window)) == pytest.approx(expected, abs=1e-5)
    assert float(ssim(x, x, window)) == pytest.approx(1, abs=1e-6)


def test_ssim_of_an_image_smaller_than_the_window(images: Callable[..., list[Tensor]]) -> None:
    x, y = images(1, 1, 7, 9, count=2)
    assert float(ssim(x, x)) == pytest.approx(1, abs=1e-6)
    assert float(ssim(x, y)) < 0.9


def test_sobel_is_the_sum_over_the_window(images: Callable[..., list[Tensor]]) -> None:
    (x,) = images(2, 3, 9, 7, count=1)
    for b in range(2):
        for c in range(3):
            np.testing.assert_allclose(sobel(x)[b, c], slow_sobel(x[b, c].numpy()), atol=1e-5)


def test_intensity_and_gradient(images: Callable[..., list[Tensor]]) -> None:
    f, a, b = images(1, 1, 8, 9)
    fn, an, bn = (t[0, 0].numpy() for t in (f, a, b))
    printed = np.abs(fn - an).mean() + np.abs(fn - bn).mean()
    assert float(intensity_loss(f, [a, b])) == pytest.approx(printed, rel=1e-5)
    brightest = np.abs(fn - np.maximum(an, bn)).mean()
    assert float(intensity_loss(f, [a, b], "maximum")) == pytest.approx(brightest, rel=1e-5)
    strongest = np.abs(slow_edges(fn) - np.maximum(slow_edges(an), slow_edges(bn))).mean()
    assert float(gradient_loss(f, [a, b])) == pytest.approx(strongest, rel=1e-5)


def test_gradient_with_direction(images: Callable[..., list[Tensor]]) -> None:
    f, a, b = images(1, 1, 8, 9)
    fn, an, bn = (slow_sobel(t[0, 0].numpy()) for t in (f, a, b))
    first = np.abs(an).sum(axis=0) >= np.abs(bn).sum(axis=0)
    expected = np.abs(fn - np.where(first, an, bn)).sum(axis=0).mean()
    assert float(gradient_loss(f, [a, b], "vector")) == pytest.approx(expected, rel=1e-5)
    # A negative has the same magnitudes everywhere, and no gradient in common.
    assert float(gradient_loss(1 - a, [a, a])) == pytest.approx(0, abs=1e-5)
    assert float(gradient_loss(1 - a, [a, a], "vector")) > 1
    assert float(gradient_loss(a, [a, a], "vector")) == 0


def test_edges_wanted_stronger(images: Callable[..., list[Tensor]]) -> None:
    f, a = images(1, 1, 8, 9, count=2)
    wanted = 1.25 * slow_sobel(a[0, 0].numpy())
    distance = np.abs(slow_sobel(f[0, 0].numpy()) - wanted).sum(axis=0).mean()
    assert float(gradient_loss(f, [a, a], "vector", 1.25)) == pytest.approx(distance, rel=1e-5)
    strength = np.abs(slow_edges(f[0, 0].numpy()) - np.abs(wanted).sum(axis=0)).mean()
    assert float(gradient_loss(f, [a, a], gain=1.25)) == pytest.approx(strength, rel=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_detail_of_the_darker_sources(images: Callable[..., list[Tensor]], count: int) -> None:
    f, *sources = images(1, 1, 40, 37, count=count + 1)
    planes = [source[0, 0].numpy() for source in sources]
    total = 0.0
    for i in range(40):
        for j in range(37):
            brightest = max(plane[i, j] for plane in planes)
            rest = (sum(planes) - np.maximum.reduce(planes)) / (count - 1)
            around = rest[max(i - 16, 0) : i + 17, max(j - 16, 0) : j + 17].mean()
            wanted = min(max(brightest + 0.3 * (rest[i, j] - around), 0), 1)
            total += abs(float(f[0, 0, i, j]) - wanted)
    loss = intensity_loss(f, sources, "maximum", detail=0.3)
    assert float(loss) == pytest.approx(total / (40 * 37), rel=1e-5)
    config = LossConfig(intensity_target="maximum", detail=0.3)
    assert float(fusion_loss(f, sources, None, config)["intensity"]) == float(loss)


def test_total_of_an_unsupervised_task(images: Callable[..., list[Tensor]]) -> None:
    f, a, b = images(2, 1, 16, 16)
    config = LossConfig(intensity=3, ssim=5, gradient=7, ssim_window=5)
    parts = fusion_loss(f.requires_grad_(), [a, b], None, config)
    assert parts["ssim"].item() == pytest.approx(2 - ssim(f, a, 5).item() - ssim(f, b, 5).item(), rel=1e-5)
    total = 3 * parts["intensity"] + 5 * parts["ssim"] + 7 * parts["gradient"]
    assert parts["loss"].item() == pytest.approx(total.item(), rel=1e-6)
    parts["loss"].backward()
    assert torch.isfinite(f.grad).all()
    assert f.grad.abs().sum() > 0


def test_values_outside_the_range_cost(images: Callable[..., list[Tensor]]) -> None:
    f, a, b = images(1, 1, 16, 16)
    f = 2 * f - 0.5
    parts = fusion_loss(f, [a, b], None, LossConfig(outside=7))
    beyond = sum(max(v - 1, 0) + max(-v, 0) for v in f.flatten().tolist()) / f.numel()
    assert float(parts["outside"]) == pytest.approx(beyond, rel=1e-5)
    without = fusion_loss(f, [a, b], None, LossConfig())["loss"]
    assert float(parts["loss"]) == pytest.approx(float(without) + 7 * beyond, rel=1e-5)


def test_total_of_a_supervised_task(images: Callable[..., list[Tensor]]) -> None:
    f, target, pan = images(2, 4, 16, 16)
    parts = fusion_loss(f, [pan[:, :1], target[..., ::4, ::4]], target, LossConfig())
    expected = float((f - target).abs().mean()) + 0.1 * (1 - float(ssim(f, target)))
    assert float(parts["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(fusion_loss(target, [pan], target, LossConfig())["loss"]) == pytest.approx(0, abs=1e-6)


def test_defaults_are_the_papers_and_the_authors() -> None:
    config = LossConfig()
    assert (config.intensity, config.ssim, config.gradient, config.sharpening_ssim) == (10, 2, 20, 0.1)


def test_pixels_on_objects_count_more(images: Callable[..., list[Tensor]]) -> None:
    f, a, b = images(2, 1, 16, 16)
    masks = torch.zeros(2, 20, 16, 16, dtype=torch.bool)
    masks[0, 3, 2:9, 4:12] = masks[0, 5, 5:11, 1:6] = masks[1, 0, :, 3] = True
    config = LossConfig(mask_weight=1.5, intensity_target="maximum", ssim_window=5)
    expected = 0.0
    for n in range(2):
        for y in range(16):
            for x in range(16):
                distance = abs(float(f[n, 0, y, x]) - max(float(a[n, 0, y, x]), float(b[n, 0, y, x])))
                expected += distance * (2.5 if any(bool(masks[n, c, y, x]) for c in range(20)) else 1.0)
    parts = fusion_loss(f, [a, b], None, config, masks)
    assert float(parts["intensity"]) == pytest.approx(expected / 512, rel=1e-5)
    plain = fusion_loss(f, [a, b], None, LossConfig(intensity_target="maximum", ssim_window=5))
    unmasked = fusion_loss(f, [a, b], None, config, None)
    assert float(unmasked["intensity"]) == pytest.approx(float(plain["intensity"]), rel=1e-6)


def test_colour_is_the_angle_between_bands(images: Callable[..., list[Tensor]]) -> None:
    f, target, pan = images(2, 4, 6, 5)
    angles = []
    for n in range(2):
        for y in range(6):
            for x in range(5):
                p, q = f[n, :, y, x].double().numpy(), target[n, :, y, x].double().numpy()
                angles.append(1 - p @ q / np.sqrt((p @ p) * (q @ q)))
    assert float(colour_loss(f, target)) == pytest.approx(np.mean(angles), rel=1e-4)
    assert float(colour_loss(0.3 * target, target)) == pytest.approx(0, abs=1e-6)  # brightness is no colour
    parts = fusion_loss(f, [pan], target, LossConfig(colour=2.0, ssim_window=5))
    rest = fusion_loss(f, [pan], target, LossConfig(ssim_window=5))
    assert "colour" not in rest
    assert float(parts["loss"]) == pytest.approx(float(rest["loss"]) + 2 * np.mean(angles), rel=1e-4)

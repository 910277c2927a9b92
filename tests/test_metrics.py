"""Metrics against formulas worked by hand, against libraries, in batches, and on degenerate input."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import piq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import shannon_entropy
from skimage.metrics import structural_similarity

import model.metrics as metrics
from pipeline.errors import InputError


@pytest.fixture(scope="module")
def triple() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two textured 8-bit planes with common structure and their average."""
    generator = np.random.default_rng(7)
    common = generator.normal(size=(176, 190)).cumsum(0).cumsum(1) * 2
    a, b = (
        np.clip(128 + common + generator.normal(scale=20, size=common.shape), 0, 255).round()
        for _ in range(2)
    )
    return a, b, (a + b) / 2


def test_hand_computed_values() -> None:
    a = np.array([[0.0, 0.0], [255.0, 255.0]])
    b = np.array([[0.0, 255.0], [0.0, 255.0]])
    assert metrics.entropy(a) == pytest.approx(1)
    assert metrics.mutual_information(a, b, a) == pytest.approx(1)  # nothing about b
    assert metrics.standard_deviation(a) == pytest.approx(127.5)
    assert metrics.spatial_frequency(a) == pytest.approx(255)
    assert metrics.spatial_frequency(a, divisor="pixels") == pytest.approx(255 / math.sqrt(2))
    assert metrics.average_gradient(a) == pytest.approx(4 * 255 / math.sqrt(2))
    assert metrics.correlation(a, b, a) == pytest.approx(0.5)
    assert metrics.difference_correlation(a, b, (a + b) / 2) == pytest.approx(math.sqrt(2))
    assert metrics.source_psnr(a, b, a) == pytest.approx(10 * math.log10(4))


def test_sharpening_by_hand() -> None:
    target = np.stack([np.full((4, 4), 0.5), np.full((4, 4), 0.25)])
    fused = target + np.array([0.1, 0.0])[:, None, None]
    both = target + 0.1
    assert metrics.psnr(target, both) == pytest.approx(20)
    assert metrics.psnr(target * 10, both * 10, peak=10) == pytest.approx(20)
    assert metrics.ergas(target, fused, ratio=4) == pytest.approx(25 * math.sqrt(0.2**2 / 2))
    turned, degrees = np.stack([target[1], target[0]]), math.degrees(math.atan(2) - math.atan(0.5))
    assert metrics.spectral_angle(target, turned) == pytest.approx(degrees)
    target[:, 0, 0] = 0
    assert metrics.spectral_angle(target, target * 3) == pytest.approx(0, abs=1e-5)


def test_entropy_and_similarity_agree_with_libraries(triple: tuple[np.ndarray, ...]) -> None:
    a, b, _ = triple
    assert metrics.entropy(a) == pytest.approx(shannon_entropy(a.astype(np.uint8)))
    # mutual information against its definition as a relative entropy
    joint = np.histogram2d(a.ravel(), b.ravel(), bins=256, range=[[-0.5, 255.5]] * 2)[0] / a.size
    seen = joint > 0
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    mutual = (joint[seen] * np.log2(joint[seen] / outer[seen])).sum()
    assert metrics.mutual_information(a, a, b) == pytest.approx(2 * mutual)


def test_structure_choice_equals_windows_about_their_centre(triple: tuple[np.ndarray, ...]) -> None:
    a, b, f = (plane[:20, :24].copy() for plane in triple)
    a[:9, :9] = b[:9, :9] = f[:9, :9] = 200  # flat windows: left out of the mean
    offsets = np.arange(7) - 3
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / 4.5)
    window /= window.sum()
    values = []
    for y in range(14):
        for x in range(18):
            parts = [plane[y : y + 7, x : x + 7] for plane in (a, b, f)]
            means = [(window * part).sum() for part in parts]
            centred = [part - mean for part, mean in zip(parts, means, strict=True)]
            moments = [[(window * p * q).sum() for q in centred] for p in centred]

            def similarity(i: int, j: int, m: list = means, v: list = moments) -> float:
                return 4 * m[i] * m[j] * v[i][j] / ((m[i] ** 2 + m[j] ** 2) * (v[i][i] + v[j][j]))

            if moments[0][0] < 1e-12 and moments[1][1] < 1e-12:
                continue
            weight = moments[0][0] / (moments[0][0] + moments[1][1])
            kept = similarity(0, 2), similarity(1, 2)
            agree = similarity(0, 1) >= 0.75
            values.append(weight * kept[0] + (1 - weight) * kept[1] if agree else max(kept))
    assert len(values) < 14 * 18
    assert metrics.structure_choice(a, b, f) == pytest.approx(np.mean(values), rel=1e-9)


NAN = math.nan


def measures() -> dict[str, Callable[..., Any]]:
    """Every fusion metric of both profiles as one of (first, second, fused) planes."""

    def of_planes(metric: Callable[..., Any], channels: str, alone: bool) -> Callable[..., Any]:
        def measured(*images: Any) -> Any:
            stack = torch.stack if isinstance(images[0], torch.Tensor) else np.stack
            taken = images[2:] if alone else images
            return metric(*(stack([image] * 3, -3) if channels == "rgb" else image for image in taken))

        return measured

    found = {}
    for profile in metrics.PROFILES.values():
        against = {**profile.sources, **profile.slow}
        found |= {name: of_planes(metric, profile.channels, False) for name, metric in against.items()}
        found |= {name: of_planes(metric, profile.channels, True) for name, metric in profile.fused.items()}
    return found


MEASURED = measures()


def measurable(name: str, triple: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """As much of the planes as the metric needs."""
    return triple if name == "MS-SSIM" else tuple(plane[:53, :48].copy() for plane in triple)


# metric -> its value (None: any number) for identical images, a constant fused image, a constant first
# source, all images constant, and images one pixel wide
DEGENERATE: dict[str, tuple[float | None, ...]] = {
    "MI": (None, 0, None, 0, None),
    "VIF": (2, 0, NAN, NAN, NAN),
    "Qabf": (0.97533, None, None, 0.97533, None),
    "Qcb": (1, NAN, NAN, NAN, None),
    "Qcv": (0, NAN, NAN, NAN, None),
    "Qy": (1, None, None, NAN, NAN),
    "SSIM": (2, None, None, 2, NAN),
    "SCD": (NAN, None, NAN, NAN, None),
    "CC": (1, NAN, NAN, NAN, None),
    "PSNR": (math.inf, None, None, math.inf, None),
    "MS-SSIM": (2, None, None, 2, NAN),
    "Nabf": (0, 0, None, 0, NAN),
    "Qncie": (None, NAN, NAN, NAN, None),
    "MEF-SSIM": (1, None, None, 1, NAN),
    "FMI_pixel": (1, 0, None, 1, NAN),
    "FMI_gradient": (1, None, None, 1, NAN),
    "FMI_wavelet": (1, None, None, 1, NAN),
    "FMI_DCT": (1, None, None, 1, NAN),
    "rwkvfusion_MI": (None, 0, None, 0, None),
    "rwkvfusion_VIF": (2, NAN, None, NAN, NAN),
    "rwkvfusion_SF": (None, 0, None, 0, None),
    "rwkvfusion_Qabf": (0.97533, None, None, 0.97533, None),
    "rwkvfusion_Qcb": (1, NAN, NAN, NAN, None),
    "rwkvfusion_Qcv": (0, NAN, NAN, NAN, NAN),
    "rwkvfusion_Qy": (1, None, None, None, None),
    "SF": (None, 0, None, 0, None),
    "EN": (None, 0, None, 0, None),
    "SD": (None, 0, None, 0, None),
    "AG": (None, 0, None, 0, NAN),
}


def test_every_metric_has_its_degenerate_results() -> None:
    assert DEGENERATE.keys() == MEASURED.keys()


@pytest.mark.parametrize("name", MEASURED)
def test_degenerate_images_have_defined_results(name: str, triple: tuple[np.ndarray, ...]) -> None:
    a, b, f = measurable(name, triple)
    flat = np.full_like(f, 90.3)
    cases = (
        (a, a, a),
        (a, b, flat),
        (flat, b, f),
        (flat, flat, flat),
        (a[:, :1], b[:, :1], f[:, :1]),
    )
    for images, expected in zip(cases, DEGENERATE[name], strict=True):
        value = MEASURED[name](*images)
        if expected is None:
            assert math.isfinite(value)
        else:
            assert value == pytest.approx(expected, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", MEASURED)
def test_a_broken_pixel_makes_its_own_sample_nan_and_no_other(
    name: str, triple: tuple[np.ndarray, ...]
) -> None:
    measure, (a, b, f) = MEASURED[name], measurable(name, triple)
    for pixel in (np.nan, np.inf):
        broken = f.copy()
        broken[3, 4] = pixel
        assert math.isnan(measure(a, b, broken))
        values = measure(np.stack([a, a]), np.stack([b, b]), np.stack([broken, f]))
        assert math.isnan(values[0])
        assert values[1] == pytest.approx(measure(a, b, f), rel=1e-12)
    # one pixel alone is a number or NaN, never an error
    assert isinstance(measure(f[:1, :1], f[:1, :1], f[:1, :1]), float)


@pytest.mark.parametrize("name", MEASURED)
def test_tensors_and_batches_give_the_same_values(name: str, triple: tuple[np.ndarray, ...]) -> None:
    triple = measurable(name, triple)
    measure, one = MEASURED[name], [torch.from_numpy(plane).float() for plane in triple]
    value = measure(*triple)
    assert isinstance(value, float)
    alone = measure(*one)
    assert alone.shape == ()
    assert alone.dtype == torch.float64
    assert float(alone) == pytest.approx(value, rel=1e-12)
    batch = measure(*(torch.stack([plane, plane.flip(0)]).reshape(2, 1, *plane.shape) for plane in one))
    assert batch.shape == (2, 1)
    assert float(batch[0, 0]) == pytest.approx(value, rel=1e-12)
    assert float(batch[1, 0]) == pytest.approx(measure(*(plane[::-1] for plane in triple)), rel=1e-12)


def test_similarity_equals_the_libraries(triple: tuple[np.ndarray, ...]) -> None:
    a, b, f = triple
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    library = sum(structural_similarity(source, f, **settings) for source in (a, b))
    assert metrics.structural_sum(a, b, f) == pytest.approx(library, rel=1e-12)
    tensors = [torch.from_numpy(plane)[None, None, :, :176] for plane in (a, b, f)]
    several = sum(float(piq.multi_scale_ssim(s, tensors[2], data_range=255.0)) for s in tensors[:2])
    assert metrics.multiscale_sum(*(t[0, 0] for t in tensors)) == pytest.approx(several, rel=1e-6)


def test_information_entropy_of_identical_images_follows_from_theirs(triple: tuple[np.ndarray, ...]) -> None:
    common = metrics.entropy(triple[0]) / 8
    shares = np.array([1 + 2 * common, 1 - common, 1 - common]) / 3
    expected = 1 + (shares * np.log2(shares)).sum() / 8
    assert metrics.nonlinear_correlation(*[triple[0]] * 3) == pytest.approx(expected)


def test_artefacts_follow_the_formula_pixel_by_pixel() -> None:
    images = np.random.default_rng(3).integers(0, 256, (3, 6, 7)).astype(float)

    def edge(plane: np.ndarray, y: int, x: int) -> tuple[float, float]:
        part = np.pad(plane, 1, mode="reflect")[y : y + 3, x : x + 3]
        dx = (part[:, 2] - part[:, 0]) @ (1, 2, 1) / 8
        dy = (part[2] - part[0]) @ (1, 2, 1) / 8
        return math.hypot(dx, dy), math.atan(dx / dy) if dy else math.copysign(math.pi / 2, dx)

    lost = weights = 0.0
    for y in range(6):
        for x in range(7):
            (ga, oa), (gb, ob), (gf, of) = (edge(plane, y, x) for plane in images)
            here = 0.0
            for g, o in ((ga, oa), (gb, ob)):
                ratio = min(g, gf) / max(g, gf) if g * gf else 0
                turn = abs(abs(o - of) - math.pi / 2) / (math.pi / 2)
                kept = 0.9999 / (1 + math.exp(-19 * (ratio - 0.5)))
                kept *= 0.9995 / (1 + math.exp(-22 * (turn - 0.5)))
                weight = g**1.5 if g >= 2 else 0.001
                here += (1 - math.sqrt(kept)) * weight
                weights += weight
            lost += here * (gf > max(ga, gb))
    assert 0 < lost / weights < 1
    assert metrics.artefacts(*images) == pytest.approx(lost / weights, rel=1e-12)


def test_different_sizes_are_refused(triple: tuple[np.ndarray, ...]) -> None:
    a, b, f = triple
    with pytest.raises(InputError, match="one size"):
        metrics.edge_preservation(a, b, f[:-1])
    with pytest.raises(InputError, match="2 axes"):
        metrics.entropy(f[0])
    with pytest.raises(InputError, match="3 axes"):
        metrics.ergas(a, f, ratio=4)


def test_three_sources_are_measured_by_what_needs_no_pair(triple: tuple[np.ndarray, ...]) -> None:
    assert metrics.fusion_metrics(triple, triple[0]).keys() == metrics.FUSED_METRICS.keys()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_any_size_is_measured_and_sources_commute(height: int, width: int, seed: int) -> None:
    a, b, f = np.random.default_rng(seed).integers(0, 256, (3, height, width)).astype(float)
    forward, backward = metrics.fusion_metrics((a, b), f), metrics.fusion_metrics((b, a), f)
    assert list(forward) == list(backward)
    for name, value in forward.items():
        assert value == pytest.approx(backward[name], rel=1e-9, abs=1e-9, nan_ok=True), name
        assert math.isnan(value) or name == "PSNR" or abs(value) < 1e6

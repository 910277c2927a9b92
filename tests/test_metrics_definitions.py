"""Metrics that no library has, against their definitions written out: window by window, block by block."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.fft import dctn
from scipy.ndimage import correlate
from scipy.signal import convolve2d

import model.metrics as metrics
from model.metrics import full_resolution
from pipeline.protocols import interp23, shrink
from pipeline.sensors import gains_of, mtf_filter

Plane = np.ndarray


def images(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth scenes with something in common, grey levels 0..255."""
    random = np.random.default_rng(seed)
    common = random.normal(size=(height, width)).cumsum(0).cumsum(1)
    own = random.normal(size=(count, height, width)).cumsum(1) + random.normal(size=(count, height, width))
    return np.clip(120 + 40 * common / common.std() + 6 * own, 0, 255).round()


def window_information(source: Plane, fused: Plane) -> float:
    """FMI of one 3 x 3 window: 2 I / (H + H) with a joint distribution between independence and a bound."""
    if (source == fused).all():
        return 1
    x, y = source.T.ravel(), fused.T.ravel()
    p, q = ((v - v.min()) / np.ptp(v) if np.ptp(v) else np.ones(9) for v in (x, y))
    p, q = p / p.sum(), q / q.sum()
    correlation = 0.0 if not np.ptp(x) or not np.ptp(y) else float(np.corrcoef(p, q)[0, 1])
    f, g = np.append(0, p.cumsum()), np.append(0, q.cumsum())
    # the Fréchet bounds of a joint distribution function with these margins
    bound = np.minimum.outer(f, g) if correlation >= 0 else np.maximum(np.add.outer(f, g) - 1, 0)
    coupled = np.diff(np.diff(bound, axis=0), axis=1)
    places = np.arange(1, 10)
    moments = [(v @ places, math.sqrt(v @ places**2 - (v @ places) ** 2)) for v in (p, q)]
    largest = (places @ coupled @ places - moments[0][0] * moments[1][0]) / (moments[0][1] * moments[1][1])
    phi = correlation / largest
    joint = phi * coupled + (1 - phi) * np.outer(p, q)

    def entropy(v: np.ndarray) -> float:
        v = v[np.abs(v) > 1e-300]
        return float(-(v * np.log(np.abs(v))).sum())

    both = entropy(p) + entropy(q)
    return 2 * (both - entropy(joint)) / both


def meyer(plane: Plane) -> Plane:
    """One level of the discrete Meyer wavelet along both axes, low and high half beside each other."""

    w = np.linspace(0, np.pi, 20_001)
    x = np.clip(3 * w / np.pi - 1, 0, 1)
    response = math.sqrt(2) * np.cos(math.pi / 2 * x**4 * (35 - 84 * x + 70 * x**2 - 20 * x**3))
    low = np.array([np.trapezoid(response * np.cos(n * w), w) / np.pi for n in range(-31, 31)])
    high = low[::-1] * (-1.0) ** np.arange(62)
    for axis in (1, 0):
        wide = np.pad(plane, [(61, 61) if a == axis else (0, 0) for a in (0, 1)], mode="symmetric")
        halves = [np.apply_along_axis(np.convolve, axis, wide, taps, "valid") for taps in (low, high)]
        plane = np.concatenate([half[:, 1::2] if axis else half[1::2] for half in halves], axis)
    return plane


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        ("FMI_pixel", lambda plane: plane),
        ("FMI_gradient", lambda plane: np.gradient(plane, axis=1)),
        ("FMI_DCT", lambda plane: dctn(plane, norm="ortho")),
        ("FMI_wavelet", meyer),
    ],
)
def test_feature_information_is_its_definition(name: str, feature: Callable[[Plane], Plane]) -> None:
    planes = images(3, 11, 13)
    a, b, f = (feature(plane) for plane in planes)
    rows, columns = f.shape[0] - 2, f.shape[1] - 2
    values = [
        window_information(source[y : y + 3, x : x + 3], f[y : y + 3, x : x + 3])
        for source in (a, b)
        for y in range(rows)
        for x in range(columns)
    ]
    assert metrics.SLOW_METRICS[name](*planes) == pytest.approx(np.mean(values), rel=1e-7)


def exposure_patches(planes: np.ndarray) -> Iterator[float]:
    """Contrast and structure of every fused 11 x 11 patch against the one that the sources ask for."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / 4.5)
    window /= window.sum()
    constant = (0.03 * 255) ** 2
    for y in range(planes.shape[1] - 10):
        for x in range(planes.shape[2] - 10):
            patches = planes[:, y : y + 11, x : x + 11]
            deviations = [patch - patch.mean() for patch in patches[:2]]
            lengths = [np.linalg.norm(part) + 0.001 for part in deviations]
            agreement = np.linalg.norm(sum(deviations)) / sum(np.linalg.norm(part) for part in deviations)
            power = min(math.tan(math.pi / 2 * agreement), 10)
            weights = [(length / 11) ** power for length in lengths]
            parts = zip(weights, deviations, lengths, strict=True)
            direction = sum(w * part / length for w, part, length in parts) / sum(weights)
            wanted = direction / np.linalg.norm(direction) * max(lengths)

            def covariance(p: Plane, q: Plane) -> float:
                return float((window * p * q).sum() - (window * p).sum() * (window * q).sum())

            both = covariance(wanted, wanted) + covariance(patches[2], patches[2])
            yield (2 * covariance(wanted, patches[2]) + constant) / (both + constant)


def test_exposure_structure_is_its_definition() -> None:
    planes = images(3, 43, 41, seed=1)
    weights, expected = (0.0448, 0.2856, 0.3001), 1.0
    for weight in weights:
        mean = np.mean(list(exposure_patches(planes)))
        assert mean > 0.05
        expected *= mean ** (weight / sum(weights))
        even = np.pad(planes, [(0, 0), *((0, side % 2) for side in planes.shape[1:])], mode="edge")
        planes = sum(even[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    assert metrics.exposure_structure(*images(3, 43, 41, seed=1)) == pytest.approx(expected, rel=1e-9)


def conjugate(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:1], -x[1:]])


def multiply(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Hypercomplex numbers (component, …), by doubling: (a, b)(c, d) = (a c - d* b, a* d* + c b*)."""
    if len(x) == 1:
        return x * y
    a, b, c, d = (*np.split(x, 2), *np.split(y, 2))
    return np.concatenate(
        [
            multiply(a, c) - multiply(conjugate(d), b),
            multiply(conjugate(a), conjugate(d)) + multiply(c, conjugate(b)),
        ]
    )


def hypercomplex_quality(target: np.ndarray, fused: np.ndarray) -> float:
    """Q2n of images (band, H, W) in digital numbers."""
    size = 2 ** math.ceil(math.log2(len(target)))
    padding = [(0, 0), *((0, -side % 32) for side in target.shape[1:])]
    x, y = (np.pad(np.floor(i + 0.5).clip(0, 65535), padding, mode="symmetric") for i in (target, fused))
    values = []
    for row in range(0, x.shape[1], 32):
        for column in range(0, x.shape[2], 32):
            p, q = (i[:, row : row + 32, column : column + 32].reshape(len(i), -1) for i in (x, y))
            mean, spread = p.mean(1, keepdims=True), p.std(1, ddof=1, keepdims=True)
            p, q = ((i - mean) / spread + 1 for i in (p, q))
            p, q = (np.concatenate([i, np.ones((size - len(i), 1024))]) for i in (p, q))
            q = conjugate(q)
            m, n = p.mean(1, keepdims=True), q.mean(1, keepdims=True)
            covariance = np.linalg.norm(multiply(p - m, q - n).sum(1) / 1023)
            variances = (((p - m) ** 2).sum() + ((q - n) ** 2).sum()) / 1023
            means = 2 * np.linalg.norm(m) * np.linalg.norm(n) / ((m**2).sum() + (n**2).sum())
            values.append(2 * covariance / variances * means)
    return float(np.mean(values))


@pytest.mark.parametrize("bands", [3, 4, 8])
def test_hypercomplex_quality_is_its_definition(bands: int) -> None:
    target, other = images(2 * bands, 40, 70, seed=2).reshape(2, bands, 40, 70)
    fused = 0.8 * target + 0.2 * other
    expected = hypercomplex_quality(target, fused)
    assert 0.1 < expected < 0.99
    assert metrics.q2n(target, fused, levels=1) == pytest.approx(expected, rel=1e-9)
    assert metrics.q2n(target / 255, fused / 255, levels=255) == pytest.approx(expected, rel=1e-9)


def test_spatial_correlation_is_its_definition() -> None:
    target, fused = images(6, 14, 17, seed=3).reshape(2, 3, 14, 17)
    kernel = np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]])
    edges = [
        np.stack([np.hypot(*(convolve2d(b[1:-1, 1:-1], k, "same") for k in (kernel, kernel.T))) for b in i])
        for i in (target, fused)
    ]
    expected = (edges[0] * edges[1]).sum() / np.sqrt((edges[0] ** 2).sum() * (edges[1] ** 2).sum())
    assert metrics.spatial_correlation(target, fused) == pytest.approx(expected, rel=1e-12)


def block_quality(first: Plane, second: Plane) -> float:
    """UQI of the whole 32 x 32 blocks."""
    values = []
    for row in range(0, first.shape[0] - 31, 32):
        for column in range(0, first.shape[1] - 31, 32):
            x, y = (plane[row : row + 32, column : column + 32] for plane in (first, second))
            covariance = ((x - x.mean()) * (y - y.mean())).mean()
            energies = (x.var() + y.var()) * (x.mean() ** 2 + y.mean() ** 2)
            values.append(4 * covariance * x.mean() * y.mean() / energies)
    return float(np.mean(values))


@pytest.mark.parametrize("sensor", ["QB", "other"])
def test_metrics_at_full_resolution_are_their_definitions(sensor: str) -> None:
    fused = images(4, 72, 68, seed=4)
    pan = fused.mean(0) + np.random.default_rng(5).normal(scale=4, size=(72, 68))
    ms = fused.reshape(4, 18, 4, 17, 4).mean((2, 4))
    expanded, blurred = interp23(ms, 4), interp23(shrink(pan[None], 4), 4)[0]
    seen = np.stack(
        [
            correlate(f, mtf_filter(g, 4), mode="nearest")
            for f, g in zip(fused, gains_of(sensor, 4), strict=True)
        ]
    )
    spectral_k = 1 - hypercomplex_quality(expanded, seen)
    spatial = np.mean(
        [abs(block_quality(f, pan) - block_quality(e, blurred)) for f, e in zip(fused, expanded, strict=True)]
    )
    spectral = np.mean(
        [
            abs(block_quality(fused[i], fused[j]) - block_quality(expanded[i], expanded[j]))
            for i in range(4)
            for j in range(i)
        ]
    )
    found = full_resolution.full_resolution_metrics(pan, ms, fused, sensor=sensor, levels=1)
    assert found == pytest.approx(
        {
            "D_lambda_K": spectral_k,
            "D_s": spatial,
            "HQNR": (1 - spectral_k) * (1 - spatial),
            "D_lambda": spectral,
            "QNR": (1 - spectral) * (1 - spatial),
        },
        rel=1e-6,
    )

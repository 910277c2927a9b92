"""Simulated satellite scenes for the two sharpening tasks, reduced by the field's protocols (protocols.py).

A scene is a map of material fractions; every material has a reflectance spectrum. All sensors look at the
same cube: a band is the spectrum weighted by the band's response, a coarse image is low-passed and decimated.
"""

from __future__ import annotations

import numpy as np

from pipeline import protocols
from pipeline.demo_canvas import (
    Array,
    Patch,
    Point,
    Size,
    Views,
    blobs,
    capsule,
    clouds,
    ellipse,
    polygon,
)
from pipeline.sensors import gains_of

RATIO = 4
SENSOR = "qb"  # four bands: blue, green, red, near infrared
WAVELENGTHS = np.linspace(0.43, 0.93, 16)  # micrometres: the bands of the hyperspectral sensor
# Centre and full width at half maximum of the multispectral bands in micrometres.
BANDS = {"blue": (0.485, 0.07), "green": (0.56, 0.08), "red": (0.66, 0.06), "nir": (0.83, 0.13)}
PAN_MIX = np.array([0.18, 0.27, 0.30, 0.25])  # what each multispectral band adds to the panchromatic one
STYLES = ("farmland", "town", "river")


def _step(at: float, width: float) -> Array:
    return 1 / (1 + np.exp(-(WAVELENGTHS - at) / width))


def _bump(at: float, width: float) -> Array:
    return np.exp(-(((WAVELENGTHS - at) / width) ** 2))


def _leaves(nir: float, green: float) -> Array:
    """Chlorophyll: a green peak, red absorption, the red edge at 0.71 µm, a plateau of `nir`."""
    return 0.03 + green * _bump(0.55, 0.035) + nir * _step(0.715, 0.014)


SPECTRA = {
    "crop": _leaves(0.48, 0.09),
    "young": _leaves(0.33, 0.12) + 0.05,
    "meadow": _leaves(0.36, 0.08) + 0.02,
    "tree": _leaves(0.40, 0.045),
    "soil": 0.08 + 0.42 * (WAVELENGTHS - 0.4),
    "stubble": 0.16 + 0.42 * (WAVELENGTHS - 0.4) + 0.05 * _step(0.6, 0.04),
    "asphalt": 0.10 + 0.05 * (WAVELENGTHS - 0.4),
    "concrete": 0.30 + 0.14 * (WAVELENGTHS - 0.4),
    "tiles": 0.07 + 0.26 * _step(0.585, 0.02) + 0.06 * _step(0.75, 0.05),
    "metal": 0.46 - 0.06 * (WAVELENGTHS - 0.4),
    "blue": 0.10 + 0.22 * _bump(0.47, 0.06) + 0.1 * _step(0.8, 0.04),
    "water": 0.085 * np.exp(-(WAVELENGTHS - 0.43) / 0.13) + 0.04 * _bump(0.55, 0.06),
}
NAMES = list(SPECTRA)
ENDMEMBERS = np.stack([SPECTRA[name] for name in NAMES])  # (materials, bands)


class _Land:
    """Fractions (materials, H, W) that sum to one, and a brightness map; streets are turned by `angle`."""

    def __init__(self, rng: np.random.Generator, size: Size) -> None:
        self.rng, self.size = rng, size
        self.angle = rng.uniform(-0.5, 0.5)
        self.fractions = np.zeros((len(NAMES), *size))
        self.fractions[NAMES.index("meadow")] = 1
        self.fine = clouds(rng, size, 0.7, 6)
        self.shade = 1 + 0.05 * self.fine

    def turned(self, u: float, v: float) -> Point:
        """Pixel of the point (u, v) of the turned grid, whose origin is the middle of the scene."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        return self.size[1] / 2 + c * u - s * v, self.size[0] / 2 + s * u + c * v

    def slab(self, middle: Point, wide: float, tall: float, angle: float) -> Patch:
        """A turned rectangle around the pixel `middle`."""
        c, s = np.cos(angle), np.sin(angle)
        corners = ((-wide, -tall), (wide, -tall), (wide, tall), (-wide, tall))
        points = [(middle[0] + (c * u - s * v) / 2, middle[1] + (s * u + c * v) / 2) for u, v in corners]
        return polygon(self.size, points)

    def lay(self, patch: Patch, name: str, shade: Array | float = 1.0) -> None:
        """Cover `patch` with one material of a relative brightness."""
        at = (patch.rows, patch.cols)
        self.fractions[:, patch.rows, patch.cols] *= 1 - patch.cover
        self.fractions[NAMES.index(name)][at] += patch.cover
        self.shade[at] += patch.cover * (shade - self.shade[at])

    def shadow(self, patch: Patch, depth: float = 0.55) -> None:
        """Darken what lies under `patch`."""
        self.shade[patch.rows, patch.cols] *= 1 - depth * patch.cover

    def cube(self) -> Array:
        """Reflectance (H, W, bands) in [0, 1]."""
        mixed = np.tensordot(self.fractions, ENDMEMBERS, axes=(0, 0))
        slow = clouds(self.rng, self.size, 1.8)
        shade = self.shade * (1 + 0.05 * self.fine + 0.04 * slow)
        return np.asarray(np.clip(mixed * shade[..., None], 0.005, 1))


def _fields(land: _Land) -> None:
    """Parcels with furrows, and grass between them."""
    rng, reach = land.rng, 1.5 * max(land.size)
    v = -reach / 2
    while v < reach / 2:
        tall, u = rng.uniform(20, 38), -reach / 2
        while u < reach / 2:
            wide = rng.uniform(24, 52)
            patch = land.slab(land.turned(u + wide / 2, v + tall / 2), wide - 1.5, tall - 1.5, land.angle)
            crop = str(rng.choice(["crop", "young", "soil", "stubble", "meadow", "crop"]))
            if patch.cover.size:
                along = land.angle + (np.pi / 2 if rng.random() < 0.4 else 0)
                phase = (
                    2 * np.pi * (np.cos(along) * patch.y - np.sin(along) * patch.x) / rng.uniform(2.6, 4.5)
                )
                land.lay(patch, crop, rng.uniform(0.85, 1.15) * (1 + 0.09 * np.sin(phase)))
            u += wide
        v += tall


def _tree(land: _Land, x: float, y: float, radius: float) -> None:
    land.shadow(ellipse(land.size, x + 0.9 * radius, y + 0.9 * radius, radius, radius), 0.5)
    crown = blobs(land.size, [(x, y)], [radius], land.fine, 0.25)
    if crown.cover.size:
        lit = 1.1 - 0.3 * ((crown.x - x) + (crown.y - y)) / (1.4 * radius)
        leaves = 1 + 0.15 * land.fine[crown.rows, crown.cols]
        land.lay(crown, "tree", np.clip(lit, 0.5, 1.5) * leaves)


def _house(land: _Land, x: float, y: float, wide: float, tall: float) -> None:
    """A roof of two faces (or a flat one) and the shadow that tells its height."""
    rng, angle = land.rng, land.angle
    high = rng.uniform(2.0, 4.5)
    fallen = (x + 0.5 * high, y + 0.5 * high)
    land.shadow(land.slab(fallen, wide + 0.7 * high, tall + 0.7 * high, angle))
    roof = str(rng.choice(["tiles", "tiles", "tiles", "tiles", "metal", "concrete", "blue", "asphalt"]))
    light = rng.uniform(0.85, 1.15)
    land.lay(land.slab((x, y), wide, tall, angle), roof, 1.12 * light)
    if roof in ("tiles", "asphalt"):
        lower = (x - np.sin(angle) * tall / 4, y + np.cos(angle) * tall / 4)
        land.lay(land.slab(lower, wide, tall / 2, angle), roof, 0.68 * light)
    else:
        land.lay(land.slab((x + wide / 5, y), wide / 6, tall / 5, angle), "concrete", 0.8)


def _road(land: _Land, start: Point, end: Point, half: float) -> None:
    """Asphalt between kerbs, with a dashed middle line and cars on both lanes."""
    rng, size = land.rng, land.size
    land.lay(capsule(size, start, end, half + 0.9, half + 0.9), "concrete", 0.75)
    land.lay(capsule(size, start, end, half, half), "asphalt", rng.uniform(0.9, 1.2))
    length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    ux, uy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    angle = float(np.arctan2(uy, ux))
    for along in np.arange(0, length, 5.0):
        x, y = start[0] + along * ux, start[1] + along * uy
        land.lay(land.slab((x, y), 2.4, 0.5, angle), "concrete", 1.5)
        if rng.random() < 0.14:
            lane = rng.choice([-0.5, 0.5]) * half
            x, y = x - lane * uy, y + lane * ux
            land.shadow(land.slab((x + 0.7, y + 0.7), 4.2, 2.0, angle), 0.5)
            paint = str(rng.choice(["metal", "blue", "tiles", "concrete"]))
            land.lay(land.slab((x, y), 4.0, 1.8, angle), paint, rng.uniform(0.9, 1.5))


def _town(land: _Land) -> None:
    """Blocks of houses with trees in their gardens, between two sets of streets."""
    rng, reach = land.rng, max(land.size)
    block_u, block_v = rng.uniform(40, 52), rng.uniform(30, 38)
    shift = rng.uniform(0, 20)
    columns, rows = np.arange(-reach, reach, block_u) + shift, np.arange(-reach, reach, block_v) + shift
    lots = [(u, v, i, j) for u in columns for v in rows for i in range(3) for j in range(2)]
    for u, v, i, j in lots:
        if rng.random() < 0.12:
            continue
        row = v + block_v * (0.3 + 0.42 * j) + rng.uniform(-1, 1)
        x, y = land.turned(u + block_u * (i + 0.5) / 3.2 + 5, row)
        _house(land, x, y, rng.uniform(7, 11), rng.uniform(6, 9))
        if rng.random() < 0.7:
            _tree(land, x + rng.uniform(-7, 7), y + 6.5, rng.uniform(1.6, 3.2))
    for u in columns:
        _road(land, land.turned(u, -reach), land.turned(u, reach), 3.0)
    for v in rows:
        _road(land, land.turned(-reach, v), land.turned(reach, v), 2.4)


def _river(land: _Land) -> None:
    rng, size = land.rng, land.size
    h, w = size
    course = clouds(rng, (4, h), 2.2)[0] * 0.09 * w + rng.uniform(0.35, 0.65) * w
    half = rng.uniform(9, 15)
    for wide, name, rough in ((half + 3, "soil", 0.1), (half + 1.5, "meadow", 0.1), (half, "water", 0.03)):
        left = [(float(x - wide), float(y)) for y, x in enumerate(course)]
        right = [(float(x + wide), float(y)) for y, x in enumerate(course)]
        patch = polygon(size, left + right[::-1])
        land.lay(patch, name, 1 + rough * land.fine[patch.rows, patch.cols])
    for y in range(0, h, 7):
        if rng.random() < 0.7:
            bank = rng.choice([-1.0, 1.0]) * (half + rng.uniform(3, 6))
            _tree(land, float(course[y]) + bank, y, rng.uniform(2, 4))


def _hamlet(land: _Land) -> None:
    """A country road with houses along it, and a wood in a corner."""
    rng = land.rng
    h, w = land.size
    level = rng.uniform(0.25, 0.75) * h
    _road(land, (-8.0, level), (w + 8.0, level + rng.uniform(-25, 25)), 2.6)
    for _ in range(5):
        x, y = rng.uniform(8, w - 8), level + rng.choice([-1.0, 1.0]) * rng.uniform(10, 18)
        _house(land, x, y, rng.uniform(9, 15), rng.uniform(7, 10))
        for _ in range(2):
            _tree(land, x + rng.uniform(-12, 12), y + rng.uniform(-9, 9), rng.uniform(2, 3.6))
    edge = rng.uniform(0, 0.3) * w
    for _ in range(26):
        _tree(land, rng.uniform(0, edge + 14), rng.uniform(0, 0.35 * h), rng.uniform(2.2, 4))


def land_cover(rng: np.random.Generator, size: Size, style: str) -> Array:
    """Reflectance (H, W, 16) of farmland, a town or a river valley from above, about a metre a pixel."""
    land = _Land(rng, size)
    if style == "town":
        _town(land)
    else:
        _fields(land)
        if style == "river":
            _river(land)
        _hamlet(land)
    return land.cube()


def respond(cube: Array) -> Array:
    """Blue, green, red and near infrared (H, W, 4) of the cube, by Gaussian spectral responses."""
    centres, widths = zip(*BANDS.values(), strict=True)
    return cube @ protocols.spectral_response(WAVELENGTHS, centres, widths).T


def _caption(style: str) -> str:
    seen = {
        "farmland": "Fields with furrows, a road, farmhouses and trees",
        "town": "A town of houses with gardens along straight streets",
        "river": "A river between fields, crossed by a road with houses",
    }
    return f"{seen[style]}, seen from a satellite."


def pansharpening(rng: np.random.Generator, index: int, size: Size = (128, 128)) -> Views:
    """Sources `pan` (H, W) and `ms` (H/4, W/4, 4), target (H, W, 4): reflectance times 1.6.

    `ms` is the target by Wald's protocol with QuickBird's filters, plus noise.
    """
    style = STYLES[index % len(STYLES)]
    target = np.clip(1.6 * respond(land_cover(rng, size, style)), 0, 1)
    pan = target @ PAN_MIX + 0.002 * rng.standard_normal(size)
    coarse = np.moveaxis(
        protocols.wald(np.moveaxis(target, -1, 0), gains_of(SENSOR, len(BANDS)), RATIO), 0, -1
    )
    coarse = coarse + 0.0015 * rng.standard_normal(coarse.shape)
    return Views({"pan": pan.clip(0, 1), "ms": coarse.clip(0, 1)}, _caption(style), target)


def hyper_multispectral(rng: np.random.Generator, index: int, size: Size = (128, 128)) -> Views:
    """Sources `ms` (H, W, 4) and `hs` (H/4, W/4, 16), target the cube (H, W, 16).

    `hs` is the target through a Gaussian as wide as a coarse pixel, plus noise.
    """
    style = STYLES[(index + 1) % len(STYLES)]
    target = np.clip(1.6 * land_cover(rng, size, style), 0, 1)
    fine = respond(target)
    fine = fine + 0.002 * rng.standard_normal(fine.shape)
    coarse = np.moveaxis(protocols.gaussian(np.moveaxis(target, -1, 0), RATIO), 0, -1)
    coarse = coarse + 0.0015 * rng.standard_normal(coarse.shape)
    return Views({"ms": fine.clip(0, 1), "hs": coarse.clip(0, 1)}, _caption(style), target)

"""Simulated satellite scenes for the two sharpening tasks, degraded by Wald's protocol.

A scene is a map of material fractions; every material has a reflectance spectrum. All sensors look at the same cube:
a band is the spectrum weighted by the band's response, a coarse image is low-pass filtered and decimated.
"""

from __future__ import annotations

import numpy as np

from pipeline.demo_canvas import (
    Array,
    Patch,
    Size,
    Views,
    blobs,
    capsule,
    clouds,
    ellipse,
    polygon,
    rectangle,
)

RATIO = 4
MTF = 0.3  # gain of the coarse sensor at its Nyquist frequency
WAVELENGTHS = np.linspace(0.43, 0.93, 16)  # micrometres: the bands of the hyperspectral sensor
# Centre and width (full width at half maximum) of the multispectral bands in micrometres: blue, green, red, near infrared.
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
    """Material fractions (materials, H, W) that sum to one, and a brightness map."""

    def __init__(self, rng: np.random.Generator, size: Size) -> None:
        self.rng, self.size = rng, size
        self.fractions = np.zeros((len(NAMES), *size))
        self.fractions[NAMES.index("meadow")] = 1
        self.shade = np.ones(size)
        self.fine = clouds(rng, size, 0.7, 6)

    def lay(self, patch: Patch, name: str, shade: Array | float = 1.0) -> None:
        """Cover `patch` with one material of a relative brightness."""
        at = (patch.rows, patch.cols)
        self.fractions[:, patch.rows, patch.cols] *= 1 - patch.cover
        self.fractions[NAMES.index(name)][at] += patch.cover
        self.shade[at] += patch.cover * (shade - self.shade[at])

    def shadow(self, patch: Patch, depth: float = 0.55) -> None:
        self.shade[patch.rows, patch.cols] *= 1 - depth * patch.cover

    def cube(self) -> Array:
        """Reflectance (H, W, bands) in [0, 1]."""
        mixed = np.tensordot(self.fractions, ENDMEMBERS, axes=(0, 0))
        slow = clouds(self.rng, self.size, 1.8)
        return np.clip(mixed * (self.shade * (1 + 0.05 * self.fine + 0.04 * slow))[..., None], 0.005, 1)


def _turned(x: float, y: float, wide: float, tall: float, angle: float) -> list[tuple[float, float]]:
    c, s = np.cos(angle), np.sin(angle)
    corners = [(-wide / 2, -tall / 2), (wide / 2, -tall / 2), (wide / 2, tall / 2), (-wide / 2, tall / 2)]
    return [(x + c * u - s * v, y + s * u + c * v) for u, v in corners]


def _fields(land: _Land, angle: float) -> None:
    """Parcels with furrows; hedges and tracks between them."""
    rng, size = land.rng, land.size
    reach = 1.5 * max(size)
    middle = (size[1] / 2, size[0] / 2)
    c, s = np.cos(angle), np.sin(angle)
    v = -reach / 2
    while v < reach / 2:
        tall, u = rng.uniform(20, 38), -reach / 2
        while u < reach / 2:
            wide = rng.uniform(24, 52)
            du, dv = u + wide / 2, v + tall / 2
            patch = polygon(size, _turned(middle[0] + c * du - s * dv, middle[1] + s * du + c * dv, wide - 1.5, tall - 1.5, angle))
            crop = rng.choice(["crop", "young", "soil", "stubble", "meadow", "crop"])
            if patch.cover.size:
                across = angle + (np.pi / 2 if rng.random() < 0.4 else 0)
                phase = (-np.sin(across) * patch.x + np.cos(across) * patch.y) * 2 * np.pi / rng.uniform(2.6, 4.5)
                land.lay(patch, str(crop), rng.uniform(0.85, 1.15) * (1 + 0.09 * np.sin(phase)))
            u += wide
        v += tall


def _tree(land: _Land, x: float, y: float, radius: float) -> None:
    land.shadow(ellipse(land.size, x + 0.9 * radius, y + 0.9 * radius, radius, radius), 0.5)
    crown = blobs(land.size, [(x, y)], [radius], land.fine, 0.25)
    if crown.cover.size:
        lit = 1.1 - 0.3 * ((crown.x - x) + (crown.y - y)) / (1.4 * radius)
        land.lay(crown, "tree", np.clip(lit, 0.5, 1.5) * (1 + 0.15 * land.fine[crown.rows, crown.cols]))


def _house(land: _Land, x: float, y: float, wide: float, tall: float, angle: float) -> None:
    """A roof of two faces (or a flat one) and the shadow that tells its height."""
    rng, size = land.rng, land.size
    high = rng.uniform(2.0, 4.5)
    land.shadow(polygon(size, _turned(x + 0.5 * high, y + 0.5 * high, wide + 0.7 * high, tall + 0.7 * high, angle)), 0.55)
    roof = str(rng.choice(["tiles", "tiles", "tiles", "metal", "concrete", "blue", "asphalt"]))
    light = rng.uniform(0.85, 1.15)
    land.lay(polygon(size, _turned(x, y, wide, tall, angle)), roof, light * 1.12)
    if roof in ("tiles", "asphalt"):
        off = tall / 4
        land.lay(polygon(size, _turned(x - np.sin(angle) * off, y + np.cos(angle) * off, wide, tall / 2, angle)), roof, light * 0.68)
    else:
        land.lay(polygon(size, _turned(x + wide / 5, y, wide / 6, tall / 5, angle)), "concrete", 0.8)


def _road(land: _Land, start: tuple[float, float], end: tuple[float, float], half: float) -> None:
    rng, size = land.rng, land.size
    land.lay(capsule(size, start, end, half + 0.9, half + 0.9), "concrete", 0.75)
    land.lay(capsule(size, start, end, half, half), "asphalt", rng.uniform(0.9, 1.2))
    length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    ux, uy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    angle = float(np.arctan2(uy, ux))
    t = 0.0
    while t < length:  # the middle line, and cars on both lanes
        x, y = start[0] + t * ux, start[1] + t * uy
        land.lay(polygon(size, _turned(x, y, 2.4, 0.5, angle)), "concrete", 1.5)
        if rng.random() < 0.14:
            lane = rng.choice([-0.5, 0.5]) * half
            land.shadow(polygon(size, _turned(x - lane * uy + 0.7, y + lane * ux + 0.7, 4.2, 2.0, angle)), 0.5)
            paint = str(rng.choice(["metal", "blue", "tiles", "concrete"]))
            land.lay(polygon(size, _turned(x - lane * uy, y + lane * ux, 4.0, 1.8, angle)), paint, rng.uniform(0.9, 1.5))
        t += 5.0


def land_cover(rng: np.random.Generator, size: Size, style: str) -> Array:
    """Reflectance (H, W, 16) of a farmland, a town or a river valley seen from above at about a metre a pixel."""
    land = _Land(rng, size)
    h, w = size
    angle = rng.uniform(-0.5, 0.5)
    c, s = np.cos(angle), np.sin(angle)
    if style == "town":
        land.lay(rectangle(size, -1, -1, w, h), "meadow", 0.95 + 0.1 * land.fine)
        block_u, block_v = rng.uniform(40, 52), rng.uniform(30, 38)
        shift = rng.uniform(0, 20)
        for u in np.arange(-w, w, block_u) + shift:
            for v in np.arange(-h, h, block_v) + shift:
                for i in range(3):
                    for j in range(2):
                        if rng.random() < 0.12:
                            continue
                        du = u + block_u * (i + 0.5) / 3.2 + 5
                        dv = v + block_v * (0.3 + 0.42 * j) + rng.uniform(-1, 1)
                        x, y = w / 2 + c * du - s * dv, h / 2 + s * du + c * dv
                        _house(land, x, y, rng.uniform(7, 11), rng.uniform(6, 9), angle)
                        if rng.random() < 0.7:
                            _tree(land, x + rng.uniform(-7, 7), y + 6.5, rng.uniform(1.6, 3.2))
        for u in np.arange(-w, w, block_u) + shift:
            _road(land, (w / 2 + c * u + s * h, h / 2 + s * u - c * h), (w / 2 + c * u - s * h, h / 2 + s * u + c * h), 3.0)
        for v in np.arange(-h, h, block_v) + shift:
            _road(land, (w / 2 - s * v - c * w, h / 2 + c * v - s * w), (w / 2 - s * v + c * w, h / 2 + c * v + s * w), 2.4)
    else:
        _fields(land, angle)
        if style == "river":
            bend = clouds(rng, (4, h), 2.2)[0] * 0.09 * w + rng.uniform(0.35, 0.65) * w
            half = rng.uniform(9, 15)
            for wide, name in ((half + 3, "soil"), (half + 1.5, "meadow"), (half, "water")):
                banks = [(float(x - wide), float(i)) for i, x in enumerate(bend)]
                banks += [(float(x + wide), float(i)) for i, x in reversed(list(enumerate(bend)))]
                patch = polygon(size, banks)
                land.lay(patch, name, 1 + (0.03 if name == "water" else 0.1) * land.fine[patch.rows, patch.cols])
            for i in range(0, h, 7):
                if rng.random() < 0.7:
                    side = rng.choice([-1.0, 1.0])
                    _tree(land, bend[i] + side * (half + rng.uniform(3, 6)), i, rng.uniform(2, 4))
        across = rng.uniform(0.25, 0.75) * h
        _road(land, (-8.0, across), (w + 8.0, across + rng.uniform(-25, 25)), 2.6)
        for _ in range(5):
            x, y = rng.uniform(8, w - 8), across + rng.choice([-1.0, 1.0]) * rng.uniform(10, 18)
            _house(land, x, y, rng.uniform(9, 15), rng.uniform(7, 10), angle)
            for _ in range(2):
                _tree(land, x + rng.uniform(-12, 12), y + rng.uniform(-9, 9), rng.uniform(2, 3.6))
        edge = rng.uniform(0, 0.3) * w
        for _ in range(26):
            _tree(land, rng.uniform(0, edge + 14), rng.uniform(0, 0.35 * h), rng.uniform(2.2, 4))
    return land.cube()


def respond(cube: Array) -> Array:
    """Blue, green, red and near infrared (H, W, 4) of the cube, by Gaussian spectral responses."""
    centre = np.array([band[0] for band in BANDS.values()])
    sigma = np.array([band[1] for band in BANDS.values()]) / 2.3548
    response = np.exp(-0.5 * ((WAVELENGTHS[:, None] - centre) / sigma) ** 2)
    return cube @ (response / response.sum(axis=0))


def degrade(image: Array, ratio: int = RATIO, gain: float = MTF) -> Array:
    """Wald's protocol: (H, W, C) -> (H / ratio, W / ratio, C).

    A Gaussian whose modulation transfer is `gain` at the coarse Nyquist frequency 1 / (2 ratio), that is
    sigma = (ratio / pi) sqrt(-2 ln gain), sampled at the centres of the coarse pixels, which lie between fine ones.
    """
    sigma = ratio / np.pi * np.sqrt(-2 * np.log(gain))

    def rows(length: int) -> Array:
        centres = ratio * np.arange(length // ratio)[:, None] + (ratio - 1) / 2
        weights = np.exp(-0.5 * ((np.arange(length)[None, :] - centres) / sigma) ** 2)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    return np.einsum("ih,hwc,jw->ijc", rows(image.shape[0]), image, rows(image.shape[1]), optimize=True)


def _caption(style: str) -> str:
    seen = {
        "farmland": "Fields with furrows, a road, farmhouses and trees",
        "town": "A town of houses with gardens along straight streets",
        "river": "A river between fields, crossed by a road with houses",
    }
    return f"{seen[style]}, seen from a satellite."


def pansharpening(rng: np.random.Generator, index: int, size: Size = (128, 128)) -> Views:
    """Sources `pan` (H, W) and `ms` (H/4, W/4, 4), target (H, W, 4): reflectance times 1.6, noise of an 11-bit sensor."""
    style = STYLES[index % len(STYLES)]
    target = np.clip(1.6 * respond(land_cover(rng, size, style)), 0, 1)
    pan = target @ PAN_MIX + 0.002 * rng.standard_normal(size)
    coarse = degrade(target)
    coarse = coarse + 0.0015 * rng.standard_normal(coarse.shape)
    return Views({"pan": pan.clip(0, 1), "ms": coarse.clip(0, 1)}, _caption(style), target)


def hyper_multispectral(rng: np.random.Generator, index: int, size: Size = (128, 128)) -> Views:
    """Sources `ms` (H, W, 4) and `hs` (H/4, W/4, 16), target the cube (H, W, 16)."""
    style = STYLES[(index + 1) % len(STYLES)]
    target = np.clip(1.6 * land_cover(rng, size, style), 0, 1)
    fine = respond(target)
    fine = fine + 0.002 * rng.standard_normal(fine.shape)
    coarse = degrade(target)
    coarse = coarse + 0.0015 * rng.standard_normal(coarse.shape)
    return Views({"ms": fine.clip(0, 1), "hs": coarse.clip(0, 1)}, _caption(style), target)

"""Things that stand in the generated street scenes: people, lamps, trees, facades.

Lengths in metres. The world is X right, Y up from the ground, Z away from the camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.demo_canvas import (
    Array,
    Canvas,
    Patch,
    Point,
    Size,
    blobs,
    capsule,
    clouds,
    ellipse,
    polygon,
)


@dataclass(frozen=True)
class View:
    """A level pinhole camera `height` metres above the ground; `focal` and `horizon` in pixels."""

    size: Size
    focal: float
    horizon: float
    height: float

    @property
    def centre(self) -> float:
        return self.size[1] / 2

    def project(self, x: float, y: float, z: float) -> Point:
        """Pixel (x, y) of the world point."""
        return self.centre + self.focal * x / z, self.horizon + self.focal * (self.height - y) / z

    def ground(self) -> tuple[Array, Array, Array]:
        """(below the horizon, X, Z) of the ground seen by every pixel."""
        rows = np.arange(self.size[0], dtype=float)[:, None] - self.horizon
        depth = np.broadcast_to(self.focal * self.height / np.maximum(rows, 0.25), self.size)
        across = (np.arange(self.size[1], dtype=float)[None, :] - self.centre) * depth / self.focal
        return np.broadcast_to(rows > 0, self.size), across, np.asarray(depth)


@dataclass(frozen=True)
class Weather:
    """Light of a scene (linear, 1 = white paper in the sun) and what it does to temperatures."""

    name: str
    ambient: tuple[float, float, float]
    zenith: tuple[float, float, float]
    haze: tuple[float, float, float]
    shadow: float
    dark: bool
    warmth: float  # thermal signal of sunlit ground and walls


@dataclass
class Stage:
    """Everything a scene is drawn with. `lamps` collects the world positions of burning lamps."""

    canvas: Canvas
    view: View
    weather: Weather
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.size = self.canvas.size
        self.fine = clouds(self.rng, self.size, 0.9, 8)
        self.lamps: list[tuple[float, float, float]] = []


def tint(rng: np.random.Generator, colour: tuple[float, float, float], spread: float = 0.15) -> Array:
    """The colour, a little lighter or darker and a little off in hue."""
    lighter, hue = 1 + spread * rng.uniform(-1, 1), 1 + 0.3 * spread * rng.uniform(-1, 1, 3)
    return np.asarray(np.clip(np.array(colour) * lighter * hue, 0, 1))


def shaded(patch: Patch, colour: Array, depth_of_shade: float = 0.35) -> Array:
    """The colour lit from the upper left across the patch, (h, w, 3)."""
    h, w = patch.cover.shape
    fall = 1 + depth_of_shade * (0.5 - (np.arange(w) + 0.5) / max(w, 1))[None, :]
    fall = fall * (1 + 0.4 * depth_of_shade * (0.5 - (np.arange(h) + 0.5) / max(h, 1))[:, None])
    return fall[..., None] * colour


def contact_shadow(stage: Stage, x: float, z: float, half_width: float, strength: float = 0.5) -> None:
    """The soft dark spot under a thing, longer towards the right where the sun casts it."""
    px, py = stage.view.project(x, 0, z)
    scale = stage.view.focal / z
    flat = max(stage.view.height / z, 0.06)
    for grow in (1.15, 1.05, 0.95):
        reach = half_width * scale * grow
        spot = ellipse(stage.size, px, py, reach, max(reach * flat * 0.7, 0.7))
        stage.canvas.dim(spot, 1 - strength * 0.45)
    if stage.weather.shadow:
        reach = half_width * scale
        long = ellipse(stage.size, px + 1.4 * reach, py, 2 * reach, max(0.6 * reach * flat, 0.7))
        stage.canvas.dim(long, 1 - stage.weather.shadow)


SHIRTS = [
    (0.55, 0.1, 0.09),
    (0.1, 0.18, 0.42),
    (0.62, 0.6, 0.55),
    (0.08, 0.08, 0.09),
    (0.1, 0.32, 0.2),
    (0.62, 0.45, 0.1),
    (0.3, 0.3, 0.33),
]
TROUSERS = [(0.06, 0.08, 0.16), (0.05, 0.05, 0.05), (0.25, 0.2, 0.14), (0.14, 0.15, 0.17)]
SKINS = [(0.62, 0.42, 0.32), (0.45, 0.28, 0.2), (0.2, 0.11, 0.07), (0.55, 0.36, 0.26)]


def person(stage: Stage, x: float, z: float) -> None:
    """A walking or standing person, 1.6-1.9 m, in clothes that hide part of the warmth."""
    rng, size = stage.rng, stage.size
    owner = stage.canvas.add("person")
    contact_shadow(stage, x, z, 0.3, 0.4)
    foot_x, foot_y = stage.view.project(x, 0, z)
    tall = stage.view.focal * rng.uniform(1.6, 1.9) / z
    facing = rng.choice([-1.0, 1.0])
    swing = rng.uniform(0.15, 0.5) if rng.random() < 0.7 else 0.05
    shirt = tint(rng, SHIRTS[rng.integers(len(SHIRTS))])
    trousers = tint(rng, TROUSERS[rng.integers(len(TROUSERS))])
    skin = tint(rng, SKINS[rng.integers(len(SKINS))])
    hair = tint(rng, (0.08, 0.055, 0.04), 0.6)
    warm = rng.uniform(-0.04, 0.04)

    def at(u: float, v: float) -> Point:
        return foot_x + facing * u * tall, foot_y - v * tall

    def limb(a: Point, b: Point, r0: float, r1: float, colour: Array, heat: float) -> None:
        patch = capsule(size, at(*a), at(*b), r0 * tall, r1 * tall)
        stage.canvas.paint(patch, shaded(patch, colour), heat + warm, z, owner=owner)

    def leg(side: float, shade: float) -> None:
        hip, knee = (side * 0.035, 0.49), (side * 0.04 + side * swing * 0.2, 0.27)
        ankle = (knee[0] + (side * swing * 0.16 if side > 0 else -swing * 0.3), 0.045)
        limb(hip, knee, 0.058, 0.042, trousers * shade, 0.74)
        limb(knee, ankle, 0.042, 0.028, trousers * shade, 0.68)
        limb(ankle, (ankle[0] + 0.05, 0.02), 0.026, 0.02, np.array([0.05, 0.045, 0.04]), 0.48)

    def arm(side: float, shade: float) -> None:
        elbow = (side * 0.085 - side * swing * 0.12, 0.63)
        hand = (elbow[0] + 0.02 + swing * (0.1 if side < 0 else 0.02), 0.49)
        limb((side * 0.085, 0.79), elbow, 0.036, 0.03, shirt * shade, 0.76)
        limb(elbow, hand, 0.03, 0.022, shirt * shade, 0.74)
        limb(hand, (hand[0], hand[1] - 0.02), 0.023, 0.02, skin, 0.88)

    arm(1, 0.8)
    leg(1, 0.8)
    leg(-1, 1.0)
    trunk = [(-0.1, 0.83), (0.1, 0.83), (0.095, 0.66), (0.078, 0.46), (-0.078, 0.46), (-0.095, 0.66)]
    torso = polygon(size, [at(*point) for point in trunk])
    chest = 0.82 + warm + 0.05 * stage.fine[torso.rows, torso.cols].clip(-1, 1)
    stage.canvas.paint(torso, shaded(torso, shirt, 0.5), chest, z, owner=owner)
    limb((0, 0.82), (0, 0.88), 0.036, 0.032, skin, 0.9)
    if rng.random() < 0.3:  # a backpack: cold
        limb((-0.11, 0.76), (-0.11, 0.6), 0.05, 0.055, tint(rng, (0.15, 0.17, 0.12), 0.5), 0.45)
    arm(-1, 1.05)
    limb((0.008, 0.905), (0.008, 0.945), 0.05, 0.05, skin, 0.96)
    limb((-0.018, 0.945), (-0.004, 0.965), 0.045, 0.046, hair, 0.8)


def lamp(stage: Stage, x: float, z: float) -> None:
    """A street lamp: pole, arm towards the road, head; it burns in the dark."""
    owner = stage.canvas.add("lamp")
    tall, metre = stage.rng.uniform(4.6, 5.6), stage.view.focal / z
    reach = -0.9 * np.sign(x) if x else 0.9
    contact_shadow(stage, x, z, 0.12, 0.3)
    steel = tint(stage.rng, (0.2, 0.21, 0.2))
    top, tip = (x, tall), (x + reach, tall + 0.25)
    for start, end, thick in (((x, 0.0), top, 0.055), (top, tip, 0.045), ((x, 0.0), (x, 0.8), 0.09)):
        ends = stage.view.project(*start, z), stage.view.project(*end, z)
        bar = capsule(stage.size, *ends, thick * metre, thick * metre)
        warm = 0.3 + 0.1 * stage.weather.warmth
        stage.canvas.paint(bar, shaded(bar, steel, 0.5), warm, z, owner=owner)
    head = stage.view.project(x + reach, tall + 0.22, z)
    shade = ellipse(stage.size, head[0], head[1] - 0.06 * metre, 0.36 * metre, 0.13 * metre)
    stage.canvas.paint(shade, steel * 0.8, 0.55, z, owner=owner)
    dark = stage.weather.dark
    bulb = ellipse(stage.size, head[0], head[1] + 0.03 * metre, max(0.3 * metre, 1.3), max(0.13 * metre, 1.0))
    glow = np.array([1.0, 0.83, 0.55]) * (18.0 if dark else 0.0)
    stage.canvas.paint(bulb, (0.7, 0.7, 0.66), 0.93 if dark else 0.5, z, light=glow, owner=owner)
    if dark:
        stage.lamps.append((x + reach, tall + 0.1, z))


GREENS = [(0.1, 0.2, 0.05), (0.14, 0.22, 0.05), (0.07, 0.16, 0.07), (0.2, 0.22, 0.06)]


def tree(stage: Stage, x: float, z: float, tall: float, *, bush: bool = False) -> None:
    """A trunk and a crown of leaves (a bush has no trunk); leaves are as warm as the air."""
    rng, size = stage.rng, stage.size
    owner = None if bush else stage.canvas.add("tree")
    contact_shadow(stage, x, z, tall * (0.35 if bush else 0.22), 0.45)
    foot, metre = stage.view.project(x, 0, z), stage.view.focal / z
    if not bush:
        bark = tint(rng, (0.17, 0.12, 0.08))
        top = (foot[0] + rng.uniform(-2, 2), foot[1] - 0.55 * tall * metre)
        trunk = capsule(size, foot, top, 0.05 * tall * metre, 0.025 * tall * metre)
        warm = 0.33 + 0.05 * stage.weather.warmth
        stage.canvas.paint(trunk, shaded(trunk, bark, 0.8), warm, z, owner=owner)
    count = 5 if bush else 9
    middle, spread = (0.35, 0.45) if bush else (0.7, 0.2)
    centres, radii = [], []
    for _ in range(count):
        u = rng.uniform(-spread, spread) * (1.3 if bush else 1)
        v = middle + (rng.uniform(-0.15, 0.15) if bush else rng.uniform(-0.2, 0.2) * (1 - abs(u)))
        centres.append((foot[0] + u * tall * metre, foot[1] - v * tall * metre))
        radii.append(rng.uniform(0.12, 0.2) * tall * metre * (1.5 if bush else 1))
    crown = blobs(size, centres, radii, stage.fine, 0.28)
    if crown.cover.size == 0:
        return
    lit = np.full(crown.cover.shape, -1.0)
    for (cx, cy), radius in zip(centres, radii, strict=True):  # every blob is a ball lit from the upper left
        ball = 1 - np.hypot(crown.x - cx + 0.35 * radius, crown.y - cy + 0.45 * radius) / (1.25 * radius)
        lit = np.maximum(lit, ball)
    leaves = stage.fine[crown.rows, crown.cols]
    leaf = tint(rng, GREENS[rng.integers(len(GREENS))], 0.25)
    bright = np.clip(0.75 + 0.6 * lit + 0.28 * leaves, 0.2, 1.9)
    heat = 0.3 + 0.06 * stage.weather.warmth + 0.025 * leaves + 0.03 * lit
    stage.canvas.paint(crown, bright[..., None] * leaf, heat, z, owner=owner)


GLASS = np.array([0.07, 0.09, 0.11])
WALLS = [
    (0.42, 0.22, 0.16),
    (0.5, 0.45, 0.36),
    (0.38, 0.38, 0.38),
    (0.55, 0.48, 0.4),
    (0.3, 0.27, 0.26),
    (0.46, 0.34, 0.22),
]


def facade(stage: Stage, near: Point, far: Point, floors: int, owner: int | None, facing: float) -> None:
    """A wall with windows from ground point (X, Z) `near` to `far`; `facing` scales the daylight on it."""
    rng, view, size = stage.rng, stage.view, stage.size
    storey = 3.0
    tall = floors * storey + 0.8
    wall = tint(rng, WALLS[rng.integers(len(WALLS))]) * facing
    heat = 0.26 + 0.22 * stage.weather.warmth * facing
    width = float(np.hypot(far[0] - near[0], far[1] - near[1]))

    def at(u: float, y: float) -> Point:
        return view.project(near[0] + u * (far[0] - near[0]), y, near[1] + u * (far[1] - near[1]))

    def panel(u0: float, u1: float, y0: float, y1: float) -> Patch:
        return polygon(size, [at(u0, y0), at(u1, y0), at(u1, y1), at(u0, y1)])

    patch = panel(0, 1, 0, tall)
    if patch.cover.size == 0:
        return
    # On a vertical plane 1/Z is linear across the image.
    x0, x1 = at(0, 0)[0], at(1, 0)[0]
    share = np.clip((patch.x - x0) / (x1 - x0 if abs(x1 - x0) > 1e-6 else 1e-6), 0, 1)
    depth = np.broadcast_to(1 / ((1 - share) / near[1] + share / far[1]), patch.cover.shape)
    grime = 1 + 0.07 * stage.fine[patch.rows, patch.cols]
    stage.canvas.paint(patch, grime[..., None] * wall, heat * (0.97 + 0.03 * grime), depth, owner=owner)

    def detail(
        u0: float, u1: float, y0: float, y1: float, colour: Array, warm: float, light: Array | float = 0.0
    ) -> None:
        piece = panel(u0, u1, y0, y1)
        if piece.cover.size:
            middle = near[1] + 0.5 * (u0 + u1) * (far[1] - near[1])
            stage.canvas.paint(piece, colour, warm, middle, light=np.broadcast_to(light, (3,)), owner=owner)

    detail(0, 1, tall - 0.45, tall, wall * 1.25, heat - 0.05)
    detail(0, 1, 0, 0.5, wall * 0.6, heat - 0.04)
    bays = max(int(width / 2.6), 1)
    frame = wall * 1.35 if rng.random() < 0.6 else np.array([0.5, 0.5, 0.48]) * facing
    shops = floors > 1 and rng.random() < 0.6
    for floor in range(floors):
        detail(0, 1, floor * storey + 2.9, floor * storey + 3.05, wall * 0.75, heat)
        for bay in range(bays):
            u, half = (bay + 0.5) / bays, 0.3 / bays
            y0, y1 = floor * storey + 1.0, floor * storey + 2.5
            if floor == 0 and shops:
                half, y0 = 0.42 / bays, 0.5
            lit = stage.weather.dark and rng.random() < (0.55 if floor == 0 and shops else 0.3)
            pane = GLASS * rng.uniform(0.8, 1.8) * facing
            glow = np.array([1.0, 0.78, 0.45]) * rng.uniform(0.25, 0.8) if lit else np.zeros(3)
            detail(u - half * 1.2, u + half * 1.2, y0 - 0.15, y1 + 0.15, frame, heat + 0.02)
            detail(u - half, u + half, y0, y1, pane, 0.42 if lit else 0.2, glow)
            detail(u - half * 0.06, u + half * 0.06, y0, y1, frame, heat, glow * 0.3)

"""Multi-focus samples: a foreground in front of a street or meadow, one of them out of focus."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pipeline.demo_canvas import (
    Array,
    Canvas,
    Point,
    Size,
    Views,
    blobs,
    capsule,
    ellipse,
    polygon,
    rectangle,
)
from pipeline.demo_objects import GREENS, Stage, View, shaded, tint
from pipeline.demo_scenes import DAY, compose, radiance

PAINTED = 1.0  # heat of what is painted: on an empty canvas the heat then is the alpha of the foreground
FAR_FOCUS = 25.0


@dataclass(frozen=True)
class _Place:
    """A spot on the table; u and v are metres to the right of it and above it."""

    stage: Stage
    foot: Point
    metre: float
    depth: float

    @property
    def rng(self) -> np.random.Generator:
        return self.stage.rng

    def at(self, u: float, v: float) -> Point:
        return self.foot[0] + u * self.metre, self.foot[1] - v * self.metre

    def block(self, u0: float, u1: float, v0: float, v1: float, colour: Array, shade: float = 0.5) -> None:
        patch = rectangle(self.stage.size, *self.at(u0, v1), *self.at(u1, v0))
        self.stage.canvas.paint(patch, shaded(patch, colour, shade), PAINTED, self.depth)

    def outline(self, points: list[Point], colour: Array, shade: float) -> None:
        patch = polygon(self.stage.size, [self.at(*point) for point in points])
        self.stage.canvas.paint(patch, shaded(patch, colour, shade), PAINTED, self.depth)

    def disc(self, u: float, v: float, ru: float, rv: float, colour: Array) -> None:
        patch = ellipse(self.stage.size, *self.at(u, v), ru * self.metre, rv * self.metre)
        self.stage.canvas.paint(patch, colour, PAINTED, self.depth)

    def stroke(self, start: Point, end: Point, r0: float, r1: float, colour: Array) -> None:
        patch = capsule(self.stage.size, self.at(*start), self.at(*end), r0 * self.metre, r1 * self.metre)
        self.stage.canvas.paint(patch, colour, PAINTED, self.depth)


def _books(place: _Place) -> None:
    rng, level = place.rng, 0.0
    for _ in range(5):
        thick, half, slip = rng.uniform(0.025, 0.045), rng.uniform(0.12, 0.16), rng.uniform(-0.02, 0.02)
        place.block(slip - half, slip + half, level, level + thick, rng.uniform(0.08, 0.6, 3), 0.2)
        title = (slip - 0.6 * half, slip + 0.5 * half, level + 0.35 * thick, level + 0.7 * thick)
        place.block(*title, np.array([0.8, 0.75, 0.5]), 0.1)
        level += thick + 0.003


def _mug(place: _Place) -> None:
    colour, band = tint(place.rng, (0.7, 0.66, 0.6), 0.3), tint(place.rng, (0.6, 0.15, 0.12), 0.6)
    place.disc(0.075, 0.055, 0.04, 0.035, colour * 0.8)
    place.block(-0.07, 0.07, 0, 0.115, colour, 1.1)
    for i in range(7):
        place.disc(-0.06 + 0.02 * i, 0.075 - 0.03 * (i % 2), 0.008, 0.01, band)
    place.disc(0, 0.115, 0.07, 0.016, colour * 0.35)


def _bottle(place: _Place) -> None:
    glass = tint(place.rng, (0.06, 0.2, 0.1), 0.6)
    place.block(-0.05, 0.05, 0, 0.2, glass, 1.3)
    neck = [(-0.05, 0.195), (0.05, 0.195), (0.018, 0.25), (0.018, 0.32), (-0.018, 0.32), (-0.018, 0.25)]
    place.outline(neck, glass, 1.3)
    place.block(-0.02, 0.02, 0.305, 0.33, tint(place.rng, (0.6, 0.45, 0.1)), 0.6)
    place.block(-0.05, 0.05, 0.05, 0.14, np.array([0.75, 0.72, 0.62]), 0.7)
    for i in range(4):  # print on the label
        line = (-0.038, 0.038 - 0.012 * (i % 2), 0.065 + 0.017 * i, 0.071 + 0.017 * i)
        place.block(*line, np.array([0.12, 0.1, 0.1]), 0.3)
    place.block(-0.036, -0.03, 0.15, 0.19, np.array([0.7, 0.8, 0.75]), 0)


def _plant(place: _Place) -> None:
    rng = place.rng
    pot = [(-0.06, 0.0), (0.06, 0.0), (0.085, 0.12), (-0.085, 0.12)]
    place.outline(pot, tint(rng, (0.5, 0.22, 0.12)), 0.9)
    leaf = tint(rng, GREENS[rng.integers(len(GREENS))], 0.3) * 1.5
    for _ in range(16):
        turn, reach = rng.uniform(-1.3, 1.3), rng.uniform(0.12, 0.24)
        bend = (np.sin(turn) * reach * 0.5, 0.12 + np.cos(turn) * reach * 0.65)
        tip = (np.sin(turn) * reach, 0.11 + np.cos(turn) * reach)
        light = leaf * rng.uniform(0.6, 1.5)
        place.stroke((0, 0.11), bend, 0.006, 0.016, light)
        place.stroke(bend, tip, 0.016, 0.002, light)


def _chequers(place: _Place) -> None:
    for i in range(6):
        for j in range(6):
            tone = np.full(3, 0.75 if (i + j) % 2 else 0.06)
            place.block(-0.09 + 0.03 * i, -0.06 + 0.03 * i, 0.03 * j, 0.03 * (j + 1), tone, 0.1)


THINGS = (_books, _mug, _bottle, _plant, _chequers)


def _still_life(stage: Stage) -> None:
    """A wooden table with four of the THINGS on it, the far ones first."""
    size, view, canvas, rng = stage.size, stage.view, stage.canvas, stage.rng
    below, x, z = view.ground()
    edge = 1.75
    grain = np.sin(60 * x + 3 * np.sin(4 * z) + 2.5 * stage.fine) * 0.12 + 0.1 * stage.fine
    board = np.clip(1 - np.abs(np.mod(x, 0.3) - 0.15) * 60 + 8.3, 0, 1)
    wood = tint(rng, (0.42, 0.26, 0.14), 0.3) * ((1 + grain) * (0.55 + 0.45 * board))[..., None]
    top = rectangle(size, -1, view.project(0, 0, edge)[1], size[1], size[0])
    at = (top.rows, top.cols)
    canvas.paint(top, wood[at], PAINTED, np.where(below, z, edge)[at])
    chosen = rng.permutation(len(THINGS))[:4]
    for thing, depth, across in zip(chosen, (1.45, 1.25, 1.05, 0.9), (-0.45, 0.43, -0.12, 0.3), strict=True):
        foot = view.project(across * depth + rng.uniform(-0.05, 0.05), 0, depth)
        place = _Place(stage, foot, view.focal / depth, depth)
        shadow = ellipse(size, foot[0] + 0.05 * place.metre, foot[1], 0.14 * place.metre, 0.035 * place.metre)
        canvas.dim(shadow, 0.5)
        THINGS[thing](place)


def _garden(stage: Stage) -> None:
    """A picket fence with leaves and flowers growing through it."""
    size, canvas, rng = stage.size, stage.canvas, stage.rng
    depth = 1.6
    metre, base = stage.view.focal / depth, size[0] - rng.uniform(-4, 6)
    paint = tint(rng, (0.7, 0.68, 0.62), 0.2)
    for level in (0.18, 0.42):
        rail = rectangle(size, -1, base - (level + 0.05) * metre, size[1], base - level * metre)
        worn = 1 + 0.08 * stage.fine[rail.rows, rail.cols]
        canvas.paint(rail, worn[..., None] * (0.75 * paint), PAINTED, depth)
    x = rng.uniform(-10, 0)
    while x < size[1]:
        wide, top = 0.075 * metre, base - rng.uniform(0.56, 0.6) * metre
        tip = (x + wide / 2, top - 0.06 * metre)
        slat = polygon(size, [(x, base + 20), (x, top), tip, (x + wide, top), (x + wide, base + 20)])
        worn = 1 + 0.1 * stage.fine[slat.rows, slat.cols]
        canvas.paint(slat, shaded(slat, paint, 0.4) * worn[..., None], PAINTED, depth)
        x += rng.uniform(0.13, 0.16) * metre
    for _ in range(rng.integers(2, 4)):
        cx, cy = rng.uniform(0, size[1]), base - rng.uniform(0.05, 0.5) * metre
        centres = [(cx + rng.uniform(-18, 18), cy + rng.uniform(-16, 16)) for _ in range(6)]
        bush = blobs(size, centres, [rng.uniform(7, 12) for _ in centres], stage.fine, 0.35)
        tones = np.clip(1 + 0.45 * stage.fine[bush.rows, bush.cols], 0.3, 2.2)
        leaf = tint(rng, GREENS[rng.integers(len(GREENS))], 0.3)
        canvas.paint(bush, tones[..., None] * leaf, PAINTED, depth)
        petal = tint(rng, ((0.75, 0.2, 0.25), (0.8, 0.7, 0.15), (0.7, 0.7, 0.75))[rng.integers(3)])
        for _ in range(9):
            fx, fy = cx + rng.uniform(-22, 22), cy + rng.uniform(-20, 20)
            for turn in np.arange(5) * 2 * np.pi / 5:
                blade = ellipse(size, fx + 2.1 * np.cos(turn), fy + 2.1 * np.sin(turn), 1.7, 1.7)
                canvas.paint(blade, petal * rng.uniform(0.8, 1.1), PAINTED, depth)
            canvas.paint(ellipse(size, fx, fy, 1.3, 1.3), (0.65, 0.5, 0.08), PAINTED, depth)


def _blurred(layer: Array, deviation: Array) -> Array:
    """Gaussian blur of (H, W, C) by a deviation (H, W) in pixels, between blurs a `step` apart."""
    step = 0.6
    levels = np.arange(int(deviation.max() / step) + 2) * step
    stack = np.stack([ndimage.gaussian_filter(layer, (s, s, 0), mode="nearest") for s in levels])
    place = deviation / step
    low = place.astype(int)
    share = (place - low)[..., None]
    rows, cols = np.indices(deviation.shape)
    return np.asarray((1 - share) * stack[low, rows, cols] + share * stack[low + 1, rows, cols])


def multi_focus(rng: np.random.Generator, index: int, size: Size = (144, 192)) -> Views:
    """Sources `near` and `far`, RGB, and the all-in-focus target.

    The foreground is a layer with its own alpha, blurred with it and laid over the background that is blurred
    by itself, so an out-of-focus edge is transparent, as a lens makes it. The blur's deviation is
    strength |1/z - 1/z_focus| pixels, the circle of confusion of a thin lens.
    """
    behind = compose(rng, size, DAY, ("avenue", "crossing", "field")[index % 3])
    background = np.clip(radiance(behind), 0, 1.1)
    stage = Stage(Canvas(size), View(size, size[1] * 0.9, behind.view.horizon, 0.34), DAY, rng)
    on_table = index % 2 == 0
    if on_table:
        _still_life(stage)
    else:
        _garden(stage)
    # Painted on black, the albedo is the colour times the alpha.
    layer = np.concatenate([stage.canvas.albedo, stage.canvas.heat[..., None]], axis=2)
    # What the blur spreads beyond an edge belongs to the depth of the nearest painted pixel.
    unpainted = stage.canvas.heat < 0.5
    nearest = ndimage.distance_transform_edt(unpainted, return_distances=False, return_indices=True)
    depth = stage.canvas.depth[tuple(nearest)]
    near_focus, strength = (1.1 if on_table else 1.6), rng.uniform(2.6, 3.4)

    def picture(focus: float | None) -> Array:
        front, back = layer, background
        if focus is not None:
            front = _blurred(layer, ndimage.gaussian_filter(strength * np.abs(1 / depth - 1 / focus), 1.5))
            far = np.clip(behind.canvas.depth, 3, 200)
            back = _blurred(background, strength * np.abs(1 / far - 1 / focus))
        linear = front[..., :3] + (1 - front[..., 3:]) * back
        return np.asarray(np.clip(0.95 * linear, 0, 1) ** (1 / 2.2))

    def taken(focus: float) -> Array:
        return np.asarray(np.clip(picture(focus) + 0.006 * rng.standard_normal((*size, 3)), 0, 1))

    things = "Things on a wooden table" if on_table else "A fence with flowers"
    place = ("a street between buildings", "a street with cars", "a meadow")[index % 3]
    images = {"near": taken(near_focus), "far": taken(FAR_FOCUS)}
    return Views(images, f"{things} in front of {place}.", picture(None))

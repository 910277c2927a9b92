"""Cars of the generated street scenes, from the side, from the front and from behind."""

from __future__ import annotations

import numpy as np

from pipeline.demo_canvas import Array, Point, ellipse, polygon, rectangle
from pipeline.demo_objects import GLASS, Stage, contact_shadow, shaded, tint

PAINTS = [
    (0.55, 0.06, 0.05),
    (0.6, 0.61, 0.63),
    (0.06, 0.07, 0.09),
    (0.1, 0.2, 0.45),
    (0.75, 0.75, 0.73),
    (0.25, 0.27, 0.3),
    (0.12, 0.27, 0.2),
]
RUBBER = np.array([0.03, 0.03, 0.032])


def car_side(stage: Stage, x: float, z: float) -> None:
    """A car seen from its side; bonnet, wheels and exhaust are warm, glass mirrors the cold sky."""
    rng, size = stage.rng, stage.size
    owner = stage.canvas.add("car")
    contact_shadow(stage, x, z, 2.1, 0.75)
    base_x, base_y = stage.view.project(x, 0, z)
    metre = stage.view.focal / z
    length, tall, facing = rng.uniform(3.9, 4.5), rng.uniform(1.4, 1.55), rng.choice([-1.0, 1.0])
    paint = tint(rng, PAINTS[rng.integers(len(PAINTS))])
    estate = rng.random() < 0.4
    running = rng.random() < 0.7
    body_heat = 0.24 + stage.weather.warmth * 0.45

    def at(u: float, v: float) -> Point:
        return base_x + facing * (u - 0.5) * length * metre, base_y - v * tall * metre

    def part(points: list[Point], colour: Array, heat: float, light: float = 0.0, shade: float = 0.0) -> None:
        patch = polygon(size, [at(*p) for p in points])
        fill = shaded(patch, colour, shade) if shade else colour
        stage.canvas.paint(patch, fill, heat, z, light=light * colour, owner=owner)

    rear = [(0.04, 0.62), (0.19, 0.68), (0.33, 0.96)]
    if estate:
        rear = [(0.02, 0.62), (0.05, 0.93), (0.12, 0.98)]
    nose = [(0.4, 1.0), (0.58, 0.98), (0.76, 0.68), (0.95, 0.59), (1.0, 0.42), (0.99, 0.2)]
    part([(0.02, 0.2), (0.0, 0.45), *rear, *nose], paint, body_heat, shade=0.25)
    bonnet = [(0.72, 0.66), (0.76, 0.68), (0.95, 0.59), (0.99, 0.45), (0.74, 0.45)]
    part(bonnet, paint * 1.05, 0.7 if running else body_heat + 0.08)
    part([(0.01, 0.4), (1.0, 0.4), (0.99, 0.2), (0.02, 0.2)], paint * 0.72, body_heat - 0.03)
    back = (0.09, 0.68) if estate else (0.25, 0.68)
    top = (0.14, 0.93) if estate else (0.355, 0.92)
    part([back, top, (0.57, 0.92), (0.715, 0.68)], GLASS, 0.16)
    part([(0.445, 0.66), (0.455, 0.94), (0.475, 0.94), (0.475, 0.66)], paint * 0.8, body_heat)
    part([(0.47, 0.66), (0.476, 0.66), (0.476, 0.25), (0.47, 0.25)], paint * 0.5, body_heat)
    part([(0.40, 0.6), (0.45, 0.6), (0.45, 0.57), (0.40, 0.57)], paint * 0.45, body_heat)
    on = 6.0 if stage.weather.dark and running else 0.0
    headlight = [(0.955, 0.58), (0.99, 0.5), (0.95, 0.48)]
    tail_light = [(0.0, 0.58), (0.03, 0.6), (0.035, 0.5), (0.0, 0.48)]
    part(headlight, np.array([0.9, 0.88, 0.75]), 0.6 if on else body_heat, on)
    part(tail_light, np.array([0.6, 0.04, 0.03]), body_heat, on * 0.4)
    for u in (0.19, 0.81):
        wheel = at(u, 0.31 / tall)
        hub = np.array([0.42, 0.43, 0.45])
        rings = [(0.37, paint * 0.25, body_heat), (0.32, RUBBER, 0.5), (0.19, hub, 0.68 if running else 0.4)]
        for radius, colour, heat in rings:
            drop = 0.0 if radius > 0.35 else 0.02
            tyre = ellipse(size, wheel[0], wheel[1] - drop * metre, radius * metre, radius * metre)
            stage.canvas.paint(tyre, colour, heat, z, owner=owner)
    if running:
        spot = ellipse(size, *at(0.015, 0.17), 0.1 * metre, 0.08 * metre)
        stage.canvas.paint(spot, RUBBER, 0.92, z, owner=owner)


def car_end(stage: Stage, x: float, z: float, towards: bool) -> None:
    """A car seen from the front (`towards` the camera) or from behind."""
    rng, size = stage.rng, stage.size
    owner = stage.canvas.add("car")
    contact_shadow(stage, x, z, 0.95, 0.8)
    base_x, base_y = stage.view.project(x, 0, z)
    metre = stage.view.focal / z
    tall = 1.5 if rng.random() < 0.75 else 1.95
    paint = tint(rng, PAINTS[rng.integers(len(PAINTS))])
    body_heat = 0.24 + stage.weather.warmth * 0.45

    def at(u: float, v: float) -> Point:
        return base_x + u * metre, base_y - v * metre

    def part(points: list[Point], colour: Array, heat: float, light: float = 0.0) -> None:
        mirrored = [at(*p) for p in points] + [at(-p[0], p[1]) for p in reversed(points)]
        patch = polygon(size, mirrored)
        stage.canvas.paint(patch, shaded(patch, colour, 0.2), heat, z, light=light * colour, owner=owner)

    for side in (-1, 1):
        tyre = rectangle(size, *at(side * 0.72 - 0.12, 0.45), *at(side * 0.72 + 0.12, 0.0))
        stage.canvas.paint(tyre, RUBBER, 0.58, z, owner=owner)
    part([(0.66, tall), (0.8, 0.9), (0.9, 0.85), (0.9, 0.2), (0.8, 0.16)], paint, body_heat)
    part([(0.6, tall - 0.1), (0.74, 0.92)], GLASS * (1.3 if towards else 1), 0.17)
    if towards:
        part([(0.78, 0.9), (0.88, 0.72)], paint * 1.15, 0.66)
        part([(0.45, 0.6), (0.42, 0.4)], np.array([0.04, 0.04, 0.045]), 0.8)
    else:
        part([(0.88, 0.8), (0.88, 0.62)], paint * 0.85, body_heat + 0.04)
    part([(0.88, 0.33), (0.86, 0.2)], paint * 0.4, body_heat + (0.08 if towards else 0.02))
    level = 0.26 if towards else 0.38
    plate = rectangle(size, *at(-0.26, level + 0.12), *at(0.26, level))
    stage.canvas.paint(plate, (0.75, 0.74, 0.62), body_heat, z, owner=owner)
    on = stage.weather.dark
    for side in (-1, 1):
        colour = np.array([0.95, 0.92, 0.8]) if towards else np.array([0.65, 0.03, 0.03])
        light = (7.0 if towards else 1.6) * on
        patch = ellipse(size, *at(side * 0.68, 0.68), 0.16 * metre, 0.1 * metre)
        stage.canvas.paint(patch, colour, 0.62 if towards else 0.42, z, light=light * colour, owner=owner)
    if not towards:
        spot = ellipse(size, *at(0.5, 0.2), 0.1 * metre, 0.08 * metre)
        stage.canvas.paint(spot, RUBBER, 0.93, z, owner=owner)

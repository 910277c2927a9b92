"""Multi-exposure samples: scenes of more contrast than one picture holds, taken too dark and too bright."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from pipeline.demo_canvas import Array, Canvas, Patch, Size, Views, capsule, ellipse, polygon, rectangle
from pipeline.demo_objects import Stage, View, Weather, shaded, tint
from pipeline.demo_scenes import DAY, NIGHT, bloom, compose, radiance

SUNSET = Weather("sunset", (0.14, 0.13, 0.14), (0.9, 1.2, 2.2), (3.4, 2.4, 1.5), 0.0, False, 0.4)
INDOORS = Weather("indoors", (0.05, 0.05, 0.055), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0, False, 0.2)
OUTDOORS = 5.0  # radiance of the day behind a window, in units of the room's


class _Room:
    """A room with a window in its back wall; lengths in metres, z of the back wall is `back`."""

    def __init__(self, rng: np.random.Generator, size: Size) -> None:
        self.rng, self.size = rng, size
        self.view = View(size, size[1] * 0.75, size[0] * 0.5, 1.4)
        self.stage = Stage(Canvas(size), self.view, INDOORS, rng)
        self.canvas = self.stage.canvas
        self.wide, self.back = rng.uniform(4.6, 5.6), rng.uniform(4.4, 5.4)
        self.window, self.half = rng.uniform(-0.8, 0.8), rng.uniform(0.75, 1.0)
        rows, cols = np.indices(size, dtype=float)
        self.ray_x = (cols - self.view.centre) / self.view.focal
        self.ray_y = (self.view.horizon - rows) / self.view.focal
        self._surfaces(2.7)
        self._outlook()
        self._furniture()

    def _surfaces(self, tall: float) -> None:
        """Striped walls, planks, a white ceiling: each pixel shows the surface that its ray meets first."""
        tiny = 1e-6
        hits = np.stack(
            [
                np.full(self.size, self.back),
                self.wide / 2 / np.maximum(np.abs(self.ray_x), tiny),
                np.where(self.ray_y < 0, self.view.height / np.maximum(-self.ray_y, tiny), np.inf),
                np.where(self.ray_y > 0, (tall - self.view.height) / np.maximum(self.ray_y, tiny), np.inf),
            ]
        )
        back, floor, ceiling = 0, 2, 3  # and 1, a side wall
        surface, z = hits.argmin(axis=0), hits.min(axis=0)
        x, y = self.ray_x * z, self.view.height + self.ray_y * z
        stripes = 1 + 0.06 * np.sign(np.sin(np.where(surface == back, x, z) * 2 * np.pi / 0.4))
        plank = np.floor(x / 0.35)
        gaps = np.clip(np.abs(np.mod(x, 0.35) - 0.175) * 30 - 0.5, 0, 1)
        boards = (0.85 + 0.15 * gaps) * (1 + 0.12 * np.sin(40 * plank)) * (1 + 0.1 * self.stage.fine)
        colour = stripes[..., None] * tint(self.rng, (0.55, 0.5, 0.4), 0.3)
        colour[(surface < floor) & (y < 0.12)] = 0.5  # skirting board
        colour[surface == ceiling] = 0.72
        wood = boards[..., None] * tint(self.rng, (0.32, 0.2, 0.11))
        colour = np.where((surface == floor)[..., None], wood, colour)
        self.canvas.paint(rectangle(self.size, -1, -1, self.size[1], self.size[0]), colour, 0, z)

    def box(self, x0: float, x1: float, y0: float, y1: float, z: float) -> Patch:
        return rectangle(self.size, *self.view.project(x0, y1, z), *self.view.project(x1, y0, z))

    def on_wall(self, x0: float, x1: float, y0: float, y1: float, colour: ArrayLike) -> None:
        self.canvas.paint(self.box(x0, x1, y0, y1, self.back), colour, 0, self.back)

    def solid(self, x0: float, x1: float, y0: float, y1: float, z: float, colour: Array) -> None:
        box = self.box(x0, x1, y0, y1, z)
        self.canvas.paint(box, shaded(box, colour, 0.3), 0, z)

    def _outlook(self) -> None:
        """The window with the day behind it, its frame, sill and curtains; a picture on the wall."""
        middle, half = self.window, self.half
        pane = self.box(middle - half, middle + half, 0.95, 2.3, self.back)
        h, w = pane.cover.shape
        outside = radiance(compose(self.rng, (2 * h, 2 * w), DAY, "field"))
        self.on_wall(middle - half - 0.12, middle + half + 0.12, 0.83, 2.42, np.full(3, 0.75))
        seen = outside.reshape(h, 2, w, 2, 3).mean(axis=(1, 3))
        self.canvas.paint(pane, np.zeros(3), 0, self.back, light=OUTDOORS * seen)
        self.on_wall(middle - 0.04, middle + 0.04, 0.95, 2.3, np.full(3, 0.6))
        self.on_wall(middle - half, middle + half, 1.78, 1.84, np.full(3, 0.6))
        self.on_wall(middle - half - 0.25, middle + half + 0.25, 0.78, 0.88, np.full(3, 0.7))
        drape = tint(self.rng, (0.45, 0.12, 0.1), 0.5)
        for side in (-1.0, 1.0):
            for fold in range(5):
                x = middle + side * (half - 0.055 + 0.09 * fold)
                self.on_wall(x - 0.045, x + 0.045, 0.3, 2.5, drape * (0.65 + 0.35 * (fold % 2)))
        spot = -np.sign(middle or 1.0) * self.rng.uniform(1.4, 1.7)
        self.on_wall(spot - 0.35, spot + 0.35, 1.3, 1.85, np.array([0.2, 0.12, 0.05]))
        self.on_wall(spot - 0.29, spot + 0.29, 1.36, 1.6, tint(self.rng, (0.2, 0.3, 0.12), 0.4))
        self.on_wall(spot - 0.29, spot + 0.29, 1.6, 1.79, tint(self.rng, (0.3, 0.4, 0.5), 0.4))

    def _furniture(self) -> None:
        """A bookcase against the back wall, and a table with flowers in a vase."""
        rng, size = self.rng, self.size
        shelf = rng.choice([-1.0, 1.0]) * (self.wide / 2 - 0.55)
        self.solid(shelf - 0.5, shelf + 0.5, 0, 1.9, self.back - 0.3, np.array([0.2, 0.12, 0.07]))
        for level in range(4):
            y, x = 0.12 + 0.44 * level, shelf - 0.44
            self.solid(
                shelf - 0.45, shelf + 0.45, y, y + 0.38, self.back - 0.28, np.array([0.07, 0.045, 0.03])
            )
            while x < shelf + 0.38:
                thick = rng.uniform(0.04, 0.09)
                high = rng.uniform(0.24, 0.34)
                self.solid(x, x + thick, y, y + high, self.back - 0.29, rng.uniform(0.08, 0.6, 3))
                x += thick + 0.008
        table, near = rng.uniform(-0.7, 0.7), 2.7
        wood = tint(rng, (0.36, 0.22, 0.12))
        for leg in (-0.72, 0.66):
            self.solid(table + leg, table + leg + 0.07, 0, 0.72, near, wood * 0.6)
            self.solid(table + 0.95 * leg, table + 0.95 * leg + 0.06, 0, 0.72, near + 0.6, wood * 0.5)
        corners = ((-0.75, 0.0), (0.75, 0.0), (0.75, 0.7), (-0.75, 0.7))
        top = polygon(size, [self.view.project(table + u, 0.75, near + v) for u, v in corners])
        self.canvas.paint(top, wood, 0, near)
        self.solid(table - 0.75, table + 0.75, 0.69, 0.75, near, wood * 0.8)
        x, y = self.view.project(table + rng.uniform(-0.4, 0.4), 0.75, near + 0.3)
        metre = self.view.focal / (near + 0.3)
        for _ in range(7):
            tip = (x + rng.uniform(-0.16, 0.16) * metre, y - rng.uniform(0.34, 0.5) * metre)
            self.canvas.paint(capsule(size, (x, y - 0.2 * metre), tip, 0.6, 0.4), (0.1, 0.2, 0.06), 0, near)
            petals = ellipse(size, *tip, 0.045 * metre, 0.04 * metre)
            self.canvas.paint(petals, tint(rng, (0.7, 0.25, 0.2), 0.6), 0, near)
        shape = ((-0.06, 0.0), (0.06, 0.0), (0.09, 0.12), (0.05, 0.24), (-0.05, 0.24), (-0.09, 0.12))
        vase = polygon(size, [(x + u * metre, y - v * metre) for u, v in shape])
        self.canvas.paint(vase, shaded(vase, tint(rng, (0.2, 0.3, 0.5), 0.4), 0.9), 0, near)

    def radiance(self) -> Array:
        """Light (H, W, 3): the window's falls with the squared distance and to the sides."""
        depth = self.canvas.depth
        dx, dy = self.ray_x * depth - self.window, self.view.height + self.ray_y * depth - 1.6
        dz = np.maximum(self.back + 0.15 - depth, 0.1)
        squared = dx**2 + dy**2 + dz**2
        lit = 0.04 + 2.2 * (0.25 + 0.75 * dz / np.sqrt(squared)) / (squared + 0.8)
        daylight = lit[..., None] * np.array([0.95, 0.98, 1.05])
        return np.asarray(self.canvas.albedo * daylight + self.canvas.light)


def expose(rng: np.random.Generator, linear: Array, gain: float) -> Array:
    """Picture in [0, 1]: noise, hard clipping, a film-like response (gamma 2.2 and a slight S)."""
    signal = linear * gain
    signal = signal + 0.012 * rng.standard_normal(signal.shape) * np.sqrt(np.clip(signal, 0, 1) + 0.01)
    encoded = np.clip(signal, 0, 1) ** (1 / 2.2)
    bend = 0.16 * np.sin(2 * np.pi * (encoded - 0.5)) * encoded * (1 - encoded)
    return np.asarray(np.clip(encoded + bend, 0, 1))


def multi_exposure(rng: np.random.Generator, index: int, size: Size = (144, 192)) -> Views:
    """Sources `under` and `over`, RGB, of one radiance map: a night street, a room with a window, a sunset.

    `under` is exposed for the brightest 3 % of the scene, `over` for its darkest third.
    """
    kind = index % 3
    if kind == 0:
        linear = radiance(compose(rng, size, NIGHT, ("avenue", "crossing")[index // 3 % 2]))
        caption = "A street at night, lit by lamps."
    elif kind == 1:
        linear, caption = _Room(rng, size).radiance(), "A room with a bright window, a bookcase and a table."
    else:
        linear = radiance(compose(rng, size, SUNSET, ("crossing", "field", "avenue")[index // 3 % 3]))
        caption = "A scene in the shade below a bright evening sky."
    linear = ndimage.gaussian_filter(bloom(linear), (0.4, 0.4, 0))
    dark, bright = np.percentile(linear.mean(axis=2), (30, 97))
    under, over = 0.55 / bright, min(0.3 / dark, 40 / bright)
    return Views({"under": expose(rng, linear, under), "over": expose(rng, linear, over)}, caption)

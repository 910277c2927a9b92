"""Multi-exposure and multi-focus samples: what one lens and one sensor cannot take in a single picture."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pipeline.demo_canvas import Array, Canvas, Size, Views, blobs, capsule, ellipse, polygon, rectangle
from pipeline.demo_objects import GREENS, Stage, View, Weather, shaded, tint
from pipeline.demo_scenes import DAY, NIGHT, bloom, compose, radiance

SUNSET = Weather("sunset", (0.14, 0.13, 0.14), (0.9, 1.2, 2.2), (3.4, 2.4, 1.5), 0.0, False, 0.4)
INDOORS = Weather("indoors", (0.05, 0.05, 0.055), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0, False, 0.2)


def _room(rng: np.random.Generator, size: Size) -> Array:
    """Radiance (H, W, 3) of a room lit by its window, behind which the day is thirty times brighter."""
    view = View(size, size[1] * 0.75, size[0] * 0.5, 1.4)
    stage = Stage(Canvas(size), view, INDOORS, rng)
    wide, tall, back = rng.uniform(4.6, 5.6), 2.7, rng.uniform(4.4, 5.4)
    ray_x = np.broadcast_to((np.arange(size[1]) - view.centre)[None, :] / view.focal, size)
    ray_y = np.broadcast_to((view.horizon - np.arange(size[0]))[:, None] / view.focal, size)
    hits = np.stack([
        np.full(size, back), wide / 2 / np.maximum(np.abs(ray_x), 1e-6),
        np.where(ray_y < 0, view.height / np.maximum(-ray_y, 1e-6), np.inf),
        np.where(ray_y > 0, (tall - view.height) / np.maximum(ray_y, 1e-6), np.inf),
    ])  # fmt: skip
    surface, z = hits.argmin(axis=0), hits.min(axis=0)
    x, y = ray_x * z, view.height + ray_y * z
    paper = tint(rng, (0.55, 0.5, 0.4), 0.3)
    stripes = 1 + 0.06 * np.sign(np.sin(np.where(surface == 0, x, z) * 2 * np.pi / 0.4))
    planks = (0.85 + 0.15 * np.clip(np.abs(np.mod(x, 0.35) - 0.175) * 30 - 0.5, 0, 1)) * (1 + 0.12 * np.sin(40 * np.floor(x / 0.35)))
    planks = planks * (1 + 0.1 * stage.fine)
    colour = np.where(surface[..., None] == 3, 0.72, stripes[..., None] * paper)
    colour = np.where(surface[..., None] == 2, planks[..., None] * tint(rng, (0.32, 0.2, 0.11)), colour)
    colour = np.where((surface < 2)[..., None] & (y < 0.12)[..., None], 0.5, colour)  # skirting board
    stage.canvas.paint(rectangle(size, -1, -1, size[1], size[0]), colour, 0, z)

    def wall(x0: float, x1: float, y0: float, y1: float, colour: Array, light: Array | float = 0.0) -> None:
        left, bottom = view.project(x0, y0, back)
        right, top = view.project(x1, y1, back)
        stage.canvas.paint(rectangle(size, left, top, right, bottom), colour, 0, back, light=np.broadcast_to(light, (3,)))

    middle = rng.uniform(-0.8, 0.8)
    half = rng.uniform(0.75, 1.0)
    left, top = view.project(middle - half, 2.3, back)
    right, bottom = view.project(middle + half, 0.95, back)
    pane = rectangle(size, left, top, right, bottom)
    outside = compose(rng, (max(pane.cover.shape[0], 16) * 2, max(pane.cover.shape[1], 16) * 2), DAY, "field")
    picture = ndimage.zoom(radiance(outside), (pane.cover.shape[0] / outside.size[0], pane.cover.shape[1] / outside.size[1], 1), order=1)
    wall(middle - half - 0.12, middle + half + 0.12, 0.83, 2.42, np.full(3, 0.75))
    stage.canvas.paint(pane, np.zeros(3), 0, back, light=picture * 5)
    wall(middle - 0.04, middle + 0.04, 0.95, 2.3, np.full(3, 0.6))
    wall(middle - half, middle + half, 1.78, 1.84, np.full(3, 0.6))
    wall(middle - half - 0.25, middle + half + 0.25, 0.78, 0.88, np.full(3, 0.7))
    drape = tint(rng, (0.45, 0.12, 0.1), 0.5)
    for side in (-1.0, 1.0):  # curtains with folds
        for fold in range(5):
            x0 = middle + side * (half - 0.1 + 0.09 * fold)
            wall(min(x0, x0 + side * 0.09), max(x0, x0 + side * 0.09), 0.3, 2.5, drape * (0.65 + 0.35 * (fold % 2)))
    spot = -np.sign(middle or 1.0) * rng.uniform(1.4, 1.7)  # a picture in its frame
    wall(spot - 0.35, spot + 0.35, 1.3, 1.85, np.array([0.2, 0.12, 0.05]))
    wall(spot - 0.29, spot + 0.29, 1.36, 1.6, tint(rng, (0.2, 0.3, 0.12), 0.4))
    wall(spot - 0.29, spot + 0.29, 1.6, 1.79, tint(rng, (0.3, 0.4, 0.5), 0.4))

    def solid(x0: float, x1: float, y0: float, y1: float, z: float, colour: Array) -> None:
        box = rectangle(size, *view.project(x0, y1, z), *view.project(x1, y0, z))
        stage.canvas.paint(box, shaded(box, colour, 0.3), 0, z)

    shelf_x = rng.choice([-1.0, 1.0]) * (wide / 2 - 0.55)  # a bookcase against the back wall
    solid(shelf_x - 0.5, shelf_x + 0.5, 0, 1.9, back - 0.3, np.array([0.2, 0.12, 0.07]))
    for level in range(4):
        y0 = 0.12 + 0.44 * level
        solid(shelf_x - 0.45, shelf_x + 0.45, y0, y0 + 0.38, back - 0.28, np.array([0.07, 0.045, 0.03]))
        at = shelf_x - 0.44
        while at < shelf_x + 0.38:
            thick = rng.uniform(0.04, 0.09)
            solid(at, at + thick, y0, y0 + rng.uniform(0.24, 0.34), back - 0.29, rng.uniform(0.08, 0.6, 3))
            at += thick + 0.008
    table, near = rng.uniform(-0.7, 0.7), 2.7
    wood = tint(rng, (0.36, 0.22, 0.12))
    for dx in (-0.72, 0.66):
        solid(table + dx, table + dx + 0.07, 0, 0.72, near, wood * 0.6)
        solid(table + dx * 0.95, table + dx * 0.95 + 0.06, 0, 0.72, near + 0.6, wood * 0.5)
    board = [view.project(table + u, 0.75, near + v) for u, v in ((-0.75, 0), (0.75, 0), (0.75, 0.7), (-0.75, 0.7))]
    stage.canvas.paint(polygon(size, board), wood, 0, near)
    solid(table - 0.75, table + 0.75, 0.69, 0.75, near, wood * 0.8)
    vase = view.project(table + rng.uniform(-0.4, 0.4), 0.75, near + 0.3)
    metre = view.focal / (near + 0.3)
    stems = [(vase[0] + rng.uniform(-0.16, 0.16) * metre, vase[1] - rng.uniform(0.34, 0.5) * metre) for _ in range(7)]
    for tip in stems:
        stage.canvas.paint(capsule(size, (vase[0], vase[1] - 0.2 * metre), tip, 0.6, 0.4), (0.1, 0.2, 0.06), 0, near)
        flower = ellipse(size, *tip, 0.045 * metre, 0.04 * metre)
        stage.canvas.paint(flower, tint(rng, (0.7, 0.25, 0.2), 0.6), 0, near)
    jar = polygon(size, [(vase[0] + u * metre, vase[1] - v * metre) for u, v in
                         ((-0.06, 0), (0.06, 0), (0.09, 0.12), (0.05, 0.24), (-0.05, 0.24), (-0.09, 0.12))])  # fmt: skip
    stage.canvas.paint(jar, shaded(jar, tint(rng, (0.2, 0.3, 0.5), 0.4), 0.9), 0, near)

    # Window light: falls with the squared distance from the window and towards the edge-on directions.
    depth = stage.canvas.depth
    world_x, world_y = ray_x * depth, view.height + ray_y * depth
    dx, dy, dz = world_x - middle, world_y - 1.6, np.maximum(back + 0.15 - depth, 0.1)
    squared = dx**2 + dy**2 + dz**2
    lit = 0.04 + 2.2 * (0.25 + 0.75 * dz / np.sqrt(squared)) / (squared + 0.8)
    return stage.canvas.albedo * (lit[..., None] * np.array([0.95, 0.98, 1.05])) + stage.canvas.light


def _expose(rng: np.random.Generator, linear: Array, gain: float) -> Array:
    """Picture in [0, 1]: shot and read noise, hard clipping, a film-like response (gamma and a slight S)."""
    signal = linear * gain
    signal = signal + 0.012 * rng.standard_normal(signal.shape) * np.sqrt(np.clip(signal, 0, 1) + 0.01)
    encoded = np.clip(signal, 0, 1) ** (1 / 2.2)
    return np.clip(encoded + 0.04 * np.sin(2 * np.pi * (encoded - 0.5)) * encoded * (1 - encoded) * 4, 0, 1)


def multi_exposure(rng: np.random.Generator, index: int, size: Size = (144, 192)) -> Views:
    """Sources `under` and `over`, RGB, of one radiance map: a night street, a room with a window, a sunset."""
    kind = index % 3
    if kind == 1:
        linear, caption = _room(rng, size), "A room with a bright window, a bookcase and a table."
    elif kind == 0:
        linear = radiance(compose(rng, size, NIGHT, ("avenue", "crossing")[index // 3 % 2]))
        caption = "A street at night, lit by lamps."
    else:
        linear = radiance(compose(rng, size, SUNSET, ("crossing", "field", "avenue")[index // 3 % 3]))
        caption = "A scene in the shade below a bright evening sky."
    linear = ndimage.gaussian_filter(bloom(linear), (0.4, 0.4, 0))
    brightness = linear.mean(axis=2)
    dark, bright = np.percentile(brightness, (30, 97))
    images = {"under": _expose(rng, linear, 0.55 / bright), "over": _expose(rng, linear, min(0.22 / dark, 40 / bright))}
    return Views(images, caption)


def _still_life(rng: np.random.Generator, stage: Stage) -> None:
    """A wooden table with books, a mug, a bottle and a plant. Heat 1 marks what is painted: it becomes the alpha."""
    size, view, canvas = stage.size, stage.view, stage.canvas
    below, x, z = view.ground()
    far = 1.75
    grain = np.sin(60 * x + 3 * np.sin(4 * z) + 2.5 * stage.fine) * 0.12 + 0.1 * stage.fine
    board = np.clip(1 - np.abs(np.mod(x, 0.3) - 0.15) * 60 + 8.3, 0, 1)
    wood = tint(rng, (0.42, 0.26, 0.14), 0.3) * ((1 + grain) * (0.55 + 0.45 * board))[..., None]
    top = rectangle(size, -1, view.project(0, 0, far)[1], size[1], size[0])
    at = (top.rows, top.cols)
    canvas.paint(top, wood[at], 1, np.where(below, z, far)[at])
    things = ["books", "mug", "bottle", "plant", "block"]
    rng.shuffle(things)
    for slot, thing in enumerate(things[:4]):
        deep = (1.45, 1.25, 1.05, 0.9)[slot]
        across = (-0.36, 0.34, -0.1, 0.24)[slot] * deep * 1.25 + rng.uniform(-0.05, 0.05)
        foot, metre = view.project(across, 0, deep), view.focal / deep
        canvas.dim(ellipse(size, foot[0] + 0.05 * metre, foot[1], 0.14 * metre, 0.035 * metre), 0.5)

        def at_(u: float, v: float, foot: tuple[float, float] = foot, metre: float = metre) -> tuple[float, float]:
            return foot[0] + u * metre, foot[1] - v * metre

        def block(u0: float, u1: float, v0: float, v1: float, colour: Array, shade: float = 0.5, deep: float = deep, at_=at_) -> None:  # type: ignore[no-untyped-def]  # noqa: E501
            patch = rectangle(size, *at_(u0, v1), *at_(u1, v0))
            if patch.cover.size:
                canvas.paint(patch, shaded(patch, colour, shade), 1, deep)

        if thing == "books":
            v = 0.0
            for _ in range(5):
                thick, half, slip = rng.uniform(0.025, 0.045), rng.uniform(0.12, 0.16), rng.uniform(-0.02, 0.02)
                cover = rng.uniform(0.08, 0.6, 3)
                block(slip - half, slip + half, v, v + thick, cover, 0.2)
                block(slip - 0.6 * half, slip + 0.5 * half, v + 0.35 * thick, v + 0.7 * thick, np.array([0.8, 0.75, 0.5]), 0.1)
                v += thick + 0.003
        elif thing == "mug":
            colour = tint(rng, (0.7, 0.66, 0.6), 0.3)
            handle = ellipse(size, *at_(0.075, 0.055), 0.04 * metre, 0.035 * metre)
            canvas.paint(handle, colour * 0.8, 1, deep)
            block(-0.07, 0.07, 0, 0.115, colour, 1.1)
            band = tint(rng, (0.6, 0.15, 0.12), 0.6)
            for i in range(7):
                dot = ellipse(size, *at_(-0.06 + 0.02 * i, 0.075 - 0.03 * (i % 2)), 0.008 * metre, 0.01 * metre)
                canvas.paint(dot, band, 1, deep)
            rim = ellipse(size, *at_(0, 0.115), 0.07 * metre, 0.016 * metre)
            canvas.paint(rim, colour * 0.35, 1, deep)
        elif thing == "bottle":
            glass = tint(rng, (0.06, 0.2, 0.1), 0.6)
            block(-0.05, 0.05, 0, 0.2, glass, 1.3)
            neck = polygon(size, [at_(-0.05, 0.195), at_(0.05, 0.195), at_(0.018, 0.25), at_(0.018, 0.32), at_(-0.018, 0.32),
                                  at_(-0.018, 0.25)])  # fmt: skip
            canvas.paint(neck, shaded(neck, glass, 1.3), 1, deep)
            block(-0.02, 0.02, 0.305, 0.33, tint(rng, (0.6, 0.45, 0.1)), 0.6)
            block(-0.05, 0.05, 0.05, 0.14, np.array([0.75, 0.72, 0.62]), 0.7)
            for i in range(4):
                block(-0.038, 0.038 - 0.012 * (i % 2), 0.065 + 0.017 * i, 0.071 + 0.017 * i, np.array([0.12, 0.1, 0.1]), 0.3)
            block(-0.036, -0.03, 0.15, 0.19, np.array([0.7, 0.8, 0.75]), 0)
        elif thing == "plant":
            pot = polygon(size, [at_(-0.06, 0), at_(0.06, 0), at_(0.085, 0.12), at_(-0.085, 0.12)])
            canvas.paint(pot, shaded(pot, tint(rng, (0.5, 0.22, 0.12)), 0.9), 1, deep)
            leaf = tint(rng, GREENS[rng.integers(len(GREENS))], 0.3) * 1.5
            for _ in range(16):
                turn, reach = rng.uniform(-1.3, 1.3), rng.uniform(0.12, 0.24)
                tip = at_(np.sin(turn) * reach, 0.11 + np.cos(turn) * reach)
                bend = at_(np.sin(turn) * reach * 0.5, 0.12 + np.cos(turn) * reach * 0.65)
                light = leaf * rng.uniform(0.6, 1.5)
                canvas.paint(capsule(size, at_(0, 0.11), bend, 0.006 * metre, 0.016 * metre), light, 1, deep)
                canvas.paint(capsule(size, bend, tip, 0.016 * metre, 0.002 * metre), light, 1, deep)
        else:
            for i in range(6):
                for j in range(6):
                    tone = 0.75 if (i + j) % 2 else 0.06
                    block(-0.09 + 0.03 * i, -0.06 + 0.03 * i, 0.03 * j, 0.03 * (j + 1), np.full(3, tone), 0.1)


def _garden(rng: np.random.Generator, stage: Stage) -> None:
    """A picket fence with leaves and flowers growing through it. Heat 1 marks what is painted."""
    size, view, canvas = stage.size, stage.view, stage.canvas
    deep, metre = 1.6, view.focal / 1.6
    base = size[0] - rng.uniform(-4, 6)
    paint = tint(rng, (0.7, 0.68, 0.62), 0.2)
    for level in (0.18, 0.42):
        rail = rectangle(size, -1, base - (level + 0.05) * metre, size[1], base - level * metre)
        canvas.paint(rail, (paint * 0.75) * (1 + 0.08 * stage.fine[rail.rows, rail.cols])[..., None], 1, deep)
    x = rng.uniform(-10, 0)
    while x < size[1]:
        wide, tall = 0.075 * metre, rng.uniform(0.56, 0.6) * metre
        slat = polygon(size, [(x, base + 20), (x, base - tall), (x + wide / 2, base - tall - 0.06 * metre), (x + wide, base - tall),
                              (x + wide, base + 20)])  # fmt: skip
        canvas.paint(slat, shaded(slat, paint, 0.4) * (1 + 0.1 * stage.fine[slat.rows, slat.cols])[..., None], 1, deep)
        x += rng.uniform(0.13, 0.16) * metre
    for _ in range(rng.integers(2, 4)):
        cx, cy = rng.uniform(0, size[1]), base - rng.uniform(0.05, 0.5) * metre
        centres = [(cx + rng.uniform(-18, 18), cy + rng.uniform(-16, 16)) for _ in range(6)]
        bush = blobs(size, centres, [rng.uniform(7, 12) for _ in centres], stage.fine, 0.35)
        tones = np.clip(1 + 0.45 * stage.fine[bush.rows, bush.cols], 0.3, 2.2)
        canvas.paint(bush, tones[..., None] * tint(rng, GREENS[rng.integers(len(GREENS))], 0.3), 1, deep)
        petal = tint(rng, ((0.75, 0.2, 0.25), (0.8, 0.7, 0.15), (0.7, 0.7, 0.75))[rng.integers(3)])
        for _ in range(9):
            fx, fy = cx + rng.uniform(-22, 22), cy + rng.uniform(-20, 20)
            for turn in np.arange(5) * 2 * np.pi / 5:
                leaf = ellipse(size, fx + 2.1 * np.cos(turn), fy + 2.1 * np.sin(turn), 1.7, 1.7)
                canvas.paint(leaf, petal * rng.uniform(0.8, 1.1), 1, deep)
            canvas.paint(ellipse(size, fx, fy, 1.3, 1.3), (0.65, 0.5, 0.08), 1, deep)


def _blurred(layers: Array, radius: Array) -> Array:
    """Blur (H, W, C) with a deviation that varies per pixel, between Gaussians half a pixel apart."""
    levels = np.arange(0, float(radius.max()) + 1.0, 0.6)
    stack = [layers if s == 0 else ndimage.gaussian_filter(layers, (s, s, 0), mode="nearest") for s in levels]
    place = np.clip(radius / 0.6, 0, len(levels) - 1.001)
    low = place.astype(int)
    share = (place - low)[..., None]
    chosen = np.stack(stack)
    rows, cols = np.indices(radius.shape)
    return (1 - share) * chosen[low, rows, cols] + share * chosen[low + 1, rows, cols]


def multi_focus(rng: np.random.Generator, index: int, size: Size = (144, 192)) -> Views:
    """Sources `near` and `far`, RGB, and the all-in-focus target.

    The foreground is a layer with its own alpha, blurred with it and laid over the background blurred by itself, so an
    out-of-focus edge is transparent as it is in a lens. Blur: deviation = strength |1/z - 1/z_focus| pixels.
    """
    behind = compose(rng, size, DAY, ("avenue", "crossing", "field")[index % 3])
    background = np.clip(radiance(behind), 0, 1.1)
    close = View(size, size[1] * 0.9, behind.view.horizon, 0.34)
    stage = Stage(Canvas(size), close, DAY, rng)
    if index % 2 == 0:
        _still_life(rng, stage)
        caption = "Things on a wooden table in front of "
    else:
        _garden(rng, stage)
        caption = "A fence with flowers in front of "
    alpha = stage.canvas.heat[..., None]
    layer = np.concatenate([stage.canvas.albedo, alpha], axis=2)  # painted on black: colour times alpha
    hidden = stage.canvas.depth > 100
    nearest = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    depth = stage.canvas.depth[tuple(nearest)]
    focus, strength = 1.1 if index % 2 == 0 else 1.6, rng.uniform(2.6, 3.4)

    def picture(z: float | None) -> Array:
        front, back = layer, background
        if z is not None:
            front = _blurred(layer, ndimage.gaussian_filter(strength * np.abs(1 / depth - 1 / z), 1.5))
            back = _blurred(background, strength * np.abs(1 / np.clip(behind.canvas.depth, 3, 200) - 1 / z))
        linear = front[..., :3] + (1 - front[..., 3:]) * back
        return np.clip(0.95 * linear, 0, 1) ** (1 / 2.2)

    grain = 0.006
    images = {role: picture(z) + grain * rng.standard_normal((*size, 3)) for role, z in (("near", focus), ("far", 25.0))}
    sharp = picture(None)
    places = ("a street between buildings", "a street with cars", "a meadow")
    return Views({role: np.clip(image, 0, 1) for role, image in images.items()}, f"{caption}{places[index % 3]}.", sharp)

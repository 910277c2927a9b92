"""Street and field scenes of the demo data set: what stands where, how light and heat fall on it.

`compose` lays out a scene; `radiance` is the light that reaches a camera, `visible` and `infrared` the
pictures.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from scipy import ndimage

from pipeline.demo_canvas import FAR, Array, Canvas, Size, Views, clouds, polygon, rectangle
from pipeline.demo_cars import car_end, car_side
from pipeline.demo_objects import Stage, View, Weather, facade, lamp, person, tint, tree

DAY = Weather("day", (0.95, 0.97, 1.0), (0.32, 0.52, 0.9), (0.8, 0.88, 0.97), 0.42, False, 0.55)
OVERCAST = Weather("overcast", (0.72, 0.75, 0.8), (0.62, 0.66, 0.72), (0.82, 0.83, 0.85), 0.0, False, 0.25)
DUSK = Weather("dusk", (0.11, 0.1, 0.13), (0.07, 0.1, 0.24), (0.42, 0.2, 0.1), 0.0, True, 0.3)
NIGHT = Weather("night", (0.016, 0.018, 0.026), (0.004, 0.006, 0.014), (0.02, 0.018, 0.02), 0.0, True, 0.05)
EXPOSURES = {"day": (0.95, 0.015), "overcast": (0.95, 0.015), "dusk": (1.3, 0.03), "night": (1.5, 0.038)}
LAMPLIGHT = np.array([1.0, 0.8, 0.5])


def _sky(stage: Stage) -> None:
    size, view, weather, rng = stage.size, stage.view, stage.weather, stage.rng
    down = np.clip(np.arange(size[0])[:, None, None] / max(view.horizon, 1), 0, 1) ** 1.3
    colour = (1 - down) * np.array(weather.zenith) + down * np.array(weather.haze)
    puffs = clouds(rng, size, 2.1, 90)
    cover = np.clip((puffs - rng.uniform(0.1, 0.9)) * 0.9, 0, 1)[..., None] * (0.9 - 0.5 * down)
    white = np.array(weather.haze) * (1.12 if not weather.dark else 1.5)
    everywhere = rectangle(size, -1, -1, size[1], size[0])
    heat = 0.06 + 0.16 * down[..., 0] ** 2 + 0.08 * cover[..., 0]
    light = np.clip(colour + cover * (white - colour), 0, None)
    stage.canvas.paint(everywhere, np.zeros(3), heat, FAR, light=light)


def _ground_noise(stage: Stage, x: Array, z: Array, metres: float) -> Array:
    """Noise fixed to the ground (so it shrinks with distance), faded where it would alias."""
    noise = clouds(stage.rng, (256, 256), 0.8, 60)
    step = metres / 8
    place = [np.mod(z / step, 256), np.mod(x / step, 256)]
    sampled = ndimage.map_coordinates(noise, place, order=1, mode="grid-wrap")
    footprint = z / stage.view.focal * np.maximum(z / stage.view.height, 1)
    return sampled * np.clip(1.5 * step / footprint, 0.05, 1)


def _band(value: Array, low: float, high: float, soft: Array) -> Array:
    """1 between low and high, with edges as wide as a pixel is on the ground (`soft`)."""
    return np.clip((value - low) / soft + 0.5, 0, 1) * np.clip((high - value) / soft + 0.5, 0, 1)


def _ground(stage: Stage, kind: str) -> None:
    """Asphalt with marks, kerbs and pavement; or a meadow with a path."""
    below, x, z = stage.view.ground()
    rng, warmth = stage.rng, stage.weather.warmth
    coarse, fine = _ground_noise(stage, x, z, 6.0), _ground_noise(stage, x, z, 0.8)
    across = z / stage.view.focal
    along = across * np.maximum(z / stage.view.height, 0.5)
    if kind == "field":
        grass = tint(rng, (0.15, 0.21, 0.06)) * (1 + 0.22 * coarse + 0.22 * fine)[..., None]
        dry = np.clip(0.5 * coarse + 0.25, 0, 1)[..., None]
        colour = grass + dry * (np.array([0.26, 0.24, 0.11]) * (1 + 0.2 * fine)[..., None] - grass)
        heat = 0.3 + 0.14 * warmth + 0.03 * coarse + 0.02 * fine
        bend = 1.2 * np.sin(z / 9 + rng.uniform(0, 6)) + rng.uniform(-1.5, 1.5)
        path = _band(x - bend + 0.25 * coarse, -1.3, 1.3, across)
        colour += path[..., None] * (np.array([0.36, 0.29, 0.2]) * (1 + 0.12 * fine)[..., None] - colour)
        heat += path * (0.07 * warmth + 0.04)
    else:
        side = kind == "crossing"  # the road runs across the view
        offset, run, soft_offset, soft_run = (z - 11.5, x, along, across) if side else (x, z, across, along)
        half = 3.6
        asphalt = tint(rng, (0.14, 0.14, 0.145))
        colour = asphalt * (1 + 0.10 * coarse + 0.16 * fine)[..., None]
        heat = 0.34 + 0.3 * warmth + 0.02 * coarse + 0.012 * fine
        joints = 0.93 + 0.07 * _band(np.mod(run, 1.0), 0.05, 1.0, soft_run)
        slabs = joints * (1 + 0.06 * coarse + 0.1 * fine)
        pavement = (1 - _band(offset, -half, half, soft_offset))[..., None]
        colour += pavement * (tint(rng, (0.34, 0.32, 0.29)) * slabs[..., None] - colour)
        heat -= pavement[..., 0] * 0.07
        kerb = _band(np.abs(offset), half - 0.05, half + 0.2, soft_offset)[..., None]
        colour += kerb * (np.array([0.45, 0.44, 0.42]) - colour)
        dash = _band(np.abs(offset), -1, 0.09, soft_offset) * _band(np.mod(run, 5.0), 0, 2.4, soft_run)
        edge = _band(np.abs(offset), half - 0.45, half - 0.3, soft_offset)
        marks = np.clip(dash + edge, 0, 1)[..., None] * (0.85 + 0.1 * fine[..., None])
        colour += marks * (np.array([0.68, 0.67, 0.62]) - colour)
        heat -= 0.03 * marks[..., 0]
        if not side:  # wheels keep two lanes' tracks dark and warm
            tracks = sum(_band(x, c - 0.25, c + 0.25, across + 0.2) for c in (-2.5, -1.0, 1.0, 2.5))
            colour *= 1 - 0.12 * np.asarray(tracks)[..., None]
            heat += 0.025 * np.asarray(tracks)
        grass = np.clip(1 - _band(offset, -9.5, 12.5 if side else 9.5, soft_offset), 0, 1)[..., None]
        meadow = np.array([0.13, 0.18, 0.06]) * (1 + 0.2 * coarse + 0.2 * fine)[..., None]
        colour += grass * (meadow - colour)
    patch = rectangle(stage.size, -1, stage.view.horizon, stage.size[1], stage.size[0])
    at = (patch.rows, patch.cols)
    patch.cover[np.logical_not(below[at])] = 0
    stage.canvas.paint(patch, np.clip(colour[at], 0, 1), heat[at], z[at])


def _skyline(stage: Stage, tall: float, rough: float) -> None:
    """Far woods and hills along the horizon."""
    size, horizon = stage.size, stage.view.horizon
    ridge = clouds(stage.rng, (4, size[1]), 1.3, 80)[0]
    leaf = tint(stage.rng, (0.12, 0.17, 0.1)) * (1 if stage.weather.dark else 1.3)
    for lift, pale, jag in ((1.0, 0.55, rough), (0.55, 0.2, rough * 1.4)):
        ragged = jag * np.roll(ridge, int(70 * lift)) + 0.3 * jag * np.roll(stage.fine[0], int(31 * lift))
        outline = [(2.0 * i, float(y)) for i, y in enumerate((horizon - tall * lift - ragged)[::2])]
        outline.append((size[1] + 8.0, outline[-1][1]))
        wood = polygon(size, [(-2.0, horizon + 2), *outline, (size[1] + 8.0, horizon + 2)])
        texture = 1 + 0.22 * stage.fine[wood.rows, wood.cols]
        colour = texture[..., None] * leaf
        haze = pale * np.array(stage.weather.haze) * (0.6 if not stage.weather.dark else 0.0)
        stage.canvas.paint(wood, colour * (1 - pale), 0.27 + 0.02 * texture, 150.0 * (1 + lift), light=haze)


def _buildings(stage: Stage, kind: str) -> None:
    """Buildings of the scene, far ones first."""
    rng = stage.rng
    if kind == "avenue":
        _skyline(stage, 5, 3)
        if rng.random() < 0.7:
            owner = stage.canvas.add("building")
            ends = (rng.uniform(-14, -6), 75.0), (rng.uniform(4, 14), 75.0)
            facade(stage, *ends, int(rng.integers(3, 7)), owner, 0.8)
        for side in (-1.0, 1.0):
            z, blocks = rng.uniform(4, 9), []
            open_side = rng.random() < 0.35
            while z < 55:
                deep = rng.uniform(7, 14)
                if not (open_side and rng.random() < 0.7):
                    blocks.append((z, z + deep, int(rng.integers(2, 5)), side * rng.uniform(7.6, 8.6)))
                z += deep + (rng.uniform(2.5, 6) if rng.random() < 0.5 else 0)
            for z0, z1, floors, x in reversed(blocks):
                owner = stage.canvas.add("building")
                facade(stage, (x, z0), (x + side * 9, z0), floors, owner, 0.95)
                facade(stage, (x, z0), (x, z1), floors, owner, 0.75 if side > 0 else 1.0)
    elif kind == "crossing":
        _skyline(stage, 8, 4)
        x = rng.uniform(-24, -17)
        while x < 20:
            wide = rng.uniform(7, 13)
            if rng.random() < 0.8:
                owner = stage.canvas.add("building")
                floors = int(rng.integers(1, 4))
                facade(stage, (x, 21.0), (x + wide, 21.0), floors, owner, rng.uniform(0.8, 1.0))
            x += wide + (rng.uniform(1, 4) if rng.random() < 0.5 else 0)
    else:
        _skyline(stage, 9, 5)
        if rng.random() < 0.6:
            x = rng.uniform(-12, 6)
            owner = stage.canvas.add("building")
            facade(stage, (x, 34.0), (x + rng.uniform(7, 10), 34.0), int(rng.integers(1, 3)), owner, 0.95)


Spot = tuple[str, float, float]  # what, X, Z


def _people_and_things(rng: np.random.Generator, kind: str) -> list[Spot]:
    """What stands where in a scene, in metres; nothing stands in something else."""
    spots: list[Spot] = []

    def place(what: str, x: float, z: float, clear: float) -> None:
        if all(abs(x - other_x) > clear or abs(z - other_z) > 1.0 for _, other_x, other_z in spots):
            spots.append((what, x, z))

    def side() -> float:
        return float(rng.choice([-1.0, 1.0]))

    if kind == "avenue":
        for _ in range(rng.integers(1, 4)):
            lane = 1.8 * side()
            place("front" if lane < 0 else "rear", lane + rng.uniform(-0.3, 0.3), rng.uniform(9, 30), 2.5)
        first = rng.uniform(8, 12)
        for i in range(3):
            place("lamp", 4.3 * side(), first + 8 * i, 0.3)
        for _ in range(rng.integers(2, 5)):
            place("tree", side() * rng.uniform(5.8, 7.0), rng.uniform(10, 32), 1.0)
        for _ in range(rng.integers(3, 6)):
            place("person", side() * rng.uniform(2.2, 6.0), rng.uniform(7, 20), 0.9)
    elif kind == "crossing":
        for lane in (9.8, 13.2):
            for _ in range(rng.integers(1, 3)):
                place("side", rng.uniform(-6, 6), lane, 5.2)
        for x in (rng.uniform(-7, -3), rng.uniform(3, 7)):
            place("lamp", x, 15.8, 0.3)
        for _ in range(rng.integers(1, 4)):
            place("tree", rng.uniform(-10, 10), rng.uniform(16.5, 19), 1.2)
        for _ in range(rng.integers(3, 6)):
            if rng.random() < 0.5:
                place("person", rng.uniform(-4, 4), rng.uniform(6.2, 7.6), 0.9)
            else:
                place("person", rng.uniform(-7, 7), 15.6, 0.9)
    else:
        for _ in range(rng.integers(3, 7)):
            place("tree", side() * rng.uniform(3.5, 14), rng.uniform(13, 30), 2.0)
        for _ in range(rng.integers(3, 8)):
            place("bush", side() * rng.uniform(2.5, 10), rng.uniform(8, 26), 1.5)
        if rng.random() < 0.6:
            place("side", rng.uniform(-4, 4), rng.uniform(13, 18), 5.0)
        place("lamp", side() * rng.uniform(2.6, 4), rng.uniform(9, 15), 0.6)
        for _ in range(rng.integers(2, 6)):
            place("person", rng.uniform(-4, 4), rng.uniform(6.5, 18), 0.9)
    return spots


def compose(rng: np.random.Generator, size: Size, weather: Weather, kind: str) -> Stage:
    """A scene of the kind `avenue`, `crossing` or `field` in this weather."""
    focal = size[1] * rng.uniform(0.78, 0.95)
    view = View(size, focal, size[0] * rng.uniform(0.36, 0.46), rng.uniform(2.2, 3.2))
    stage = Stage(Canvas(size), view, weather, rng)
    _sky(stage)
    _ground(stage, kind)
    _buildings(stage, kind)
    for what, x, z in sorted(_people_and_things(rng, kind), key=lambda spot: -spot[2]):
        if what == "person":
            person(stage, x, z)
        elif what == "side":
            car_side(stage, x, z)
        elif what in ("front", "rear"):
            car_end(stage, x, z, what == "front")
        elif what == "lamp":
            lamp(stage, x, z)
        elif what == "tree":
            tree(stage, x, z, rng.uniform(3.8, 6.5))
        else:
            tree(stage, x, z, rng.uniform(0.9, 1.7), bush=True)
    return stage


def radiance(stage: Stage) -> Array:
    """Linear light (H, W, 3): the albedo under daylight and lamplight (inverse square), and what shines."""
    canvas, view = stage.canvas, stage.view
    light = np.broadcast_to(np.array(stage.weather.ambient), canvas.albedo.shape).copy()
    rows, cols = np.indices(canvas.size, dtype=float)
    x = (cols - view.centre) * canvas.depth / view.focal
    y = view.height - (rows - view.horizon) * canvas.depth / view.focal
    for x0, y0, z0 in stage.lamps:
        squared = (x - x0) ** 2 + (y - y0) ** 2 + (canvas.depth - z0) ** 2
        downwards = np.clip(0.35 + (y0 - y) / np.sqrt(squared + 1e-6), 0.05, 1)
        light += (10.0 * downwards / (squared + 2.0))[..., None] * LAMPLIGHT
    return canvas.albedo * light + canvas.light


def bloom(linear: Array) -> Array:
    """Scatter of a lens: bright lights get a glow."""
    excess = np.clip(linear - 0.8, 0, None)
    glow = linear.copy()
    for weight, sigma in ((0.25, 1.5), (0.16, 5), (0.1, 14)):
        glow += weight * ndimage.gaussian_filter(excess, (sigma, sigma, 0))
    return glow


def camera(rng: np.random.Generator, linear: Array, exposure: float, noise: float) -> Array:
    """Picture in [0, 1]: lens blur, exposure, shot and read noise, soft shoulder, gamma 2.2."""
    signal = np.clip(ndimage.gaussian_filter(linear, (0.45, 0.45, 0)) * exposure, 0, None)
    signal += noise * rng.standard_normal(signal.shape) * np.sqrt(signal + 0.02)
    compressed = np.clip(signal, 0, None)
    compressed = np.where(compressed > 0.6, 0.6 + 0.4 * (1 - np.exp(-(compressed - 0.6) / 0.4)), compressed)
    return compressed ** (1 / 2.2)


def smoke(rng: np.random.Generator, stage: Stage) -> Array:
    """Transmittance (H, W) of drifting smoke: it thickens with depth and hangs in billows."""
    size = stage.size
    billows = clouds(rng, size, 2.6, 70)
    thick = np.clip(0.95 + 0.7 * billows, 0.15, None)
    path = np.clip(stage.canvas.depth, 0, 40)
    return np.exp(-thick * path * rng.uniform(0.06, 0.14))


def visible(rng: np.random.Generator, stage: Stage, veil: Array | None = None) -> Array:
    """Colour picture (H, W, 3) in [0, 1]; `veil` is the transmittance of smoke."""
    linear = bloom(radiance(stage))
    if veil is not None:
        grey = np.array([0.62, 0.63, 0.65]) * float(np.mean(stage.weather.ambient))
        curl = 1 + 0.07 * clouds(rng, stage.size, 2.4, 40)
        linear = linear * veil[..., None] + (1 - veil)[..., None] * grey * curl[..., None]
    return camera(rng, linear, *EXPOSURES[stage.weather.name])


def infrared(rng: np.random.Generator, stage: Stage, veil: Array | None = None) -> Array:
    """Thermal picture (H, W) in [0, 1]: slight blur, column pattern and noise of an uncooled camera.

    Smoke takes at most a fifth of the thermal signal.
    """
    heat = stage.canvas.heat
    if veil is not None:
        through = 0.8 + 0.2 * veil
        heat = heat * through + (1 - through) * 0.33
    picture = ndimage.gaussian_filter(heat, 0.65)
    picture = np.clip((picture - 0.08) / 0.86, 0, None) ** 1.35
    columns = 0.006 * rng.standard_normal(stage.size[1])
    return np.clip(picture + columns + 0.013 * rng.standard_normal(stage.size), 0, 1)


PLACES = {
    "avenue": "a street between buildings",
    "crossing": "a street with houses behind it",
    "field": "a path through a meadow",
}
COUNTS = ["no", "one", "two", "three", "four", "five", "six", "seven"]
PLURALS = {"person": "people", "car": "cars", "lamp": "lamps", "tree": "trees"}


def describe(labels: list[str], kind: str, when: str) -> str:
    """The true caption, from the objects that can be seen."""
    counted = Counter(labels)
    parts = [
        f"{COUNTS[min(counted[label], 7)]} {label if counted[label] == 1 else plural}"
        for label, plural in PLURALS.items()
        if counted[label]
    ]
    listed = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else "nobody"
    return f"{listed[0].upper()}{listed[1:]} on {PLACES[kind]}, {when}."


CONDITIONS = ((DAY, "by day"), (NIGHT, "at night"), (OVERCAST, "in thick smoke"), (DUSK, "at dusk"))
SEEN = ("person", "car", "lamp", "tree", "building")


def visible_infrared(rng: np.random.Generator, index: int, size: Size = (192, 256)) -> Views:
    """Sources `visible` (RGB) and `infrared` of a scene by day, at night, in smoke or at dusk; object masks.

    At least two of the objects are people that show 40 pixels or more.
    """
    weather, when = CONDITIONS[index % len(CONDITIONS)]
    kind = tuple(PLACES)[index % len(PLACES)]
    while True:
        stage = compose(rng, size, weather, kind)
        labels, masks = stage.canvas.masks(SEEN, least=40)
        if labels.count("person") >= 2:
            break
    veil = smoke(rng, stage) if weather is OVERCAST else None
    images = {"visible": visible(rng, stage, veil), "infrared": infrared(rng, stage, veil)}
    return Views(images, describe(labels, kind, when), None, tuple(labels), masks)

"""What a training crop may be changed into without its text, masks and physics becoming untrue."""

from __future__ import annotations

import numpy as np

from model.planes import Planes
from pipeline.manifest import SHARPENING_TASKS

SOURCE_BY_SOURCE = ("visible_infrared", "medical")
"""Tasks whose sources come from different sensors: the brightness of one says nothing about the other's."""


def photometric(planes: Planes, task: str, strength: float, random: np.random.Generator) -> Planes:
    """Change brightness: g x^γ, g = e^(-s U), γ = e^(s V), U in [0, 1], V in [-1, 1] uniform, s = strength.

    Sources of different sensors (visible and infrared, medical) change each on its own. Those of one camera
    (exposures, focus) and a target change together, else what tells them apart would be made up. In
    sharpening only g is drawn: the panchromatic image is a weighted sum of the target's bands and the
    low-resolution source their mean over pixels, and only a factor leaves both true.
    """

    def changed(count: int) -> list[tuple[float, float]]:
        drawn = [(float(random.random()), float(random.uniform(-1, 1))) for _ in range(count)]
        return [(float(np.exp(-strength * u)), float(np.exp(strength * v))) for u, v in drawn]

    own = task in SOURCE_BY_SOURCE
    laws = changed(len(planes.sources)) if own else changed(1) * (len(planes.sources) + 1)
    if task in SHARPENING_TASKS:
        laws = [(gain, 1.0) for gain, _ in laws]

    def applied(plane: np.ndarray, law: tuple[float, float]) -> np.ndarray:
        gain, gamma = law
        return (gain * plane**gamma).astype(np.float32)

    sources = tuple(applied(plane, law) for plane, law in zip(planes.sources, laws, strict=False))
    return Planes(sources, None if planes.target is None else applied(planes.target, laws[-1]))


def turned(array: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    """(C, H, W) turned by quarter turns, then perhaps mirrored."""
    rotated = np.rot90(array, turns, axes=(1, 2))
    return rotated[:, :, ::-1] if flip else rotated


def reflected(window: np.ndarray, size: int) -> np.ndarray:
    """(C, h, w) continued to (C, size, size) by reflection at its lower and right edge."""
    missing = [(0, size - length) for length in window.shape[1:]]
    return (
        np.pad(window, [(0, 0), *missing], mode="symmetric") if any(sum(pair) for pair in missing) else window
    )

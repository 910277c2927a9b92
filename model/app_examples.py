"""Scenes of the embedded data set for the page to start with, drawn when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.demo import PARTS
from pipeline.images import FloatArray, write_image
from pipeline.manifest import TASKS

# Test samples of the data set, which no shipped weights were trained on: task and number within it.
SCENES = (
    ("visible_infrared", 30),
    ("visible_infrared", 33),
    ("medical", 12),
    ("multi_exposure", 11),
    ("multi_focus", 11),
    ("pansharpening", 11),
    ("hyper_multispectral", 11),
)


@dataclass(frozen=True)
class Example:
    """A scene to try: files in source order, caption, and a file of object masks where the truth is known."""

    task: str
    sources: tuple[Path, ...]
    caption: str
    masks: Path | None


def draw_examples(folder: Path) -> list[Example]:
    """Draw every scene, with the data set's own seed, into files below ``folder``."""
    return [_draw(folder / f"{number}", *scene) for number, scene in enumerate(SCENES)]


def _draw(folder: Path, task: str, index: int) -> Example:
    views = PARTS[task].build(np.random.default_rng([0, tuple(TASKS).index(task), index]), index)
    sources = []
    for role, image in views.images.items():
        pixels = _bands(image)
        path = folder / (role + (".png" if len(pixels) in (1, 3) else ".tif"))
        write_image(path, pixels, 8 if len(pixels) in (1, 3) else 16)
        sources.append(path)
    masks = None
    if views.masks is not None:
        masks = folder / "masks.npy"
        np.save(masks, views.masks)
    return Example(task, tuple(sources), views.caption, masks)


def _bands(image: np.ndarray) -> FloatArray:
    """(H, W) or (H, W, C) -> float32 (C, H, W)."""
    bands = image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)
    return np.ascontiguousarray(bands, dtype=np.float32)

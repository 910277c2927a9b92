"""Draw the cases of docs/merging.md: hand-made masks of two sources and what the algorithm makes of them.

Run from the project's folder: python docs/merging_pictures.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.config import MergeConfig
from pipeline.merging import merge
from pipeline.records import Instances

HEIGHT, WIDTH, SCALE, GAP = 60, 84, 3, 12
COLOURS = ((230, 85, 70), (60, 120, 220), (245, 180, 40), (60, 170, 110))
PROMPT = ("person", "car")

Mask = NDArray[np.bool_]
Object = tuple[Mask, str, float]


def person(x: float, y: float = 30, height: float = 40) -> Mask:
    """A head on a body; (x, y) is the middle."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    body = ((rows - y - 0.12 * height) / (0.38 * height)) ** 2 + ((columns - x) / (0.17 * height)) ** 2 <= 1
    head = (rows - y + 0.38 * height) ** 2 + (columns - x) ** 2 <= (0.11 * height) ** 2
    return np.asarray(body | head)


def box(y0: int, y1: int, x0: int, x1: int) -> Mask:
    """A filled rectangle."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def car(x: int, y: int) -> Mask:
    """A cabin on a body; (x, y) is the upper left corner of the body."""
    return box(y, y + 13, x, x + 40) | box(y - 9, y, x + 9, x + 30)


SHADE = box(30, 60, 0, WIDTH)
LEGS = box(38, 60, 0, WIDTH)
CASES: dict[str, tuple[list[Object], list[Object]]] = {
    "twice": (
        [
            (person(26) & ~SHADE | box(30, 44, 22, 30) & person(26), "person", 0.80),
            (car(38, 36), "car", 0.95),
        ],
        [(person(27), "pedestrian", 0.92), (car(39, 37), "truck", 0.85)],
    ),
    "group": (
        [(person(24) | person(38) | person(52) | box(28, 38, 24, 52), "people", 0.90)],
        [(person(24), "person", 0.91), (person(38), "person", 0.88), (person(52), "person", 0.86)],
    ),
    "left_over": (
        [(person(26), "person", 0.93)],
        [(person(26) & LEGS, "person", 0.95), (person(62, 34, 26), "person", 0.70)],
    ),
    "overflow": (
        [
            (box(4 + 18 * j, 18 + 18 * j, 4 + 16 * i, 16 + 16 * i), "car", 0.95 - 0.01 * (5 * j + i))
            for j in range(3)
            for i in range(5)
        ],
        [],
    ),
}


def instances(objects: Sequence[Object]) -> Instances:
    """What the masks stage would give for these objects."""
    masks = np.array([mask for mask, _, _ in objects], dtype=bool).reshape(-1, HEIGHT, WIDTH)
    corners = [(np.nonzero(m.any(axis=0))[0], np.nonzero(m.any(axis=1))[0]) for m in masks]
    boxes = [[x[0], y[0], x[-1] + 1, y[-1] + 1] for x, y in corners]
    return Instances(
        box=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        score=np.full(len(objects), 0.8, dtype=np.float32),
        label=tuple(label for _, label, _ in objects),
        iou=np.array([iou for _, _, iou in objects], dtype=np.float32),
        mask=masks,
    )


def panel(title: str, masks: NDArray[np.bool_], words: Sequence[str]) -> Image.Image:
    """Masks in colours over white, with one line of words per mask below."""
    picture = np.full((HEIGHT, WIDTH, 3), 245.0)
    for index, mask in enumerate(masks):
        picture[mask] = 0.35 * picture[mask] + 0.65 * np.array(COLOURS[index % len(COLOURS)])
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE + 96), "white")
    drawn = Image.fromarray(picture.astype(np.uint8))
    image.paste(drawn.resize((WIDTH * SCALE, HEIGHT * SCALE), Image.Resampling.NEAREST), (0, 22))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    pen.text((0, 1), title, fill="black", font=font)
    for index, line in enumerate(words[:4]):
        colour = COLOURS[index % len(COLOURS)] if len(words) <= len(COLOURS) else (60, 60, 60)
        pen.text((0, HEIGHT * SCALE + 24 + 17 * index), line, fill=colour, font=font)
    return image


def draw(first: list[Object], second: list[Object], config: MergeConfig) -> Image.Image:
    """Both sources and the merged masks side by side."""
    merged = merge([instances(first), instances(second)], PROMPT, config)
    panels = []
    for title, found in (("source 1", first), ("source 2", second)):
        masks = instances(found).mask
        assert masks is not None
        panels.append(panel(title, masks, [f"{label}  IoU {iou:.2f}" for _, label, iou in found]))
    words = [f"{label}  IoU {iou:.2f}" for label, iou in zip(merged.label, merged.iou, strict=True)]
    if merged.overflow:
        words = [f"{len(words)} channels, {merged.overflow} more in the last one", *words]
    panels.append(panel("merged", merged.mask, words))
    sheet = Image.new("RGB", (3 * panels[0].width + 2 * GAP, panels[0].height), "white")
    for index, one in enumerate(panels):
        sheet.paste(one, (index * (one.width + GAP), 0))
    return sheet


def main() -> None:
    """Write docs/merging_<case>.png."""
    for name, (first, second) in CASES.items():
        config = MergeConfig(max_channels=12) if name == "overflow" else MergeConfig()
        draw(first, second, config).save(Path(__file__).with_name(f"merging_{name}.png"), optimize=True)


if __name__ == "__main__":
    main()

"""One picture of everything the pipeline knows of a sample: sources, boxes, masks, merged masks, caption."""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from pipeline.config import PipelineConfig, guidance_dir
from pipeline.errors import InputError
from pipeline.images import display, read_sample, write_image
from pipeline.manifest import Sample, nearest
from pipeline.records import Caption, Instances, MergedMasks, SampleInstances
from pipeline.store import open_store

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

PANEL = 440
"""Width of one picture in the sheet, in pixels."""
GAP = 14
PAPER: Colour = (250, 250, 248)
INK: Colour = (25, 25, 25)


def inspect(config: PipelineConfig, dataset: str, sample_id: str, out: Path) -> None:
    """Draw one sample's guidance into the PNG ``out``.

    One column per source (the image, its boxes with label and score, its masks) and one for the merged masks
    with their legend; the caption stands below. Reads the stores only. Raises InputError for an unknown data
    set or sample, and for a store that is missing or lacks the sample, naming the command that makes it.
    """
    if out.suffix.lower() != ".png":
        raise InputError(f"{out}: the picture is a PNG; give a name that ends in .png")
    sample = _find(config.dataset(dataset).samples(), sample_id, config.dataset(dataset).manifest)
    folder = guidance_dir(dataset)
    caption = open_store(folder / "captions.zarr").get(sample_id)
    found = open_store(folder / "masks.zarr").get(sample_id)
    merged = open_store(folder / "merged.zarr").get(sample_id)
    if not (
        isinstance(caption, Caption)
        and isinstance(found, SampleInstances)
        and isinstance(merged, MergedMasks)
    ):
        raise InputError(f"{folder}: the stores hold other records than their names say; delete the folder")
    views = [display(image.pixels) for image in read_sample(sample).images]
    sheet = draw(sample, views, found.sources, merged, caption.text)
    write_image(out, np.asarray(sheet, dtype=np.float32).transpose(2, 0, 1) / np.float32(255))


def _find(samples: Sequence[Sample], sample_id: str, manifest: str) -> Sample:
    for sample in samples:
        if sample.id == sample_id:
            return sample
    hint = nearest(sample_id, [sample.id for sample in samples])
    if "Choose one of" in hint:  # a data set may have thousands
        hint = " Sample names stand in its first column."
    raise InputError(f"{manifest}: no sample '{sample_id}'.{hint}")


def draw(
    sample: Sample, views: Sequence[Pixels], found: Sequence[Instances], merged: MergedMasks, caption: str
) -> PillowImage.Image:
    """Compose the sheet. ``views``: uint8 (H, W, 3), one per source, all of one size."""
    height, width = views[0].shape[:2]
    scale = PANEL / width
    tall = round(height * scale)
    columns = [
        [
            _panel(role, view, scale),
            _boxes_panel(f"{role}: {len(instances)} boxes", view, instances, scale),
            _masks_panel(f"{role}: masks", view, instances, scale),
        ]
        for role, view, instances in zip(sample.roles, views, found, strict=True)
    ]
    columns.append(
        [_merged_panel(views[0], merged, scale), _legend(merged, sample.roles, 2 * tall + GAP + TITLE)]
    )
    wide = GAP + len(columns) * (PANEL + GAP)
    text = _paragraph(f"{sample.id} ({sample.task}, {sample.split})\n{caption}", wide - 2 * GAP)
    sheet = PillowImage.new("RGB", (wide, 4 * GAP + 3 * (tall + TITLE) + text.height + GAP), PAPER)
    for number, column in enumerate(columns):
        y = GAP
        for panel in column:
            sheet.paste(panel, (GAP + number * (PANEL + GAP), y))
            y += panel.height + GAP
    sheet.paste(text, (GAP, sheet.height - text.height - GAP))
    return sheet


TITLE = 24


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def object_colour(index: int) -> Colour:
    """Distinct colours for any number of objects: hues a golden ratio apart."""
    red, green, blue = colorsys.hsv_to_rgb((index * 0.618034) % 1, 0.85 if index % 2 else 0.65, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _panel(title: str, view: Pixels, scale: float) -> PillowImage.Image:
    """A picture in the sheet's width with its title above."""
    tall = round(view.shape[0] * scale)
    picture = PillowImage.fromarray(view).resize((PANEL, tall), PillowImage.Resampling.LANCZOS)
    panel = PillowImage.new("RGB", (PANEL, tall + TITLE), PAPER)
    ImageDraw.Draw(panel).text((0, 2), title, fill=INK, font=_font(16))
    panel.paste(picture, (0, TITLE))
    return panel


def _boxes_panel(title: str, view: Pixels, found: Instances, scale: float) -> PillowImage.Image:
    panel = _panel(title, view, scale)
    pen = ImageDraw.Draw(panel)
    tags: list[tuple[float, float, float, float]] = []
    for index, (box, label, score) in enumerate(zip(found.box, found.label, found.score, strict=True)):
        x0, y0, x1, y1 = (float(value) * scale for value in box)
        pen.rectangle(
            (x0, y0 + TITLE, max(x1, x0 + 1), max(y1, y0 + 1) + TITLE), outline=object_colour(index), width=2
        )
        _tag(pen, tags, (x0, y0 + TITLE), f"{label} {score:.2f}", object_colour(index), panel.height)
    return panel


def _tag(
    pen: ImageDraw.ImageDraw,
    tags: list[tuple[float, float, float, float]],
    corner: tuple[float, float],
    text: str,
    colour: Colour,
    height: int,
) -> None:
    """Write a box's tag above its corner, or a line lower while it would cover an earlier tag."""
    wide, tall = pen.textlength(text, font=_font(12)) + 4, 14.0
    x = min(max(corner[0], 0), PANEL - wide)
    y = max(corner[1] - tall, TITLE)
    while any(x < b[2] and b[0] < x + wide and y < b[3] and b[1] < y + tall for b in tags):
        y += tall
    if y + tall > height:
        return
    tags.append((x, y, x + wide, y + tall))
    pen.rectangle(tags[-1], fill=(0, 0, 0))
    pen.text((x + 2, y), text, fill=colour, font=_font(12))


def _masks_panel(title: str, view: Pixels, found: Instances, scale: float) -> PillowImage.Image:
    masks = found.mask if found.mask is not None else np.zeros((0, *view.shape[:2]), dtype=bool)
    return _panel(title, _overlay(view, masks), scale)


def _merged_panel(view: Pixels, merged: MergedMasks, scale: float) -> PillowImage.Image:
    title = (
        f"merged: {len(merged.label)} channels, {merged.dropped} dropped, {merged.overflow} over the limit"
    )
    return _panel(title, _overlay(view, merged.mask), scale)


def _overlay(view: Pixels, masks: NDArray[np.bool_]) -> Pixels:
    """The grey picture with every mask tinted and outlined in its colour; smaller masks lie on top."""
    result = np.repeat(view.mean(axis=2, keepdims=True), 3, axis=2) * 0.75
    for index in np.argsort([-int(mask.sum()) for mask in masks], kind="stable"):
        mask, colour = masks[index], np.array(object_colour(int(index)), dtype=np.float64)
        result[mask] = 0.5 * result[mask] + 0.5 * colour
        result[outline(mask)] = colour
    return result.astype(np.uint8)


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask (H, W) that touch its outside; the picture's border is not outside."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner


def _legend(merged: MergedMasks, roles: Sequence[str], height: int) -> PillowImage.Image:
    """One line per merged channel: colour, label, score, predicted IoU and the sources that saw it."""
    panel = PillowImage.new("RGB", (PANEL, height), PAPER)
    pen = ImageDraw.Draw(panel)
    if not merged.label:
        pen.text((0, 4), "no objects", fill=INK, font=_font(14))
    line = min(24, height // max(len(merged.label), 1))
    for index, label in enumerate(merged.label):
        y = index * line
        pen.rectangle((2, y + 2, 16, y + line - 4), fill=object_colour(index))
        seen = int(merged.sources[index]) if merged.sources is not None else 0
        names = " + ".join(role for bit, role in enumerate(roles) if seen >> bit & 1)
        text = (
            f"{index + 1}  {label}   score {merged.score[index]:.2f}   IoU {merged.iou[index]:.2f}   {names}"
        )
        pen.text((24, y), text, fill=INK, font=_font(min(14, line - 2)))
    return panel


def _paragraph(text: str, width: int) -> PillowImage.Image:
    font = _font(16)
    per_line = int(width / 7.6)
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, per_line) or [""]]
    panel = PillowImage.new("RGB", (width, 22 * len(lines) + 4), PAPER)
    ImageDraw.Draw(panel).multiline_text((0, 0), "\n".join(lines), fill=INK, font=font, spacing=4)
    return panel

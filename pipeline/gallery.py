"""One self-contained HTML page that shows the guidance of many samples, one at a time, to page through."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image as PillowImage

from pipeline.config import PipelineConfig, guidance_dir
from pipeline.errors import InputError
from pipeline.images import display, read_sample, write_atomically
from pipeline.inspect import Pixels, object_colour, outline
from pipeline.manifest import SPLITS, Sample, nearest
from pipeline.objects import Place
from pipeline.records import Caption, Instances, MergedMasks, SampleInstances
from pipeline.store import Record, Store, open_store

SIDE = 720
"""Pixels of the longer side of a picture on the page."""


@dataclass(frozen=True)
class Thing:
    """One object of the page: its colour, its line of the table, its box in percent of the picture."""

    colour: str
    label: str
    score: float
    iou: float
    pixels: int
    sources: str = ""
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Panel:
    """A source, or the merged masks: picture and tinted masks as data URIs, and the objects."""

    title: str
    note: str
    picture: Markup
    masks: Markup | None
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Page:
    """One sample on the page; ``problem`` says why something of it is missing."""

    sample: Sample
    caption: str = ""
    panels: tuple[Panel, ...] = ()
    problem: str = ""


def write_gallery(
    config: PipelineConfig, dataset: str, out: Path, samples: str = "", split: str = ""
) -> tuple[int, tuple[str, ...]]:
    """Write the page ``out`` and return how many samples it shows and which of them lack something.

    ``samples``: positions ``0:20`` in the manifest (like a Python slice), names separated by commas, or ""
    for all; ``split``: only samples of this split, before positions are counted. Stores are only read. A
    sample without guidance, or with an unreadable image, is shown with the reason. Raises InputError for
    unknown names and for a data set without any guidance store.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out}: the gallery is a page; give a name that ends in .html")
    data = config.dataset(dataset)
    chosen = select(data.samples(), samples, split, data.manifest)
    folder = guidance_dir(dataset)
    stores = [_opened(folder / f"{kind}.zarr") for kind in ("captions", "masks", "merged")]
    if not any(stores):
        raise InputError(
            f"{folder}: holds no guidance yet; run `python -m pipeline guidance --dataset {dataset}`"
        )
    remedy = f"run `python -m pipeline guidance --dataset {dataset}`"
    pages = [_page(sample, stores, remedy) for sample in chosen]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    text = environment.get_template("gallery.html").render(dataset=dataset, pages=pages)
    write_atomically(out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return len(pages), tuple(page.sample.id for page in pages if page.problem)


def select(samples: Sequence[Sample], which: str, split: str, manifest: str) -> list[Sample]:
    """The samples of a split at positions ``a:b`` or of the names ``a,b``. InputError when there is none."""
    if split and split not in SPLITS:
        raise InputError(f"--split '{split}': no such split.{nearest(split, SPLITS)}")
    chosen = [sample for sample in samples if sample.split == split or not split]
    if re.fullmatch(r"-?\d*:-?\d*", which):
        start, stop = (int(bound) if bound else None for bound in which.split(":"))
        chosen = chosen[start:stop]
    elif which:
        known = {sample.id: sample for sample in chosen}
        names = [name.strip() for name in which.split(",") if name.strip()]
        for name in names:
            if name not in known:
                hint = nearest(name, known)
                listed = "" if "Choose one of" in hint else hint  # a data set may have thousands
                raise InputError(f"{manifest}: no sample '{name}' to show.{listed}")
        chosen = [known[name] for name in names]
    if not chosen:
        raise InputError(f"{manifest}: no sample in --samples '{which}' --split '{split}'; choose others")
    return chosen


def _opened(path: Place) -> Store | None:
    return open_store(path) if path.exists() else None


def _page(sample: Sample, stores: Sequence[Store | None], remedy: str) -> Page:
    captions, masks, merged = (_record(store, sample) for store in stores)
    caption = captions.text if isinstance(captions, Caption) else ""
    records = {"caption": captions, "masks": masks, "merged masks": merged}
    missing = [kind for kind, record in records.items() if record is None]
    problem = f"no {', no '.join(missing)} yet; {remedy}" if missing else ""
    try:
        views = [display(image.pixels) for image in read_sample(sample).images]
    except InputError as error:
        return Page(sample, caption, problem=str(error))
    found: Sequence[Instances | None] = [None] * len(views)
    if isinstance(masks, SampleInstances):
        found = masks.sources
    panels = [
        _source_panel(role, view, of) for role, view, of in zip(sample.roles, views, found, strict=True)
    ]
    if isinstance(merged, MergedMasks):
        panels.append(_merged_panel(sample, views[0], merged))
    return Page(sample, caption, tuple(panels), problem)


def _record(store: Store | None, sample: Sample) -> Record | None:
    return store.get(sample.id) if store is not None and store.is_done(sample.id) else None


def _source_panel(role: str, view: Pixels, found: Instances | None) -> Panel:
    if found is None or found.mask is None or found.iou is None:
        return Panel(role, "", _jpeg(view), None, ())
    height, width = view.shape[:2]
    percent = np.array([100 / width, 100 / height, 100 / width, 100 / height])
    things = []
    for i, (label, box) in enumerate(zip(found.label, found.box, strict=True)):
        x0, y0, x1, y1 = (float(value) for value in box * percent)
        facts = float(found.score[i]), float(found.iou[i]), int(found.mask[i].sum())
        things.append(Thing(_css(i), label, *facts, box=(x0, y0, x1 - x0, y1 - y0)))
    note = f"{len(things)} object{'' if len(things) == 1 else 's'}"
    return Panel(role, note, _jpeg(view), _tinted(found.mask), tuple(things))


def _merged_panel(sample: Sample, view: Pixels, merged: MergedMasks) -> Panel:
    things = []
    for i, label in enumerate(merged.label):
        seen = int(merged.sources[i]) if merged.sources is not None else 0
        roles = " + ".join(role for bit, role in enumerate(sample.roles) if seen >> bit & 1)
        facts = float(merged.score[i]), float(merged.iou[i]), int(merged.mask[i].sum())
        things.append(Thing(_css(i), label, *facts, sources=roles))
    note = f"{len(things)} channels, {merged.dropped} dropped, {merged.overflow} beyond the last channel"
    grey = np.repeat(view.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    return Panel("merged", note, _jpeg(grey), _tinted(merged.mask), tuple(things))


def _css(index: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*object_colour(index))


def _tinted(masks: NDArray[np.bool_]) -> Markup | None:
    """All masks in their colours on transparent ground, smaller ones on top; None when there is none."""
    if not len(masks):
        return None
    picture = np.zeros((*masks.shape[1:], 4), np.uint8)
    for index in np.argsort([-int(mask.sum()) for mask in masks], kind="stable"):
        colour = object_colour(int(index))
        picture[masks[index]] = (*colour, 115)
        picture[outline(masks[index])] = (*colour, 255)
    return _uri(_fitted(PillowImage.fromarray(picture), PillowImage.Resampling.NEAREST), "PNG")


def _jpeg(view: Pixels) -> Markup:
    return _uri(_fitted(PillowImage.fromarray(view), PillowImage.Resampling.LANCZOS), "JPEG", quality=88)


def _fitted(picture: PillowImage.Image, resampling: PillowImage.Resampling) -> PillowImage.Image:
    scale = min(1.0, SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture if scale == 1 else picture.resize(size, resampling)


def _uri(picture: PillowImage.Image, kind: str, quality: int = 0) -> Markup:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": quality} if quality else {"optimize": True}))
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Markup(f"data:image/{kind.lower()};base64,{data}")

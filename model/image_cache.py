"""Decoded images of a data set in a Zarr store: a training crop then costs no decoding of whole files.

One store per data set and task, ``guidance/<data set>/images/<task>.zarr``; it may be deleted at any time.
All bands of a sample lie on the grid of its first source: pixels of smaller sources are repeated there, which
costs the compressed store next to nothing, and taken apart again. Integers stay as they are in the files, so
that what is cut out is bit for bit what decoding gives.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from model.planes import Planes, as_planes, read_images
from pipeline.errors import InputError
from pipeline.images import Image, quantise
from pipeline.manifest import SHARPENING_TASKS, Sample, content_hash, file_of
from pipeline.store import Pixels, Store, fingerprint, locked, open_store, prepare_store

_TILE = 128  # sizes grow by whole tiles
_TYPES = ("uint8", "uint16", "float32")
_WIDEST = 16  # bits that are kept as integers
_VERSION = 1


def cache_path(dataset: str, task: str) -> Path:
    """Where decoded images of a data set are cached: on this machine, wherever its guidance may be."""
    return Path("guidance") / dataset / "images" / f"{task}.zarr"


def stamp(sample: Sample) -> str:
    """Sizes and times of change of a sample's images. Raises InputError when one is missing."""
    target = () if sample.target is None else (sample.target,)
    facts = []
    for path in (*(source.path for source in sample.sources), *target):
        try:
            status = os.stat(file_of(path))
        except OSError as error:
            raise InputError(
                f"{path}: cannot read this file of sample '{sample.id}' ({error.strerror}); "
                "restore it or remove the row from the manifest"
            ) from error
        facts.append(f"{status.st_size}:{status.st_mtime_ns}")
    return " ".join(facts)


def open_cache(path: Path, samples: Sequence[Sample], target: bool) -> Store | None:
    """The cache if it holds all these samples, with or without ``target``; their files are not looked at."""
    if not path.exists():
        return None
    store = open_store(path)
    cached = store.contents()
    fits = store.config["target"] == target and all(sample.id in cached for sample in samples)
    return store if fits else None


def fill_cache(
    path: Path,
    samples: Sequence[Sample],
    task: str,
    content: Mapping[str, str] | None = None,
    supervised: bool = False,
    console: Console | None = None,
) -> Store:
    """Decode what is not in the cache yet or has changed, drop what is not asked for, and open the cache.

    ``content``: sample id -> content hash, computed here if not given. Goes on where an interrupted call
    stopped. Raises InputError for unusable samples and while another process fills the same cache.
    """
    content = content or {sample.id: content_hash(sample) for sample in samples}
    content = {sample.id: content[sample.id] for sample in samples}
    with locked(path), ThreadPoolExecutor(os.cpu_count()) as pool, Progress(console=console) as progress:
        form = _form(_read(samples[0], task, supervised), task, supervised)
        store = _prepared(path, content, form)
        bar = progress.add_task(f"decoding images of {task}, once", total=len(samples))
        start = 0
        while start < len(samples):
            block = samples[start : start + store.rows]
            missing = [sample for sample in block if store.content(sample.id) != content[sample.id]]
            decoded = dict(
                zip(missing, pool.map(lambda sample: _read(sample, task, supervised), missing), strict=True)
            )
            wider = _holding(form, decoded, samples[0])
            if wider != form:  # records move into the larger store; those of another type are made anew
                start = 0 if wider.dtype != form.dtype else start
                form, store = wider, _prepared(path, content, wider)
                continue
            rows = {sample.id: _stacked(images, form, stamp(sample)) for sample, images in decoded.items()}
            if rows:
                store.write(rows, content)
            start += len(block)
            progress.update(bar, completed=start)
    return open_store(path)


def cached_window(store: Store, sample: str, y: int, x: int, height: int, width: int) -> Planes:
    """A window of a sample, bit for bit what `planes.decode` and `Planes.window` give."""
    config = store.config
    pixels = store.pixel_crop(sample, y, x, height, width)
    images, start = [], 0
    for slots, ratio in zip(config["bands"], config["ratios"], strict=True):
        bits = pixels.bits[start : start + slots]
        bands = slice(start, start + int(np.count_nonzero(bits)))
        values = pixels.values[bands, ::ratio, ::ratio].astype(np.float32)
        images.append(values if bits[0] > _WIDEST else values / np.float32(2 ** int(bits[0]) - 1))
        start += slots
    target = images.pop() if config["target"] else None
    return as_planes(images, target, config["task"])


@dataclass(frozen=True)
class _Form:
    """What a store must be like to hold samples: room for the bands of each image, whose make-up is that of
    all samples, the widest type, the largest size. A band that a sample lacks has 0 bits."""

    task: str
    target: bool
    bands: tuple[int, ...]
    ratios: tuple[int, ...]
    dtype: str
    height: int
    width: int


def _read(sample: Sample, task: str, supervised: bool) -> list[Image]:
    """Sources, then the target if there is one."""
    sources, target = read_images(sample, task, supervised)
    return sources if target is None else [*sources, target]


def _form(images: Sequence[Image], task: str, supervised: bool) -> _Form:
    bits, sharpens = max(image.bits for image in images), task in SHARPENING_TASKS
    height, width = (-(-side // _TILE) * _TILE for side in images[0].size)
    return _Form(
        task=task,
        target=supervised or sharpens,
        # Elsewhere an image is grey or RGB, and one data set may hold both.
        bands=tuple(image.pixels.shape[0] if sharpens else 3 for image in images),
        ratios=tuple(images[0].size[0] // image.size[0] for image in images),
        dtype="uint8" if bits <= 8 else "uint16" if bits <= _WIDEST else "float32",
        height=height,
        width=width,
    )


def _holding(form: _Form, decoded: Mapping[Sample, Sequence[Image]], first: Sample) -> _Form:
    """The form that holds these samples too. Raises InputError for one of another make-up than the first."""
    for sample, images in decoded.items():
        other = _form(images, form.task, form.target)
        if (other.bands, other.ratios) != (form.bands, form.ratios):
            raise InputError(
                f"sample '{sample.id}' has images of {other.bands} bands at ratios {other.ratios}, sample "
                f"'{first.id}' {form.bands} at {form.ratios}; keep them in separate data sets"
            )
        form = dataclasses.replace(
            form,
            dtype=max(form.dtype, other.dtype, key=_TYPES.index),
            height=max(form.height, other.height),
            width=max(form.width, other.width),
        )
    return form


def _prepared(path: Path, content: Mapping[str, str], form: _Form) -> Store:
    config = {**dataclasses.asdict(form), "version": _VERSION}
    sizes = {"H": config.pop("height"), "W": config.pop("width"), "B": sum(form.bands)}
    store, _ = prepare_store(
        path, f"images_{form.dtype}", content, config, fingerprint(config, None), **sizes
    )
    return store


def _stacked(images: Sequence[Image], form: _Form, stamp: str) -> Pixels:
    """All bands on the first image's grid."""
    height, width = images[0].size
    values = np.zeros((sum(form.bands), height, width), form.dtype)
    bits = np.zeros(sum(form.bands), np.int32)
    start = 0
    for image, ratio, slots in zip(images, form.ratios, form.bands, strict=True):
        depth = _WIDEST + 1 if form.dtype == "float32" else image.bits
        pixels = image.pixels if depth > _WIDEST else quantise(image.pixels, depth)
        stop = start + len(pixels)
        values[start:stop] = pixels.repeat(ratio, axis=1).repeat(ratio, axis=2)
        bits[start:stop] = depth
        start += slots
    return Pixels(values, bits, stamp)

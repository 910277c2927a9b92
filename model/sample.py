"""One sample of `rwkvfusion fuse` from its files to its fused image: guidance, result's form, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.inference import Colour, Fuser, check, fuse, window_of
from model.jobs import Job, printable
from model.masks import Masks, open_masks
from model.pieces import in_pieces
from model.stored import note, stored_guidance
from pipeline.errors import InputError
from pipeline.images import (
    FloatArray,
    GeoReference,
    Image,
    ImageFacts,
    check_sources,
    depth_by_values,
    image_facts,
    read_image,
)
from pipeline.manifest import SHARPENING_TASKS

if TYPE_CHECKING:
    from model.guidance import Guidance

LIBRARIES = 800 * 2**20  # bytes that Python, torch and GDAL take before the first image
_LEAST = 256 * 2**20  # bytes that the network gets however small the budget, and files written at once


@dataclass(frozen=True)
class Settings:
    """How samples are fused.

    ``weights``: of one task, for all samples; else a data set's own (runs/<dataset>/<task>), else the shipped
    ones of each sample's task. ``caption`` and ``masks`` (a file, or a folder of files named as the samples)
    guide every sample that has none of its own; ``guidance`` are stores. ``memory``: bytes to work in.
    ``bits``: depth of values that do not fill their type; None: a data set's manifest says, else the values.
    """

    weights: str | None = None
    dataset: str | None = None
    guidance: Guidance | None = None
    caption: str | None = None
    masks: Path | None = None
    bits: int | None = None
    colour: Colour = "auto"
    device: str = "cpu"
    dtype: str = "float32"
    compiled: bool = False
    memory: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Result:
    """The form of a fused image: its file, (C, H, W), bits, place on Earth, and what is lost."""

    path: Path
    shape: tuple[int, int, int]
    bits: int
    georeference: GeoReference | None
    loss: str = ""


@dataclass(frozen=True)
class Prepared:
    """A sample ready to be fused by ``fuser``; ``images`` is None where it is to be read in pieces.

    ``memory``: bytes for the network beside the images.
    """

    job: Job
    fuser: Fuser
    facts: tuple[ImageFacts, ...]
    images: tuple[Image, ...] | None
    result: Result
    text: NDArray[np.floating] | None
    masks: Masks | None
    note: str
    memory: int | None


def prepare(job: Job, fuser: Fuser, settings: Settings) -> Prepared | Result:
    """Read a sample; only the result's form when it exists already.

    Raises InputError naming the file or sample.
    """
    sample = job.sample
    facts = tuple(image_facts(source.path, sample.bits) for source in sample.sources)
    result = _result(job, facts, settings.colour)
    if not settings.overwrite and result.path.exists():
        return result
    check_sources(sample, facts)
    check([_Shape((image.bands, *image.size)) for image in facts], fuser, settings.colour)
    text, masks, note = _guidance(job, fuser, settings, facts[0].size)
    if settings.dataset is None and (
        bits := settings.bits or depth_by_values([image.path for image in facts])
    ):
        note += "" if settings.bits else f", {bits} bits by the values"
        sample = replace(sample, bits=bits)
        job = replace(job, sample=sample)
        facts = tuple(image_facts(source.path, bits) for source in sample.sources)
        result = _result(job, facts, settings.colour)
        if not settings.overwrite and result.path.exists():  # by the depth it may be of another type
            return result
    _check_place(result.path)
    arrays = 4 * (sum(image.bands * np.prod(image.size) for image in facts) + 3 * np.prod(result.shape))
    memory = settings.memory
    whole = memory is None or arrays <= max((memory - LIBRARIES) / 2, 0 if in_pieces(result.path) else _LEAST)
    if memory is not None:
        memory = max(int(memory - LIBRARIES - (arrays if whole else (memory - LIBRARIES) / 2)), _LEAST)
    images = None
    if whole:
        images = tuple(read_image(source.path, sample.bits) for source in sample.sources)
    return Prepared(job, fuser, facts, images, result, text, masks, note, memory)


def _check_place(path: Path) -> None:
    """A folder is replaced only by an array that replaces an array."""
    if path.is_dir():
        from pipeline.zarr_images import holds_array  # zarr takes long to load

        if not holds_array(path):
            raise InputError(f"{path}: is a folder with other things in it; give another output")


def fuse_prepared(prepared: Prepared, fuser: Fuser, colour: Colour) -> FloatArray:
    """Fuse a sample whose images were read. Raises InputError."""
    assert prepared.images is not None
    masks = None if prepared.masks is None else prepared.masks(0, 0, *prepared.images[0].size)
    try:
        return fuse(
            [image.pixels for image in prepared.images],
            fuser,
            text=prepared.text,
            masks=masks,
            colour=colour,
            memory=prepared.memory,
        )
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        height, width = prepared.images[0].size
        raise InputError(
            f"sample '{printable(prepared.job.sample.id)}' of {height}x{width} does not fit into memory; "
            "give a smaller --memory, so that it is fused in tiles"
        ) from error


@dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]


def _result(job: Job, facts: Sequence[ImageFacts], colour: Colour) -> Result:
    """Size, bands and depth follow the sources; so does the type where the output names only a folder.

    The depth is that of the bands in sharpening, the deepest of the sources otherwise.
    """
    if job.sample.task in SHARPENING_TASKS:
        bands, bits = facts[-1].bands, facts[-1].bits
    else:
        coloured = colour != "gray" and any(image.bands == 3 for image in facts)
        bands, bits = 3 if coloured else 1, max(8, *(image.bits for image in facts))
    place = facts[0].georeference
    if place is None:  # another source's is as good where it is of the same size
        place = next((image.georeference for image in facts if image.size == facts[0].size), None)
    path, loss = job.output, ""
    if job.suffix_free:
        path = path.with_name(path.name.removesuffix(".png") + _suffix(facts[0].path, bands, bits, place))
    suffix = path.suffix.lower()
    if place is not None and suffix not in (".tif", ".tiff"):
        loss = f", without the georeference ({suffix} has no place for it)"
    elif bits > 8 and suffix in (".jpg", ".jpeg", ".bmp"):
        loss = f", 8 of {bits} bits ({suffix} holds no more)"
    return Result(path, (bands, *facts[0].size), bits, place, loss)


def _suffix(source: Path, bands: int, bits: int, place: GeoReference | None) -> str:
    """The type of the first source where it loses nothing; PNG for JPEG, TIFF for what PNG cannot hold."""
    own = source.suffix.lower()
    if own == ".npy" and place is None:
        return own
    png = bands in (1, 3) and bits <= 16 and place is None
    if own in (".tif", ".tiff") or not png:
        return own if own in (".tif", ".tiff") else ".tif"
    return ".bmp" if own == ".bmp" and bits == 8 else ".png"


def _guidance(
    job: Job, fuser: Fuser, settings: Settings, size: tuple[int, int]
) -> tuple[NDArray[np.floating] | None, Masks | None, str]:
    """Text features, masks by window, and a note on both. What the sample itself brings goes first."""
    text, stored, reason = stored_guidance(job.sample, settings.guidance, fuser)
    masks = None if stored is None else window_of(stored)
    caption = job.caption or settings.caption
    if caption is not None:
        from model.caption import encode  # the stages' encoders, which few commands need

        text, reason = encode(caption, fuser), ""
    path = job.masks or settings.masks
    if path is not None and path.is_dir():
        found = sorted(path.glob(f"{escape(job.sample.id)}.*"))
        path = found[0] if found else None
        reason += "" if found else " (no masks of that name)"
    if path is not None:
        if fuser.network.config.guidance not in ("both", "masks"):
            raise InputError(f"{fuser.path}: does not take merged masks; leave --masks out")
        masks = open_masks(path, size)
    return text, masks, note(text, masks) + reason

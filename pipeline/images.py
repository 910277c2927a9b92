"""Read and write images: any supported file to float32 C x H x W in [0, 1] and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from pipeline.errors import InputError
from pipeline.georeference import GeoReference
from pipeline.manifest import SHARPENING_TASKS, Sample
from pipeline.rasters import READING_ERRORS, Raster, Values, open_raster
from pipeline.writing import FloatArray, quantise, write_atomically, write_image

__all__ = [
    "LUMA",
    "READING_ERRORS",
    "FloatArray",
    "GeoReference",
    "Image",
    "ImageFacts",
    "SampleImages",
    "check_sources",
    "depth_by_values",
    "display",
    "enlarge",
    "image_facts",
    "luminance",
    "quantise",
    "read_image",
    "read_sample",
    "read_sources",
    "read_window",
    "write_atomically",
    "write_image",
]

# ITU-R BT.601 luma weights, the ones JPEG, OpenCV and MATLAB's rgb2gray use.
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Image:
    """Pixels as float32 (C, H, W) in [0, 1]; ``bits`` of the file: 8, 11, 16, …, or 32 for floating point.

    ``transparency`` says that a band which the file marks as alpha was left out.
    """

    pixels: FloatArray
    bits: int
    path: Path
    georeference: GeoReference | None = None
    transparency: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def bands(self) -> int:
        """C."""
        return self.pixels.shape[0]


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image's header says, as reading it would give: (H, W), bands, bits.

    ``streams``: whether ``read_window`` reads little more than the window, so that an image larger than
    memory can be worked on in pieces. Otherwise every window costs as much as decoding the whole image.
    """

    size: tuple[int, int]
    bands: int
    bits: int
    georeference: GeoReference | None
    streams: bool
    path: Path
    transparency: bool = False


@dataclass(frozen=True, slots=True)
class SampleImages:
    """A sample with its decoded sources, all on the grid (H, W) of the first one."""

    sample: Sample
    images: tuple[Image, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.images[0].size


_DEPTHS = (8, 10, 11, 12, 14, 16, 24)
"""Bits per value of sensors and of the types that hold them."""
_PIECE = 2**24  # values that are read at a time


@contextmanager
def _opened(path: Path) -> Iterator[Raster]:
    """Open an image; whatever the libraries say of a bad file becomes one line that names it."""
    try:
        with open_raster(path) as raster:
            if 0 in raster.shape:
                raise InputError(f"{path}: the image is empty (C x H x W = {raster.shape}); replace the file")
            if raster.dtype.kind not in "biuf":
                raise InputError(
                    f"{path}: values of type {raster.dtype} are not supported; save the image as 8 or 16 bits"
                )
            yield raster
    except InputError:
        raise
    except READING_ERRORS as error:
        said = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as an image ({said}); replace the file") from error


def read_image(path: Path, bits: int | None = None) -> Image:
    """Read PNG, JPEG, BMP, TIFF, NPY, ENVI or a variable of a MATLAB or HDF5 file (``file.mat#KEY``).

    Integers are divided by 2**bits - 1, where ``bits`` defaults to the file's own depth; floating point must
    already lie in [0, 1] unless ``bits`` says the peak. Palettes are expanded, alpha is dropped, EXIF
    orientation is applied. Arrays are H x W or H x W x C. Raises InputError naming the file and what to do.
    """
    with _opened(path) as raster:
        height, width = raster.shape[1:]
        values = raster.read(0, 0, height, width)
    return _image(raster, values, bits, path)


def read_window(path: Path, top: int, left: int, height: int, width: int, bits: int | None = None) -> Image:
    """Read the window ``[top : top + height, left : left + width]`` of an image, as ``read_image`` would give
    it; the georeference is the window's.

    Reads little more than the window where ``image_facts(path).streams``. Raises InputError as ``read_image``
    does, for values in the window only, and ValueError for a window that leaves the image.
    """
    with _opened(path) as raster:
        rows, columns = raster.shape[1:]
        inside = 0 <= top < top + height <= rows and 0 <= left < left + width <= columns
        values = raster.read(top, left, height, width) if inside else None
    if values is None:
        raise ValueError(
            f"{path}: window {top}+{height}, {left}+{width} leaves the image of {rows}x{columns}"
        )
    image = _image(raster, values, bits, path)
    place = image.georeference
    return image if place is None else replace(image, georeference=place.window(top, left))


def image_facts(path: Path, bits: int | None = None) -> ImageFacts:
    """What the header of an image says; pixels are not decoded. Raises InputError as ``read_image`` does."""
    with _opened(path) as raster:
        return ImageFacts(
            size=raster.shape[1:],
            bands=raster.shape[0],
            bits=_depth(raster, bits),
            georeference=raster.georeference,
            streams=raster.streams,
            path=path,
            transparency=raster.transparency,
        )


def depth_by_values(paths: Sequence[Path]) -> int | None:
    """Bits that the values of a sample's deep images (integers of more than 8 bits) fill.

    The least of 10, 11, 12, 14, 16 and 24 that holds them all, and of 8 for types deeper than 16. None where
    that is their type's depth, where an image is floating point, and where a value is negative.
    Sensors of 10 to 14 bits leave their values in types of 16 or 32, and few files say so. Reads the images
    in pieces where their formats allow. Raises InputError as ``read_image`` does.
    """
    lowest, highest, deepest = 0, 0, 0
    for path in paths:
        with _opened(path) as raster:
            if raster.dtype.kind == "f":
                return None
            if raster.bits > 8:
                low, high = _extent(raster)
                lowest, highest, deepest = min(lowest, low), max(highest, high), max(deepest, raster.bits)
    known = _DEPTHS if deepest > 16 else _DEPTHS[1:]  # a result of 16 bits stays one
    depth = next((bits for bits in known if highest < 2**bits), deepest)
    return depth if depth < deepest and lowest == 0 else None


def _extent(raster: Raster) -> tuple[int, int]:
    """Least and greatest value."""
    bands, height, width = raster.shape
    rows = max(1, _PIECE // (bands * width)) if raster.streams else height
    pieces = (raster.read(top, 0, min(rows, height - top), width) for top in range(0, height, rows))
    extents = [(int(piece.min()), int(piece.max())) for piece in pieces]
    return min(low for low, _ in extents), max(high for _, high in extents)


def _depth(raster: Raster, bits: int | None) -> int:
    """The depth that is given, unless the file knows better: floating point, types that hold less."""
    return raster.bits if raster.dtype.kind == "f" else min(bits or raster.bits, raster.bits)


def _image(raster: Raster, values: Values, bits: int | None, path: Path) -> Image:
    """Scale stored values (C, H, W) to [0, 1]."""
    depth = _depth(raster, bits)
    if raster.dtype.kind == "f":
        with np.errstate(over="ignore"):  # becomes infinite, which is refused below
            pixels = values.astype(np.float32) / np.float32(2**bits - 1 if bits and bits < 32 else 1)
        if not np.isfinite(pixels).all():
            raise InputError(f"{path}: the image holds NaN or infinite values; replace them first")
        if pixels.min() < -1e-6 or pixels.max() > 1 + 1e-6:
            raise InputError(
                f"{path}: floating-point values {pixels.min():g} … {pixels.max():g} lie outside [0, 1]; "
                "rescale the image or set `bits` in the manifest, --bits for a folder (8 for 0 … 255, 11 for "
                "0 … 2047)"
            )
        pixels = np.ascontiguousarray(pixels.clip(0, 1))
    else:
        if values.min() < 0 or values.max() > 2**depth - 1:
            raise InputError(
                f"{path}: values {values.min()} … {values.max()} do not fit {depth} bits; correct `bits`"
            )
        # At once into its place: decoding is most of what a batch costs besides the models.
        pixels = np.empty(values.shape, np.float32)
        np.divide(values, np.float32(2**depth - 1), out=pixels, dtype=np.float32)
    return Image(pixels, depth, path, raster.georeference, raster.transparency)


def read_sources(sample: Sample) -> list[Image]:
    """Read the sources of a sample in role order and check them with ``check_sources``.

    Raises InputError naming the sample.
    """
    images = [read_image(source.path, sample.bits) for source in sample.sources]
    check_sources(sample, images)
    return images


def check_sources(sample: Sample, images: Sequence[Image | ImageFacts]) -> None:
    """Check that the sources of a sample, read or only described, go together.

    Outside sharpening they are grey or RGB. All must have the first one's (H, W); in sharpening tasks a later
    source may be smaller by one integer ratio. Raises InputError naming the sample.
    """
    sharpening = sample.task in SHARPENING_TASKS
    for source, image in zip(sample.sources, images, strict=True):
        if not sharpening and image.bands not in (1, 3):
            raise InputError(
                f"sample '{sample.id}': the {source.role} image has {image.bands} bands ({source.path}); "
                f"{sample.task} takes grey or RGB images, convert it"
            )
        if sharpening and image.transparency:
            raise InputError(
                f"sample '{sample.id}': the {source.role} image has a band marked as transparency "
                f"({source.path}); if it holds data save the file without that mark (MINISBLACK, ALPHA=NO), "
                "else remove the band"
            )
    height, width = images[0].size
    for source, image in zip(sample.sources[1:], images[1:], strict=True):
        h, w = image.size
        if (h, w) == (height, width):
            continue
        if sharpening and height % h == 0 and height // h * w == width:
            continue
        first = sample.sources[0]
        remedy = (
            f"the {source.role} image must be smaller by a whole ratio"
            if sharpening
            else "register and resize them first (registration is outside this tool)"
        )
        raise InputError(
            f"sample '{sample.id}': {first.role} is {height}x{width} but {source.role} is {h}x{w} "
            f"({source.path}); {remedy}"
        )


def read_sample(sample: Sample) -> SampleImages:
    """Read a sample with every source on the first one's grid (smaller sources are enlarged bicubically)."""
    images = read_sources(sample)
    size = images[0].size
    return SampleImages(sample, tuple(replace(image, pixels=enlarge(image.pixels, size)) for image in images))


def enlarge(pixels: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Resize (C, h, w) to (C, H, W) with Pillow's bicubic interpolation, clipped to [0, 1]."""
    if pixels.shape[1:] == size:
        return pixels
    height, width = size
    bands = [
        np.asarray(PillowImage.fromarray(band).resize((width, height), PillowImage.Resampling.BICUBIC))
        for band in pixels
    ]
    return np.stack(bands).clip(0, 1)


def luminance(pixels: FloatArray) -> FloatArray:
    """(C, H, W) -> (H, W): BT.601 luma of RGB, the mean of any other number of bands."""
    if pixels.shape[0] == 3:
        # Pixel by pixel: a matrix product rounds differently in a part of the image.
        return LUMA[0] * pixels[0] + LUMA[1] * pixels[1] + LUMA[2] * pixels[2]
    return pixels.mean(axis=0, dtype=np.float32)


def display(pixels: FloatArray) -> NDArray[np.uint8]:
    """(C, H, W) -> uint8 (H, W, 3) to look at.

    Grey and RGB are shown as they are. Other images show three bands, each stretched between its 1st and 99th
    percentile: red, green and blue of four bands (B, G, R, near infrared) or eight (WorldView-2 and -3), else
    three spread over the spectrum.
    """
    bands = pixels.shape[0]
    if bands == 1:
        pixels = np.repeat(pixels, 3, axis=0)
    elif bands != 3:
        spread = [bands * 3 // 4, bands // 2, bands // 6]
        chosen = {4: [2, 1, 0], 8: [4, 2, 1]}.get(bands, spread)
        pixels = pixels[chosen]
        low = np.percentile(pixels, 1, axis=(1, 2), keepdims=True)
        high = np.percentile(pixels, 99, axis=(1, 2), keepdims=True)
        pixels = ((pixels - low) / np.maximum(high - low, 1e-6)).astype(np.float32)
    return np.ascontiguousarray(quantise(pixels, 8).astype(np.uint8).transpose(1, 2, 0))

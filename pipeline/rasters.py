"""Opened images: what the header says, and how a window of the stored values is read. One opener per format.

TIFF, and what Pillow cannot hold, go through GDAL (pipeline/gdal_rasters.py); MATLAB, HDF5 and ENVI are in
pipeline/containers.py, Zarr in pipeline/zarr_images.py. All are imported when a file needs them: the
libraries take long to load.
"""

from __future__ import annotations

import struct
import tokenize
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from pipeline.errors import InputError
from pipeline.georeference import GeoReference
from pipeline.manifest import ENVI_SUFFIXES, HDF5_SUFFIXES, READ_SUFFIXES, ZARR_SUFFIX, is_stored, split_key

Values = NDArray[np.generic]
ReadWindow = Callable[[int, int, int, int], Values]

READING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    SyntaxError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    UnidentifiedImageError,
    PillowImage.DecompressionBombError,
)
"""What the libraries raise for files that are damaged or not what their suffix says."""


# Pillow refuses pictures of 179 megapixels; that one has half as many is no news to who wants to fuse it.
warnings.simplefilter("ignore", PillowImage.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class Raster:
    """An opened image.

    ``shape`` is (C, H, W); ``bits`` the depth of the stored values, 32 for floating point. ``read(top, left,
    height, width)`` returns (C, height, width) as stored; ``streams`` says that it reads little more than the
    window. ``transparency`` says that a band marked as alpha was left out.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    bits: int
    read: ReadWindow
    streams: bool
    georeference: GeoReference | None = None
    transparency: bool = False


def depth_of(dtype: np.dtype[Any]) -> int:
    """Bits of a value: 1 for truth values, 32 for any floating point."""
    if dtype == np.bool_:
        return 1
    return 32 if np.issubdtype(dtype, np.floating) else 8 * dtype.itemsize


def array_raster(array: Any, axes: str, *, sample: int | None = None, streams: bool = True) -> Raster:
    """The raster of a numpy array or HDF5 data set whose axes are named: ``H``, ``W``, ``C`` if it has bands,
    ``N`` for a stack of which ``sample`` is meant."""
    length = dict(zip(axes, array.shape, strict=True))
    order = [axis for axis in axes if axis != "N"]

    def read(top: int, left: int, height: int, width: int) -> Values:
        part = {"H": slice(top, top + height), "W": slice(left, left + width), "C": slice(None), "N": sample}
        values = np.asarray(array[tuple(part[axis] for axis in axes)])
        if "C" not in order:
            return values if order == ["H", "W"] else values.T
        return values.transpose([order.index(axis) for axis in "CHW"])

    def with_bands(top: int, left: int, height: int, width: int) -> Values:
        return read(top, left, height, width)[None]

    return Raster(
        (length.get("C", 1), length["H"], length["W"]),
        array.dtype,
        depth_of(array.dtype),
        read if "C" in order else with_bands,
        streams,
    )


def open_raster(path: Path) -> AbstractContextManager[Raster]:
    """Open an image by its suffix; pixels are decoded when they are asked for, where the format allows.

    Raises InputError for suffixes that nobody reads, for files that are missing, and for what the opener
    refuses; errors of the libraries pass through.
    """
    file, key = split_key(path)
    suffix = file.suffix.lower()
    if suffix not in READ_SUFFIXES:
        raise InputError(
            f"{path}: '{suffix}' is not a supported image type ({', '.join(READ_SUFFIXES)}); convert it"
        )
    if not is_stored(path):
        raise InputError(f"{path}: no such image file; check the path or the manifest")
    if suffix == ".npy":
        return nullcontext(_array_file(path, file))
    if suffix == ZARR_SUFFIX:
        from pipeline.zarr_images import open_zarr

        return nullcontext(open_zarr(path, file, key))
    if suffix in (".tif", ".tiff"):
        from pipeline.gdal_rasters import open_tiff

        return open_tiff(file)
    if suffix == ".mat" or suffix in HDF5_SUFFIXES or suffix in ENVI_SUFFIXES:
        from pipeline import containers

        if suffix in ENVI_SUFFIXES:
            return containers.open_envi(file)
        return containers.open_variable(path, file, key)
    return _open_picture(file)


def _array_file(path: Path, file: Path) -> Raster:
    array = np.lib.format.open_memmap(file, mode="r")  # np.load would open other types too
    if array.ndim not in (2, 3):
        raise InputError(
            f"{path}: an image has shape H x W or H x W x C, this one has {array.shape}; convert it"
        )
    return array_raster(array, "HWC"[: array.ndim])


@contextmanager
def _open_picture(file: Path) -> Iterator[Raster]:
    """PNG, JPEG and BMP: through Pillow, or through GDAL where Pillow would lose bits or decode too much."""
    with PillowImage.open(file) as opened:
        # Cameras put a preview beside the picture into one file (MPO); there the first one is meant.
        if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:
            raise InputError(f"{file}: is an animation; save the one frame to fuse as a file of its own")
        if _is_deep_colour(opened, file) or _is_plain_bitmap(opened):
            from pipeline.gdal_rasters import open_gdal

            with open_gdal(file) as raster:
                yield oriented(raster, _orientation(opened, file))
            return
        grey = opened.mode in ("1", "L", "LA", "La", "F") or opened.mode.startswith("I")
        dtype = np.dtype(np.float32 if opened.mode == "F" else np.uint8)
        if opened.mode.startswith("I"):
            dtype = np.dtype(np.uint16)
        decoded: list[Values] = []

        def read(top: int, left: int, height: int, width: int) -> Values:
            if not decoded:
                decoded.append(_decode(opened, dtype))
            return decoded[0][:, top : top + height, left : left + width]

        width, height = opened.size
        shape = (1 if grey else 3, height, width)
        raster = Raster(shape, dtype, depth_of(dtype), read, streams=False)
        yield oriented(raster, _orientation(opened, file))


def _decode(opened: PillowImage.Image, dtype: np.dtype[Any]) -> Values:
    """(C, H, W): palettes expanded, alpha dropped."""
    opened.load()
    image = opened
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("LA", "La", "RGBA", "RGBa"):
        image = image.convert("L" if image.mode.startswith("L") else "RGB")
    elif image.mode not in ("L", "RGB", "F") and not image.mode.startswith("I"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    array = np.asarray(image)
    return array.astype(dtype, copy=False)[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _is_deep_colour(opened: PillowImage.Image, file: Path) -> bool:
    """PNG of more than one channel at 16 bits, of which Pillow keeps 8 (PNG specification, IHDR)."""
    if opened.format != "PNG":
        return False
    with file.open("rb") as stream:
        header = stream.read(26)
    return header[24] == 16 and header[25] in (2, 4, 6)


def _is_plain_bitmap(opened: PillowImage.Image) -> bool:
    """Uncompressed 24-bit BMP: rows can be read where they lie."""
    return opened.format == "BMP" and opened.mode == "RGB" and opened.tile[0].codec_name == "raw"  # type: ignore[attr-defined]


def _orientation(opened: PillowImage.Image, file: Path) -> int:
    """The EXIF orientation, 1 when there is none."""
    if opened.format == "PNG" and "exif" not in opened.info and not _has_exif_chunk(file):
        return 1  # Pillow would decode the picture to look behind it
    try:
        return int(opened.getexif().get(0x0112, 1))
    except (SyntaxError, ValueError, TypeError):
        return 1  # EXIF that cannot be read does not make a picture unreadable


def _has_exif_chunk(file: Path) -> bool:
    """Whether a PNG has an ``eXIf`` chunk, before or after its pixels."""
    with file.open("rb") as stream:
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return True
            stream.seek(length + 4, 1)  # data and checksum
    return False


def oriented(raster: Raster, orientation: int) -> Raster:
    """The raster as it is meant to be looked at: EXIF and TIFF orientation 1 to 8 (TIFF 6.0, tag 274)."""
    if orientation not in range(2, 9):
        return raster
    transposed = orientation >= 5
    rows_flipped, columns_flipped = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    bands, height, width = raster.shape
    if transposed:
        height, width = width, height

    def read(top: int, left: int, rows: int, columns: int) -> Values:
        if rows_flipped:
            top = height - top - rows
        if columns_flipped:
            left = width - left - columns
        if transposed:
            values = raster.read(left, top, columns, rows).swapaxes(1, 2)
        else:
            values = raster.read(top, left, rows, columns)
        return values[:, :: -1 if rows_flipped else 1, :: -1 if columns_flipped else 1]

    return replace(raster, shape=(bands, height, width), read=read)

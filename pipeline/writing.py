"""Write images by suffix, and any file so that an interruption leaves the old one."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from pipeline.errors import InputError
from pipeline.georeference import GeoReference
from pipeline.manifest import IMAGE_SUFFIXES, ZARR_SUFFIX

FloatArray = NDArray[np.float32]


def write_image(
    path: Path, pixels: FloatArray, bits: int = 8, georeference: GeoReference | None = None
) -> None:
    """Write float (C, H, W) in [0, 1] by suffix, atomically.

    PNG takes 1 or 3 bands at up to 16 bits; JPEG and BMP 8 bits; TIFF and NPY any number of bands at any
    depth (``bits`` 9 to 16 are stored in uint16 unscaled, 32 as float32), and so do Zarr arrays, which are
    folders. ``georeference`` goes into a TIFF; other types have no place for it. What a type cannot hold
    raises InputError.
    """
    bands = pixels.shape[0]
    suffix = path.suffix.lower()
    if suffix == ZARR_SUFFIX:
        from pipeline.zarr_images import write_zarr  # zarr takes long to load

        write_zarr(path, quantise(pixels, bits), bits)
        return
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(
            f"{path}: cannot write '{suffix}'; choose one of {', '.join((*IMAGE_SUFFIXES, ZARR_SUFFIX))}"
        )
    is_tiff = suffix in (".tif", ".tiff")
    if not is_tiff and suffix != ".npy" and (bands not in (1, 3) or bits > 16):
        raise InputError(
            f"{path}: {suffix} cannot hold {bands} bands at {bits} bits; write a .tif or .npy file"
        )
    if suffix in (".jpg", ".jpeg", ".bmp"):
        bits = 8  # they have no deeper form
    array = quantise(pixels, bits)
    if is_tiff and georeference is not None:
        from pipeline.gdal_rasters import write_geotiff  # rasterio takes long to load

        write_atomically(path, lambda temporary: write_geotiff(temporary, array, georeference))
    elif suffix == ".png" and bands == 3 and bits > 8:
        from pipeline.gdal_rasters import write_deep_png

        write_atomically(path, lambda temporary: write_deep_png(temporary, array))
    else:
        encoded = _encoded(suffix, array[0] if bands == 1 else array.transpose(1, 2, 0))
        write_atomically(path, lambda temporary: temporary.write_bytes(encoded))


def _encoded(suffix: str, array: NDArray[np.generic]) -> bytes:
    """The file's bytes for H x W or H x W x C."""
    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, array)
    elif suffix in (".tif", ".tiff"):
        import tifffile  # takes a fifth of a second to load

        bands = array.shape[2] if array.ndim == 3 else 1
        tifffile.imwrite(
            buffer,
            array,
            photometric="rgb" if bands == 3 else "minisblack",
            planarconfig="contig" if bands > 1 else None,  # else every row would become a page
            compression="deflate",
        )
    else:
        kind = {".png": "PNG", ".bmp": "BMP"}.get(suffix, "JPEG")
        options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
        PillowImage.fromarray(np.ascontiguousarray(array)).save(buffer, kind, **options)
    return buffer.getvalue()


def quantise(pixels: FloatArray, bits: int) -> NDArray[np.generic]:
    """Round [0, 1] to integers of ``bits`` bits (uint8 up to 8, uint16 up to 16); 32 keeps float32."""
    if bits > 16:
        return pixels.astype(np.float32)
    levels = np.rint(pixels.clip(0, 1).astype(np.float64) * (2**bits - 1))
    return levels.astype(np.uint8 if bits <= 8 else np.uint16)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path beside ``path``, then rename; a failure leaves nothing."""
    temporary = temporary_beside(path)
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not tell, and nobody knows the temporary name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Where to write what then becomes ``path``, in its folder, which is made.

    What processes of this machine that were killed left there is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path.parent.resolve())
    return path.with_name(f"{path.name}.{os.getpid()}-{_machine()}.tmp")


@cache
def _machine() -> str:
    """A short name: process numbers mean nothing on other machines that write into the same folder."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


@cache
def _clear(folder: Path) -> None:
    """Remove leftovers, once: a folder may hold many files."""
    if os.name != "posix":
        return  # asking for a process there would end it
    pattern = re.compile(rf".+\.(\d+)-{_machine()}\.tmp")
    with suppress(PermissionError):  # a folder that may be written and not listed, a file of somebody else's
        for entry in list(os.scandir(folder)):
            found = pattern.fullmatch(entry.name)
            if found is None or _runs(int(found[1])):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True

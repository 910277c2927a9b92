"""Images in Zarr arrays, read and written window by window. Guidance is in pipeline/store.py."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.rasters import Raster, Values, array_raster
from pipeline.writing import temporary_beside

CHUNK = 512  # pixels of a chunk's side
_AXES = {"y": "H", "x": "W", "c": "C", "band": "C"}


def open_zarr(path: Path, folder: Path, key: str) -> Raster:
    """Open an array, or an array ``key`` of a group, which may be left out when there is only one.

    Axes are told by their names (y, x, and c or band), else H x W, H x W x C, or C x H x W when the first one
    is the shortest. Depth is the attribute ``bits`` where there is one. Raises InputError or ValueError.
    """
    array = _array(path, zarr.open(folder, mode="r"), key)
    names = getattr(array.metadata, "dimension_names", None) or ()
    axes = "".join(_AXES.get(str(name), "?") for name in names)
    if sorted(axes) not in (["H", "W"], ["C", "H", "W"]):
        bands_first = array.ndim == 3 and array.shape[0] < min(array.shape[1:])
        axes = {2: "HW", 3: "CHW" if bands_first else "HWC"}.get(array.ndim, "")
    if not axes:
        shapes = "H x W, H x W x C or C x H x W"
        raise InputError(f"{path}: an image has shape {shapes}, this one has {array.shape}; convert it")
    raster = array_raster(array, axes)

    def read(top: int, left: int, height: int, width: int) -> Values:
        try:
            return raster.read(top, left, height, width)
        except RuntimeError as error:  # of a codec
            raise ValueError(f"a damaged chunk: {error}") from error

    bits = array.attrs.get("bits")
    return replace(raster, read=read, bits=bits if isinstance(bits, int) else raster.bits)


def _array(path: Path, node: zarr.Array[Any] | zarr.Group, key: str) -> zarr.Array[Any]:
    if isinstance(node, zarr.Array):
        if key:
            raise InputError(f"{path}: is a single array; leave out what follows the '#'")
        return node
    arrays = dict(node.arrays())
    if key in node and isinstance(found := node[key], zarr.Array):
        return found
    if not key and len(arrays) == 1:
        return next(iter(arrays.values()))
    raise InputError(
        f"{path}: name one array of this group after a '#', as in '{path.name}#NAME'; it holds "
        f"{', '.join(sorted(arrays)) or 'none'}"
    )


def holds_array(folder: Path) -> bool:
    """Whether a folder is a Zarr array, and no group or anything else of the user's."""
    try:
        node = json.loads((folder / "zarr.json").read_bytes())
    except FileNotFoundError:
        return (folder / ".zarray").is_file()
    except ValueError:
        return False
    return isinstance(node, dict) and node.get("node_type") == "array"


def create_image(folder: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], bits: int) -> None:
    """Make an array of zeros (C, H, W), in chunks of all bands; one band is H x W."""
    bands, height, width = shape
    zarr.create_array(
        folder,
        shape=shape if bands > 1 else (height, width),
        chunks=(bands, CHUNK, CHUNK) if bands > 1 else (CHUNK, CHUNK),
        dtype=dtype,
        dimension_names=("c", "y", "x") if bands > 1 else ("y", "x"),
        attributes={"bits": bits},
    )


def write_part(folder: Path, top: int, left: int, values: NDArray[Any]) -> None:
    """Write values (C, h, w) into an array that `create_image` made. Chunks are replaced whole."""
    array = zarr.open_array(folder, mode="r+")
    window = (slice(top, top + values.shape[1]), slice(left, left + values.shape[2]))
    array[window if array.ndim == 2 else (slice(None), *window)] = values[0] if array.ndim == 2 else values


def put(folder: Path, output: Path) -> None:
    """Rename a finished array to its place; one that is there is replaced."""
    old = output.with_name(f"{output.name}.{os.getpid()}.old")
    if output.exists():
        os.replace(output, old)
    os.replace(folder, output)
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)


def write_zarr(output: Path, values: NDArray[Any], bits: int) -> None:
    """Write an image (C, H, W) of integers or float32; a failure leaves nothing."""
    temporary = temporary_beside(output)
    bands, height, width = values.shape
    try:
        create_image(temporary, (bands, height, width), values.dtype, bits)
        write_part(temporary, 0, 0, values)
        put(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""Files that are written window by window, in any order: tiled BigTIFF, Zarr."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.images import GeoReference
from pipeline.manifest import ZARR_SUFFIX

SIDE = 256  # pixels of a tile of the file


class Canvas(Protocol):
    """A picture (C, H, W) on disk that is filled window by window."""

    @property
    def path(self) -> Path: ...

    @property
    def bytes(self) -> int:
        """Bytes on disk, at most."""

    def allocate(self) -> None:
        """Make the file, all zeros."""

    def write(self, top: int, left: int, values: NDArray[Any]) -> None:
        """Write values (C, h, w) of the file's type."""

    def flush(self) -> None:
        """Have everything on disk."""

    def place(self, output: Path, georeference: GeoReference | None) -> None:
        """Put the finished file where it belongs."""


def canvas_at(path: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], bits: int) -> Canvas:
    """The canvas for a file by its suffix."""
    if path.suffix == ZARR_SUFFIX:
        return ZarrCanvas(path, shape, dtype, bits)
    return TiffCanvas(path, shape, dtype)


@dataclass
class TiffCanvas:
    """A tiled BigTIFF, uncompressed, so that every pixel has its place in the file."""

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        bands, height, width = self.shape
        return -(-height // SIDE) * -(-width // SIDE) * SIDE**2 * bands * self.dtype.itemsize

    def allocate(self) -> None:
        import tifffile  # takes a fifth of a second to load

        bands, height, width = self.shape
        tifffile.imwrite(
            self.path,
            shape=(height, width, bands) if bands > 1 else (height, width),
            dtype=self.dtype,
            tile=(SIDE, SIDE),
            bigtiff=True,
            photometric="rgb" if bands == 3 else "minisblack",
            planarconfig="contig" if bands > 1 else None,
        )

    @cached_property
    def _offsets(self) -> tuple[int, ...]:
        import tifffile

        with tifffile.TiffFile(self.path) as tiff:
            return tuple(tiff.pages[0].dataoffsets)

    def write(self, top: int, left: int, values: NDArray[Any]) -> None:
        bands, height, width = values.shape
        pixels = np.ascontiguousarray(values.transpose(1, 2, 0))
        across, size = -(-self.shape[2] // SIDE), bands * self.dtype.itemsize
        with self.path.open("r+b") as file:
            for row in range(height):
                down, line = divmod(top + row, SIDE)
                start = left
                while start < left + width:  # what of the row lies in one tile of the file
                    column, inside = divmod(start, SIDE)
                    end = min((column + 1) * SIDE, left + width)
                    file.seek(self._offsets[down * across + column] + (line * SIDE + inside) * size)
                    file.write(pixels[row, start - left : end - left].tobytes())
                    start = end

    def flush(self) -> None:
        with self.path.open("r+b") as file:
            os.fsync(file.fileno())

    def place(self, output: Path, georeference: GeoReference | None) -> None:
        if georeference is not None:
            import rasterio  # loads GDAL, which few images need

            with rasterio.open(self.path, "r+") as dataset:
                georeference.write_to(dataset)
        os.replace(self.path, output)


@dataclass
class ZarrCanvas:
    """A Zarr array (pipeline/zarr_images.py), whose chunks are compressed."""

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    bits: int

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def allocate(self) -> None:
        from pipeline.zarr_images import create_image  # zarr takes long to load

        create_image(self.path, self.shape, self.dtype, self.bits)

    def write(self, top: int, left: int, values: NDArray[Any]) -> None:
        from pipeline.zarr_images import write_part

        write_part(self.path, top, left, values)

    def flush(self) -> None:
        if hasattr(os, "sync"):
            os.sync()  # many small files

    def place(self, output: Path, georeference: GeoReference | None) -> None:
        from pipeline.zarr_images import put

        put(self.path, output)

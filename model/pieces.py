"""A tiled BigTIFF written in pieces, strip by strip, by a run that may be killed at any time and go on later.

Beside the result OUT lies the folder OUT.partial: the picture so far, and a state, which counts the
finished rows of tiles and holds what the last of them adds to the rows below. It is replaced, whole, when
the rows that it counts are on disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import tifffile

from model.tiling import Strip
from pipeline.errors import InputError
from pipeline.images import FloatArray, GeoReference, quantise, write_atomically

SIDE = 256  # pixels of a tile of the file
_NAMES = ("picture.tif", "state.npz")


@dataclass(frozen=True)
class Pieces:
    """A result on its way: ``shape`` (C, H, W), ``bits`` of depth, ``facts`` that decide its values."""

    output: Path
    shape: tuple[int, int, int]
    bits: int
    facts: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return self.output.with_name(f"{self.output.name}.partial")

    @property
    def _files(self) -> tuple[Path, Path]:
        picture, state = (self.folder / name for name in _NAMES)
        return picture, state

    @property
    def _key(self) -> str:
        told = json.dumps([self.shape, self.bits, self.facts], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()

    def resume(self) -> tuple[int, FloatArray | None]:
        """Finished rows of tiles and the last one's carry; (0, None) after allocating the file anew.

        What another command left, or one whose sources have changed since, is discarded. Raises InputError
        when the folder is not one of ours or the disk has no room.
        """
        picture, state = self._files
        if picture.is_file() and state.is_file():
            try:
                with np.load(state, allow_pickle=False) as known:
                    if str(known["key"]) == self._key:
                        return int(known["done"]), known["carry"]
            except (OSError, ValueError, KeyError, BadZipFile):
                state.unlink()  # not a state of ours: begin anew
        self._allocate()
        return 0, None

    def _allocate(self) -> None:
        if self.folder.exists() and {path.name for path in self.folder.iterdir()} - set(_NAMES):
            raise InputError(f"{self.folder}: holds files of yours; move them, or give another output")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        bands, height, width = self.shape
        size = -(-height // SIDE) * -(-width // SIDE) * SIDE**2 * bands * self._dtype.itemsize
        free = shutil.disk_usage(self.folder).free
        if size > free:
            shutil.rmtree(self.folder)
            raise InputError(
                f"{self.output}: needs {size / 2**30:.1f} GiB, the disk has {free / 2**30:.1f} GiB free"
            )
        tifffile.imwrite(
            self._files[0],
            shape=(height, width, bands) if bands > 1 else (height, width),
            dtype=self._dtype,
            tile=(SIDE, SIDE),
            bigtiff=True,
            photometric="rgb" if bands == 3 else "minisblack",
            planarconfig="contig" if bands > 1 else None,
        )

    @property
    def _dtype(self) -> np.dtype[Any]:
        return quantise(np.zeros((1, 1, 1), np.float32), self.bits).dtype

    def write(self, strip: Strip) -> None:
        """Write a strip and, once it is on disk, count it as done."""
        picture, state = self._files
        values = np.ascontiguousarray(quantise(strip.pixels, self.bits).transpose(1, 2, 0))
        with tifffile.TiffFile(picture) as tiff:
            offsets = tiff.pages[0].dataoffsets
        with picture.open("r+b") as file:
            for row in range(strip.top // SIDE, -(-(strip.top + len(values)) // SIDE)):
                self._write_row(file, offsets, row, strip.top, values)
            file.flush()
            os.fsync(file.fileno())
        content = io.BytesIO()
        np.savez(content, key=self._key, done=strip.index + 1, carry=strip.carry)
        write_atomically(state, lambda temporary: temporary.write_bytes(content.getvalue()))

    def _write_row(
        self, file: BinaryIO, offsets: tuple[int, ...], row: int, top: int, values: np.ndarray[Any, Any]
    ) -> None:
        """The lines of a row of the file's tiles that are in ``values`` (h, W, C), which begin at ``top``."""
        bands, _, width = self.shape
        across = -(-width // SIDE)
        first, last = max(row * SIDE, top), min((row + 1) * SIDE, top + len(values))
        line = SIDE * bands * self._dtype.itemsize
        for column in range(across):
            left = column * SIDE
            own = values[first - top : last - top, left : left + SIDE]
            block = np.zeros((last - first, SIDE, bands), self._dtype)
            block[:, : own.shape[1]] = own
            file.seek(offsets[row * across + column] + (first - row * SIDE) * line)
            file.write(block.tobytes())

    def finish(self, georeference: GeoReference | None) -> None:
        """Put the finished file in its place and remove the folder."""
        picture = self._files[0]
        if georeference is not None:
            import rasterio  # loads GDAL, which few images need

            with rasterio.open(picture, "r+") as dataset:
                georeference.write_to(dataset)
        os.replace(picture, self.output)
        shutil.rmtree(self.folder)

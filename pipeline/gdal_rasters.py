"""TIFF of every kind, PNG and BMP where Pillow would lose bits or read too much: through GDAL (rasterio)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import tifffile
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.windows import Window

from pipeline.errors import InputError
from pipeline.georeference import GeoReference, georeference_of
from pipeline.rasters import Raster, Values, array_raster, depth_of, oriented

# Most images that are fused have no place on Earth, and nobody needs to be told.
warnings.simplefilter("ignore", NotGeoreferencedWarning)
# Of a file that cannot be read the error says enough, of others it only complains.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

_REDUCED_OR_MASK = 0b101  # NewSubfileType: overviews and transparency masks are no pictures of their own


@contextmanager
def open_gdal(file: Path) -> Iterator[Raster]:
    """Open a single picture of any format that GDAL knows. Bands marked as alpha are left out."""
    with _opened([str(file)]) as datasets:
        yield _raster(datasets)


@contextmanager
def open_tiff(file: Path) -> Iterator[Raster]:
    """Open a TIFF: palettes are expanded, bilevel and inverted grey are set right, orientation is applied.

    Pages of one size and type, one band each, are the bands of one image, or its rows where some writer has
    put H x W x C so; any other pages are refused.
    """
    with tifffile.TiffFile(file) as tiff:
        every: list[Any] = list(tiff.pages)
        pages = [page for page in every if not int(page.subfiletype) & _REDUCED_OR_MASK]
        if not pages:
            raise ValueError("the file holds no picture")
        first = pages[0]
        _check_pages(file, pages)
        if _is_array(tiff, pages):
            yield _stored_array(file, tiff)
            return
        names = [str(file)]
        if len(pages) > 1 or first.index > 0:
            names = [f"GTIFF_DIR:{page.index + 1}:{file}" for page in pages]
        orientation = first.tags.get(274)
        bits = int(first.bitspersample)
        photometric = first.photometric
    with _opened(names) as datasets:
        if photometric == tifffile.PHOTOMETRIC.PALETTE:
            raster = _expanded(datasets[0])
        else:
            inverted = photometric == tifffile.PHOTOMETRIC.MINISWHITE
            raster = _raster(datasets, bits=bits, inverted=inverted)
        yield oriented(raster, 1 if orientation is None else int(orientation.value))


def _check_pages(file: Path, pages: list[Any]) -> None:
    first = pages[0]
    alike = all((page.shape, page.dtype) == (first.shape, first.dtype) for page in pages)
    if len(pages) > 1 and not (alike and first.samplesperpixel == 1):
        kinds = ", ".join(" x ".join(map(str, page.shape)) for page in pages[:4])
        raise InputError(
            f"{file}: holds {len(pages)} pictures ({kinds}{', …' if len(pages) > 4 else ''}); "
            "save the one to fuse as a file of its own"
        )


def _is_array(tiff: tifffile.TiffFile, pages: list[Any]) -> bool:
    """Whether only tifffile knows the image's shape: rows as pages, or a stack behind a single page."""
    if len(pages) > 1:
        return len(pages) >= min(pages[0].shape)
    return bool(pages[0].is_shaped) and tiff.series[0].size > pages[0].size


def _stored_array(file: Path, tiff: tifffile.TiffFile) -> Raster:
    array = tiff.series[0].asarray()
    if array.ndim != 3:
        raise InputError(f"{file}: holds an array of shape {array.shape}, not one image; save one picture")
    return array_raster(array, "CHW" if array.shape[0] < min(array.shape[1:]) else "HWC", streams=False)


@contextmanager
def _opened(names: list[str]) -> Iterator[list[DatasetReader]]:
    # Listing the folder at every opening costs more than reading in a folder of many files.
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"))
        yield [stack.enter_context(rasterio.open(name)) for name in names]


def _raster(datasets: list[DatasetReader], bits: int | None = None, inverted: bool = False) -> Raster:
    """One image of all bands of all data sets, which are of one size."""
    first = datasets[0]
    meanings = zip(first.indexes, first.colorinterp, strict=True)
    bands = [band for band, meaning in meanings if meaning != ColorInterp.alpha]
    dtype = np.dtype(first.dtypes[0])
    depth = min(bits or depth_of(dtype), depth_of(dtype))

    def read(top: int, left: int, height: int, width: int) -> Values:
        window = Window(left, top, width, height)
        read = [dataset.read(bands, window=window) for dataset in datasets]
        values: Values = read[0] if len(read) == 1 else np.concatenate(read)
        return (2**depth - 1 - values).astype(dtype) if inverted else values

    return Raster(
        (len(bands) * len(datasets), first.height, first.width),
        dtype,
        depth_of(dtype) if np.issubdtype(dtype, np.floating) else depth,
        read,
        streams=True,
        georeference=georeference_of(first),
        transparency=len(bands) < first.count,
    )


def _expanded(dataset: DatasetReader) -> Raster:
    """A palette image as RGB."""
    colours = np.zeros((256, 3), np.uint8)
    for index, colour in dataset.colormap(1).items():
        if index < 256:
            colours[index] = colour[:3]

    def read(top: int, left: int, height: int, width: int) -> Values:
        return colours[dataset.read(1, window=Window(left, top, width, height))].transpose(2, 0, 1)

    shape = (3, dataset.height, dataset.width)
    georeference = georeference_of(dataset)
    return Raster(shape, np.dtype(np.uint8), 8, read, streams=True, georeference=georeference)


def write_geotiff(path: Path, pixels: Values, georeference: GeoReference | None) -> None:
    """Write integers or float32 (C, H, W) as a tiled, compressed TIFF."""
    bands, height, width = pixels.shape
    form: dict[str, Any] = {"photometric": "RGB" if bands == 3 else "MINISBLACK", "compress": "deflate"}
    if min(height, width) >= 512:
        form |= {"tiled": True, "blockxsize": 256, "blockysize": 256}
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=bands, dtype=pixels.dtype,
        bigtiff="IF_SAFER", interleave="pixel", alpha="NO", **form,
    ) as dataset:  # fmt: skip
        if georeference is not None:
            georeference.write_to(dataset)
        dataset.write(pixels)


def write_deep_png(path: Path, pixels: Values) -> None:
    """Write uint16 (3, H, W) as a PNG of 48 bits per pixel."""
    bands, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="PNG", width=width, height=height, count=bands, dtype=pixels.dtype
    ) as dataset:
        dataset.write(pixels)

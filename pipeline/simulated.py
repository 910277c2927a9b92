"""A multi- + hyperspectral data set from hyperspectral cubes, as the field simulates it.

A cube becomes the target; blurred and decimated it is the hyperspectral source, seen through broad bands the
multispectral one (Yokoya, Grohnfeldt and Chanussot, IEEE GRSM 5(2), 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DatasetConfig, register_dataset
from pipeline.errors import InputError
from pipeline.folders import Entry, list_images
from pipeline.images import FloatArray, image_facts, read_image, read_window, write_image
from pipeline.layouts import safe_id
from pipeline.manifest import Sample, Source, write_manifest
from pipeline.protocols import broad_bands, gaussian, spectral_response
from pipeline.reduced import BITS, windows
from pipeline.sensors import EDGES, check_sensor

Array = NDArray[np.float64]

REACH = 3  # coarse pixels: 7 standard deviations of the blur, beyond which nothing of a pixel is left


@dataclass(frozen=True)
class Response:
    """What broad bands see of narrow ones: a table (M, C), or the bands of ``sensor`` over ``wavelengths``,
    those of a cube's first and last band in nanometres."""

    table: Array | None = None
    sensor: str = ""
    wavelengths: tuple[float, float] = (0, 0)

    def of(self, bands: int) -> Array | None:
        """The table (M, bands), None for an image that is no cube of this response.

        Raises InputError where the cube does not reach a band of the sensor.
        """
        if self.table is not None:
            return self.table if self.table.shape[1] == bands else None
        edges = np.array(EDGES[check_sensor(self.sensor)], float)
        if bands <= len(edges):
            return None
        try:
            narrow = np.linspace(*self.wavelengths, bands)
            return spectral_response(narrow, edges.mean(axis=1).tolist(), np.diff(edges)[:, 0].tolist())
        except ValueError as error:
            first, last = self.wavelengths
            raise InputError(
                f"--sensor {self.sensor} --wavelengths {first:g}:{last:g}: {error}; choose a sensor whose "
                "bands the cubes cover"
            ) from error


def read_response(file: Path) -> Response:
    """A response from a table of numbers: a line per broad band, with a weight for each narrow one.

    Numbers are separated by commas or spaces. Weights are divided by their sum, so that a white object stays
    white. Raises InputError for anything else.
    """
    try:
        lines = file.read_text(encoding="utf-8").replace(",", " ").splitlines()
        table = np.array([line.split() for line in lines if line.strip()], dtype=float)
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: no table of numbers ({error}); give a line per broad band") from error
    if table.ndim != 2 or not np.isfinite(table).all() or (table < 0).any() or not table.any(axis=1).all():
        raise InputError(f"{file}: every line needs weights of 0 or more, one at least above 0")
    return Response(table / table.sum(axis=1, keepdims=True))


def simulate(
    cubes: Path,
    response: Response,
    out: Path,
    name: str,
    ratio: int = 4,
    size: int = 256,
    bits: int | None = None,
) -> tuple[list[Sample], int]:
    """Write the samples of a cube or of all cubes below a folder; also how many images were no such cubes.

    Targets of ``size`` x ``size`` pixels (0: whole cubes) side by side, the rest left out; ``out/ms``, ``hs``
    and ``target`` get one TIFF each of at most 16 bits. ``bits``: depth of the cubes' values where their type
    does not tell, as in a manifest. Blur and border are those of the whole cube. Raises InputError for
    unreadable cubes, none at all, and a ratio that does not divide the size.
    """
    if ratio < 2 or size % ratio:
        raise InputError(f"--size {size} --ratio {ratio}: the ratio is 2 or more and divides the size")
    samples: list[Sample] = []
    others = 0
    for entry in _entries(cubes):
        table = response.of(image_facts(entry.path, bits).bands)
        if table is None:
            others += 1
        else:
            samples += _samples(entry, table, out, ratio, size, bits)
    if not samples:
        raise InputError(
            f"{cubes}: holds no cube of {ratio} x {ratio} pixels or more with as many bands as the response "
            f"has columns, or more than the sensor ({others} images have others)"
        )
    manifest = Path("data_manifests") / f"{name}.csv"
    register_dataset(name, DatasetConfig(manifest=str(manifest), root=str(out), masks="none"))
    write_manifest(manifest, samples, out)
    return samples, others


def _entries(cubes: Path) -> Sequence[Entry]:
    if cubes.is_dir():
        return list_images(cubes)
    return [Entry(f"{cubes.parent.name}/{cubes.stem}", cubes)]


def _samples(
    entry: Entry, response: Array, out: Path, ratio: int, size: int, bits: int | None
) -> list[Sample]:
    """The samples of one cube, written."""
    facts = image_facts(entry.path, bits)
    whole = None if facts.streams else read_image(entry.path, bits).pixels

    def read(top: int, left: int, bottom: int, right: int) -> FloatArray:
        if whole is not None:
            return whole[:, top:bottom, left:right]
        return read_window(entry.path, top, left, bottom - top, right - left, bits).pixels

    height, width = (side - side % ratio for side in facts.size)
    depth = min(facts.bits, BITS)
    base = safe_id("_".join(entry.name.replace("#", "/").split("/")[1:]))
    samples = []
    for row, column, high, wide in windows(height, width, size) if height and width else ():
        margin = REACH * ratio
        top, left = max(row - margin, 0), max(column - margin, 0)
        bottom, right = min(row + high + margin, height), min(column + wide + margin, width)
        wider = read(top, left, bottom, right).astype(np.float64)
        target = wider[:, row - top : row - top + high, column - left : column - left + wide]
        y, x = (row - top) // ratio, (column - left) // ratio
        views = {
            "ms": broad_bands(target, response),
            "hs": gaussian(wider, ratio)[:, y : y + high // ratio, x : x + wide // ratio],
            "target": target,
        }
        part = f"{base}_{row}_{column}"
        paths = {role: out / role / f"{part}.tif" for role in views}
        for role, view in views.items():
            write_image(paths[role], np.ascontiguousarray(view.clip(0, 1), dtype=np.float32), depth)
        sources = tuple(Source(role, paths[role]) for role in ("ms", "hs"))
        samples.append(
            Sample(part, "hyper_multispectral", "test", sources, target=paths["target"], bits=depth)
        )
    return samples

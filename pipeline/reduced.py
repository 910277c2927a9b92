"""A reduced-resolution data set from full-resolution satellite scenes, by Wald's protocol.

The multispectral image becomes the target; it and the panchromatic one, both reduced by the ratio, become the
sources. So every reduced sample has the true answer, which a full-resolution scene lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import DatasetConfig, PipelineConfig, register_dataset
from pipeline.errors import InputError
from pipeline.images import FloatArray, read_sources, write_image
from pipeline.manifest import Sample, Source, write_manifest
from pipeline.protocols import shrink, wald
from pipeline.sensors import check_sensor, gains_of

BITS = 16
"""Depth of written files when the manifest does not tell that of the scenes."""


@dataclass(frozen=True)
class Reduction:
    """``sensor`` (see `sensors.GAINS`), ``ratio`` and the side of a target in pixels, 0 for whole scenes."""

    sensor: str
    ratio: int = 4
    size: int = 256


def degrade(config: PipelineConfig, dataset: str, reduction: Reduction, out: Path, name: str) -> list[Sample]:
    """Write the reduced samples of a pansharpening data set below ``out`` and return them.

    A scene is reduced as a whole and then cut into targets of ``size`` x ``size`` pixels side by side, the
    rest at the right and lower border left out; a scene smaller than that is kept whole. ``<out>/pan``,
    ``ms`` and ``target`` get one TIFF each, in the scene's bits; ``data_manifests/<name>.csv`` lists them and
    params.yaml names them. Values are rounded to the digital numbers of the scene and clipped to its range.
    Raises InputError when no sample is a full-resolution scene, the sensor has other bands, or the ratio
    does not fit.
    """
    if reduction.ratio < 2 or reduction.size % reduction.ratio:
        raise InputError(
            f"--size {reduction.size} --ratio {reduction.ratio}: the ratio is 2 or more and divides the size"
        )
    scenes = [s for s in config.dataset(dataset).samples() if {"pan", "ms"} <= set(s.roles)]
    if not scenes:
        raise InputError(f"'{dataset}' holds no sample with pan and ms; Wald's protocol needs both")
    samples = [reduced for scene in scenes for reduced in _reduce(scene, reduction, out)]
    manifest = Path("data_manifests") / f"{name}.csv"
    sensor = check_sensor(reduction.sensor)
    register_dataset(name, DatasetConfig(manifest=str(manifest), root=str(out), masks="none", sensor=sensor))
    write_manifest(manifest, samples, out)
    return samples


def _reduce(scene: Sample, reduction: Reduction, out: Path) -> list[Sample]:
    """The reduced samples of one scene, written."""
    images = dict(zip(scene.roles, read_sources(scene), strict=True))
    ratio = reduction.ratio
    pan, ms = images["pan"].pixels, images["ms"].pixels
    if (pan.shape[1], pan.shape[2]) != (ratio * ms.shape[1], ratio * ms.shape[2]):
        raise InputError(
            f"sample '{scene.id}': pan is {pan.shape[1]}x{pan.shape[2]} and ms {ms.shape[1]}x{ms.shape[2]}, "
            f"which is no ratio of {ratio}; give the right --ratio"
        )
    gains = gains_of(reduction.sensor, len(ms))
    height, width = (side - side % ratio for side in ms.shape[1:])
    if not height or not width:
        raise InputError(f"sample '{scene.id}': ms is smaller than {ratio} pixels; it cannot be reduced")
    target = ms[:, :height, :width].astype(np.float64)
    coarse = wald(target, gains, ratio)
    fine = shrink(pan[:, : ratio * height, : ratio * width].astype(np.float64), ratio)
    bits = scene.bits or min(images["ms"].bits, BITS)
    written = []
    for row, column, high, wide in windows(height, width, reduction.size):
        part = f"{scene.id}_{row}_{column}"
        views = {
            "pan": fine[:, row : row + high, column : column + wide],
            "ms": coarse[:, row // ratio : (row + high) // ratio, column // ratio : (column + wide) // ratio],
            "target": target[:, row : row + high, column : column + wide],
        }
        paths = {role: out / role / f"{part}.tif" for role in views}
        for role, view in views.items():
            write_image(paths[role], _as_float(view), bits)
        sources = (Source("pan", paths["pan"]), Source("ms", paths["ms"]))
        written.append(Sample(part, "pansharpening", scene.split, sources, target=paths["target"], bits=bits))
    return written


def windows(height: int, width: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Row, column, height, width of the crops of side ``size``; a side below it (or size 0) stays whole."""
    high, wide = (min(size, side) if size else side for side in (height, width))
    for row in range(0, height - high + 1, high):
        for column in range(0, width - wide + 1, wide):
            yield row, column, high, wide


def _as_float(view: np.ndarray) -> FloatArray:
    return np.ascontiguousarray(view.clip(0, 1), dtype=np.float32)

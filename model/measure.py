"""Measure one fused image against its sources and its target: what the metrics are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.metrics import PROFILE, Profile, sharpening_metrics, target_metrics
from model.metrics import profile as find_profile
from model.metrics.full_resolution import full_resolution_metrics
from model.metrics.lpips import backbone_file
from pipeline.errors import InputError
from pipeline.images import FloatArray, luminance, quantise, read_image, read_sources
from pipeline.manifest import SHARPENING_TASKS, Sample, nearest
from pipeline.sensors import check_sensor

Wanted = Callable[[str], bool]
"""Whether a column is measured."""


FULL_RESOLUTION = ("D_lambda_K", "D_s", "HQNR", "D_lambda", "QNR")


@dataclass(frozen=True)
class Options:
    """How to measure: profile, metrics (None: all but slow ones), processes (None: one per core), the sensor
    of satellite images (None: the data set's, ``other`` where nobody says), and the weights for LPIPS
    (`model.metrics.lpips.backbone_file`; None: without it)."""

    profile: str = PROFILE
    metrics: tuple[str, ...] | None = None
    workers: int | None = None
    sensor: str | None = None
    lpips: str | None = None

    def check(self) -> None:
        """Raise InputError for a profile, sensor, metric or file of weights that does not exist."""
        check_sensor(self.sensor or "other")
        known = find_profile(self.profile)
        names = [*known.sources, *known.fused, *known.slow, *known.target, *FULL_RESOLUTION]
        names += ["target_PSNR", "target_SSIM", known.perceptual]
        for name in self.metrics or ():
            if name not in names:
                raise InputError(f"unknown metric '{name}'.{nearest(name, names)}")
        if self.lpips is not None or known.perceptual in (self.metrics or ()):
            backbone_file(self.lpips)


OPTIONS = Options()


@dataclass(frozen=True)
class Measured:
    """Values of one fused image by metric; ``stretched``: it looks stretched to its minimum and maximum."""

    values: dict[str, float]
    stretched: bool


def measure(
    sample: Sample,
    fused: Path,
    options: Options = OPTIONS,
) -> Measured:
    """Measure one fused image file of a sample.

    Fusion tasks: on what the profile takes, luminance (BT.601 of colour) or red, green and blue, as levels of
    8 bits: deeper images are scaled to 0..255 and rounded, none is stretched. Sharpening: all bands on 0..1;
    ``sensor`` is whose optics the metrics at full resolution assume (`pipeline.sensors`).
    Raises InputError for files that cannot be read and sizes or bands that do not fit the sources.
    """
    images = read_sources(sample)
    sources = [image.pixels for image in images]
    pixels = read_fused(fused, sample.bits)
    if pixels.shape[1:] != sources[0].shape[1:]:
        raise InputError(
            f"{fused}: is {pixels.shape[1]}x{pixels.shape[2]} but the sources are {images[0].size[0]}x"
            f"{images[0].size[1]}; resizing would change the figures, so it is not measured"
        )
    target = None if sample.target is None else read_image(sample.target, sample.bits).pixels
    if target is not None and target.shape[1:] != pixels.shape[1:]:
        raise InputError(f"{sample.target}: the target has another size than the fused image ({fused})")
    chosen = find_profile(options.profile)

    def wanted(name: str) -> bool:
        return name not in chosen.slow if options.metrics is None else name in options.metrics

    if _sharpened(sample, sources):
        if target is not None and target.shape != pixels.shape:
            raise InputError(
                f"{fused}: has {pixels.shape[0]} bands, the target {target.shape[0]}; they must agree"
            )
        levels = 1.0 if images[-1].bits > 16 else 2.0 ** images[-1].bits - 1
        sensor = options.sensor or "other"
        values = _sharpening_values(chosen, sources, target, pixels, levels, sensor, wanted)
    else:
        values = _fusion_values(chosen, sources, target, pixels, options.lpips, wanted)
    return Measured(values, looks_stretched(sources, pixels))


def read_fused(path: Path, bits: int | None) -> FloatArray:
    """Read a fused image (C, H, W) in [0, 1]; ``bits`` is its depth, unless its integers have only 8."""
    if bits is None:
        return read_image(path).pixels
    try:
        image = read_image(path)
    except InputError:  # floating point up to 2^bits - 1
        return read_image(path, bits).pixels
    return image.pixels if image.bits == 8 else read_image(path, bits).pixels


def _sharpened(sample: Sample, sources: Sequence[FloatArray]) -> bool:
    return sample.task in SHARPENING_TASKS or len({source.shape[1:] for source in sources}) > 1


def looks_stretched(sources: Sequence[FloatArray], fused: FloatArray) -> bool:
    """Whether the fused image fills 0..255 exactly although its sources together do not.

    A rule or network that keeps to its sources' range does not do that by chance; where the sources fill the
    range themselves, stretching changes nothing and cannot be told.
    """
    low = min(float(source.min()) for source in sources)
    high = max(float(source.max()) for source in sources)
    narrow = low > 1 / 255 or high < 254 / 255
    grey = grey_levels(fused)
    return narrow and float(grey.min()) == 0 and float(grey.max()) == 255


def grey_levels(pixels: FloatArray) -> NDArray[np.float64]:
    """Luminance (H, W) as 8-bit levels 0..255, as an image viewer's conversion to grey gives them."""
    return quantise(luminance(pixels), 8).astype(np.float64)


def colour_levels(pixels: FloatArray) -> NDArray[np.float64]:
    """8-bit levels 0..255 of red, green and blue (3, H, W); grey is repeated."""
    return np.repeat(quantise(pixels, 8).astype(np.float64), 3 // len(pixels), axis=0)


def _sharpening_values(
    profile: Profile,
    sources: Sequence[FloatArray],
    target: FloatArray | None,
    fused: FloatArray,
    levels: float,
    sensor: str,
    wanted: Wanted,
) -> dict[str, float]:
    """Metrics to the target, or at full resolution without one: those need one panchromatic band."""
    if target is None:
        return _full_resolution_values(sources, fused, levels, sensor, wanted)
    heights = [source.shape[1] for source in sources]
    ratio = max(heights) / min(heights)
    pair = target.astype(np.float64), fused.astype(np.float64)
    metrics = {name: metric for name, metric in profile.target.items() if wanted(name)}
    found = sharpening_metrics(*pair, ratio, levels, metrics)
    return {name: float(value) for name, value in found.items()}


def _full_resolution_values(
    sources: Sequence[FloatArray], fused: FloatArray, levels: float, sensor: str, wanted: Wanted
) -> dict[str, float]:
    pan, bands = sources[0], sources[-1]
    ratio = pan.shape[1] // bands.shape[1]
    if len(sources) != 2 or len(pan) != 1 or len(bands) != len(fused) or ratio & (ratio - 1):
        return {}
    sharp, low, high = (pixels.astype(np.float64) for pixels in (pan, bands, fused))
    found = full_resolution_metrics(sharp[0], low, high, sensor=sensor, ratio=ratio, levels=levels)
    return {name: float(value) for name, value in found.items() if wanted(name)}


def _fusion_values(
    profile: Profile,
    sources: Sequence[FloatArray],
    target: FloatArray | None,
    fused: FloatArray,
    lpips: str | None,
    wanted: Wanted,
) -> dict[str, float]:
    """Fusion metrics, and those against a target too; those against the sources where there are two."""
    levels = grey_levels if profile.channels == "luminance" else colour_levels
    planes, image = [levels(source) for source in sources], levels(fused)
    values: dict[str, float] = {}
    if len(planes) == 2:
        values = {
            name: float(metric(planes[0], planes[1], image))
            for name, metric in {**profile.sources, **profile.slow}.items()
            if wanted(name)
        }
        if lpips is not None and wanted(profile.perceptual):
            values[profile.perceptual] = float(profile.lpips(planes[0], planes[1], image, weights=lpips))
    values |= {name: float(metric(image)) for name, metric in profile.fused.items() if wanted(name)}
    if target is not None and any(wanted(name) for name in ("target_PSNR", "target_SSIM")):
        found = target_metrics(grey_levels(target)[None] / 255, grey_levels(fused)[None] / 255)
        values |= {name: float(value) for name, value in found.items() if wanted(name)}
    return values

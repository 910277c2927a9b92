"""Objects without weights: warm, bright or otherwise salient regions, and a clean mask inside each box.

The detector thresholds each source at many levels (as maximally stable regions do), scores every connected
region by its contrast to its surroundings and by its shape, and keeps the best of regions that nest or
overlap. Shape and place give the label. The segmenter separates object and surroundings inside a box by
grey-level and colour statistics (in the manner of GrabCut, with a Gaussian prior in place of the graph cut).
Neither is a foundation model: they know warm bodies, vehicles and lamps by silhouette, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.images import Image, SampleImages, luminance
from pipeline.merging import canonical_label
from pipeline.records import Instances

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Slices = tuple[slice, slice]

LONG_SIDE = 320
"""The detector looks at images averaged down to about this many pixels on the longer side."""

LEVELS = 8
MOST_LAMPS = 8
SMALLEST = 14
LARGEST_SHARE = 0.30
LEAST_CONTRAST = 0.35
NIGHT = 0.25
"""Mean luminance of a visible image below which the scene counts as dark."""

HEAD_SCANS = ("ct", "mri", "pet", "spect")
REMOTE = ("pan", "ms", "hs")


@dataclass(frozen=True)
class _Region:
    box: tuple[int, int, int, int]
    score: float
    label: str


class ClassicalDetector:
    """Boxes of salient regions with a label and a score in [0, 1]. Implements the Detector protocol."""

    identity = "classical-boxes-1"

    def __init__(self, threshold: float = 0.30, max_boxes: int = 32) -> None:
        self.threshold = threshold
        self.max_boxes = max_boxes

    def __call__(self, samples: Sequence[SampleImages], prompt: Sequence[str]) -> list[tuple[Instances, ...]]:
        """Detect in every source of every sample. A prompt limits the labels returned; without one all are."""
        wanted = {canonical_label(word) for word in prompt}
        return [self._sample(sample, wanted) for sample in samples]

    def _sample(self, sample: SampleImages, wanted: set[str]) -> tuple[Instances, ...]:
        factor = max(1, round(max(sample.size) / LONG_SIDE))
        roles = [role.partition("_")[0] for role in sample.sample.roles]
        images = [_shrink(image.pixels, factor) for image in sample.images]
        found = [detect(pixels, role) for pixels, role in zip(images, roles, strict=True)]
        if "visible" in roles and "infrared" in roles:
            v, i = roles.index("visible"), roles.index("infrared")
            found[v] = confirm(found[v], found[i], luminance(images[v]), luminance(images[i]))
        return tuple(self._instances(regions, wanted, factor, sample.size) for regions in found)

    def _instances(
        self, regions: list[_Region], wanted: set[str], factor: int, size: tuple[int, int]
    ) -> Instances:
        regions = [r for r in regions if r.score >= self.threshold and (not wanted or r.label in wanted)]
        lamps = [region for region in regions if region.label == "lamp"]
        regions = [region for region in regions if region not in lamps[MOST_LAMPS:]][: self.max_boxes]
        box = np.array([region.box for region in regions], dtype=np.float32).reshape(-1, 4) * factor
        return Instances(
            box=np.minimum(box, np.array([size[1], size[0]] * 2, dtype=np.float32)),
            score=np.array([region.score for region in regions], dtype=np.float32),
            label=tuple(region.label for region in regions),
        )


def confirm(visible: list[_Region], warm: list[_Region], grey: FloatArray, heat: FloatArray) -> list[_Region]:
    """Regions of a visible image that its infrared partner supports.

    A silhouette in visible light alone may be a window or a lane marking, so it keeps only the share of its score
    that its contrast in the infrared image supports; lamps need no heat. In turn, what is warm and can also be seen
    in visible light is looked for there too.
    """
    kept = [r if r.label == "lamp" else replace(r, score=r.score * _seen(heat, r.box)) for r in visible]
    kept += [replace(r, score=r.score * _seen(grey, r.box)) for r in warm if r.label != "lamp"]
    return _best_of_overlapping(kept)


def _seen(grey: FloatArray, box: tuple[int, int, int, int]) -> float:
    """Contrast, in [0, 1], of the inner half of a box to the frame around the box."""
    x0, y0, x1, y1 = box
    tall, wide = y1 - y0, x1 - x0
    inner = grey[y0 + tall // 6 : y1 - tall // 6, x0 + wide // 4 : x1 - wide // 4]
    outer = grey[
        max(0, y0 - 2 - tall // 6) : y1 + 2 + tall // 6, max(0, x0 - 2 - wide // 4) : x1 + 2 + wide // 4
    ]
    if inner.size == 0 or outer.size <= tall * wide:
        return 0.0
    frame = (float(outer.sum()) - float(grey[y0:y1, x0:x1].sum())) / (outer.size - tall * wide)
    step = abs(float(inner.mean()) - frame) / (0.02 + 0.25 * float(outer.max() - outer.min()))
    return min(1.0, step)


def _shrink(pixels: FloatArray, factor: int) -> FloatArray:
    """Average blocks of factor x factor pixels; what does not fill a block at the far edges is left out."""
    if factor == 1:
        return pixels
    bands, height, width = pixels.shape
    h, w = height // factor, width // factor
    blocks = pixels[:, : h * factor, : w * factor].reshape(bands, h, factor, w, factor)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


@dataclass(frozen=True)
class _Signal:
    """A map (H, W) in which the objects sought are bright, and what naming its regions needs."""

    values: FloatArray
    role: str
    night: bool
    dark: bool = False  # the objects are darker than their surroundings in the image
    mirror: FloatArray | None = None  # head scans: the same map with left and right exchanged


def detect(pixels: FloatArray, role: str) -> list[_Region]:
    """Regions of one source (C, H, W), best first, boxes (x0, y0, x1, y1) in its pixels, half-open."""
    regions = [region for signal in _signals(pixels, role) for region in _regions(signal)]
    return _best_of_overlapping(regions, nested=role in HEAD_SCANS)


def _signals(pixels: FloatArray, role: str) -> list[_Signal]:
    grey = luminance(pixels)
    night = float(grey.mean()) < NIGHT
    if role in HEAD_SCANS:
        return _head_signals(grey, role)
    if role in ("near", "far"):
        detail = np.abs(grey - ndimage.gaussian_filter(grey, 1.5))
        return [_Signal(ndimage.gaussian_filter(detail, min(grey.shape) / 40), role, night)]
    local = grey - ndimage.gaussian_filter(grey, min(grey.shape) / 8)
    if role == "infrared":
        return [_Signal(grey, role, night), _Signal(local, role, night)]
    signals = [_Signal(local, role, night)]
    if role == "visible" and night:
        return signals
    signals.append(_Signal(-local, role, night, dark=True))
    if pixels.shape[0] == 3:
        chroma = pixels - pixels.mean(axis=0, keepdims=True)
        around = np.stack([ndimage.gaussian_filter(band, min(grey.shape) / 6) for band in chroma])
        colour = np.sqrt(((chroma - around) ** 2).sum(axis=0)).astype(np.float32)
        signals.append(_Signal(colour, role, night, dark=True))
    return signals


def _head_signals(grey: FloatArray, role: str) -> list[_Signal]:
    """Bright structures, and dark ones inside the head; each with its mirror image about the head's axis."""
    head = ndimage.binary_fill_holes(ndimage.gaussian_filter(grey, 1.5) > 0.12 * grey.max())
    if not head.any():
        return []
    inside = ndimage.binary_erosion(head, iterations=max(3, min(grey.shape) // 16))
    level = float(np.median(grey[inside])) if inside.any() else 0.0
    dark = np.where(inside, np.maximum(level - grey, 0), 0).astype(np.float32)
    centre = round(float(np.nonzero(head)[1].mean()) * 2) - grey.shape[1] + 1
    signals = []
    for values in (grey, dark):
        mirrored = np.roll(values[:, ::-1], centre, axis=1)
        signals.append(_Signal(values, role, night=False, mirror=ndimage.gaussian_filter(mirrored, 2)))
    return signals


def _regions(signal: _Signal) -> list[_Region]:
    values = signal.values
    low, high = np.percentile(values, [50, 99.9])
    # The floor keeps sensor noise of flat images from counting as contrast.
    reach = max(float(high - low), 0.08)
    smooth = ndimage.gaussian_filter(values, 0.7)
    tables = _integral(smooth), _integral(smooth * smooth)
    regions = []
    for level in low + reach * np.linspace(0.08, 0.92, LEVELS) ** 1.3:
        labelled, _ = ndimage.label(smooth > level)
        areas = np.bincount(labelled.ravel())
        slices = ndimage.find_objects(labelled)
        for number in np.flatnonzero((areas >= SMALLEST) & (areas <= LARGEST_SHARE * values.size)):
            if number == 0:
                continue
            y, x = slices[number - 1]
            region = labelled[y, x] == number
            contrast = _contrast(smooth[y, x][region], (y, x), tables, values.shape, reach)
            if contrast > LEAST_CONTRAST:
                label, fit = _name(region, (y, x), signal)
                regions.append(_Region((x.start, y.start, x.stop, y.stop), contrast * fit, label))
    return regions


def _integral(image: FloatArray) -> NDArray[np.float64]:
    return np.pad(image, ((1, 0), (1, 0))).astype(np.float64).cumsum(axis=0).cumsum(axis=1)


def _contrast(
    values: FloatArray,
    window: Slices,
    tables: tuple[NDArray[np.float64], ...],
    shape: tuple[int, ...],
    reach: float,
) -> float:
    """How clearly a region stands out from the frame around it, in [0, 1]."""
    y, x = window
    margin = 2 + max(y.stop - y.start, x.stop - x.start) // 5
    y0, y1 = max(0, y.start - margin), min(shape[0], y.stop + margin)
    x0, x1 = max(0, x.start - margin), min(shape[1], x.stop + margin)
    total, squares = (float(t[y1, x1] - t[y0, x1] - t[y1, x0] + t[y0, x0]) for t in tables)
    rest = (y1 - y0) * (x1 - x0) - values.size
    if rest <= 0:
        return 0.0
    mean = (total - float(values.sum())) / rest
    variance = max(0.0, (squares - float((values * values).sum())) / rest - mean * mean)
    step = float(values.mean()) - mean
    strength = np.clip(step / (0.4 * reach), 0, 1)
    separation = np.clip(step / (2.0 * (np.sqrt(variance) + float(values.std())) + 1e-3), 0, 1)
    return float(np.sqrt(strength * separation))


def _name(region: BoolArray, window: Slices, signal: _Signal) -> tuple[str, float]:
    """Label of a region by silhouette and place, and how well it fits, in [0, 1]."""
    y, x = window
    height, width = signal.values.shape
    tall, wide = y.stop - y.start, x.stop - x.start
    area = int(region.sum())
    share = area / (height * width)
    solid = float(np.clip((area / (tall * wide) - 0.25) / 0.3, 0.0, 1.0))
    # Pixels whose four neighbours belong to the region: ragged regions (foliage) have few.
    core = float(ndimage.binary_erosion(region).sum()) / area
    compact = 0.65 * solid + 0.35 * min(1.0, core / 0.5)
    if signal.mirror is not None:
        own = float(signal.values[window][region].mean())
        alone = float(signal.mirror[window][region].mean()) < 0.6 * own
        lesion = alone and compact > 0.8 and 0.0015 < share < 0.05
        return ("lesion", 0.9) if lesion else ("structure", 0.4 + 0.5 * min(1.0, 50 * share))
    if signal.role in REMOTE:
        label = "building" if share < 0.01 else "water" if signal.dark else "field"
        return label, 0.3 + 0.6 * compact
    if signal.role not in ("visible", "infrared"):
        return "object", 0.3 + 0.6 * compact
    return _street_name(tall / wide, y.stop / height, tall / height, share, solid, compact, signal)


def _street_name(
    aspect: float, bottom: float, tall: float, share: float, solid: float, compact: float, signal: _Signal
) -> tuple[str, float]:
    """Person, car, lamp or object; sizes and places as shares of the image."""
    person = solid * _bell(np.log(aspect), np.log(2.4), 0.45)
    person *= float(0.04 <= tall <= 0.75) * float(bottom > 0.33)
    car = solid * _bell(np.log(aspect), -np.log(1.9), 0.45)
    car *= float(bottom > 0.45) * float(np.clip(share / 0.008, 0.2, 1.0))
    lamp = compact * _bell(np.log(aspect), 0.0, 0.6) * float(share < 0.002) * float(bottom < 0.5)
    if signal.role == "visible":
        # Without heat a silhouette says less, and only what shines is a lamp.
        person *= 0.5
        car *= 0.8
        lamp *= 0.0 if signal.dark else 0.9 if signal.night else 0.3
    else:
        lamp *= 0.5
    best, label = max((person, "person"), (car, "car"), (lamp, "lamp"))
    plain = 0.42 * compact * float(np.clip(share / 0.004, 0.3, 1.0))
    return (label, best) if best >= plain else ("object", plain)


def _bell(value: float, centre: float, width: float) -> float:
    return float(np.exp(-0.5 * ((value - centre) / width) ** 2))


def _best_of_overlapping(regions: list[_Region], nested: bool = False) -> list[_Region]:
    """Non-maximum suppression; a box suppresses also what it contains or what contains it, unless ``nested``."""
    kept: list[_Region] = []
    for region in sorted(regions, key=lambda r: (-r.score, r.box, r.label)):
        if all(_overlap(region.box, other.box, nested) < (0.3 if nested else 0.5) for other in kept):
            kept.append(region)
    return kept


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int], of_union: bool) -> float:
    """Intersection of two boxes over their union, or over the smaller one."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    tall = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or tall <= 0:
        return 0.0
    areas = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return wide * tall / (sum(areas) - wide * tall if of_union else min(areas))


class ClassicalSegmenter:
    """A mask and a predicted IoU for every box. Implements the Segmenter protocol."""

    identity = "classical-masks-1"

    def __call__(
        self, samples: Sequence[SampleImages], boxes: Sequence[tuple[Instances, ...]]
    ) -> list[tuple[Instances, ...]]:
        """Fill mask bool (k, H, W) and iou (k,) of every source's instances."""
        return [
            tuple(self._source(image, found) for image, found in zip(sample.images, sources, strict=True))
            for sample, sources in zip(samples, boxes, strict=True)
        ]

    def _source(self, image: Image, found: Instances) -> Instances:
        masks = np.zeros((len(found), *image.size), dtype=bool)
        quality = np.zeros(len(found), dtype=np.float32)
        features = _features(image.pixels) if len(found) else image.pixels
        for index, box in enumerate(found.box):
            window, mask, quality[index] = segment(features, box)
            masks[index][window] = mask
        return Instances(found.box, found.score, found.label, quality, masks)


def _features(pixels: FloatArray) -> FloatArray:
    """Luminance, and two colour differences when there is colour; (1 or 3, H, W)."""
    grey = luminance(pixels)
    if pixels.shape[0] != 3 or np.ptp(pixels, axis=0).max() < 0.02:
        return grey[None]
    return np.stack([grey, pixels[0] - grey, pixels[2] - grey])


def segment(features: FloatArray, box: FloatArray) -> tuple[Slices, BoolArray, float]:
    """Object inside one box (x0, y0, x1, y1): the window it lies in, its mask there, and a predicted IoU.

    The log-odds of object against surroundings are those of two Gaussians per class and feature, re-estimated
    three times, plus a prior that falls off towards the box's border; the smoothed zero contour is the mask.
    The predicted IoU is SAM's stability score: the IoU of the masks at log-odds above +d and above -d.
    """
    _, height, width = features.shape
    x0, y0 = int(np.floor(box[0])), int(np.floor(box[1]))
    x1, y1 = max(x0 + 1, int(np.ceil(box[2]))), max(y0 + 1, int(np.ceil(box[3])))
    margin = 3 + max(y1 - y0, x1 - x0) // 4
    window = (
        slice(max(0, y0 - margin), min(height, y1 + margin)),
        slice(max(0, x0 - margin), min(width, x1 + margin)),
    )
    stride = max(1, max(y1 - y0, x1 - x0) // 100)
    crop = features[(slice(None), *window)][:, ::stride, ::stride]
    rows = np.arange(window[0].start, window[0].stop, stride, dtype=np.float32)
    columns = np.arange(window[1].start, window[1].stop, stride, dtype=np.float32)
    # Distance from the box's centre in units of its half size: 1 on the border.
    v = np.abs(rows + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2)
    u = np.abs(columns + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)
    distance = np.maximum(v[:, None], u[None, :])
    odds = _log_odds(crop, distance)
    if stride > 1:
        odds = _stretch(odds, window, stride)
        distance = _stretch(distance, window, stride)
    inside = distance <= 1.02 + 2.0 / min(y1 - y0, x1 - x0)
    mask = _one_piece((odds > 0) & inside)
    if not mask.any():
        mask = distance <= 1
        return window, mask, 0.0
    near = ndimage.binary_dilation(mask, iterations=2) & inside
    wide, tight = int((near & (odds > -STABILITY)).sum()), int((mask & (odds > STABILITY)).sum())
    return window, mask, float(tight / max(wide, 1))


STABILITY = 0.35
"""Shift of the log-odds under which a good mask hardly changes."""


def _log_odds(crop: FloatArray, distance: FloatArray) -> FloatArray:
    inside, around = distance <= 1, distance > 1.08
    if not around.any():
        around = distance > np.quantile(distance, 0.8)
    grey = crop[0]
    # Start: pixels of the box's inner part that differ from the surroundings to the side most of them do.
    reference = float(np.median(grey[around]))
    difference = grey - reference
    core = difference[distance <= 0.6] if (distance <= 0.6).any() else difference[inside]
    side = 1.0 if np.abs(core.max()) >= np.abs(core.min()) else -1.0
    cut = 0.4 * side * np.quantile(side * core, 0.9)
    start = inside & (side * difference > side * cut)
    if start.sum() < 4:
        start = distance <= 0.5
    prior = np.where(distance <= 1, 0.6 * (1 - distance**4), -6.0 * (distance - 1)).astype(np.float32)
    sigma = 0.7 if min(grey.shape) < 40 else 1.2
    odds = np.zeros_like(grey)
    for _ in range(3):
        object_ = _log_likelihood(crop, start)
        surroundings = _log_likelihood(crop, around | (inside & ~start))
        odds = ndimage.gaussian_filter(np.clip(object_ - surroundings, -4, 4) + prior, sigma)
        update = (odds > 0) & inside
        if update.sum() < 4:
            break
        start = update
    return odds


def _log_likelihood(crop: FloatArray, chosen: BoolArray) -> FloatArray:
    """Log-likelihood under a mixture of two Gaussians per class, split at the class's mean grey level."""
    grey = crop[0]
    middle = float(grey[chosen].mean())
    best = np.full(grey.shape, -np.inf, dtype=np.float32)
    total = float(chosen.sum())
    for half in (chosen & (grey <= middle), chosen & (grey > middle)):
        count = float(half.sum())
        if count < 3:
            continue
        value = np.full(grey.shape, np.log(count / total), dtype=np.float32)
        for number, band in enumerate(crop):
            mean, deviation = float(band[half].mean()), max(float(band[half].std()), 0.02)
            weight = 1.0 if number == 0 else 0.5
            value -= weight * (0.5 * ((band - mean) / deviation) ** 2 + np.log(deviation))
        best = np.maximum(best, value)
    return best if np.isfinite(best).all() else np.zeros_like(grey)


def _stretch(values: FloatArray, window: Slices, stride: int) -> FloatArray:
    """Bilinear interpolation of a map sampled every ``stride`` pixels back to the window's size."""
    rows = np.minimum(np.arange(window[0].stop - window[0].start) / stride, values.shape[0] - 1)
    columns = np.minimum(np.arange(window[1].stop - window[1].start) / stride, values.shape[1] - 1)
    y, x = rows.astype(int), columns.astype(int)
    y1, x1 = np.minimum(y + 1, values.shape[0] - 1), np.minimum(x + 1, values.shape[1] - 1)
    fy, fx = (rows - y)[:, None].astype(np.float32), (columns - x)[None].astype(np.float32)
    top = values[y][:, x] * (1 - fx) + values[y][:, x1] * fx
    low = values[y1][:, x] * (1 - fx) + values[y1][:, x1] * fx
    return (top * (1 - fy) + low * fy).astype(np.float32)


def _one_piece(mask: BoolArray) -> BoolArray:
    """The largest piece and those at least a quarter of it, without holes."""
    labelled, count = ndimage.label(ndimage.binary_opening(mask) if mask.sum() > 60 else mask)
    if count > 1:
        areas = np.bincount(labelled.ravel())
        areas[0] = 0
        labelled = np.isin(labelled, np.flatnonzero(areas >= 0.25 * areas.max()))
    return ndimage.binary_fill_holes(labelled > 0)

"""Objects without weights: warm, bright or otherwise salient regions, named by silhouette and place.

The regions come from classical_regions. Shape, size and place in the image give the label and how well it
fits; of regions that nest or overlap the best is kept. This is no foundation model: it knows warm bodies,
vehicles and lamps by silhouette, unpaired structures in head scans, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.classical_regions import HEAD_SCANS, Box, Candidate, Signal, candidates, signals
from pipeline.images import SampleImages, luminance
from pipeline.labels import canonical_label
from pipeline.records import Instances

FloatArray = NDArray[np.float32]

LONG_SIDE = 320
"""The detector looks at images averaged down to about this many pixels on the longer side."""

MOST_LAMPS = 8
REMOTE = ("pan", "ms", "hs")


@dataclass(frozen=True)
class _Region:
    box: Box
    score: float
    label: str


class ClassicalDetector:
    """Boxes of salient regions with a label and a score in [0, 1]. Implements the Detector protocol."""

    identity = "classical-boxes-1"

    def __init__(self, threshold: float = 0.30, max_boxes: int = 32) -> None:
        self.threshold = threshold
        self.max_boxes = max_boxes

    def __call__(self, samples: Sequence[SampleImages], prompt: Sequence[str]) -> list[tuple[Instances, ...]]:
        """Detect in every source of every sample; a prompt, if any, limits the labels returned."""
        wanted = {canonical_label(word) for word in prompt}
        return [self._sample(sample, wanted) for sample in samples]

    def _sample(self, sample: SampleImages, wanted: set[str]) -> tuple[Instances, ...]:
        factor = max(1, round(max(sample.size) / LONG_SIDE))
        roles = [role.partition("_")[0] for role in sample.sample.roles]
        images = [shrink(image.pixels, factor) for image in sample.images]
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

    A silhouette in visible light alone may be a window or a lane marking, so it keeps only the share of its
    score that its contrast in the infrared image supports; lamps need no heat. In turn, what is warm and can
    also be seen in visible light is looked for there too.
    """
    kept = []
    for region in visible:
        support = {"lamp": 1.0, "car": 0.5 + 0.5 * _seen(heat, region.box)}.get(
            region.label, _seen(heat, region.box)
        )
        kept.append(replace(region, score=region.score * support))
    kept += [replace(r, score=r.score * _seen(grey, r.box)) for r in warm if r.label != "lamp"]
    return _best_of_overlapping(kept)


def _seen(grey: FloatArray, box: Box) -> float:
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
    step = abs(float(inner.mean()) - frame) / (0.05 + 0.25 * float(outer.max() - outer.min()))
    return min(1.0, step)


def shrink(pixels: FloatArray, factor: int) -> FloatArray:
    """Average blocks of factor x factor pixels; what does not fill a block at the far edges is left out."""
    if factor == 1:
        return pixels
    bands, height, width = pixels.shape
    h, w = height // factor, width // factor
    blocks = pixels[:, : h * factor, : w * factor].reshape(bands, h, factor, w, factor)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


def detect(pixels: FloatArray, role: str) -> list[_Region]:
    """Regions of one source (C, H, W), best first, boxes (x0, y0, x1, y1) in its pixels, half-open."""
    regions = [
        _name(candidate, signal) for signal in signals(pixels, role) for candidate in candidates(signal)
    ]
    return _best_of_overlapping(
        [region for region in regions if region.score > 0.1], nested=role in HEAD_SCANS
    )


def _name(found: Candidate, signal: Signal) -> _Region:
    """Label of a region by silhouette and place; the score is its contrast times how well the label fits."""
    height, width = signal.values.shape
    x0, y0, x1, y1 = found.box
    tall, wide = y1 - y0, x1 - x0
    share = found.area / (height * width)
    solid = float(np.clip((found.area / (tall * wide) - 0.25) / 0.3, 0.0, 1.0))
    compact = 0.65 * solid + 0.35 * min(1.0, found.core / 0.5)
    if signal.mirror is not None:
        # A lesion is a compact part of a head without a counterpart on the other side.
        is_lesion = found.mirrored < (0.3 if signal.dark else 0.6) and compact > 0.7 and 0.002 < share < 0.04
        label = "lesion" if is_lesion else "structure"
        fit = 0.95 if is_lesion else 0.9 * min(1.0, 60 * share) * (0.4 + 0.6 * compact)
    elif signal.role in REMOTE:
        label = "building" if share < 0.01 else "water" if signal.dark else "field"
        fit = 0.3 + 0.6 * compact * min(1.0, 400 * share)
    elif signal.role not in ("visible", "infrared"):
        label, fit = "object", 0.3 + 0.6 * compact * min(1.0, 200 * share)
    else:
        label, fit = _street_name(tall / wide, y1 / height, tall / height, share, solid, compact, signal)
    return _Region(found.box, found.contrast * fit, label)


def _street_name(
    aspect: float, bottom: float, tall: float, share: float, solid: float, compact: float, signal: Signal
) -> tuple[str, float]:
    """Person, car, lamp or object; sizes and places as shares of the image."""
    person = solid * _bell(np.log(aspect), np.log(2.4), 0.45)
    person *= float(0.04 <= tall <= 0.75) * float(bottom > 0.33)
    car = solid * _bell(np.log(aspect), -np.log(1.9), 0.45)
    car *= float(bottom > 0.45) * float(np.clip(share / 0.008, 0.2, 1.0)) * float(share < 0.12)
    if bottom > 0.98:
        car *= 0.5  # more often a patch of road
    lamp = compact * _bell(np.log(aspect), 0.0, 0.6) * float(share < 0.002) * float(bottom < 0.5)
    if signal.vehicles:
        return "car", 0.68 * car
    if signal.role == "visible":
        # Without heat a silhouette says less, and only what shines is a lamp.
        person *= 0.5
        car *= 0.8
        lamp *= 0.0 if signal.dark else 0.9 if signal.night else 0.3
    else:
        lamp *= 0.5
    best, label = max((person, "person"), (car, "car"), (lamp, "lamp"))
    plain = 0.34 * compact * float(np.clip(share / 0.004, 0.3, 1.0))
    return (label, best) if best >= plain else ("object", plain)


def _bell(value: float, centre: float, width: float) -> float:
    return float(np.exp(-0.5 * ((value - centre) / width) ** 2))


def _best_of_overlapping(regions: list[_Region], nested: bool = False) -> list[_Region]:
    """Non-maximum suppression; unless ``nested``, a box also suppresses what it contains or is part of."""
    kept: list[_Region] = []
    for region in sorted(regions, key=_rank):
        if all(_overlap(region.box, other.box, nested) < (0.3 if nested else 0.5) for other in kept):
            kept.append(region)
    return kept


def _rank(region: _Region) -> tuple[float, Box, str]:
    """Best first; of about equal scores the larger region, so that a body comes before its parts."""
    x0, y0, x1, y1 = region.box
    return -region.score * ((x1 - x0) * (y1 - y0)) ** 0.12, region.box, region.label


def _overlap(a: Box, b: Box, of_union: bool) -> float:
    """Intersection of two boxes over their union, or over the smaller one."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    tall = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or tall <= 0:
        return 0.0
    areas = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return wide * tall / (sum(areas) - wide * tall if of_union else min(areas))

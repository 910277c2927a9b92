"""Captions without weights: sentences put together from measurements.

The captioner says what the classical detector found, where, and how light, contrast and texture of each
source are. It does not replace Florence-2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.classical_objects import ClassicalDetector
from pipeline.images import Image, SampleImages, luminance
from pipeline.manifest import SHARPENING_TASKS
from pipeline.records import Instances

FloatArray = NDArray[np.float32]

_SOURCE_NAMES = {
    "visible": "visible image",
    "infrared": "infrared image",
    "ct": "CT image",
    "mri": "MRI image",
    "pet": "PET image",
    "spect": "SPECT image",
    "under": "under-exposed image",
    "over": "over-exposed image",
    "near": "near-focused image",
    "far": "far-focused image",
    "pan": "panchromatic image",
    "ms": "multispectral image",
    "hs": "hyperspectral image",
}
_TASK_NAMES = {
    "medical": "head scan",
    "multi_exposure": "scene at several exposures",
    "multi_focus": "scene at several focus distances",
    "pansharpening": "satellite scene",
    "hyper_multispectral": "remote sensing scene",
}
MOST_THINGS = 3
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PLURALS = {"person": "people"}
_NOUNS = {"lesion": "unpaired spot"}  # what is measured; a caption should not sound like a diagnosis


class ClassicalCaptioner:
    """A caption of two to five sentences from what can be measured. Implements the Captioner protocol."""

    identity = "classical-captions-1"

    def __init__(self) -> None:
        self._detector = ClassicalDetector(threshold=0.45)

    def __call__(self, samples: Sequence[SampleImages]) -> list[str]:
        """Describe each sample: the scene, then every source, then how the sources differ."""
        found = self._detector(samples, ())
        return [_caption(sample, sources) for sample, sources in zip(samples, found, strict=True)]


def _caption(sample: SampleImages, found: Sequence[Instances]) -> str:
    task, roles = sample.sample.task, sample.sample.roles
    names = [_source_name(role, roles[:number]) for number, role in enumerate(roles)]
    # What is seen comes first: encoders cut long captions.
    shows = [
        f"The {name} shows {_things(instances, sample.size)}."
        for name, instances in zip(names, found, strict=True)
        if len(instances) and task not in (*SHARPENING_TASKS, "multi_focus")
    ]
    looks = [
        f"The {name} {_look(role, image)}."
        for name, role, image in zip(names, roles, sample.images, strict=True)
    ]
    return " ".join([_scene(sample), *shows, *looks, _comparison(sample)])


def _source_name(role: str, earlier: Sequence[str]) -> str:
    base, _, number = role.partition("_")
    name = _SOURCE_NAMES.get(base, f"{base} image")
    return f"{name} number {number}" if number and earlier else name


def _scene(sample: SampleImages) -> str:
    task, roles = sample.sample.task, sample.sample.roles
    grey = luminance(sample.images[0].pixels)
    names = [_SOURCE_NAMES.get(role.partition("_")[0], role).removesuffix(" image") for role in roles]
    names = list(dict.fromkeys(names))
    light = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
    if task == "visible_infrared":
        mean, haze = float(grey.mean()), _haze(sample.images[0])
        time = (
            "dark night"
            if mean < 0.18
            else "dim"
            if mean < 0.32
            else "bright daytime"
            if mean > 0.45
            else "daytime"
        )
        veil = "hazy " if haze else ""
        return f"A {veil}{time} outdoor scene in {light} light."
    if task == "medical":
        side = "small" if (grey > 0.08).mean() < 0.25 else "large"
        return f"A {side} section of a head in {light}."
    detail = _grain(grey)
    kind = "smooth" if detail < 0.012 else "detailed" if detail < 0.04 else "finely textured"
    return f"A {kind} {_TASK_NAMES.get(task, 'scene')}, {light}."


def _haze(image: Image) -> bool:
    """Dark channel prior (He et al., 2009): without haze some colour is dark in nearly every patch."""
    dark = ndimage.minimum_filter(image.pixels.min(axis=0)[::4, ::4], 5)
    grey = luminance(image.pixels)
    return float(np.median(dark)) > 0.30 and float(grey.std()) < 0.22


def _grain(grey: FloatArray) -> float:
    return float(np.abs(np.diff(grey, axis=1)).mean() + np.abs(np.diff(grey, axis=0)).mean())


def _look(role: str, image: Image) -> str:
    """Brightness, contrast and colour of one source as the end of a sentence."""
    grey = luminance(image.pixels)
    mean, spread = float(grey.mean()), float(np.subtract(*np.percentile(grey, [95, 5])))
    bright = (
        "very dark" if mean < 0.12 else "dark" if mean < 0.3 else "bright" if mean > 0.6 else "evenly lit"
    )
    contrast = "low" if spread < 0.3 else "strong" if spread > 0.65 else "moderate"
    words = [f"is {bright} with {contrast} contrast"]
    clipped = float((grey > 0.98).mean())
    if clipped > 0.03 and role != "ct":
        words.append(f"{_share(clipped)} of it saturated")
    if role == "over" or role == "under":
        lost = float((grey < 0.03).mean())
        words += [f"{_share(lost)} of it lost in shadow"] if lost > 0.03 else []
    if role in ("near", "far", "mri"):
        words.append(f"sharpest {_place_of(_sharpness(grey))}")
    if role in ("pet", "spect"):
        words.append(f"most active {_place_of(grey)}")
    if role in ("ms", "hs"):
        brightest = int(image.pixels.mean(axis=(1, 2)).argmax()) + 1
        words.append(f"{image.pixels.shape[0]} bands that peak in band {brightest}")
        vegetation = _vegetation(image.pixels)
        words += [f"vegetation over {_share(vegetation)}"] if vegetation > 0.03 else []
    if role in ("under", "over", "near", "far") and image.pixels.shape[0] == 3:
        words.append(_colour(image.pixels))
    return ", ".join(words)


def _share(value: float) -> str:
    return "nearly all" if value > 0.9 else f"about {max(5, round(value * 20) * 5)} percent"


def _sharpness(grey: FloatArray) -> FloatArray:
    detail = np.abs(grey - ndimage.gaussian_filter(grey, 1.5))
    return ndimage.gaussian_filter(detail, min(grey.shape) / 20)


def _place_of(weights: FloatArray) -> str:
    """Where most of a non-negative map's upper half lies."""
    heavy = np.clip(weights - np.percentile(weights, 70), 0, None)
    total = float(heavy.sum())
    if total <= 0:
        return "everywhere"
    y = float((heavy.sum(axis=1) * np.arange(heavy.shape[0])).sum() / total / heavy.shape[0])
    x = float((heavy.sum(axis=0) * np.arange(heavy.shape[1])).sum() / total / heavy.shape[1])
    row = "at the top" if y < 0.42 else "at the bottom" if y > 0.58 else ""
    column = "on the left" if x < 0.42 else "on the right" if x > 0.58 else ""
    return " ".join(part for part in (row, column) if part) or "in the centre"


def _vegetation(pixels: FloatArray) -> float:
    """Share of pixels whose last band is far brighter than the red one (third of four, fifth of eight)."""
    bands = pixels.shape[0]
    if bands < 4:
        return 0.0
    red = {4: 2, 8: 4}.get(bands, bands // 2)
    near = pixels[{8: 6}.get(bands, bands - 1)]
    index = (near - pixels[red]) / np.maximum(near + pixels[red], 1e-3)
    return float((index > 0.3).mean())


def _colour(pixels: FloatArray) -> str:
    mean = pixels.mean(axis=(1, 2))
    if float(np.ptp(pixels, axis=0).mean()) < 0.03:
        return "almost without colour"
    strongest = ("reddish", "greenish", "bluish")[int(mean.argmax())]
    return f"{strongest} in tone" if float(np.ptp(mean)) > 0.03 else "neutral in colour"


def _things(found: Instances, size: tuple[int, int]) -> str:
    """Counted objects with places: "two people on the left, near, and a car in the centre"."""
    height, width = size
    counts: Counter[tuple[str, str, str]] = Counter()
    for box, label in zip(found.box, found.label, strict=True):
        x = float(box[0] + box[2]) / 2 / width
        side = "on the left" if x < 0.36 else "on the right" if x > 0.64 else "in the centre"
        tall = float(box[3] - box[1]) / height
        reach = (
            "" if label not in ("person", "car") else "near" if tall > 0.25 else "far" if tall < 0.08 else ""
        )
        counts[label, side, reach] += 1
    order = {"person": 0, "car": 1, "lamp": 2}
    ranked = sorted(counts.items(), key=lambda item: (order.get(item[0][0], 3), -item[1], item[0]))
    phrases = [_phrase(count, label, side, reach) for (label, side, reach), count in ranked[:MOST_THINGS]]
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _phrase(count: int, label: str, side: str, reach: str) -> str:
    label = _NOUNS.get(label, label)
    if count == 1:
        article = "an" if label[0] in "aeiou" else "a"
        number, noun = article, label
    else:
        number = _NUMBERS[count] if count < len(_NUMBERS) else "many"
        noun = _PLURALS.get(label, label + "s")
    place = {"near": f"close by {side}", "far": f"far away {side}"}.get(reach, side)
    return f"{number} {noun} {place}"


def _comparison(sample: SampleImages) -> str:
    """Which source holds more fine detail, and how alike the first two are."""
    first, second = (luminance(image.pixels) for image in sample.images[:2])
    roles = sample.sample.roles
    grain = _grain(first), _grain(second)
    sharper = roles[0] if grain[0] >= grain[1] else roles[1]
    a, b = first - first.mean(), second - second.mean()
    alike = float((a * b).mean() / max(float(a.std() * b.std()), 1e-6))
    relation = "look alike" if alike > 0.7 else "differ strongly" if alike < 0.25 else "differ in part"
    ratio = max(grain) / max(min(grain), 1e-6)
    detail = (
        "Both hold about as much detail"
        if ratio < 1.15
        else f"The {_source_name(sharper, ())} holds more detail"
    )
    return f"{detail}; the sources {relation}."

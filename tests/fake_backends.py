"""Instant backends for the four protocols, and a small data set; as a script, all guidance of that data set.

`python fake_backends.py [seconds]` in a folder made by `make_dataset`: every backend call takes that long.
"""

import os
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from pipeline import boxes, captions, masks, texts
from pipeline.config import DatasetConfig, PipelineConfig
from pipeline.errors import exit_on_error
from pipeline.guidance import run_guidance
from pipeline.images import SampleImages, write_image
from pipeline.manifest import Sample, Source, write_manifest
from pipeline.store import Instances


class Captioner:
    identity = "fake"

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds
        self.seen: list[list[str]] = []

    def __call__(self, samples: Sequence[SampleImages]) -> list[str]:
        time.sleep(self.seconds)
        self.seen.append([sample.sample.id for sample in samples])
        return [f"Scène {s.sample.id}, mean {s.images[0].pixels.mean():.6f}" for s in samples]


class TextEncoder:
    identity = "fake"

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        time.sleep(self.seconds)
        return [self.features(caption) for caption in captions]

    @staticmethod
    def features(caption: str) -> np.ndarray:
        words = np.array([zlib.crc32(word.encode()) % 1000 for word in caption.split()], np.float32)
        return np.repeat(words[:, None], 512, axis=1)


class Detector:
    identity = "fake"

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds
        self.prompts: set[tuple[str, ...]] = set()

    def __call__(self, samples: Sequence[SampleImages], prompt: Sequence[str]) -> list[tuple[Instances, ...]]:
        time.sleep(self.seconds)
        self.prompts.add(tuple(prompt))
        box, score = np.array([[1, 2, 21, 12]], np.float32), np.array([0.9], np.float32)
        return [tuple(Instances(box, score, ("person",)) for _ in sample.images) for sample in samples]


class Segmenter:
    identity = "fake"

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds

    def __call__(
        self, samples: Sequence[SampleImages], boxes: Sequence[tuple[Instances, ...]]
    ) -> list[tuple[Instances, ...]]:
        time.sleep(self.seconds)
        return [
            tuple(self.fill(i, sample.size) for i in sources)
            for sample, sources in zip(samples, boxes, strict=True)
        ]

    @staticmethod
    def fill(instances: Instances, size: tuple[int, int]) -> Instances:
        mask = np.zeros((len(instances), *size), bool)
        for m, (x0, y0, x1, y1) in zip(mask, instances.box.astype(int), strict=True):
            m[y0:y1, x0:x1] = True
        iou = np.full(len(instances), 0.95, np.float32)
        return Instances(instances.box, instances.score, instances.label, iou, mask)


def use_fakes(seconds: float = 0) -> dict[ModuleType, object]:
    """Put a fake in the place of every stage's `backend` and return them."""
    fakes: dict[ModuleType, object] = {
        captions: Captioner(seconds),
        texts: TextEncoder(seconds),
        boxes: Detector(seconds),
        masks: Segmenter(seconds),
    }
    for stage, fake in fakes.items():
        stage.backend = lambda config, fake=fake: fake
    return fakes


def make_dataset(folder: Path, sizes: Sequence[tuple[int, int]], label_maps: bool = False) -> list[Sample]:
    """Write a random visible and infrared image per size, and the manifest; paths relative to `folder`."""
    rng = np.random.default_rng(0)
    root = Path("images")
    samples = []
    for number, (height, width) in enumerate(sizes):
        name = f"s{number:03d}"
        sources = (
            Source("visible", root / f"visible/{name}.png"),
            Source("infrared", root / f"infrared/{name}.png"),
        )
        for source, bands in zip(sources, (3, 1), strict=True):
            write_image(folder / source.path, rng.random((bands, height, width), dtype=np.float32))
        mask = root / f"mask/{name}.png" if label_maps else None
        if mask:
            labels = np.zeros((1, height, width), np.float32)
            labels[0, 2:10, 2:10] = 1
            labels[0, 2:10, 14:20] = 1
            labels[0, 12:18, 2:20] = 2
            write_image(folder / mask, labels / 255)
        samples.append(Sample(name, "visible_infrared", "train", sources, mask=mask))
    write_manifest(folder / "mini.csv", samples, root)
    return samples


def config(**changes: object) -> PipelineConfig:
    """A configuration whose one data set is `mini`."""
    dataset = {"manifest": "mini.csv", "root": "images", **changes}
    return PipelineConfig(datasets={"mini": DatasetConfig(**dataset)})


def guide(folder: Path, seconds: float) -> None:
    """All guidance of the data set in a folder, by slow fakes, as a command runs it."""
    os.chdir(folder)
    use_fakes(seconds)
    with exit_on_error():
        run_guidance(config(), "mini")


if __name__ == "__main__":
    guide(Path(), float(sys.argv[1]) if len(sys.argv) > 1 else 0)

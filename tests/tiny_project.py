"""A project small enough to train in a second: two tasks, made-up images, guidance stores."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save

from model.config import ModelConfig
from model.network import RWKVFusion
from pipeline.images import write_image
from pipeline.manifest import TASKS, Sample, Source, content_hash, write_manifest
from pipeline.store import MergedMasks, Text, create_store

SIZES = {"visible_infrared": (24, 32), "pansharpening": (32, 32)}
SPLITS = ("train", "train", "train", "train", "train", "validation", "test", "test")


def scene(seed: int, bands: int, height: int, width: int) -> np.ndarray:
    """Smooth shades with a few rectangles: something to fuse."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    image = np.stack(
        [0.3 + 0.4 * np.sin(random.uniform(2, 6) * (rows + b * columns)) ** 2 for b in range(bands)]
    )
    for _ in range(3):
        y, x = random.integers(height - 6), random.integers(width - 6)
        image[:, y : y + 6, x : x + 6] = random.uniform(0, 1, (bands, 1, 1))
    return image.astype(np.float32)


def make_project(root: Path, guidance: bool = True, **train: object) -> list[Sample]:
    """Write params.yaml, manifest, images and stores below ``root``; run from there. Returns the samples."""
    settings = {"dataset": "tiny", "steps": 6, "batch": 2, "crop": 16, "validate_every": 2, "warmup_steps": 1}
    params = {
        "datasets": {"tiny": {"manifest": "tiny.csv", "root": "data", "masks": "auto"}},
        "model": {"width": 4, "encoder_depths": [1, 1], "decoder_depths": [1]},
        "loss": {"ssim_window": 5},
        "train": settings | train,
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    samples = [*_visible_infrared(root / "data"), *_pansharpening(root / "data")]
    write_manifest(root / "tiny.csv", samples, root / "data")
    if guidance:
        _stores(root, samples)
    return samples


def _visible_infrared(root: Path) -> list[Sample]:
    samples = []
    for number, split in enumerate(SPLITS):
        name = f"vi{number}"
        sources = (
            Source("visible", root / f"visible/{name}.png"),
            Source("infrared", root / f"infrared/{name}.png"),
        )
        write_image(sources[0].path, scene(number, 3, *SIZES["visible_infrared"]))
        write_image(sources[1].path, scene(100 + number, 1, *SIZES["visible_infrared"]))
        samples.append(Sample(name, "visible_infrared", split, sources))
    return samples


def _pansharpening(root: Path) -> list[Sample]:
    samples = []
    for number, split in enumerate(SPLITS):
        name = f"ps{number}"
        target = scene(200 + number, 4, *SIZES["pansharpening"])
        small = target.reshape(4, 8, 4, 8, 4).mean(axis=(2, 4))
        paths = {role: root / f"{role}/{name}.tif" for role in ("pan", "ms", "target")}
        for role, pixels in (("pan", target.mean(axis=0, keepdims=True)), ("ms", small), ("target", target)):
            write_image(paths[role], pixels, 16)
        sources = (Source("pan", paths["pan"]), Source("ms", paths["ms"]))
        samples.append(Sample(name, "pansharpening", split, sources, target=paths["target"]))
    return samples


def text_of(number: int) -> np.ndarray:
    """Text features of sample ``number``: 3 to 6 tokens."""
    return np.random.default_rng(number).normal(size=(3 + number % 4, 512)).astype(np.float16)


def masks_of(number: int, size: tuple[int, int]) -> np.ndarray:
    """Merged masks of sample ``number``: two overlapping rectangles."""
    mask = np.zeros((2, *size), dtype=bool)
    mask[0, 2 + number : 12 + number, 3:15] = True
    mask[1, 8:20, 10 : 20 + number] = True
    return mask


def _stores(root: Path, samples: list[Sample]) -> None:
    folder = root / "guidance" / "tiny"
    content = {sample.id: content_hash(sample) for sample in samples}
    ids = [sample.id for sample in samples]
    texts = create_store(folder / "texts.zarr", "texts", ids, {}, "texts-1", T=8, D=512)
    texts.write({sample.id: Text(text_of(n)) for n, sample in enumerate(samples)}, content)
    merged = create_store(folder / "merged.zarr", "merged", ids, {}, "merged-1", H=32, W=32)
    records = {}
    for number, sample in enumerate(samples):
        mask = masks_of(number % 8, SIZES[sample.task])
        records[sample.id] = MergedMasks(
            mask, ("person", "car"), np.ones(2, np.float32), np.ones(2, np.float32)
        )
    merged.write(records, content)


def make_weights(
    path: Path,
    task: str,
    seed: int = 0,
    head: float = 0.02,
    changed: dict[str, object] | None = None,
    encoder: str | None = None,
) -> Path:
    """Write weights of an untrained network whose head is not zero: its result depends on everything.

    ``changed``: other values of the network's configuration; ``encoder``: whose text it knows.
    """
    torch.manual_seed(seed)
    sharpening = task == "pansharpening"
    config = ModelConfig(
        width=4,
        encoder_depths=(1, 1),
        decoder_depths=(1,),
        in_channels=(1, 4) if sharpening else (1, 1),
        out_channels=4 if sharpening else 1,
        base=1 if sharpening else None,
    )
    config = dataclasses.replace(config, **(changed or {}))
    network = RWKVFusion(config)
    torch.nn.init.normal_(network.head.weight, std=head)
    content = save(network.state_dict())
    record = {
        "format": 1,
        "task": task,
        "roles": TASKS[task][0],
        "ratios": [1, 4] if sharpening else [1, 1],
        "model": dataclasses.asdict(config),
        "text_encoder": encoder,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.with_suffix(".json").write_text(json.dumps(record))
    return path

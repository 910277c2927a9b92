"""The embedded data set: generated scenes of all six tasks, with the truth about them kept apart for testing.

    <root>/<task>/<role>/<sample>.png|.tif|.npy     sources
    <root>/<task>/target/<sample>…                  ideal results, where a task has one
    <root>/pansharpening/{train,valid,test}_qb.h5   as PanCollection: gt, ms, lms, pan, N x C x H x W in DN
    <root>/hyper_multispectral/{train,…}_land.h5    as Chikusei: GT, LRHSI, RGB
    <root>/truth/captions.json, truth/masks/<sample>.npz (mask (n, H, W) bool, label (n,))
    <root>/checksums.json                           written last: seed, generator, SHA-256 of every file

Every sample has its own random generator seeded with (seed, task, index), so no sample depends on another.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import h5py
import numpy as np

from pipeline import (
    demo_canvas,
    demo_cars,
    demo_exposure,
    demo_focus,
    demo_objects,
    demo_phantoms,
    demo_remote,
    demo_scenes,
    protocols,
    sensors,
)
from pipeline.demo_canvas import Array, Views
from pipeline.errors import InputError
from pipeline.images import quantise, write_image
from pipeline.manifest import SPLITS, TASKS, Sample, Source, split_key

CHECKSUMS = "checksums.json"
DRAWING = (
    demo_canvas,
    demo_cars,
    demo_exposure,
    demo_focus,
    demo_objects,
    demo_phantoms,
    demo_remote,
    demo_scenes,
    protocols,
    sensors,
)


@dataclass(frozen=True)
class Stack:
    """The layout of a published data set: one HDF5 file per split that holds all samples.

    ``file``: its name, with {split}; ``names``: role or ``target`` -> name of the dataset in it;
    ``enlarged``: one more dataset, the last source enlarged with the 23-tap kernel.
    """

    file: str
    names: dict[str, str]
    enlarged: str = ""

    def path(self, folder: Path, split: str, role: str, index: int) -> Path:
        """Where the manifest finds an image of the sample ``index`` of a split."""
        short = {"validation": "valid"}.get(split, split)
        return folder / f"{self.file.format(split=short)}#{self.names[role]}[{index}]"


@dataclass(frozen=True)
class Part:
    """What the data set holds of one task. `roles` take turns from sample to sample; `bits` of the files;
    `stack` for one file per split instead of one per image."""

    build: Callable[[np.random.Generator, int], Views]
    counts: tuple[int, int, int]  # train, validation, test
    roles: tuple[tuple[str, ...], ...]
    suffix: str = ".png"
    bits: int = 8
    target: bool = False
    stack: Stack | None = None


PARTS: dict[str, Part] = {
    "visible_infrared": Part(demo_scenes.visible_infrared, (24, 4, 8), (("visible", "infrared"),)),
    "medical": Part(demo_phantoms.medical, (8, 2, 4), (("ct", "mri"), ("pet", "mri"))),
    "multi_exposure": Part(demo_exposure.multi_exposure, (8, 2, 4), (("under", "over"),)),
    "multi_focus": Part(demo_focus.multi_focus, (8, 2, 4), (("near", "far"),), target=True),
    "pansharpening": Part(
        demo_remote.pansharpening,
        (8, 2, 4),
        (("pan", "ms"),),
        bits=11,
        target=True,
        stack=Stack("{split}_qb.h5", {"pan": "pan", "ms": "ms", "target": "gt"}, enlarged="lms"),
    ),
    "hyper_multispectral": Part(
        demo_remote.hyper_multispectral,
        (8, 2, 4),
        (("ms", "hs"),),
        bits=16,
        target=True,
        stack=Stack("{split}_land.h5", {"ms": "RGB", "hs": "LRHSI", "target": "GT"}),
    ),
}


def listing(root: Path) -> list[Sample]:
    """The samples of the data set under `root`, there or not: the rows of data_manifests/demo.csv."""
    return [sample for sample, _, _ in _plan(root)]


def _plan(root: Path) -> Iterator[tuple[Sample, Part, int]]:
    for task in TASKS:
        part = PARTS[task]
        splits = [split for split, count in zip(SPLITS, part.counts, strict=True) for _ in range(count)]
        for index, split in enumerate(splits):
            name = f"{task}_{index:03d}"
            roles = part.roles[index % len(part.roles)]
            nth = splits[:index].count(split)
            places = {
                role: part.stack.path(root / task, split, role, nth)
                if part.stack
                else root / task / role / (name + part.suffix)
                for role in (*roles, "target")
                if role != "target" or part.target
            }
            sources = tuple(Source(role, places[role]) for role in roles)
            target = places.get("target")
            # uint8 and uint16 tell their depth themselves; 11 bits in uint16 must be said.
            bits = part.bits if part.bits not in (8, 16) else None
            yield Sample(name, task, split, sources, target=target, bits=bits), part, index


def generate(root: Path, seed: int = 0, *, force: bool = False) -> list[Sample]:
    """Write the data set to `root` and return its samples; one that is complete and unchanged is left alone.

    It is made in a folder beside `root` and renamed, so an interrupted run leaves what was there before.
    The same seed gives the same bytes. Raises InputError when `root` holds files of another origin.
    """
    if not force and is_current(root, seed):
        return listing(root)
    if root.is_dir() and any(root.iterdir()) and not (root / CHECKSUMS).is_file():
        raise InputError(f"{root}: holds files of another origin; move them away or give another folder")
    fresh, old = root.with_name(root.name + ".tmp"), root.with_name(root.name + ".old")
    for leftover in (fresh, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    try:
        _write(fresh, seed)
        if root.exists():
            os.replace(root, old)
        os.replace(fresh, root)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return listing(root)


def is_current(root: Path, seed: int = 0) -> bool:
    """Whether `root` holds exactly the files that this generator wrote with this seed."""
    try:
        record = json.loads((root / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(record == _record(root, seed))


def _write(root: Path, seed: int) -> None:
    captions: dict[str, str] = {}
    for (task, _), members in groupby(_plan(root), lambda row: (row[0].task, row[0].split)):
        drawn: list[tuple[Sample, Views]] = []
        for sample, part, index in members:
            views = part.build(np.random.default_rng([seed, tuple(TASKS).index(task), index]), index)
            captions[sample.id] = views.caption
            if part.stack is None:
                for path, image in _images(sample, views).items():
                    _save(path, image, part.bits)
            else:
                drawn.append((sample, views))
            if views.masks is not None:
                buffer = io.BytesIO()
                np.savez_compressed(buffer, mask=views.masks, label=np.array(views.labels))
                _truth(root, f"masks/{sample.id}.npz").write_bytes(buffer.getvalue())
        if drawn:
            _save_stack(drawn, part)
    _truth(root, "captions.json").write_text(json.dumps(captions, indent=1) + "\n", encoding="utf-8")
    (root / CHECKSUMS).write_text(json.dumps(_record(root, seed), indent=1) + "\n", encoding="utf-8")


def _images(sample: Sample, views: Views) -> dict[Path, Array]:
    """Path in the manifest -> (H, W) or (H, W, C) image of a sample, the target included."""
    images = {source.path: views.images[source.role] for source in sample.sources}
    if sample.target is not None and views.target is not None:
        images[sample.target] = views.target
    return images


def _save_stack(drawn: list[tuple[Sample, Views]], part: Part) -> None:
    """Write the samples of one split into their HDF5 file: N x C x H x W in digital numbers."""
    stacks: dict[str, list[Array]] = {}
    for sample, views in drawn:
        for path, image in _images(sample, views).items():
            file, key = split_key(path)
            stacks.setdefault(key.partition("[")[0], []).append(_bands(image))
    if part.stack is not None and part.stack.enlarged:
        last = part.stack.names[drawn[0][0].sources[-1].role]
        stacks[part.stack.enlarged] = [
            protocols.interp23(image, demo_remote.RATIO).clip(0, 1) for image in stacks[last]
        ]
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as opened:
        for name, images in stacks.items():
            opened.create_dataset(name, data=quantise(np.stack(images).astype(np.float32), part.bits))


def _truth(root: Path, name: str) -> Path:
    path = root / "truth" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _save(path: Path, image: Array, bits: int) -> None:
    """Write an (H, W) or (H, W, C) image in [0, 1]."""
    write_image(path, np.ascontiguousarray(_bands(image), dtype=np.float32), bits)


def _bands(image: Array) -> Array:
    """(H, W) or (H, W, C) -> (C, H, W)."""
    return image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)


def _record(root: Path, seed: int) -> dict[str, object]:
    files = sorted(path for path in root.rglob("*") if path.is_file() and path != root / CHECKSUMS)
    sums = {path.relative_to(root).as_posix(): _sha256(path) for path in files}
    return {"seed": seed, "generator": _generator(), "files": sums}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _generator() -> str:
    """Hash of the code that draws, so that a changed generator makes its pictures anew."""
    digest = hashlib.sha256()
    for module in DRAWING:
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()

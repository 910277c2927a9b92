"""Which samples a `rwkvfusion fuse` command means, which task they are of, and where each result goes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.images import read_image
from pipeline.manifest import (
    IMAGE_SUFFIXES,
    ROLE_WORDS,
    SHARPENING_TASKS,
    TASKS,
    Sample,
    Source,
    nearest,
)


@dataclass(frozen=True)
class Job:
    """One sample to fuse and the file to write; a folder's results get their suffix from the fused image."""

    sample: Sample
    output: Path
    suffix_free: bool = False


def jobs_of_paths(paths: Sequence[Path], output: Path, task: str | None) -> tuple[list[Job], list[str]]:
    """Jobs for two or more files, or for two or more folders whose files match by name; and files left out.

    Raises InputError when a path is missing, files and folders are mixed, nothing matches, the task cannot be
    told, or the output would overwrite an input.
    """
    if len(paths) < 2:
        raise InputError(f"{len(paths)} source given; fusion needs at least two files or two folders")
    for path in paths:
        if not path.exists() and "#" not in path.name:
            raise InputError(f"{path}: no such file or folder")
    if task is not None and task not in TASKS:
        raise InputError(f"unknown task '{task}'.{nearest(task, TASKS)}")
    folders = [path.is_dir() for path in paths]
    if any(folders) and not all(folders):
        file = paths[folders.index(False)]
        raise InputError(f"{file}: is a file and another source a folder; give only files or only folders")
    if not all(folders):
        return [_job(paths[0].stem, paths, output, task)], []
    if output.suffix.lower() in IMAGE_SUFFIXES:
        raise InputError(f"{output}: the sources are folders, so -o must be a folder too")
    found = [{file.stem: file for file in sorted(folder.iterdir()) if _is_image(file)} for folder in paths]
    stems = sorted(set(found[0]).intersection(*found[1:]))
    if not stems:
        listed = ", ".join(str(folder) for folder in paths)
        raise InputError(
            f"no file name occurs in all of {listed}; the files of one sample must have the same name"
        )
    unmatched = [str(files[stem]) for files in found for stem in sorted(files) if stem not in stems]
    chosen = task or guess_task([files[stems[0]] for files in found])
    jobs = [_job(stem, [files[stem] for files in found], output, chosen, folder=True) for stem in stems]
    return jobs, unmatched


def _is_image(file: Path) -> bool:
    return file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES


def _job(stem: str, paths: Sequence[Path], output: Path, task: str | None, folder: bool = False) -> Job:
    task = task or guess_task(paths)
    folder = folder or output.is_dir() or not output.suffix
    target = output / f"{stem}.png" if folder else output
    return Job(Sample(stem, task, "test", ordered(paths, task)), target, suffix_free=folder)


def jobs_of_samples(samples: Sequence[Sample], output: Path) -> list[Job]:
    """Jobs for the samples of a manifest; results are <output>/<sample>.png or .tif."""
    if output.suffix.lower() in IMAGE_SUFFIXES:
        raise InputError(f"{output}: a data set has many samples, so -o must be a folder")
    return [Job(sample, output / f"{sample.id}.png", suffix_free=True) for sample in samples]


def role_of(path: Path) -> str | None:
    """The role that a file's folder or own name tells, if it tells exactly one."""
    for name in (path.parent.name, path.stem):
        words = set(re.split(r"[^a-z]+", name.lower()))
        roles = [role for role, known in ROLE_WORDS.items() if words & set(known)]
        if len(roles) == 1:
            return roles[0]
    return None


def guess_task(paths: Sequence[Path]) -> str:
    """Task by role names in the paths, else by facts of the images. Raises InputError when neither tells."""
    roles = {role_of(path) for path in paths} - {None}
    for task, groups in TASKS.items():
        if any(roles == set(group) for group in groups):
            return task
    images = [read_image(path).pixels for path in paths]
    heights = [image.shape[1] for image in images]
    if len(images) == 2 and heights[0] != heights[1]:
        large, small = sorted(images, key=lambda image: -image.shape[1])
        if large.shape[1] % small.shape[1] == 0 and large.shape[0] < small.shape[0]:
            return SHARPENING_TASKS[0] if large.shape[0] == 1 else SHARPENING_TASKS[1]
    if len({_in_colour(image) for image in images}) == 2 and len(images) == 2:
        return "visible_infrared"
    names = " and ".join(str(path) for path in paths)
    raise InputError(f"cannot tell the task from {names}; add --task with one of {', '.join(TASKS)}")


def _in_colour(pixels: np.ndarray) -> bool:
    return pixels.shape[0] == 3 and float(np.ptp(pixels, axis=0).max()) > 8 / 255  # JPEG noise is not colour


def ordered(paths: Sequence[Path], task: str) -> tuple[Source, ...]:
    """Sources in the order the task's network was trained with: by role where names tell it, else as given.

    Two unnamed sources of visible_infrared go colour first, of sharpening large first.
    """
    roles = [role_of(path) for path in paths]
    for group in TASKS[task]:
        if set(roles) == set(group):
            order = sorted(range(len(paths)), key=lambda index: group.index(str(roles[index])))
            return tuple(Source(str(roles[index]), paths[index]) for index in order)
    found = list(paths)
    if len(found) == 2 and task in (*SHARPENING_TASKS, "visible_infrared"):
        images = [read_image(path).pixels for path in found]
        swapped = (
            images[0].shape[1] < images[1].shape[1]
            if task in SHARPENING_TASKS
            else _in_colour(images[1]) and not _in_colour(images[0])
        )
        found = found[::-1] if swapped else found
    group = TASKS[task][0]
    numbered = [group[min(index, len(group) - 1)] for index in range(len(found))]
    return tuple(Source(role, path) for role, path in zip(numbered, found, strict=True))

"""Which samples a `rwkvfusion fuse` command means, which task they are of, and where each result goes."""

from __future__ import annotations

import csv
import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.config import load_config
from pipeline.errors import InputError
from pipeline.images import image_facts, read_window
from pipeline.manifest import (
    IMAGE_SUFFIXES,
    ROLE_WORDS,
    ROLES,
    SHARPENING_TASKS,
    SPLITS,
    TASKS,
    ZARR_SUFFIX,
    Sample,
    Source,
    is_stored,
    nearest,
    read_manifest,
    split_key,
)

WRITTEN = (*IMAGE_SUFFIXES, ZARR_SUFFIX)


@dataclass(frozen=True)
class Job:
    """One sample to fuse and the file to write; a folder's results get their suffix from the sources.

    ``caption`` and ``masks`` (a file of object masks) are the sample's own guidance.
    """

    sample: Sample
    output: Path
    suffix_free: bool = False
    caption: str | None = None
    masks: Path | None = None


def jobs_of_paths(
    inputs: Sequence[str | Path], output: Path, task: str | None = None
) -> tuple[list[Job], list[str]]:
    """Jobs for what a command line names as sources; and files left out because they have no partner.

    ``inputs``: two or more files of one sample; or one folder or pattern (``'vis/*.png'``) per source, or
    files out of one folder per source, matched by name; or one CSV table (`jobs_of_table`). Raises InputError
    when something is missing, kinds are mixed, nothing matches, the task cannot be told, or two results would
    be the same file.
    """
    if task is not None and task not in TASKS:
        raise InputError(f"unknown task '{task}'.{nearest(task, TASKS)}")
    if len(inputs) == 1 and Path(inputs[0]).suffix.lower() == ".csv":
        return jobs_of_table(Path(inputs[0]), output, task), []
    if len(inputs) < 2:
        raise InputError(
            f"{len(inputs)} source{'' if len(inputs) == 1 else 's'} given; fusion needs at least two files "
            "or folders, or one CSV table"
        )
    found = [_files_of(str(text)) for text in inputs]
    single = [files is None for files in found]
    paths = [Path(text) for text in inputs]
    if any(single) and not all(single):
        file = paths[single.index(True)]
        raise InputError(f"{file}: is a file and another source a folder; give only files or only folders")
    groups = _by_folder(paths) if all(single) else [files or [] for files in found]
    if groups is None:
        return [_job(paths[0].stem, paths, output, task)], []
    return _matched(groups, [str(text) for text in inputs], output, task)


def _files_of(text: str) -> list[Path] | None:
    """The images of a folder or pattern; None for a single file."""
    path = Path(text)
    if path.is_dir() and path.suffix.lower() != ZARR_SUFFIX:
        return [file for file in sorted(path.iterdir()) if _is_image(file)]
    if path.exists() or split_key(path)[1]:
        return None
    if glob.has_magic(text):
        files = [Path(name) for name in sorted(glob.glob(text, recursive=True)) if _is_image(Path(name))]
        if not files:
            raise InputError(f"{text}: no image matches this pattern; check the folder and the suffix")
        return files
    raise InputError(f"{path}: no such file or folder")


def _is_image(file: Path) -> bool:
    """Not what macOS leaves beside each file on other systems' disks."""
    return is_stored(file) and file.suffix.lower() in WRITTEN and not file.name.startswith("._")


def _by_folder(paths: Sequence[Path]) -> list[list[Path]] | None:
    """Files by their folders, as a shell expands vis/*.png ir/*.png; None where they are one sample."""
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path)
    several = len(folders) > 1 and max(len(files) for files in folders.values()) > 1
    return list(folders.values()) if several else None


def _matched(
    groups: Sequence[Sequence[Path]], names: Sequence[str], output: Path, task: str | None
) -> tuple[list[Job], list[str]]:
    """Jobs of the files with one name in every group, and the files that are not in all."""
    if output.suffix.lower() in WRITTEN:
        raise InputError(f"{output}: the sources are folders, so -o must be a folder too")
    found: list[dict[str, Path]] = []
    for files in groups:
        by_stem: dict[str, Path] = {}
        for file in files:
            if file.stem in by_stem:
                raise InputError(
                    f"{file}: {by_stem[file.stem].name} has the same name; keep one of the two in the folder"
                )
            by_stem[file.stem] = file
        found.append(by_stem)
    stems = sorted(set(found[0]).intersection(*found[1:]))
    if not stems:
        raise InputError(
            f"no file name occurs in all of {', '.join(names)}; the files of one sample must have the same "
            "name"
        )
    unmatched = [str(files[stem]) for files in found for stem in sorted(files) if stem not in stems]
    chosen = task or guess_task([files[stems[0]] for files in found])
    jobs = [_job(stem, [files[stem] for files in found], output, chosen, folder=True) for stem in stems]
    return jobs, unmatched


def _job(name: str, paths: Sequence[Path], output: Path, task: str | None, folder: bool = False) -> Job:
    task = task or guess_task(paths)
    folder = folder or not output.suffix or (output.is_dir() and output.suffix.lower() != ZARR_SUFFIX)
    target = output / f"{name}.png" if folder else output
    return Job(Sample(name, task, "test", ordered(paths, task)), target, folder)


def jobs_of_table(table: Path, output: Path, task: str | None = None) -> list[Job]:
    """Jobs of a CSV table: a manifest (data_manifests/README.md), or a table of paths.

    A table of paths has one row per sample. Its first row may name the columns: a role each (``visible``,
    ``infrared``, …), and optionally ``sample``, ``task``, ``caption`` and ``masks``; without such a row all
    columns are sources. Paths are relative to the table. Raises InputError that names the row.
    """
    if output.suffix.lower() in WRITTEN:
        raise InputError(f"{output}: a table has many samples, so -o must be a folder")
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: cannot be read as a CSV table in UTF-8 ({error})") from error
    header = [cell.lower() for cell in rows[0]] if rows else []
    if {"sample", "task", "split"} <= set(header):
        return jobs_of_samples(read_manifest(table, table.parent), output)
    named = all(cell in _COLUMNS or re.sub(r"_\d+$", "", cell) in ROLES for cell in header)
    columns = header if named else [""] * len(header)
    jobs = [
        _job_of_row(dict(enumerate(row)), columns, table, number, output, task)
        for number, row in enumerate(rows, start=1)
        if any(row) and not (named and number == 1)
    ]
    if not jobs:
        raise InputError(f"{table}: the table lists no samples")
    return jobs


_COLUMNS = ("sample", "task", "caption", "masks")


def _job_of_row(
    row: dict[int, str], columns: Sequence[str], table: Path, number: int, output: Path, task: str | None
) -> Job:
    place = f"{table}: row {number}"
    if len(row) > len(columns):
        raise InputError(f"{place}: has {len(row)} cells, the first row has {len(columns)}")
    cells = {name: row.get(column, "") for column, name in enumerate(columns) if name in _COLUMNS}
    used = [column for column, name in enumerate(columns) if name not in _COLUMNS and row.get(column)]
    paths = [table.parent / row[column] for column in used]
    if len(paths) < 2:
        raise InputError(
            f"{place}: names {len(paths)} source; fusion needs at least two, with a comma between"
        )
    for path in paths:
        if not is_stored(path):
            raise InputError(f"{place}: {path}: no such file; paths are relative to the table")
    name = cells.get("sample") or paths[0].stem
    if name in (".", "..") or set(name) & set("/\\\0"):
        raise InputError(f"{place}: sample name '{printable(name)}' cannot be the name of a file")
    own = task or cells.get("task") or None
    if own is not None and own not in TASKS:
        raise InputError(f"{place}: unknown task '{own}'.{nearest(own, TASKS)}")
    masks = table.parent / cells["masks"] if cells.get("masks") else None
    roles = [columns[column] for column in used] if any(columns) else [role_of(path) for path in paths]
    chosen = own or guess_task(paths, roles)
    sample = Sample(name, chosen, "test", ordered(paths, chosen, roles))
    return Job(sample, output / f"{name}.png", True, cells.get("caption") or None, masks)


def printable(text: object) -> str:
    """A name as it can be printed: line breaks and other control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def jobs_of_dataset(dataset: str, split: str | None, task: str | None, output: Path) -> list[Job]:
    """Jobs for a data set of params.yaml, or for one split or task of it.

    Raises InputError for unknown names, with the nearest one, and when no sample is left.
    """
    if split is not None and split not in SPLITS:
        raise InputError(f"unknown split '{split}'.{nearest(split, SPLITS)}")
    if task is not None and task not in TASKS:
        raise InputError(f"unknown task '{task}'.{nearest(task, TASKS)}")
    config = load_config().dataset(dataset)
    chosen = [s for s in config.samples() if split in (None, s.split) and task in (None, s.task)]
    if not chosen:
        raise InputError(
            f"{config.manifest}: no sample has split '{split or 'any'}' and task '{task or 'any'}'"
        )
    return jobs_of_samples(chosen, output)


def jobs_of_samples(samples: Sequence[Sample], output: Path) -> list[Job]:
    """Jobs for the samples of a manifest; results are <output>/<sample>.png or .tif."""
    if output.suffix.lower() in WRITTEN:
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


def guess_task(paths: Sequence[Path], roles: Sequence[str | None] | None = None) -> str:
    """Task by the roles (default: those that the paths tell), else by facts of the images.

    Raises InputError when neither tells.
    """
    told = {role for role in roles or [role_of(path) for path in paths] if role is not None}
    for task, groups in TASKS.items():
        if any(told == set(group) for group in groups):
            return task
    facts = [image_facts(path) for path in paths]
    if len(paths) == 2 and facts[0].size != facts[1].size:
        large, small = sorted(facts, key=lambda image: -image.size[0])
        if large.size[0] % small.size[0] == 0 and large.bands < small.bands:
            return SHARPENING_TASKS[0] if large.bands == 1 else SHARPENING_TASKS[1]
    if len(paths) == 2 and len({_in_colour(path) for path in paths}) == 2:
        return "visible_infrared"
    names = " and ".join(str(path) for path in paths)
    raise InputError(f"cannot tell the task from {names}; add --task with one of {', '.join(TASKS)}")


def _in_colour(path: Path) -> bool:
    """Whether the image, or the middle of one that is large, has more colour than JPEG's noise."""
    facts = image_facts(path)
    if facts.bands != 3:
        return False
    height, width = (min(length, _GLIMPSE) if facts.streams else length for length in facts.size)
    top, left = (facts.size[0] - height) // 2, (facts.size[1] - width) // 2
    pixels = read_window(path, top, left, height, width).pixels
    return float(np.ptp(pixels, axis=0).max()) > 8 / 255


_GLIMPSE = 2048  # pixels


def ordered(
    paths: Sequence[Path], task: str, roles: Sequence[str | None] | None = None
) -> tuple[Source, ...]:
    """Sources in the order the task's network was trained with: by role where known, else as given.

    ``roles`` default to those that the paths tell. Two sources without any go colour first in
    visible_infrared, large first in sharpening.
    """
    known = list(roles or [role_of(path) for path in paths])
    for group in TASKS[task]:
        if set(known) == set(group):
            order = sorted(range(len(paths)), key=lambda index: group.index(str(known[index])))
            return tuple(Source(str(known[index]), paths[index]) for index in order)
    found = list(paths)
    if len(found) == 2 and task in (*SHARPENING_TASKS, "visible_infrared"):
        swapped = (
            image_facts(found[0]).size[0] < image_facts(found[1]).size[0]
            if task in SHARPENING_TASKS
            else _in_colour(found[1]) and not _in_colour(found[0])
        )
        found = found[::-1] if swapped else found
    group = TASKS[task][0]
    numbered = [group[min(index, len(group) - 1)] for index in range(len(found))]
    return tuple(Source(role, path) for role, path in zip(numbered, found, strict=True))

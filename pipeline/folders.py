"""The images below a folder, those in MATLAB and HDF5 files included, and groups of them that are samples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.manifest import ENVI_SUFFIXES, HDF5_SUFFIXES, IMAGE_SUFFIXES, companion


@dataclass(frozen=True, slots=True)
class Entry:
    """One image below a folder.

    ``name``: its path there without suffix, the folder's own name first (``MSRS/train/vi/00001D``,
    ``WV3/train_wv3#pan``). ``path``: as a manifest has it. ``length``: of a stack of samples.
    """

    name: str
    path: Path
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The images of one sample by manifest column (role, ``target``, ``mask``), in source order.

    ``names``: what the sample could be called, from short to unmistakable.
    """

    task: str
    names: tuple[str, ...]
    columns: Mapping[str, Entry]


def list_images(root: Path) -> list[Entry]:
    """Every image below ``root``, sorted; hidden folders are left out.

    An ENVI cube is listed by its header. Raises InputError for a MATLAB or HDF5 file that cannot be opened.
    """
    above = root.resolve().parent
    entries: list[Entry] = []
    for folder, children, files in os.walk(root):
        children[:] = sorted(child for child in children if not child.startswith((".", "__MACOSX")))
        place = Path(folder)
        inside = (above / root.resolve().name / place.relative_to(root)).relative_to(above).as_posix()
        for file in sorted(files):
            if not file.startswith("."):
                entries += _entries_of(place / file, inside)
    return entries


def _entries_of(file: Path, folder: str) -> Iterator[Entry]:
    suffix = file.suffix.lower()
    name = f"{folder}/{file.name[: len(file.name) - len(file.suffix)]}"
    if suffix in IMAGE_SUFFIXES or (suffix == ENVI_SUFFIXES[0] and companion(file)):
        yield Entry(name, file)
    elif suffix == ".mat" or suffix in HDF5_SUFFIXES:
        from pipeline.containers import list_variables  # h5py takes long to load

        for variable, length in list_variables(file):
            yield Entry(f"{name}#{variable}", file.with_name(f"{file.name}#{variable}"), length)

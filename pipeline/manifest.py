"""Samples and the manifests that list them.

A manifest is a CSV table, one row per sample: ``sample, task, split, bits``, one column per source role
(``visible``, ``infrared``, …), ``target`` and ``mask``. Paths are relative to the data set's root; an empty
cell means that the sample has no such image. ``file.mat#KEY`` selects one variable of a file that holds
several.
"""

from __future__ import annotations

import csv
import difflib
import gc
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import InputError

TASKS: dict[str, tuple[tuple[str, ...], ...]] = {
    "visible_infrared": (("visible", "infrared"),),
    "medical": (("ct", "mri"), ("pet", "mri"), ("spect", "mri")),
    "multi_exposure": (("under", "over"),),
    "multi_focus": (("near", "far"),),
    "pansharpening": (("pan", "ms"),),
    "hyper_multispectral": (("ms", "hs"),),
}
"""Task id -> the source roles it usually fuses, in source order (the first source fixes the grid)."""

SHARPENING_TASKS = ("pansharpening", "hyper_multispectral")
"""Tasks whose last source is smaller by an integer ratio and which are trained against a target."""

ROLES = (
    "visible",
    "infrared",
    "ct",
    "pet",
    "spect",
    "mri",
    "under",
    "over",
    "near",
    "far",
    "pan",
    "ms",
    "hs",
)
"""Every source role, in source order; a stack of more than one image of a role numbers them (``under``,
``under_2``)."""

ROLE_WORDS = {
    "visible": ("visible", "vis", "vi", "rgb"),
    "infrared": ("infrared", "ir", "thermal", "lwir", "inf"),
    "ct": ("ct",),
    "pet": ("pet",),
    "spect": ("spect",),
    "mri": ("mri", "mr"),
    "under": ("under", "underexposed", "underexposure", "ue"),
    "over": ("over", "overexposed", "overexposure", "oe"),
    "near": ("near", "foreground"),
    "far": ("far", "background"),
    "pan": ("pan",),
    "ms": ("ms", "lrms", "multispectral"),
    "hs": ("hs", "hsi", "lrhs", "hyperspectral"),
}
"""Words by which people call the roles in folder and file names."""

SPLITS = ("train", "validation", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy")
"""Files that hold one image and can be written."""

HDF5_SUFFIXES = (".h5", ".hdf5", ".he5")
ENVI_SUFFIXES = (".hdr", ".img", ".bil", ".bip", ".bsq", ".dat", ".raw")
"""An ENVI cube is named by its header or by its data file."""

ZARR_SUFFIX = ".zarr"
"""A folder that is one image: a Zarr array, or a group of them."""

READ_SUFFIXES = (*IMAGE_SUFFIXES, ".mat", *HDF5_SUFFIXES, *ENVI_SUFFIXES, ZARR_SUFFIX)
"""Every type of image file that can be read."""

_FIXED_COLUMNS = ("sample", "task", "split", "bits")
_LAST_COLUMNS = ("target", "mask")
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_KEYED = re.compile(
    rf"(.+?(?:{'|'.join(map(re.escape, ('.mat', *HDF5_SUFFIXES, ZARR_SUFFIX)))}))#(.*)", re.IGNORECASE
)


class Source:
    """One image of a sample: its role and its file (``file.mat#KEY`` for one variable of several).

    A path given as text becomes one when it is asked for: to make those of a long manifest takes seconds.
    """

    __slots__ = ("_path", "role")

    def __init__(self, role: str, path: Path | str) -> None:
        self.role = role
        self._path = path

    @property
    def path(self) -> Path:
        if isinstance(self._path, str):
            self._path = Path(self._path)
        return self._path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and (self.role, self.path) == (other.role, other.path)

    def __hash__(self) -> int:
        return hash((self.role, self.path))

    def __repr__(self) -> str:
        return f"Source({self.role!r}, {self.path!r})"


@dataclass(frozen=True, slots=True)
class Sample:
    """One aligned set of sources of one scene.

    ``bits`` is the radiometric depth when the file type does not tell it (11 for WorldView in uint16).
    ``mask`` is a human label map, used when the data set says ``masks: provided``.
    """

    id: str
    task: str
    split: str
    sources: tuple[Source, ...]
    target: Path | None = None
    mask: Path | None = None
    bits: int | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(source.role for source in self.sources)


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the choice closest to ``name``, or the list of choices."""
    options = list(choices)
    close = difflib.get_close_matches(name, options, n=1)
    return f" Did you mean '{close[0]}'?" if close else f" Choose one of: {', '.join(options) or 'none'}."


def split_key(path: Path) -> tuple[Path, str]:
    """Split ``file.mat#NAME`` or ``file.h5#group/NAME[12]`` into file and key, which is "" elsewhere."""
    match = _KEYED.fullmatch(str(path))
    return (Path(match[1]), match[2]) if match else (path, "")


def file_of(path: Path) -> Path:
    """Return the file that holds an image: ``path`` without its ``#KEY``."""
    return split_key(path)[0]


def is_stored(path: Path) -> bool:
    """Whether there is a file that may hold an image, or a folder that is one."""
    file = file_of(path)
    return file.is_dir() if file.suffix.lower() == ZARR_SUFFIX else file.is_file()


def companion(path: Path) -> Path | None:
    """The other file of an ENVI cube, header or data, found beside ``path``; None when there is none.

    ``scene.hdr`` belongs to ``scene.img``, ``scene.dat``, … or ``scene``; ``scene.img.hdr`` to ``scene.img``.
    """
    suffix = path.suffix.lower()
    if suffix == ".hdr":
        bare = path.with_suffix("")
        others = [bare, *(bare.with_suffix(bare.suffix + end) for end in ENVI_SUFFIXES[1:])]
    elif suffix in ENVI_SUFFIXES:
        others = [path.with_suffix(".hdr"), path.with_name(f"{path.name}.hdr")]
    else:
        return None
    return next((other for other in others if other.is_file()), None)


@contextmanager
def _collecting_later() -> Iterator[None]:
    """A hundred thousand samples hold no cycles; looking for some takes two thirds of the reading time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_collecting_later()
def read_manifest(path: Path, root: Path) -> list[Sample]:
    """Read a manifest; image paths become ``root / cell``.

    Raises InputError for a missing or empty manifest, unknown or repeated columns, unknown tasks and splits,
    and repeated or unsafe ids. Lines without text are passed over. Image files are not opened here.
    """
    samples, problems = check_manifest(path, root)
    if problems:
        raise InputError(problems[0][1])
    return samples


def check_manifest(path: Path, root: Path) -> tuple[list[Sample], list[tuple[str, str]]]:
    """Read a manifest as ``read_manifest`` does, going on after malformed rows.

    Returns the samples of the good rows, and the name and one line for each bad one. Raises InputError when
    the table as a whole cannot be read.
    """
    columns, roles, rows = _table(path)
    start, empty = f"{root}{os.sep}", dict.fromkeys(columns, "")
    samples: dict[str, Sample] = {}
    problems: list[tuple[str, str]] = []
    for number, row in enumerate(rows, start=2):
        if not any(row):
            continue  # counted, as a spreadsheet does
        cell = empty | dict(zip(columns, map(str.strip, row), strict=False))
        try:
            if len(row) > len(columns):
                raise InputError(
                    f"{path}: row {number}: has {len(row)} cells, the first line {len(columns)}; "
                    "put what holds a comma in double quotes"
                )
            sample = _sample(cell, roles, start, path, number)
            if sample.id in samples:
                raise InputError(
                    f"{path}: row {number}: sample '{sample.id}' is listed twice; give each row its own name"
                )
            samples[sample.id] = sample
        except InputError as error:
            problems.append((cell["sample"] or f"row {number}", str(error)))
    return list(samples.values()), problems


def _table(path: Path) -> tuple[tuple[str, ...], list[str], list[list[str]]]:
    """The columns, those of them that are roles, and the rows of a manifest."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            columns = tuple(map(str.strip, next(reader, ())))
            rows = list(reader)
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the manifest ({error.strerror}); "
            "write one with `typer pipeline manifest DIR --dataset NAME`"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: not a CSV table in UTF-8 ({error}); see data_manifests/README.md"
        ) from error
    for column in ("sample", "task", "split"):
        if column not in columns:
            raise InputError(f"{path}: the column '{column}' is missing; see data_manifests/README.md")
    roles = [column for column in columns if column not in (*_FIXED_COLUMNS, *_LAST_COLUMNS)]
    for role in roles:
        if re.sub(r"_\d+$", "", role) not in ROLES:
            raise InputError(f"{path}: unknown column '{role}'.{nearest(role, ROLES)}")
    if repeated := [column for column, times in Counter(columns).items() if times > 1]:
        raise InputError(f"{path}: the column '{repeated[0]}' is there twice; keep one, or number a stack's")
    if not any(map(any, rows)):
        raise InputError(f"{path}: the manifest lists no samples")
    return columns, roles, rows


def _sample(cell: dict[str, str], roles: Sequence[str], start: str, manifest: Path, number: int) -> Sample:
    """One row; ``start`` comes before its relative paths."""
    bits, target, mask = cell.get("bits", ""), cell.get("target"), cell.get("mask")
    sources = tuple(
        [
            Source(role, file if file.startswith(os.sep) else start + file)
            for role in roles
            if (file := cell[role])
        ]
    )
    if fault := _fault(cell, bits, len(sources)):
        raise InputError(f"{manifest}: row {number}: {fault}")
    return Sample(
        id=cell["sample"],
        task=cell["task"],
        split=cell["split"],
        sources=sources,
        target=Path(start, target) if target else None,
        mask=Path(start, mask) if mask else None,
        bits=int(bits) if bits else None,
    )


def _fault(cell: dict[str, str], bits: str, sources: int) -> str:
    """What is wrong with a row, "" when nothing is."""
    if not _SAFE_ID.fullmatch(cell["sample"]):
        return f"sample name '{cell['sample']}' must be letters, digits, '.', '_' or '-'"
    if cell["task"] not in TASKS:
        return f"unknown task '{cell['task']}'.{nearest(cell['task'], TASKS)}"
    if cell["split"] not in SPLITS:
        return f"unknown split '{cell['split']}'.{nearest(cell['split'], SPLITS)}"
    if bits and not (bits.isdecimal() and 1 <= int(bits) <= 32):
        return f"bits '{bits}' must be a whole number from 1 to 32"
    if sources < 2:
        return f"sample '{cell['sample']}' has {sources} source; fusion needs at least two"
    return ""


def write_manifest(path: Path, samples: Sequence[Sample], root: Path) -> None:
    """Write a manifest atomically; every file must lie under ``root``. Empty columns are left out."""
    roles = list(dict.fromkeys(role for sample in samples for role in sample.roles))
    roles.sort(key=lambda role: ROLES.index(re.sub(r"_\d+$", "", role)))
    last = [name for name in _LAST_COLUMNS if any(getattr(sample, name) for sample in samples)]
    columns = [*_FIXED_COLUMNS, *roles, *last]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
            writer.writeheader()
            for sample in samples:
                row: dict[str, object] = {"sample": sample.id, "task": sample.task, "split": sample.split}
                row["bits"] = sample.bits or ""
                row |= {source.role: _relative(source.path, root) for source in sample.sources}
                row |= {
                    name: _relative(getattr(sample, name), root) for name in last if getattr(sample, name)
                }
                writer.writerow(row)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def keep_splits(samples: Sequence[Sample], path: Path, root: Path) -> list[Sample]:
    """The samples with the splits that an earlier manifest at ``path`` gives them, if there is one."""
    if not path.is_file():
        return list(samples)
    known = {sample.id: sample.split for sample in read_manifest(path, root)}
    return [replace(sample, split=known.get(sample.id, sample.split)) for sample in samples]


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def content_hash(sample: Sample) -> str:
    """Return the SHA-256 over the roles and the bytes of the sample's files.

    Target and human mask are among them, so that what depends on a store depends on every file of its
    samples. Of a stack (``file.h5#NAME[12]``) the sample's own values count. Raises InputError when a file
    cannot be read.
    """
    digest = hashlib.sha256()
    files = [(source.role, source.path) for source in sample.sources]
    files += [(name, path) for name in _LAST_COLUMNS if (path := getattr(sample, name))]
    for role, path in files:
        held, key = split_key(path)
        digest.update(f"{role}{key}\0{sample.bits}\0".encode())
        try:
            if key.endswith("]"):
                digest.update(_values(path))
                continue
            for part in (held, companion(held)):
                if part is not None:
                    with part.open("rb") as file:
                        digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(
                f"{path}: cannot read the {role} image of sample '{sample.id}' ({error.strerror}); "
                "restore the file or remove the row from the manifest"
            ) from error
    return digest.hexdigest()


def _values(path: Path) -> bytes:
    """Type, shape and values of one sample of a stack: reading all of its file for each would take days."""
    from pipeline.rasters import READING_ERRORS, open_raster  # which know the names that are defined here

    try:
        with open_raster(path) as raster:
            _, height, width = raster.shape
            values = raster.read(0, 0, height, width)
    except InputError:
        raise
    except READING_ERRORS as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"{path}: cannot be read ({said}); restore the file or remove the row from the manifest"
        ) from error
    return f"{values.dtype}{values.shape}".encode() + values.tobytes()

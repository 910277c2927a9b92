"""From a folder to samples: published data sets by the patterns of their layouts, other folders by words."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.config import Sensor
from pipeline.errors import InputError
from pipeline.folders import Entry, Group, list_images
from pipeline.manifest import IMAGE_SUFFIXES, ROLES, TASKS, Sample, Source, nearest
from pipeline.pairs import pairs_by_place, pairs_by_words, roles_told, spread
from pipeline.published_layouts import LAYOUTS, STACK, Layout
from pipeline.sensors import SENSORS, check_sensor

PAIRS = "pairs"
"""The layout of folders that are no published data set."""

_SCENES = Layout(
    task="pansharpening",
    columns={"pan": r"(?P<sample>[^/#]+)#I_PAN", "ms": r"(?P<sample>[^/#]+)#I_MS(?:_LR)?"},
    bits=11,
)
"""MATLAB files of the public WorldView scenes at full resolution (GRIP-UNINA), recognised among pairs."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What a folder holds: the samples, the layout that was recognised, how many images belong to none, and
    what the values of the samples' masks mean (``DatasetConfig.prompt``)."""

    samples: tuple[Sample, ...]
    layout: str
    left_over: int
    prompt: tuple[str, ...] = ()

    @property
    def masks(self) -> Literal["auto", "provided"]:
        """Where object masks come from (``DatasetConfig.masks``): people's when every sample has one."""
        provided = self.prompt and all(sample.mask is not None for sample in self.samples)
        return "provided" if provided else "auto"

    @property
    def sensor(self) -> Sensor:
        """Whose images these are (``DatasetConfig.sensor``), where the layout is named after it."""
        name = self.layout.removesuffix("_full")
        return check_sensor(name) if name in SENSORS else "other"


def scan_folder(root: Path, layout: str | None = None, task: str | None = None) -> Scan:
    """Make samples from the files below a folder.

    ``layout`` is a name of ``LAYOUTS`` or ``pairs``; None takes the published layout that explains most
    images, else pairs by the words in folder and file names (``visible/``, ``-ir``, …). ``task`` says what
    pairs without such words are of. Samples get the split ``test`` unless the layout says more. Raises
    InputError when the folder is missing, nothing in it matches, or layout or task are unknown.
    """
    if layout is not None and layout not in (*LAYOUTS, PAIRS):
        raise InputError(f"unknown layout '{layout}'.{nearest(layout, (*LAYOUTS, PAIRS))}")
    if task is not None and task not in TASKS:
        raise InputError(f"unknown task '{task}'.{nearest(task, TASKS)}")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds one sub-folder per source")
    entries = list_images(root)
    if layout == PAIRS:
        return _pairs(root, entries, task, by_place=True)
    names = LAYOUTS if layout is None else (layout,)
    scans = [_scan(entries, _groups(entries, LAYOUTS[name]), LAYOUTS[name], name) for name in names]
    best = min(scans, key=lambda scan: scan.left_over)
    if best.samples:
        return best
    if layout is None:
        return _pairs(root, entries, task, by_place=False)
    expected = "; ".join(f"{column}: {pattern}" for column, pattern in LAYOUTS[layout].columns.items())
    raise InputError(
        f"{root}: no sample of the layout {layout} (it has {expected}); give the folder that was unpacked, "
        "or use --layout pairs"
    )


def _groups(entries: Sequence[Entry], layout: Layout) -> list[Group]:
    """The samples whose images match the layout's patterns; one source alone is left out."""
    found: dict[tuple[str, ...], dict[str, dict[str, Entry]]] = defaultdict(lambda: defaultdict(dict))
    called: dict[tuple[str, ...], tuple[str, ...]] = {}
    for column, pattern in layout.columns.items():
        compiled = re.compile(f"(?P<prefix>(?:.*?/)??){pattern}", re.IGNORECASE)
        for entry in entries:
            match = compiled.fullmatch(entry.name)
            if match is None:
                continue
            named = match.groupdict(default="")
            parts = [named["prefix"].strip("/"), named.get("part", ""), named["sample"]]
            key = tuple(part.lower() for part in parts)
            found[key][column].setdefault(named.get("order", ""), entry)
            called.setdefault(key, tuple("_".join(filter(None, parts[start:])) for start in (2, 1, 0)))
    groups = []
    for key in sorted(found):
        columns: dict[str, Entry] = {}
        for column, images in found[key].items():
            if column == STACK:
                marks = sorted(images, key=lambda mark: (len(mark), mark))  # 2 comes before 10
                columns |= zip(
                    spread(layout.roles, len(marks)), (images[mark] for mark in marks), strict=True
                )
            else:
                columns[column] = images[""]
        if len(columns.keys() - {"target", "mask"}) > 1:
            groups.append(Group(layout.task, called[key], columns))
    return groups


def _scan(entries: Sequence[Entry], groups: Sequence[Group], layout: Layout, name: str) -> Scan:
    used = sum(len(group.columns) for group in groups)
    samples = tuple(
        _sample(group, called, number, layout)
        for called, group in zip(_ids(groups), groups, strict=True)
        for number in _numbers(group)
    )
    return Scan(samples, name, len(entries) - used, layout.prompt)


def _ids(groups: Sequence[Group]) -> list[str]:
    """The shortest names that tell all groups apart; a number is added where none does."""
    ids: list[str] = []
    for level in range(max((len(group.names) for group in groups), default=0)):
        ids = [safe_id(group.names[min(level, len(group.names) - 1)]) for group in groups]
        if len({name.lower() for name in ids}) == len(ids):
            return ids
    seen: Counter[str] = Counter()
    for index, name in enumerate(ids):
        seen[name] += 1
        if seen[name] > 1:
            ids[index] = f"{name}-{seen[name]}"
    return ids


def _numbers(group: Group) -> Iterator[int | None]:
    """The samples of a stack, or just one. Raises InputError when the columns' stacks differ in length."""
    lengths = {entry.length for entry in group.columns.values()}
    if lengths == {None}:
        yield None
        return
    if len(lengths) > 1 or None in lengths:
        said = ", ".join(f"{column} {entry.length or 1}" for column, entry in group.columns.items())
        first = next(iter(group.columns.values()))
        raise InputError(
            f"{first.path}: its stacks hold different numbers of samples ({said}); replace the file"
        )
    yield from range(min(length for length in lengths if length is not None))


def _sample(group: Group, name: str, number: int | None, layout: Layout) -> Sample:
    paths = {
        column: entry.path if number is None else entry.path.with_name(f"{entry.path.name}[{number}]")
        for column, entry in group.columns.items()
    }
    roles = [column for column in paths if column not in ("target", "mask")]
    roles.sort(key=lambda role: ROLES.index(re.sub(r"_\d+$", "", role)))
    first = group.columns[roles[0]].name
    return Sample(
        id=name if number is None else f"{name}_{number}",
        task=group.task,
        split=next((split for pattern, split in layout.splits if re.search(pattern, first, re.I)), "test"),
        sources=tuple(Source(role, paths[role]) for role in roles),
        target=paths.get("target"),
        mask=paths.get("mask"),
        bits=layout.bits,
    )


def _pairs(root: Path, entries: Sequence[Entry], task: str | None, *, by_place: bool) -> Scan:
    groups = pairs_by_words(entries, task)
    in_files = [replace(group, names=(_place(group.columns["pan"]),)) for group in _groups(entries, _SCENES)]
    scenes = _scan(entries, in_files, _SCENES, PAIRS)
    if entries and not groups and not scenes.samples and by_place:
        if task is None:
            raise InputError(
                f"{root}: the names do not say what the images are; add --task with one of {', '.join(TASKS)}"
            )
        groups = pairs_by_place(entries, task)
    scan = _scan(entries, groups, Layout(task="", columns={}), PAIRS)
    samples = (*scan.samples, *scenes.samples)
    if not samples:
        raise InputError(f"{root}: {_nothing(entries)}")
    return Scan(samples, PAIRS, scan.left_over + scenes.left_over - len(entries))


def _place(entry: Entry) -> str:
    """Folders and file of an array inside a file, below the scanned folder."""
    return "_".join(entry.name.partition("#")[0].split("/")[1:])


def _nothing(entries: Sequence[Entry]) -> str:
    """Why a folder has no samples, and what to do."""
    if not entries:
        return (
            f"holds no images ({', '.join((*IMAGE_SUFFIXES, '.mat', '.h5', '.hdr'))}); give a folder "
            f"that has them, in sub-folders named after the sources' roles ({', '.join(ROLES)})"
        )
    roles = [role for role in ROLES if role in roles_told(entries)]
    if any(set(names) <= set(roles) for sets in TASKS.values() for names in sets):
        return (
            f"no file name occurs in all of {', '.join(roles)}; "
            "the files of one sample must have the same name"
        )
    return (
        f"no samples found; name the sub-folders after the sources' roles ({', '.join(ROLES)}) and give the "
        "files of one sample the same name, or name the layout with --layout"
    )


def safe_id(name: str) -> str:
    """A sample's name from any text: other characters than letters, digits, '.', '_', '-' become '-'."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-") or "sample"

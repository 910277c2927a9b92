"""Samples from anybody's folders: images matched by name, roles told by words in folder and file names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from pipeline.folders import Entry, Group
from pipeline.manifest import ROLE_WORDS, ROLES, TASKS

_WORDS = ROLE_WORDS | {
    "target": ("target", "gt", "groundtruth", "reference"),
    "mask": ("mask", "masks", "segmentation"),
}
_COLUMN_OF = {word: column for column, words in _WORDS.items() for word in words}
_EITHER = "|".join(sorted(_COLUMN_OF, key=len, reverse=True))
# A word stands at one end of a file's name, set off by a separator or a digit: ir_01, 01-vis, vis01, 01ir.
_FIRST = re.compile(rf"({_EITHER})(?:[ _.-]+|(?=\d))", re.IGNORECASE)
_LAST = re.compile(rf"(?:[ _.-]+|(?<=\d))({_EITHER})$", re.IGNORECASE)
_LETTER = re.compile(r"(.+?)[ _.-]?([A-Da-d]|(?<=[ _.-])[1-4])$")


def pairs_by_words(entries: Iterable[Entry], task: str | None) -> list[Group]:
    """Group images whose roles are told by their folder (``visible/1``) or their own name (``1_vis``).

    Groups of one source are left out. ``task`` decides where the roles fit more than one task.
    """
    found: dict[tuple[str, str], dict[str, Entry]] = defaultdict(dict)
    called: dict[tuple[str, str], str] = {}
    for entry in entries:
        if "#" in entry.name:
            continue
        column, folder, stem = _told(entry.name)
        if column is not None:
            key = (folder.lower(), stem.lower())
            found[key].setdefault(column, entry)
            called.setdefault(key, _joined(folder, stem))
    groups = []
    for key, columns in sorted(found.items()):
        chosen = _task_of(columns, task)
        if chosen is not None:
            groups.append(Group(chosen, (called[key],), _in_order(columns, chosen)))
    return groups


def roles_told(entries: Iterable[Entry]) -> set[str]:
    """The roles that folder and file names tell."""
    return {column for entry in entries if (column := _told(entry.name)[0]) is not None}


def _told(name: str) -> tuple[str | None, str, str]:
    """(column, folder without the word, stem without the word); the deepest folder that tells decides."""
    *folders, stem = name.split("/")
    folders = folders[1:]  # the scanned folder itself is common to all
    for depth in range(len(folders) - 1, -1, -1):
        words = re.split(r"[^a-z]+", folders[depth].lower())
        columns = {_COLUMN_OF[word] for word in words if word in _COLUMN_OF}
        if len(columns) == 1:
            column = columns.pop()
            kept = "_".join(word for word in words if word not in _COLUMN_OF)
            rest = [*folders[:depth], *([kept] if kept else []), *folders[depth + 1 :]]
            return column, "/".join(rest), _stripped(stem, column)
    for pattern in (_LAST, _FIRST):
        match = pattern.search(stem) if pattern is _LAST else pattern.match(stem)
        if match:
            rest_of_stem = stem[: match.start()] + stem[match.end() :]
            if rest_of_stem:
                return _COLUMN_OF[match[1].lower()], "/".join(folders), rest_of_stem
    return None, "", stem


def _stripped(stem: str, column: str) -> str:
    """The stem without a word of ``column`` at either end."""
    for match in (_LAST.search(stem), _FIRST.match(stem)):
        if match and _COLUMN_OF[match[1].lower()] == column:
            return stem[: match.start()] + stem[match.end() :] or stem
    return stem


def _joined(folder: str, stem: str) -> str:
    return "_".join([*PurePosixPath(folder).parts, stem])


def _task_of(columns: Iterable[str], task: str | None) -> str | None:
    """The first task some of whose roles are all there."""
    present = set(columns)
    tasks = TASKS if task is None else {task: TASKS[task]}
    return next((name for name, sets in tasks.items() if any(set(roles) <= present for roles in sets)), None)


def _in_order(columns: dict[str, Entry], task: str) -> dict[str, Entry]:
    """The task's sources in source order, then target and mask."""
    known = {role for roles in TASKS[task] for role in roles}
    order = [role for role in ROLES if role in known] + ["target", "mask"]
    return {column: columns[column] for column in order if column in columns}


def pairs_by_place(entries: Sequence[Entry], task: str) -> list[Group]:
    """Group images by a letter or number at the end of their names (``1_A``, ``1_B``), else by equal names in
    the folders of one folder; first to last they take the task's roles."""
    plain = [entry for entry in entries if "#" not in entry.name]
    return _by_letter(plain, task) or _by_folder(plain, task)


def _by_letter(entries: Sequence[Entry], task: str) -> list[Group]:
    found: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in entries:
        match = _LETTER.fullmatch(PurePosixPath(entry.name).name)
        if match:
            # sourceA/1_A and sourceB/1_B: the folders may bear the letter as well.
            folders = entry.name.split("/")[1:-1]
            folders = [re.sub(rf"{match[2]}$", "", folder, flags=re.IGNORECASE) for folder in folders]
            found["/".join([*folders, match[1]]).lower()].setdefault(match[2].lower(), entry)
    return _stacks(found, task)


def _by_folder(entries: Sequence[Entry], task: str) -> list[Group]:
    found: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in entries:
        *above, folder, stem = entry.name.split("/")
        found["/".join([*above[1:], stem]).lower()].setdefault(folder, entry)
    return _stacks(found, task)


def _stacks(found: dict[str, dict[str, Entry]], task: str) -> list[Group]:
    """Groups of at least two images, ordered by what tells them apart."""
    groups = []
    for key, images in sorted(found.items()):
        if len(images) > 1:
            ordered = [images[mark] for mark in sorted(images)]
            roles = spread(TASKS[task][0], len(ordered))
            groups.append(Group(task, (key.replace("/", "_"),), dict(zip(roles, ordered, strict=True))))
    return groups


def spread(roles: Sequence[str], count: int) -> list[str]:
    """Roles of a stack of ``count`` images: the first half is of the first role, the rest of the last.

    ``under``, ``over``, ``over_2`` for three images; where the count is odd, the last role has one more.
    """
    halves = (count // 2, count - count // 2)
    return [
        role if number == 1 else f"{role}_{number}"
        for role, length in zip((roles[0], roles[-1]), halves, strict=True)
        for number in range(1, length + 1)
    ]

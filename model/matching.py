"""Find the files of one sample in folders that name them in different ways.

Files match by stem: exactly, else without regard to case, else without the word that tells the image's part
in the sample: ``05_VIS``, ``IR05``, ``fused_05`` and ``05_METHOD`` are all ``05``, ``Cave_A`` is ``cave``; a
word that all fused images of a folder end or begin with is the method's.
Numbers are never dropped: ``image1`` is not ``image11``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from model.jobs import role_of
from pipeline.errors import InputError
from pipeline.images import read_image
from pipeline.manifest import IMAGE_SUFFIXES, ROLE_WORDS, SHARPENING_TASKS, TASKS, Sample, Source

WORDS = [word for words in ROLE_WORDS.values() for word in words]
PARTS = frozenset(WORDS) | frozenset(
    ("a", "b", "c", "d", "e", "s1", "s2", "src1", "src2", "source", "target", "gt", "reference", "label")
)
RESULTS = frozenset(("f", "fused", "fusion", "fuse", "result", "results", "output", "out"))
SEPARATOR = re.compile(r"[\s_.\-]+")
GLUED = re.compile(
    rf"({'|'.join(sorted((w for words in ROLE_WORDS.values() for w in words), key=len))})(\d.*)"
)


def strip(stem: str, words: Iterable[str] = ()) -> str:
    """A stem in lower case without the words at its ends that tell a part or a method; never empty."""
    known = PARTS | RESULTS | {part for word in words for part in SEPARATOR.split(word.casefold())}
    parts = [part for part in SEPARATOR.split(stem.casefold()) if part]
    while len(parts) > 1 and parts[-1] in known:
        parts.pop()
    while len(parts) > 1 and parts[0] in known:
        parts.pop(0)
    if parts and (glued := GLUED.fullmatch(parts[0])):
        parts[0] = glued[2]
    return "_".join(parts)


def list_folder(folder: Path) -> dict[str, Path]:
    """The images of a folder by stem; ``folder#KEY`` means that variable of every MATLAB file in it.

    Raises InputError for a missing folder, one without images, a name not in UTF-8, and two files of
    one stem.
    """
    place, _, key = str(folder).partition("#")
    if not Path(place).is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds the images")
    suffixes = (".mat",) if key else IMAGE_SUFFIXES
    files = sorted(p for p in Path(place).iterdir() if p.is_file() and p.suffix.lower() in suffixes)
    if not files:
        kind = f"MATLAB file for '#{key}'" if key else f"image ({', '.join(IMAGE_SUFFIXES)})"
        hint = "; name the variable as DIR#KEY" if not key and any(Path(place).glob("*.mat")) else ""
        raise InputError(f"{folder}: holds no {kind}{hint}")
    found: dict[str, Path] = {}
    for file in files:
        if file.name.encode(errors="replace").decode() != file.name:
            raise InputError(f"{place}: the file name {file.name!a} is not in UTF-8; rename the file")
        if file.stem in found:
            raise InputError(
                f"{place}: {found[file.stem].name} and {file.name} have one stem; keep one of them"
            )
        found[file.stem] = file.with_name(f"{file.name}#{key}") if key else file
    return found


def pair(stems: Sequence[str], files: Mapping[str, Path], words: Iterable[str] = ()) -> dict[str, Path]:
    """Stem -> its file of ``files`` (by stem), for those that have one; no file is given to two stems.

    Equal stems go first, then those equal but for case, then those equal without their words. Raises
    InputError when several files, or one file for several stems, could be meant.
    """
    found = {stem: files[stem] for stem in stems if stem in files}
    for key_of in (str.casefold, lambda stem: strip(stem, words)):
        used = set(found.values())
        free: dict[str, list[Path]] = {}
        for stem, path in files.items():
            if path not in used:
                free.setdefault(key_of(stem), []).append(path)
        waiting: dict[str, list[str]] = {}
        for stem in stems:
            if stem not in found:
                waiting.setdefault(key_of(stem), []).append(stem)
        for key in waiting.keys() & free.keys():
            if len(free[key]) > 1 or len(waiting[key]) > 1:
                names = " and ".join(path.name for path in free[key])
                raise InputError(
                    f"{free[key][0].parent}: {names} could be {' or '.join(waiting[key])}; rename the files "
                    "so that each belongs to one sample"
                )
            found[waiting[key][0]] = free[key][0]
    return found


def match_samples(
    folders: Sequence[Path], target: Path | None, task: str | None, bits: int | None
) -> tuple[list[Sample], list[str]]:
    """Samples whose files occur in all source folders (and in ``target``'s, where given), and files left out.

    A sample is named by its stripped stem where that is unambiguous, as in the first folder otherwise. Raises
    InputError for fewer than two folders, nothing in common, and names that could mean several files.
    """
    if len(folders) < 2:
        raise InputError(f"--sources names {len(folders)} folder; give one folder per source, at least two")
    named = [list_folder(folder) for folder in folders]
    stems = list(named[0])
    keys = {stem: strip(stem) for stem in stems}
    shared = Counter(keys.values())
    found = [named[0], *(pair(stems, files) for files in named[1:])]
    if target is not None:
        found.append(pair(stems, list_folder(target)))
    samples = []
    for stem in stems:
        if not all(stem in paths for paths in found):
            continue
        paths = [files[stem] for files in found]
        same = all(_stem(path).casefold() == stem.casefold() for path in paths)
        sources = zip(_roles(folders), paths[: len(folders)], strict=True)
        samples.append(
            Sample(
                id=stem if same or shared[keys[stem]] > 1 else keys[stem],
                task=task or "",
                split="test",
                sources=tuple(Source(role, path) for role, path in sources),
                target=None if target is None else paths[-1],
                bits=bits,
            )
        )
    used = {source.path for sample in samples for source in sample.sources}
    left_out = [str(path) for files in named for path in files.values() if path not in used]
    if not samples:
        listed = ", ".join(str(folder) for folder in [*folders, *([target] if target else [])])
        raise InputError(
            f"no file name occurs in all of {listed}; the files of one sample need the same name"
        )
    chosen = task or _task(samples[0])
    return [replace(sample, task=chosen) for sample in samples], left_out


def match_fused(samples: Sequence[Sample], method: str, folder: Path) -> dict[str, Path]:
    """Sample id -> the method's fused image in ``folder``, for the samples that have one."""
    files = list_folder(folder)
    return pair([sample.id for sample in samples], files, (method, folder.name, *shared_words(list(files))))


def shared_words(stems: Sequence[str]) -> list[str]:
    """Words that all of several stems begin or end with, as ``SeAFusion`` in ``01_SeAFusion``; no numbers."""
    parts = [[part for part in SEPARATOR.split(stem.casefold()) if part] for stem in stems]
    found = []
    for end in (-1, 0):
        while len(parts) > 1 and all(len(words) > 1 for words in parts) and not parts[0][end].isdigit():
            if len({words[end] for words in parts}) > 1:
                break
            found.append(parts[0][end])
            parts = [words[1:] if end == 0 else words[:-1] for words in parts]
    return found


def _stem(path: Path) -> str:
    return Path(path.name.partition("#")[0]).stem


def _roles(folders: Sequence[Path]) -> list[str]:
    """What to call the sources: the roles their folders' names tell, else source_1, source_2, …"""
    roles = [role_of(Path(str(folder).partition("#")[0]) / "image") for folder in folders]
    if None in roles or len(set(roles)) < len(roles):
        return [f"source_{number}" for number in range(1, len(folders) + 1)]
    return [str(role) for role in roles]


def _task(sample: Sample) -> str:
    """The task the roles tell, else sharpening where the sizes differ, else plain fusion of equal sources."""
    for task, groups in TASKS.items():
        if any(set(sample.roles) == set(group) for group in groups):
            return task
    images = [read_image(source.path, sample.bits).pixels for source in sample.sources]
    if len({image.shape[1:] for image in images}) > 1:
        return SHARPENING_TASKS[0] if min(image.shape[0] for image in images) == 1 else SHARPENING_TASKS[1]
    return "fusion"


def parse_fused(texts: Sequence[str]) -> Mapping[str, Path]:
    """``name=DIR`` or ``DIR`` (named after its folder) to method -> folder, in the order given.

    A folder that is there is never taken apart, such as ``lr=0.01``. Raises InputError when a method has no
    name, or two have the same.
    """
    methods: dict[str, Path] = {}
    for text in texts:
        name, found, folder = text.partition("=")
        if not found or Path(text).is_dir():
            name, folder = Path(text).resolve().name, text
        path = Path(folder)
        if not name:
            raise InputError(f"--fused {text}: the method has no name; write NAME=DIR")
        if name in methods:
            raise InputError(f"--fused {text}: two methods are called '{name}'; give names as NAME=DIR")
        methods[name] = path
    return methods

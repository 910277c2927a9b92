"""`pipeline manifest --check`: read every sample and report all that is wrong, in one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image as PillowImage
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.errors import InputError
from pipeline.images import (
    Image,
    ImageFacts,
    check_sources,
    enlarge,
    image_facts,
    luminance,
    read_image,
    read_window,
)
from pipeline.manifest import SHARPENING_TASKS, Sample, check_manifest
from pipeline.rasters import READING_ERRORS
from pipeline.shifts import SHIFT_WINDOW, estimate_shift

SUSPICIOUS_SHIFT = 3
"""Pixels between two sources above which a shift is reported."""

_WHOLE = 2**26  # values: what is larger is read in pieces, where its format allows


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or looks so, with a sample or its row."""

    sample: str
    level: Literal["error", "warning"]
    text: str


def check_samples(samples: Sequence[Sample], progress: Progress | None = None) -> list[Finding]:
    """Read every image of every sample, on all cores, and return what is wrong, in the samples' order.

    Errors: missing or unreadable files, NaN, values that do not fit, sizes and bands that do not go together,
    constant images. Warnings: a shift between sources (``estimate_shift``) of more than ``SUSPICIOUS_SHIFT``
    pixels, and bands that differ from those of most samples of the task.
    """
    task = None if progress is None else progress.add_task("checked", total=len(samples))
    findings: list[Finding] = []
    bands: list[tuple[Sample, tuple[int, ...]]] = []
    pool = ThreadPoolExecutor()
    try:
        for sample, (found, counts) in zip(samples, pool.map(_check, samples), strict=True):
            findings += found
            if counts:
                bands.append((sample, counts))
            if progress is not None and task is not None:
                progress.advance(task)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupted check does not read the rest
    return findings + _unusual_bands(bands)


def _check(sample: Sample) -> tuple[list[Finding], tuple[int, ...]]:
    """What is wrong with one sample, and its sources' bands when all could be read."""

    def finding(text: str, level: Literal["error", "warning"] = "error") -> Finding:
        return Finding(sample.id, level, text)

    findings: list[Finding] = []
    facts: list[ImageFacts] = []
    for source in sample.sources:
        try:
            facts.append(_read_through(source.path, sample.bits))
        except InputError as error:
            findings.append(finding(f"{source.role}: {error}"))
    target = None
    if sample.target is not None:
        try:
            target = _read_through(sample.target, sample.bits)
        except InputError as error:
            findings.append(finding(f"target: {error}"))
    mask = None
    if sample.mask is not None:
        try:
            mask = _label_map(sample.mask)
        except InputError as error:
            findings.append(finding(f"mask: {error}"))
    if len(facts) < len(sample.sources):
        return findings, ()
    try:
        check_sources(sample, facts)
    except InputError as error:
        findings.append(finding(str(error)))
        return findings, ()
    findings += [finding(text) for text in _misfits(sample, facts, target, mask)]
    findings += [finding(text, "warning") for text in _shifts(sample, facts)]
    return findings, tuple(fact.bands for fact in facts)


def _read_through(path: Path, bits: int | None) -> ImageFacts:
    """Decode all of an image. Raises InputError when that fails or the image is constant."""
    facts = image_facts(path, bits)
    low, high = np.inf, -np.inf
    for image in _pieces(path, facts, bits):
        low, high = min(low, float(image.pixels.min())), max(high, float(image.pixels.max()))
    if low == high:
        raise InputError(f"{path}: every value is {low:g}; replace the file or remove the row")
    return facts


def _label_map(path: Path) -> ImageFacts:
    """Decode a label map, whose values are labels even where a palette colours them."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path or the manifest")
    try:
        with PillowImage.open(path) as image:
            image.load()
            size = (image.height, image.width)
            return ImageFacts(size, len(image.getbands()), 8, None, streams=False, path=path)
    except READING_ERRORS as error:
        said = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as a label map ({said}); replace the file") from error


def _pieces(path: Path, facts: ImageFacts, bits: int | None) -> Iterator[Image]:
    height, width = facts.size
    rows = max(1, _WHOLE // (width * facts.bands))
    if rows >= height or not facts.streams:
        yield read_image(path, bits)
        return
    for top in range(0, height, rows):
        yield read_window(path, top, 0, min(rows, height - top), width, bits)


def _misfits(
    sample: Sample, facts: Sequence[ImageFacts], target: ImageFacts | None, mask: ImageFacts | None
) -> Iterator[str]:
    """Target and mask that do not go with the sources."""
    size = facts[0].size
    for name, image in (("target", target), ("mask", mask)):
        if image is not None and image.size != size:
            yield (
                f"the {name} is {image.size[0]}x{image.size[1]} ({image.path}), the first source "
                f"{size[0]}x{size[1]}; replace it or empty the cell"
            )
    if target is not None:
        wanted = {facts[-1].bands} if sample.task in SHARPENING_TASKS else {fact.bands for fact in facts}
        if target.bands not in wanted:
            yield (
                f"the target has {target.bands} bands ({target.path}), the sources "
                f"{', '.join(str(fact.bands) for fact in facts)}; replace it or empty the cell"
            )
    if mask is not None and mask.bands != 1:
        yield f"the mask has {mask.bands} bands ({mask.path}); a label map has one, save it as grey"


def _shifts(sample: Sample, facts: Sequence[ImageFacts]) -> Iterator[str]:
    """Sources that look shifted against the first one, told from the middle of the images."""
    ratios = [facts[0].size[0] // fact.size[0] for fact in facts]
    # The window lies on the coarsest grid, so that it is the same place in every source.
    step = max(ratios)
    lengths = [min(SHIFT_WINDOW, length) // step * step for length in facts[0].size]
    starts = [
        (length - part) // 2 // step * step for length, part in zip(facts[0].size, lengths, strict=True)
    ]
    planes = []
    for source, ratio in zip(sample.sources, ratios, strict=True):
        top, left, height, width = (value // ratio for value in (*starts, *lengths))
        image = read_window(source.path, top, left, height, width, sample.bits)
        planes.append(luminance(image.pixels))
    first = sample.sources[0]
    for source, plane in zip(sample.sources[1:], planes[1:], strict=True):
        shift = estimate_shift(planes[0], enlarge(plane[None], planes[0].shape)[0])
        if shift is not None and max(map(abs, shift)) > SUSPICIOUS_SHIFT:
            yield (
                f"{source.role} looks shifted by {shift[0]:+d} rows, {shift[1]:+d} columns against "
                f"{first.role} ({source.path}); look at the two, register them if it is so"
            )


def _unusual_bands(bands: Sequence[tuple[Sample, tuple[int, ...]]]) -> list[Finding]:
    """Sharpening samples whose bands are not those of most: one network cannot take both."""
    usual: dict[str, tuple[int, ...]] = {}
    for task in SHARPENING_TASKS:
        counted = Counter(counts for sample, counts in bands if sample.task == task)
        if counted:
            usual[task] = counted.most_common(1)[0][0]
    return [
        Finding(
            sample.id,
            "warning",
            f"sources of {_listed(counts)} bands, most samples of {sample.task} have "
            f"{_listed(usual[sample.task])}; train them apart",
        )
        for sample, counts in bands
        if counts != usual.get(sample.task, counts)
    ]


def _listed(counts: Sequence[int]) -> str:
    return " and ".join(map(str, counts))


def check_and_report(path: Path | None, dataset: str | None, layout: str | None, task: str | None) -> int:
    """Check a data set, a manifest or a folder, print the table, and return the exit code.

    1 when something is wrong, 0 with warnings only. Raises InputError when there is nothing to check.
    """
    samples, findings = _listed_samples(path, dataset, layout, task)
    # A terminal folds long lines; a file or a pipe gets one line for each thing that is wrong.
    console = Console() if Console().is_terminal else Console(width=10_000)
    columns = ("{task.description}", "{task.completed}/{task.total}")
    with Progress(*map(TextColumn, columns), TimeRemainingColumn(), transient=True) as progress:
        findings += check_samples(samples, progress)
    if findings:
        table = Table("sample", "level", "what is wrong, and what to do", box=None, pad_edge=False)
        for finding in findings:
            style = "red" if finding.level == "error" else "yellow"
            table.add_row(escape(finding.sample), finding.level, escape(finding.text), style=style)
        console.print(table)
    wrong = {finding.sample for finding in findings if finding.level == "error"}
    warnings = sum(finding.level == "warning" for finding in findings)
    console.print(
        f"{len(samples)} samples read: {len(findings) - warnings} errors in {len(wrong)} of them, "
        f"{warnings} warnings"
    )
    return 1 if wrong else 0


def _listed_samples(
    path: Path | None, dataset: str | None, layout: str | None, task: str | None
) -> tuple[list[Sample], list[Finding]]:
    if dataset is not None:
        from pipeline.config import load_pipeline

        config = load_pipeline().dataset(dataset)
        return _of_manifest(Path(config.manifest), Path(config.root))
    if path is None:
        raise InputError("--check: say what to check, --dataset NAME, a manifest or a folder")
    if path.suffix.lower() == ".csv":
        return _of_manifest(path, path.parent)
    from pipeline.layouts import scan_folder

    return list(scan_folder(path, layout, task).samples), []


def _of_manifest(path: Path, root: Path) -> tuple[list[Sample], list[Finding]]:
    samples, problems = check_manifest(path, root)
    return samples, [Finding(row, "error", text) for row, text in problems]

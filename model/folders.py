"""Evaluate any folders of fused images against the folders of their sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from model.matching import list_folder, match_fused, match_samples
from model.measure import OPTIONS, Options
from model.results import Case, Evaluation, write_results
from model.scoring import few, score_all
from model.tables import say, write_tables
from pipeline.errors import InputError
from pipeline.manifest import TASKS, nearest


def evaluate_folders(
    fused: Mapping[str, Path],
    sources: Sequence[Path],
    target: Path | None = None,
    out: Path | None = None,
    console: Console | None = None,
    *,
    task: str | None = None,
    bits: int | None = None,
    options: Options = OPTIONS,
) -> Evaluation:
    """Measure folders of fused images (method -> folder) against folders of their sources.

    Files match by name (`model.matching`). ``bits`` is the depth of integers stored in 16 bits (11 for
    0 … 2047). A missing or unreadable fused image is a failure of the evaluation and the rest is measured.
    Without ``out`` nothing is written. Raises InputError when folders are missing or share no sample.
    """
    options.check()
    if task is not None and task not in TASKS:
        raise InputError(f"unknown task '{task}'.{nearest(task, TASKS)}")
    console = console or Console()
    samples, left_out = match_samples(
        [folder.absolute() for folder in sources], target and target.absolute(), task, bits
    )
    found = Evaluation([], [], None, options.profile)
    if left_out:
        found.warnings.append(f"{len(left_out)} files have no partner in the other folders: {few(left_out)}")
    for method, folder in fused.items():
        images = match_fused(samples, method, folder.absolute())
        unused = sorted(path.name for path in {*list_folder(folder.absolute()).values()} - {*images.values()})
        hint = f"; {len(unused)} files there match no sample ({few(unused)})" if unused else ""
        for sample in samples:
            if sample.id in images:
                found.cases.append(Case(method, sample, images[sample.id]))
            else:
                found.failures.append((method, sample.id, f"{folder}: no fused image of '{sample.id}'{hint}"))
    score_all(found, out, options, console)
    if out is not None:
        write_results(out, found)
        write_tables(out, found)
    say(found, console)
    return found

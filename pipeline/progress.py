"""What a run of stages tells its user: bars, lines, and the table of failed samples."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.durability import write_whole
from pipeline.passes import Stage

SHOWN_ERRORS = 5


@dataclass(frozen=True)
class Summary:
    """What a run did: samples of the data set, computed now, current before, failed (see the errors file).

    ``seconds`` passed in all, for every stage of the same pass together; ``busy`` of them went into computing
    this stage (on a cluster: the sum over its workers).
    """

    stage: str
    samples: int
    computed: int
    current: int
    failed: int
    seconds: float
    busy: float = 0.0


@contextmanager
def bars(totals: Mapping[str, int]) -> Iterator[Callable[[str, int], None]]:
    """A bar per stage with rate and time left on a terminal; nothing where the output is kept."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {stage: progress.add_task(stage, total=total, rate="") for stage, total in totals.items()}

        def advance(stage: str, count: int) -> None:
            progress.advance(tasks[stage], count)
            speed = progress.tasks[tasks[stage]].speed
            progress.update(tasks[stage], rate=f"{speed:.1f}/s" if speed else "")

        yield advance


def write_errors(stage: Stage, errors: Mapping[str, str]) -> None:
    """List the failed samples beside the store; without any, remove the list of an earlier run."""
    path = stage.path.with_name(f"{stage.name}-errors.csv")
    if not errors:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["sample", "file", "reason", "remedy"])
    for sample in stage.samples:
        if sample.id in errors:
            reason, _, remedy = errors[sample.id].rpartition("; ")
            files = [str(source.path) for source in sample.sources]
            file_named = next((name for name in files if name in errors[sample.id]), "")
            table.writerow([sample.id, file_named, reason or remedy, remedy if reason else ""])
    write_whole(path, text.getvalue().encode())


def report(stage: Stage, summary: Summary, errors: Mapping[str, str], said: set[str]) -> None:
    """Say on one line what was done, and which samples failed, unless an earlier stage has ``said`` it."""
    if summary.computed:
        rate = summary.computed / max(summary.seconds, 1e-9)
        done = f"{samples(summary.computed)} in {summary.seconds:.1f} s ({rate:.1f}/s)"
        print(f"{stage.name}: {done}, {summary.current} were up to date", flush=True)
    elif not summary.failed:
        print(f"{stage.name}: {samples(summary.current)} up to date", flush=True)
    if not errors:
        return
    for sample, message in list(errors.items())[:SHOWN_ERRORS]:
        if message not in said:
            where = "" if f"'{sample}'" in message else f"sample '{sample}': "
            print(f"{stage.name}: {where}{message}", file=sys.stderr)
            said.add(message)
    path = stage.path.with_name(f"{stage.name}-errors.csv")
    print(f"{stage.name}: {len(errors)} of {samples(summary.samples)} failed, see {path}", file=sys.stderr)


def samples(count: int) -> str:
    """`1 sample`, `2 samples`."""
    return f"{count} sample{'' if count == 1 else 's'}"

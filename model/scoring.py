"""Measure fused images: in parallel, and so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from model.measure import OPTIONS, Measured, Options, measure
from model.memory import Memory, code_hash, file_hash, key_of
from model.metrics import profile as find_profile
from model.metrics.lpips import backbone_file
from model.results import Case, Evaluation, Row
from pipeline import sensors
from pipeline.errors import InputError
from pipeline.manifest import SHARPENING_TASKS, Sample, content_hash, file_of

MEASURED = "measured.jsonl"  # finished measurements
NAMED = 5  # images that a warning names
FEW = 8  # images that are measured sooner than other processes are started


def score(
    cases: Sequence[Case],
    options: Options = OPTIONS,
    memory: Path | None = None,
    console: Console | None = None,
) -> Iterator[tuple[Case, Measured | InputError]]:
    """Measure every case, in no fixed order; an image that cannot be measured gives its InputError.

    ``memory`` is a file of finished measurements: what it holds of unchanged images is not measured again.
    """
    remembered = Memory.at(memory)
    here = Path(__file__)
    metrics = (here.parent / "metrics").glob("*.py")
    code = code_hash([*metrics, here.with_name("measure.py"), Path(sensors.__file__)])
    waiting: list[tuple[Case, str]] = []
    finished: list[tuple[Case, Measured | InputError]] = []
    for case in cases:
        try:
            key = _key(case, options, code)
        except InputError as error:
            finished.append((case, error))
            continue
        if key in remembered.known:
            finished.append((case, Measured(**remembered.known[key])))
        else:
            waiting.append((case, key))
    console = console or Console()
    if finished and remembered.known:
        done = sum(isinstance(found, Measured) for _, found in finished)
        console.print(f"{done} of {len(cases)} images were measured before")
    yield from finished
    count = len(os.sched_getaffinity(0)) if options.workers is None else options.workers
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("measuring", total=len(waiting))
        for case, key, found in _run(waiting, options, 0 if len(waiting) <= FEW else count):
            if isinstance(found, Measured):
                remembered.add(key, asdict(found))
            progress.advance(bar)
            yield case, found


def score_all(found: Evaluation, folder: Path | None, options: Options, console: Console) -> None:
    """Fill in an evaluation's rows, in the order of its cases, and what failed or looks wrong.

    Finished measurements are kept in ``folder``, where one is given.
    """
    options = _with_backbone(found, options)
    memory = None if folder is None else folder / MEASURED
    results: dict[Case, Measured] = {}
    for case, result in score(found.cases, options, memory, console):
        if isinstance(result, Measured):
            results[case] = result
        else:
            found.failures.append((case.method, case.sample.id, str(result)))
    found.cases = [case for case in found.cases if case in results]
    for case in found.cases:
        found.rows.append(Row(case.sample.task, case.sample.id, case.method, results[case].values))
    found.failures.sort(key=lambda failure: failure[:2])
    for task in found.tasks:
        _compare_coverage(task, found)
    stretched: dict[str, list[str]] = {}
    for case in found.cases:
        if results[case].stretched:
            stretched.setdefault(case.method, []).append(str(case.fused))
    for method, images in stretched.items():
        total = sum(case.method == method for case in found.cases)
        found.warnings.append(
            f"{method}: {len(images)} of {total} fused images look stretched to their minimum and maximum, "
            f"which changes every metric of contrast ({few(images)})"
        )


def _compare_coverage(task: str, found: Evaluation) -> None:
    """Warn where methods were measured on different samples of a task."""
    covered: dict[str, set[str]] = {}
    for row in found.of_task(task):
        covered.setdefault(row.method, set()).add(row.sample)
    total = len(set().union(*covered.values()))
    short = [f"{method}: {len(samples)}" for method, samples in covered.items() if len(samples) < total]
    if short:
        found.warnings.append(
            f"{task}: of {total} samples some methods were measured on fewer ({', '.join(short)}); means and "
            "ranks over different samples cannot be compared"
        )


def _with_backbone(found: Evaluation, options: Options) -> Options:
    """The options with the file of weights for LPIPS; a warning where it is wanted and there is none."""
    name = find_profile(options.profile).perceptual
    wanted = options.metrics is None or name in options.metrics
    if not wanted or not any(_takes_pairs(case.sample) for case in found.cases):
        return options
    try:
        return replace(options, lpips=str(backbone_file(options.lpips)))
    except InputError as error:
        if options.metrics is not None or options.lpips is not None:
            raise
        found.warnings.append(f"{name} is missing: {error}")
        return options


def _takes_pairs(sample: Sample) -> bool:
    return sample.task not in SHARPENING_TASKS and len(sample.sources) == 2


def few(names: Sequence[str]) -> str:
    """The first names and how many more there are."""
    rest = f", … {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def _run(
    waiting: Sequence[tuple[Case, str]], options: Options, workers: int
) -> Iterator[tuple[Case, str, Measured | InputError]]:
    if workers == 0:
        for case, key in waiting:
            yield case, key, _attempt(case, options)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(waiting)), multiprocessing.get_context("spawn"), initializer=_follow_parent
    )
    try:
        futures: dict[Future[Measured | InputError], tuple[Case, str]] = {
            pool.submit(_attempt, case, options): (case, key) for case, key in waiting
        }
        for future in as_completed(futures):
            case, key = futures[future]
            yield case, key, future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "a process that measures was killed; memory is the usual reason: run again with fewer --workers, "
            "what is measured is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    """Leave interrupts to the parent process, and end when it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _attempt(case: Case, options: Options) -> Measured | InputError:
    try:
        return measure(case.sample, case.fused, options)
    except InputError as error:
        return error


def _key(case: Case, options: Options, code: str) -> str:
    """Hash of everything that decides the values: images, task, depth, profile, metrics and their code."""
    try:
        fused = file_hash(file_of(case.fused))
    except OSError as error:
        raise InputError(f"{case.fused}: cannot be read ({error.strerror})") from error
    sample = case.sample
    facts = [options.profile, options.sensor, options.lpips, *(options.metrics or ["all"])]
    return key_of(content_hash(sample), sample.task, fused, case.fused.name, *facts, code)

"""Measure fused images: in parallel, and so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from model.measure import Measured, measure
from model.memory import Memory, code_hash, file_hash, key_of
from model.metrics import PROFILE
from model.metrics import profile as find_profile
from model.results import Case, Evaluation, Row
from pipeline.errors import InputError
from pipeline.manifest import content_hash, file_of, nearest

MEASURED = "measured.jsonl"  # finished measurements
NAMED = 5  # images that a warning names
FEW = 8  # images that are measured sooner than other processes are started


@dataclass(frozen=True)
class Options:
    """How to measure: the profile, the metrics (None: all), the processes (None: one per core)."""

    profile: str = PROFILE
    metrics: tuple[str, ...] | None = None
    workers: int | None = None

    def check(self) -> None:
        """Raise InputError for a profile or metric that does not exist."""
        known = find_profile(self.profile)
        names = [*known.sources, *known.fused, *known.target, "target_PSNR", "target_SSIM"]
        for name in self.metrics or ():
            if name not in names:
                raise InputError(f"unknown metric '{name}'.{nearest(name, names)}")


OPTIONS = Options()


def score(
    cases: Sequence[Case],
    *,
    profile: str = PROFILE,
    metrics: Sequence[str] | None = None,
    memory: Path | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> Iterator[tuple[Case, Measured | InputError]]:
    """Measure every case, in no fixed order; an image that cannot be measured gives its InputError.

    ``metrics`` chooses by name. ``memory`` is a file of finished measurements: what it holds of unchanged
    images is not measured again. ``workers`` is the number of processes (0: this one; None: one per core).
    """
    remembered = Memory.at(memory)
    here = Path(__file__)
    code = code_hash([*(here.parent / "metrics").glob("*.py"), here.with_name("measure.py")])
    waiting: list[tuple[Case, str]] = []
    finished: list[tuple[Case, Measured | InputError]] = []
    for case in cases:
        try:
            key = _key(case, profile, metrics, code)
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
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("measuring", total=len(waiting))
        for case, key, found in _run(waiting, profile, metrics, 0 if len(waiting) <= FEW else count):
            if isinstance(found, Measured):
                remembered.add(key, asdict(found))
            progress.advance(bar)
            yield case, found


def score_all(found: Evaluation, folder: Path | None, options: Options, console: Console) -> None:
    """Fill in an evaluation's rows, in the order of its cases, and what failed or looks wrong.

    Finished measurements are kept in ``folder``, where one is given.
    """
    memory = None if folder is None else folder / MEASURED
    results: dict[Case, Measured] = {}
    for case, result in score(
        found.cases,
        profile=options.profile,
        metrics=options.metrics,
        memory=memory,
        workers=options.workers,
        console=console,
    ):
        if isinstance(result, Measured):
            results[case] = result
        else:
            found.failures.append((case.method, case.sample.id, str(result)))
    found.cases = [case for case in found.cases if case in results]
    for case in found.cases:
        found.rows.append(Row(case.sample.task, case.sample.id, case.method, results[case].values))
    found.failures.sort(key=lambda failure: failure[:2])
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


def few(names: Sequence[str]) -> str:
    """The first names and how many more there are."""
    rest = f", … {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def _run(
    waiting: Sequence[tuple[Case, str]], profile: str, metrics: Sequence[str] | None, workers: int
) -> Iterator[tuple[Case, str, Measured | InputError]]:
    if workers == 0:
        for case, key in waiting:
            yield case, key, _attempt(case, profile, metrics)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(waiting)), multiprocessing.get_context("spawn"), initializer=_follow_parent
    )
    try:
        futures: dict[Future[Measured | InputError], tuple[Case, str]] = {
            pool.submit(_attempt, case, profile, metrics): (case, key) for case, key in waiting
        }
        for future in as_completed(futures):
            case, key = futures[future]
            yield case, key, future.result()
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


def _attempt(case: Case, profile: str, metrics: Sequence[str] | None) -> Measured | InputError:
    try:
        return measure(case.sample, case.fused, profile, metrics)
    except InputError as error:
        return error


def _key(case: Case, profile: str, metrics: Sequence[str] | None, code: str) -> str:
    """Hash of everything that decides the values: images, task, depth, profile, metrics and their code."""
    try:
        fused = file_hash(file_of(case.fused))
    except OSError as error:
        raise InputError(f"{case.fused}: cannot be read ({error.strerror})") from error
    sample = case.sample
    chosen = ",".join(metrics or ["all"])
    return key_of(content_hash(sample), sample.task, fused, case.fused.name, profile, chosen, code)

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

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

import model.metrics
from model.memory import Memory, code_hash, file_hash, key_of
from model.metrics import (
    DIRECTIONS,
    FUSED_METRICS,
    PROFILE,
    SOURCE_METRICS,
    sharpening_metrics,
    target_metrics,
)
from model.results import Case, Evaluation, Row
from pipeline.errors import InputError
from pipeline.images import FloatArray, luminance, quantise, read_image, read_sources
from pipeline.manifest import SHARPENING_TASKS, Sample, content_hash, file_of, nearest

MEASURED = "measured.jsonl"  # finished measurements
NAMED = 5  # images that a warning names
FEW = 3  # images that are measured sooner than other processes are started


@dataclass(frozen=True)
class Options:
    """How to measure: the profile, the metrics (None: all), the processes (None: one per core)."""

    profile: str = PROFILE
    metrics: tuple[str, ...] | None = None
    workers: int | None = None

    def check(self) -> None:
        """Raise InputError for a profile or metric that does not exist."""
        if self.profile != PROFILE:
            raise InputError(f"unknown profile '{self.profile}'.{nearest(self.profile, [PROFILE])}")
        for name in self.metrics or ():
            if name not in DIRECTIONS:
                raise InputError(f"unknown metric '{name}'.{nearest(name, DIRECTIONS)}")


OPTIONS = Options()


@dataclass(frozen=True)
class Measured:
    """Values of one fused image by metric; ``stretched``: it looks stretched to its minimum and maximum."""

    values: dict[str, float]
    stretched: bool


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
    code = code_hash([*Path(model.metrics.__file__).parent.glob("*.py"), Path(__file__)])
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


def measure(
    sample: Sample, fused: Path, profile: str = PROFILE, metrics: Sequence[str] | None = None
) -> Measured:
    """Measure one fused image file of a sample.

    Fusion tasks: on luminance of 8 bits (colour as BT.601 luma, deeper images scaled), rounded, never
    stretched. Sharpening: all bands on 0..1. Raises InputError for files that cannot be read and sizes or
    bands that do not fit the sources.
    """
    images = read_sources(sample)
    sources = [image.pixels for image in images]
    pixels = read_fused(fused, sample.bits)
    if pixels.shape[1:] != sources[0].shape[1:]:
        raise InputError(
            f"{fused}: is {pixels.shape[1]}x{pixels.shape[2]} but the sources are {images[0].size[0]}x"
            f"{images[0].size[1]}; resizing would change the figures, so it is not measured"
        )
    target = None if sample.target is None else read_image(sample.target, sample.bits).pixels
    if target is not None and target.shape[1:] != pixels.shape[1:]:
        raise InputError(f"{sample.target}: the target has another size than the fused image ({fused})")
    if _sharpened(sample, sources):
        if target is not None and target.shape != pixels.shape:
            raise InputError(
                f"{fused}: has {pixels.shape[0]} bands, the target {target.shape[0]}; they must agree"
            )
        values = _sharpening_values(sources, target, pixels)
    else:
        values = _fusion_values(sources, target, pixels)
    chosen = {name: value for name, value in values.items() if metrics is None or name in metrics}
    return Measured(chosen, looks_stretched(sources, pixels))


def read_fused(path: Path, bits: int | None) -> FloatArray:
    """Read a fused image (C, H, W) in [0, 1]; ``bits`` is its depth, unless its integers have only 8."""
    if bits is None:
        return read_image(path).pixels
    try:
        image = read_image(path)
    except InputError:  # floating point up to 2^bits - 1
        return read_image(path, bits).pixels
    return image.pixels if image.bits == 8 else read_image(path, bits).pixels


def _sharpened(sample: Sample, sources: Sequence[FloatArray]) -> bool:
    return sample.task in SHARPENING_TASKS or len({source.shape[1:] for source in sources}) > 1


def looks_stretched(sources: Sequence[FloatArray], fused: FloatArray) -> bool:
    """Whether the fused image fills 0..255 exactly although its sources together do not.

    A rule or network that keeps to its sources' range does not do that by chance; where the sources fill the
    range themselves, stretching changes nothing and cannot be told.
    """
    low = min(float(source.min()) for source in sources)
    high = max(float(source.max()) for source in sources)
    narrow = low > 1 / 255 or high < 254 / 255
    grey = grey_levels(fused)
    return narrow and float(grey.min()) == 0 and float(grey.max()) == 255


def grey_levels(pixels: FloatArray) -> NDArray[np.float64]:
    """Luminance (H, W) as 8-bit levels 0..255, as an image viewer's conversion to grey gives them."""
    return quantise(luminance(pixels), 8).astype(np.float64)


def _sharpening_values(
    sources: Sequence[FloatArray], target: FloatArray | None, fused: FloatArray
) -> dict[str, float]:
    """Empty without a target: nothing can be measured at full resolution yet."""
    if target is None:
        return {}
    heights = [source.shape[1] for source in sources]
    ratio = max(heights) / min(heights)
    return sharpening_metrics(target.astype(np.float64), fused.astype(np.float64), ratio)


def _fusion_values(
    sources: Sequence[FloatArray], target: FloatArray | None, fused: FloatArray
) -> dict[str, float]:
    """Fusion metrics, and those against a target too; those against the sources where there are two."""
    planes, grey = [grey_levels(source) for source in sources], grey_levels(fused)
    values: dict[str, float] = {}
    if len(planes) == 2:
        values = {name: metric(planes[0], planes[1], grey) for name, metric in SOURCE_METRICS.items()}
    values |= {name: metric(grey) for name, metric in FUSED_METRICS.items()}
    if target is not None:
        values |= target_metrics(grey_levels(target)[None] / 255, grey[None] / 255)
    return values

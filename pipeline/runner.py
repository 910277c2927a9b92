"""Runs one stage over a data set: what is missing, read ahead, in batches, errors apart, resumable.

The only module that imports dask.
"""

from __future__ import annotations

import csv
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import dask
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.config import guidance_dir
from pipeline.errors import InputError, SetupError
from pipeline.images import SampleImages, read_sample, write_atomically
from pipeline.imported import as_imported
from pipeline.manifest import Sample, content_hash
from pipeline.store import Record, SampleInstances, Store, fingerprint, locked, open_store, prepare_store

BATCH = 8
SHOWN_ERRORS = 5
AHEAD = 2  # batches read while the backend works on another
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a stage gets for one sample: its images and the record of the stage before, if it wants them."""

    sample: Sample
    images: SampleImages | None = None
    before: Any = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W), None when the stage sees neither images nor instances."""
        if self.images is not None:
            return self.images.size
        return (self.before.height, self.before.width) if isinstance(self.before, SampleInstances) else None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage on one data set.

    ``config`` holds everything but files and code that decides its results, the backend's identity included;
    ``sizes`` are those of its store (H and W are taken from the stage before). ``compute`` gets inputs of
    equal size and returns one record each; a ValueError is a fault of a sample, reported and passed over.
    """

    name: str
    dataset: str
    samples: Sequence[Sample]
    config: Mapping[str, Any]
    compute: Callable[[Sequence[Inputs]], Sequence[Record]]
    before: str | None = None
    images: bool = True
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Kind and file name of its store."""
        return store_kind(self.name)

    @property
    def path(self) -> Path:
        """Its store."""
        return guidance_dir(self.dataset) / f"{self.kind}.zarr"


@dataclass(frozen=True)
class Summary:
    """What a run did: samples of the data set, computed now, current before, failed (see the errors file)."""

    stage: str
    samples: int
    computed: int
    current: int
    failed: int
    seconds: float


def store_kind(stage: str) -> str:
    """Kind of the store that a stage writes."""
    return "merged" if stage == "merge" else stage


def run(stage: Stage, *, batch: int = BATCH, workers: int | None = None) -> Summary:
    """Bring the stage's store up to date and say what was done.

    Samples that are done and whose files are unchanged are left alone, no image is read for them. A sample
    that fails is listed in ``<stage>-errors.csv`` beside the store, the others are finished, and the next run
    tries it again. Raises InputError when the stage before is missing or has no current record at all, when
    a store is damaged or in use, or when the disk is full.
    """
    started = time.perf_counter()
    workers = workers or os.cpu_count() or 1
    with locked(stage.path):
        stage = as_imported(stage)
        errors: dict[str, str] = {}
        content = _hash(stage.samples, workers, errors)
        before = _open_before(stage, content, errors)
        sizes = {**stage.sizes, **_largest(stage, before, content, errors)}
        upstream = before.fingerprint if before else None
        mark = fingerprint(stage.config, upstream)
        store, reason = prepare_store(stage.path, stage.kind, content, stage.config, mark, upstream, **sizes)
        if reason:
            print(f"{stage.name}: all samples are computed again, because {reason}", flush=True)
        usable = [sample for sample in stage.samples if sample.id not in errors]
        current = [sample for sample in usable if store.content(sample.id) == content[sample.id]]
        pending = [sample for sample in usable if store.content(sample.id) != content[sample.id]]
        changed = sum(store.is_done(sample.id) for sample in pending)
        if changed:
            print(f"{stage.name}: {_samples(changed)} computed again, because files changed", flush=True)
        _compute_all(stage, store, pending, partial(_read, stage, before, workers), content, errors, batch)
    _write_errors(stage, errors)
    summary = Summary(
        stage=stage.name,
        samples=len(stage.samples),
        computed=sum(sample.id not in errors for sample in pending),
        current=len(current),
        failed=len(errors),
        seconds=time.perf_counter() - started,
    )
    _report(stage, summary, errors)
    return summary


def _hash(samples: Sequence[Sample], workers: int, errors: dict[str, str]) -> dict[str, str]:
    """Content hash per sample id, "" for those whose files cannot be read."""
    hashes = _in_threads(content_hash, samples, workers)
    content = {}
    for sample, value in zip(samples, hashes, strict=True):
        content[sample.id] = value if isinstance(value, str) else ""
        if isinstance(value, ValueError):
            errors[sample.id] = str(value)
    return content


def _open_before(stage: Stage, content: Mapping[str, str], errors: dict[str, str]) -> Store | None:
    """The store of the stage before; samples of which it has no current record are errors."""
    if stage.before is None:
        return None
    path = stage.path.with_name(f"{store_kind(stage.before)}.zarr")
    remedy = f"run {stage.before} first: `python -m pipeline {stage.before} --dataset {stage.dataset}`"
    if not path.exists():
        raise InputError(f"{path}: {stage.name} needs this store, which does not exist; {remedy}")
    before = open_store(path)
    missing = [sample for sample in content if content[sample] and before.content(sample) != content[sample]]
    for sample in missing:
        errors[sample] = f"{path}: has no current record of sample '{sample}'; {remedy}"
    if missing and len(missing) == sum(bool(value) for value in content.values()):
        raise InputError(f"{path}: has no current record of any sample; {remedy}")
    return before


def _largest(
    stage: Stage, before: Store | None, content: Mapping[str, str], errors: Mapping[str, str]
) -> dict[str, int]:
    """H and W of the stores that need them: the largest among the samples that can be computed."""
    if before is None or before.kind not in ("boxes", "masks"):
        return {}
    sizes = [before.size(sample) for sample in content if sample not in errors]
    return {"H": max((h for h, _ in sizes), default=1), "W": max((w for _, w in sizes), default=1)}


def _compute_all(
    stage: Stage,
    store: Store,
    pending: Sequence[Sample],
    read: Callable[[Sequence[Sample]], list[Inputs | ValueError]],
    content: Mapping[str, str],
    errors: dict[str, str],
    batch: int,
) -> None:
    """Compute and store the pending samples; what a batch holds depends on `pending` alone, not on timing."""
    records: dict[str, Record] = {}
    batches = list(_batches(pending, store, batch))
    with _progress(stage.name, len(pending)) as advance:
        for (part, completes_shard), found in zip(
            batches, _ahead([partial(read, part) for part, _ in batches]), strict=True
        ):
            errors |= {s.id: str(f) for s, f in zip(part, found, strict=True) if isinstance(f, ValueError)}
            for group in _by_size([inputs for inputs in found if isinstance(inputs, Inputs)]):
                records |= _compute(stage, group, errors)
            if completes_shard and records:
                store.write(records, content)
                records = {}
            advance(len(part))


def _batches(pending: Sequence[Sample], store: Store, batch: int) -> Iterator[tuple[list[Sample], bool]]:
    """Cut the pending samples into batches within shards; True marks the last batch of a shard."""
    shards: dict[int, list[Sample]] = {}
    for sample in pending:
        shards.setdefault(store.row(sample.id) // store.rows, []).append(sample)
    for _, shard in sorted(shards.items()):
        for start in range(0, len(shard), batch):
            yield shard[start : start + batch], start + batch >= len(shard)


def _read(
    stage: Stage, before: Store | None, workers: int, samples: Sequence[Sample]
) -> list[Inputs | ValueError]:
    records = [before.get(sample.id) if before else None for sample in samples]
    images = _in_threads(read_sample, samples, workers) if stage.images else [None for _ in samples]
    return [
        image if isinstance(image, ValueError) else Inputs(sample, image, record)
        for sample, image, record in zip(samples, images, records, strict=True)
    ]


def _by_size(inputs: Iterable[Inputs]) -> Iterator[list[Inputs]]:
    """Groups that a backend can stack: equal size and number of sources, in order of first appearance."""
    groups: dict[Any, list[Inputs]] = {}
    for one in inputs:
        groups.setdefault((one.size, len(one.sample.sources)), []).append(one)
    yield from groups.values()


def _compute(stage: Stage, group: Sequence[Inputs], errors: dict[str, str]) -> dict[str, Record]:
    """Records of a group; if it fails, of every sample alone, so that one bad sample costs only itself."""
    try:
        records = stage.compute(group)
    except SetupError:
        raise
    except ValueError as error:
        if len(group) > 1:
            return {key: value for one in group for key, value in _compute(stage, [one], errors).items()}
        errors[group[0].sample.id] = str(error)
        return {}
    return {one.sample.id: record for one, record in zip(group, records, strict=True)}


def _in_threads(
    function: Callable[[Sample], T], samples: Sequence[Sample], workers: int
) -> list[T | ValueError]:
    """Call a function per sample in dask's threads; a ValueError stands in place of a result."""

    def attempt(sample: Sample) -> T | ValueError:
        try:
            return function(sample)
        except ValueError as error:
            return error

    calls = [dask.delayed(partial(attempt, sample), pure=False)() for sample in samples]
    return list(dask.compute(*calls, scheduler="threads", num_workers=workers))


def _ahead(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Results of the calls in order, made in the background while the consumer works on those before."""
    waiting: deque[Future[T]] = deque()
    executor = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    try:
        for call in calls:
            waiting.append(executor.submit(call))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _progress(stage: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on a terminal; nothing where the output is kept."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(stage, total=total, rate="")

        def advance(count: int) -> None:
            progress.advance(task, count)
            speed = progress.tasks[0].speed
            progress.update(task, rate=f"{speed:.1f}/s" if speed else "")

        yield advance


def _write_errors(stage: Stage, errors: Mapping[str, str]) -> None:
    """List the failed samples beside the store; without any, remove the list of an earlier run."""
    path = stage.path.with_name(f"{stage.name}-errors.csv")
    if not errors:
        path.unlink(missing_ok=True)
        return

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["sample", "file", "reason", "remedy"])
            for sample in stage.samples:
                if sample.id in errors:
                    reason, _, remedy = errors[sample.id].rpartition("; ")
                    files = [str(source.path) for source in sample.sources]
                    file_named = next((name for name in files if name in errors[sample.id]), "")
                    table.writerow([sample.id, file_named, reason or remedy, remedy if reason else ""])

    write_atomically(path, write)


def _report(stage: Stage, summary: Summary, errors: Mapping[str, str]) -> None:
    if summary.computed:
        rate = summary.computed / max(summary.seconds, 1e-9)
        done = f"{_samples(summary.computed)} in {summary.seconds:.1f} s ({rate:.1f}/s)"
        print(f"{stage.name}: {done}, {summary.current} were up to date", flush=True)
    elif not summary.failed:
        print(f"{stage.name}: {_samples(summary.current)} up to date", flush=True)
    if not errors:
        return
    for sample, message in list(errors.items())[:SHOWN_ERRORS]:
        where = "" if f"'{sample}'" in message else f"sample '{sample}': "
        print(f"{stage.name}: {where}{message}", file=sys.stderr)
    path = stage.path.with_name(f"{stage.name}-errors.csv")
    print(f"{stage.name}: {len(errors)} of {_samples(summary.samples)} failed, see {path}", file=sys.stderr)


def _samples(count: int) -> str:
    return f"{count} sample{'' if count == 1 else 's'}"

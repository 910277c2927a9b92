"""Runs stages over a data set: what is missing, read ahead, in batches, errors apart, resumable."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from pipeline.errors import InputError
from pipeline.images import image_facts
from pipeline.imported import as_imported
from pipeline.manifest import Sample, content_hash
from pipeline.parallel import ahead, in_threads, on_cluster
from pipeline.passes import Batch, Inputs, Outcome, Pass, Stage
from pipeline.progress import Summary, bars, report, samples, write_errors
from pipeline.store import Record, Store, fingerprint, locked, open_store, prepare_store

__all__ = ["BATCH", "Inputs", "Stage", "Summary", "run", "run_together"]

BATCH = 8
WRITES_WAITING = 1  # whole shards held in memory while another is written


def run(
    stage: Stage, *, batch: int = BATCH, workers: int | None = None, scheduler: str | None = None
) -> Summary:
    """Bring the stage's store up to date and say what was done; see `run_together`."""
    return run_together([stage], batch=batch, workers=workers, scheduler=scheduler)[0]


def run_together(
    stages: Sequence[Stage],
    *,
    batch: int = BATCH,
    workers: int | None = None,
    scheduler: str | None = None,
) -> list[Summary]:
    """Bring the stores of stages that share one read of the images up to date; one summary per stage.

    Samples that are done and whose files are unchanged are left alone, no image is read for them. A sample
    that fails is listed in ``<stage>-errors.csv`` beside the store, the others are finished, and the next run
    tries it again. With the address of a dask scheduler its workers read and compute; this process alone
    writes. Raises InputError when the stage before is missing or has no current record at all, when a store
    is damaged or in use, or when the disk is full.
    """
    started = time.perf_counter()
    workers = workers or os.cpu_count() or 1
    with ExitStack() as locks:
        still_locked = [locks.enter_context(locked(stage.path)) for stage in stages]
        stages = [as_imported(stage) for stage in stages]
        content, unreadable = _hash(stages[0].samples, workers)
        works: list[_Work] = []
        for stage, check in zip(stages, still_locked, strict=True):
            works.append(_Work(stage, content, unreadable, works, check, workers))
        _compute_all(works, content, batch, workers, scheduler)
        for work in works:
            if work.store.sizes != work.sizes():  # the largest sample of all was one that failed
                work.open_store()
    for work in works:
        write_errors(work.stage, work.errors)
    summaries = [work.summary(time.perf_counter() - started) for work in works]
    said: set[str] = set()
    for work, summary in zip(works, summaries, strict=True):
        report(work.stage, summary, work.errors, said)
    return summaries


class _Work:
    """What one stage has to do in this run, and has done: its store, its pending samples, their faults."""

    def __init__(
        self,
        stage: Stage,
        content: Mapping[str, str],
        unreadable: Mapping[str, str],
        earlier: Sequence[_Work],
        check_lock: Callable[[], None],
        workers: int,
    ) -> None:
        self.stage = stage
        self._content = content
        self._check_lock = check_lock
        self._workers = workers
        self.errors = dict(unreadable)
        self.busy = 0.0
        self.store: Store
        self.pending: set[str]
        inside = next((work for work in earlier if work.stage.name == stage.before), None)
        self._inside = inside
        self._store_before = None if inside else _open_before(stage)
        if self._store_before:
            self._set_apart_what_is_missing(self._store_before, content)
        if reason := self.open_store():
            print(f"{stage.name}: all samples are computed again, because {reason}", flush=True)
        usable = [sample for sample in content if sample not in self.errors]
        stale = {sample for sample in usable if self.store.content(sample) != content[sample]}
        self.current = len(usable) - len(stale)
        changed = sum(self.store.is_done(sample) for sample in stale)
        if changed:
            print(f"{stage.name}: {samples(changed)} computed again, because files changed", flush=True)
        if inside:  # what fails there fails here too, or was done there already
            settled = {s for s in stale if s not in inside.pending and inside.store.content(s) != content[s]}
            self.errors |= {sample: stage.lacks(sample) for sample in settled}
            stale -= settled
        self.pending = stale
        self._left = Counter(self.shard(sample) for sample in stale)
        self._records: dict[int, dict[str, Record]] = {}

    def _set_apart_what_is_missing(self, before: Store, content: Mapping[str, str]) -> None:
        """Samples of which the stage before has no current record are errors."""
        readable = [sample for sample in content if content[sample]]
        missing = [sample for sample in readable if before.content(sample) != content[sample]]
        self.errors |= {sample: self.stage.lacks(sample) for sample in missing}
        if missing and len(missing) == len(readable):
            raise InputError(
                f"{self.stage.path_before}: has no current record of any sample; {self.stage.remedy}"
            )

    def open_store(self) -> str:
        """Open the store, made to fit the samples; why its records were dropped, "" when they were not."""
        stage, upstream = self.stage, self._before.fingerprint if self._before else None
        mark = fingerprint(stage.config, upstream)
        self.store, reason = prepare_store(
            stage.path, stage.kind, self._content, stage.config, mark, upstream, **self.sizes()
        )
        return reason

    def sizes(self) -> dict[str, int]:
        """Sizes of the store; H and W are those of the largest sample that has boxes, or may get some."""
        before, given = self._before, dict(self.stage.sizes)
        if before and before.kind == "masks":
            return given | {size: before.sizes[size] for size in ("H", "W")}
        if before is None or before.kind != "boxes":
            return given
        known = {one for one, value in self._content.items() if value and before.content(one) == value}
        found = [before.size(sample) for sample in known]
        if self._inside and self._inside.stage.images:
            coming = self._inside.pending - self._inside.errors.keys() - known
            found += self._sizes_in_files([one for one in self.stage.samples if one.id in coming])
        return given | {
            "H": max((h for h, _ in found), default=1),
            "W": max((w for _, w in found), default=1),
        }

    @property
    def _before(self) -> Store | None:
        """The store of the stage before, as it is now if that stage is in this pass."""
        return self._inside.store if self._inside else self._store_before

    def _sizes_in_files(self, samples: Sequence[Sample]) -> list[tuple[int, int]]:
        """(H, W) of the samples, as far as the headers of their first sources can be read."""
        facts = in_threads(lambda one: image_facts(one.sources[0].path, one.bits), samples, self._workers)
        return [one.size for one in facts if not isinstance(one, ValueError)]

    def shard(self, sample: str) -> int:
        """Number of the shard that the sample belongs to."""
        return self.store.row(sample) // self.store.rows

    def take(self, batch: Batch, ids: frozenset[str], outcome: Outcome) -> list[dict[str, Record]]:
        """Note what was made of a batch; the records of shards that are now complete."""
        self.busy += outcome.seconds
        self.errors |= outcome.errors
        complete = []
        for sample in (sample.id for sample in batch.samples if sample.id in ids):
            number = self.shard(sample)
            records = self._records.setdefault(number, {})
            if sample in outcome.records:
                records[sample] = outcome.records[sample]
            self._left[number] -= 1
            if not self._left[number]:
                complete.append(self._records.pop(number))
        return [records for records in complete if records]

    def write(self, records: Mapping[str, Record], content: Mapping[str, str]) -> None:
        """Write a whole shard, if nobody else may be writing the store."""
        self._check_lock()
        self.store.write(records, content)

    def summary(self, seconds: float) -> Summary:
        """What was done."""
        return Summary(
            stage=self.stage.name,
            samples=len(self.stage.samples),
            computed=sum(sample not in self.errors for sample in self.pending),
            current=self.current,
            failed=len(self.errors),
            seconds=seconds,
            busy=self.busy,
        )


def _open_before(stage: Stage) -> Store | None:
    if stage.before is None:
        return None
    if not stage.path_before.exists():
        raise InputError(
            f"{stage.path_before}: {stage.name} needs this store, which does not exist; {stage.remedy}"
        )
    return open_store(stage.path_before)


def _hash(samples: Sequence[Sample], workers: int) -> tuple[dict[str, str], dict[str, str]]:
    """Content hash per sample id, "" for those whose files cannot be read, and why they cannot."""
    content, errors = {}, {}
    for sample, value in zip(samples, in_threads(content_hash, samples, workers), strict=True):
        content[sample.id] = value if isinstance(value, str) else ""
        if isinstance(value, ValueError):
            errors[sample.id] = str(value)
    return content, errors


def _compute_all(
    works: Sequence[_Work], content: Mapping[str, str], batch: int, workers: int, scheduler: str | None
) -> None:
    """Compute and store what is pending; what a batch holds depends on that alone, not on timing."""
    batches = list(_batches(works, batch))
    totals = {work.stage.name: len(work.pending) for work in works}
    outcomes = _outcomes([work.stage for work in works], batches, workers, scheduler)
    with bars(totals) as advance, _Writer(content) as writer, closing(outcomes):
        for part, found in zip(batches, outcomes, strict=True):
            for work, ids, outcome in zip(works, part.pending, found, strict=True):
                for records in work.take(part, ids, outcome):
                    writer.write(work, records)
                advance(work.stage.name, len(ids))


def _batches(works: Sequence[_Work], batch: int) -> Iterator[Batch]:
    """Cut the pending samples into batches, none across the border of a shard: a run that goes on after
    another was stopped makes the same batches from there."""
    needed = [one for one in works[0].stage.samples if any(one.id in work.pending for work in works)]
    for _, shard in itertools.groupby(needed, lambda one: [work.shard(one.id) for work in works]):
        rest = list(shard)
        for start in range(0, len(rest), batch):
            part = tuple(rest[start : start + batch])
            ids = frozenset(sample.id for sample in part)
            yield Batch(part, tuple(ids & work.pending for work in works))


def _outcomes(
    stages: Sequence[Stage], batches: Sequence[Batch], workers: int, scheduler: str | None
) -> Generator[list[Outcome]]:
    """For every batch one outcome per stage, from here or from a cluster's workers."""
    one_pass = Pass(stages)
    if scheduler and batches:
        folder = f"{Path.cwd()}{os.sep}"
        with closing(on_cluster(scheduler, one_pass.work, [part.absolute() for part in batches])) as results:
            for outcomes in results:
                yield [outcome.renamed(folder, "") for outcome in outcomes]
        return
    with closing(ahead([partial(one_pass.read, part, workers) for part in batches])) as reads:
        for part, found in zip(batches, reads, strict=True):
            yield one_pass.compute(part, found)


class _Writer:
    """Writes whole shards behind the computation, one at a time. What was handed in is written, whatever
    happens to the computation."""

    def __init__(self, content: Mapping[str, str]) -> None:
        self._content = content
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="write-behind")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> _Writer:
        return self

    def write(self, work: _Work, records: Mapping[str, Record]) -> None:
        """Hand a shard in. Raises what went wrong with an earlier one."""
        while len(self._waiting) > WRITES_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._executor.submit(work.write, records, self._content))

    def __exit__(self, *failure: object) -> None:
        self._executor.shutdown(wait=True)
        if failure[0] is None:
            for one in self._waiting:
                one.result()

"""Carry out the jobs of `rwkvfusion fuse`: read, fuse, write; go on when a sample fails.

While one sample is fused the next is decoded and the last one is encoded, each in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.config import run_dir
from model.inference import Fuser, load_weights, weights_for
from model.jobs import Job, printable
from model.large import fuse_pieces
from model.sample import Prepared, Result, Settings, fuse_prepared, prepare
from pipeline.errors import InputError
from pipeline.images import image_facts, write_image
from pipeline.manifest import IMAGE_SUFFIXES, SHARPENING_TASKS, Sample, file_of

_MANY = 4  # samples or tiles from which on a bar shows how far the work is


@dataclass
class Outcome:
    """How many samples were fused, were there already, and failed."""

    fused: int = 0
    skipped: int = 0
    failed: int = 0


def run_jobs(
    jobs: Sequence[Job], settings: Settings | None = None, console: Console | None = None
) -> Outcome:
    """Fuse every job and say so, one line each.

    Raises InputError for weights that cannot be loaded or are of another task, for results that would
    overwrite a source or each other, and for a single job that fails; of several, a failing one is reported
    and the rest go on. Ctrl-C lets the file being written be finished and raises KeyboardInterrupt.
    """
    settings, console = settings or Settings(), console or Console()
    check_outputs(jobs, settings.masks)
    fusers = {task: _fuser(task, settings) for task in dict.fromkeys(job.sample.task for job in jobs)}
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        try:
            return _Run(jobs, settings, fusers, bar, reader, writer).work()
        except BaseException:
            reader.shutdown(wait=False, cancel_futures=True)
            raise


def check_outputs(jobs: Sequence[Job], masks: Path | None = None) -> None:
    """No result may be a source or the masks of any sample, through links either, nor another one's result.

    ``masks``: a file, or a folder of files, besides those that the jobs name.
    """
    sources = {
        (status.st_dev, status.st_ino): (what, path)
        for what, path in _inputs(jobs, masks)
        if file_of(path).exists() and (status := file_of(path).stat())
    }
    seen: set[Path] = set()
    for job in jobs:
        for path in [job.output.with_suffix(suffix) for suffix in IMAGE_SUFFIXES if job.suffix_free] or [
            job.output
        ]:
            if path.exists() and (source := sources.get((path.stat().st_dev, path.stat().st_ino))):
                what, other = source
                raise InputError(
                    f"{printable(path)}: is the {what} {printable(other)}; choose another output"
                )
        if job.output in seen:
            raise InputError(
                f"{printable(job.output)}: would be the result of two samples; give them different names"
            )
        seen.add(job.output)


def _inputs(jobs: Sequence[Job], masks: Path | None) -> Iterator[tuple[str, Path]]:
    for job in jobs:
        yield from ((f"{source.role} source", source.path) for source in job.sample.sources)
        if job.masks is not None:
            yield "file of masks", job.masks
    if masks is not None:
        yield from (("file of masks", path) for path in (masks.iterdir() if masks.is_dir() else [masks]))


def _fuser(task: str, settings: Settings) -> Fuser:
    weights = settings.weights
    if weights is None and settings.dataset is not None:
        own = run_dir(settings.dataset, task) / "weights.safetensors"
        weights = str(own) if own.is_file() else None
    fuser = load_weights(weights or task, settings.device, settings.dtype)
    if fuser.task != task:
        raise InputError(
            f"{fuser.path}: weights for {fuser.task}, but the samples are of task {task}; "
            f"add --task {fuser.task} or leave --weights out"
        )
    if settings.compiled:
        fuser.network.compile()
    return fuser


class _Run:
    """The samples of one command on their way through reader, network and writer."""

    def __init__(
        self,
        jobs: Sequence[Job],
        settings: Settings,
        fusers: dict[str, Fuser],
        bar: Progress,
        reader: ThreadPoolExecutor,
        writer: ThreadPoolExecutor,
    ) -> None:
        self.jobs, self.settings, self.fusers = jobs, settings, fusers
        self.bar, self.reader, self.writer = bar, reader, writer
        self.outcome = Outcome()

    def work(self) -> Outcome:
        """Read one sample ahead, write one behind."""
        progress = self.bar.add_task("fusing", total=len(self.jobs), visible=len(self.jobs) > _MANY)
        ahead = self._read(0)
        behind: tuple[Job, str, Future[None]] | None = None
        for number, job in enumerate(self.jobs):
            reading, ahead = ahead, self._read(number + 1)
            with self._reporting(job):
                assert reading is not None
                prepared = reading.result()
                if isinstance(prepared, Result):
                    self.outcome.skipped += 1
                    self._say(f"{printable(prepared.path)}: exists, skipped (--overwrite to replace)")
                elif prepared.images is None:
                    self._in_pieces(prepared)
                else:
                    pixels = fuse_prepared(prepared, prepared.fuser, self.settings.colour)
                    result = prepared.result
                    self._finish(behind)
                    writing = self.writer.submit(
                        write_image, result.path, pixels, result.bits, result.georeference
                    )
                    behind = job, _line(prepared), writing
            self.bar.advance(progress)
        self._finish(behind)
        return self.outcome

    def _read(self, number: int) -> Future[Prepared | Result] | None:
        if number >= len(self.jobs):
            return None
        job = self.jobs[number]
        return self.reader.submit(self._prepare, job)

    def _prepare(self, job: Job) -> Prepared | Result:
        return prepare(job, self._fuser(job.sample), self.settings)

    def _fuser(self, sample: Sample) -> Fuser:
        """The network for a sample: shipped ones are chosen by its bands too."""
        own = self.fusers[sample.task]
        if not own.shipped or self.settings.weights or sample.task not in SHARPENING_TASKS:
            return own
        name = weights_for(sample.task, image_facts(sample.sources[-1].path).bands)
        if name not in self.fusers:
            self.fusers[name] = _fuser(sample.task, replace(self.settings, weights=name))
        return self.fusers[name]

    def _in_pieces(self, prepared: Prepared) -> None:
        tiles = self.bar.add_task(printable(prepared.job.sample.id), total=None)
        tiling = fuse_pieces(
            prepared,
            prepared.fuser,
            self.settings.colour,
            lambda done, of: self.bar.update(tiles, completed=done, total=of),
        )
        self.bar.remove_task(tiles)
        self.outcome.fused += 1
        self._say(f"{_line(prepared)}, in {len(tiling)} tiles of {tiling.tile[0]}x{tiling.tile[1]}")

    def _finish(self, behind: tuple[Job, str, Future[None]] | None) -> None:
        if behind is not None and not behind[2].cancelled():
            job, line, writing = behind
            with self._reporting(job):
                writing.result()
                self.outcome.fused += 1
                self._say(line)

    @contextmanager
    def _reporting(self, job: Job) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            if len(self.jobs) == 1:
                raise
            self.outcome.failed += 1
            self._say(f"failed {printable(job.sample.id)}: {printable(error)}", style="red")

    def _say(self, line: str, style: str | None = None) -> None:
        self.bar.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _line(prepared: Prepared) -> str:
    sample, result = prepared.job.sample, prepared.result
    name = prepared.fuser.path.stem
    weights = f", weights {name}" if name.startswith(f"{sample.task}_") else ""
    roles = "+".join(sample.roles)
    return f"{printable(result.path)}: {sample.task} ({roles}), {prepared.note}{weights}{result.loss}"

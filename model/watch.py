"""Watching a training run: progress bar, curves and pictures, a Ctrl-C that waits for the current step."""

from __future__ import annotations

import resource
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from dvclive import Live
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.run import Run
from pipeline.errors import InputError


class Watch:
    """Progress bar, DVCLive curves and pictures (in the run's folder ``dvclive``) from step ``start`` on.

    With ``tensorboard`` the same for TensorBoard, in ``runs/<data set>/tensorboard/<task>``. Of several
    processes only the main one shows and writes anything.
    """

    def __init__(
        self, run: Run, start: int, console: Console, main: bool = True, tensorboard: bool = False
    ) -> None:
        self.main = main
        self.task = run.config.train.task
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[parts]} {task.fields[rate]} {task.fields[memory]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not main,
        )
        total = run.config.train.steps
        self.bar = self.progress.add_task(
            self.task, total=total, completed=start, parts="", rate="", memory=""
        )
        self.sums: dict[str, float] = {}
        self.count = 0
        self.board: Any = None
        if main:
            folder = run.folder / "dvclive"
            forget_after(folder, start)
            self.live = Live(str(folder), resume=start > 0, save_dvc_exp=False, dvcyaml=None, report=None)
            if tensorboard:
                self.board = _board(run.folder.with_name("tensorboard") / self.task, start)

    def __enter__(self) -> Watch:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.main:
            self.live.end()
        if self.board is not None:
            self.board.close()

    def step(self, step: int, parts: Mapping[str, float], batch: int, *, log: bool) -> None:
        """Show a finished step; with ``log`` add the mean since the last point to the curves."""
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        speed = self.progress.tasks[0].speed
        shown = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
        rate = f"{speed * batch:.0f} samples/s" if speed else ""
        self.progress.update(self.bar, completed=step, parts=shown, rate=rate)
        if log:
            self.progress.update(self.bar, memory=f"{_memory() / 2**30:.1f} GiB")
            self._log(step, "train", {name: value / self.count for name, value in self.sums.items()})
            self.sums, self.count = {}, 0

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Add a validation to the curves."""
        self._log(step, "validation", values)

    def image(self, step: int, sample: str, pixels: np.ndarray) -> None:
        """Keep a picture, uint8 (H, W, 3), of a validation sample."""
        self.live.step = step
        self.live.log_image(f"{sample}/{step}.png", pixels)
        if self.board is not None:
            self.board.add_image(sample, pixels, step, dataformats="HWC")

    def _log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        if not self.main:
            return
        self.live.step = step
        for name, value in values.items():
            self.live.log_metric(f"{kind}/{name}", value)
            if self.board is not None:
                self.board.add_scalar(f"{kind}/{name}", value, step)
        self.live.make_summary()


def _board(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "--tensorboard: TensorBoard is not installed; run `pip install tensorboard` or leave it out"
        ) from error
    return SummaryWriter(str(folder), purge_step=start + 1)


def _memory() -> int:
    """Bytes at the peak: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_after(folder: Path, step: int) -> None:
    """Drop points of the curves beyond ``step``: the steps since the last checkpoint are done once more."""
    for curve in folder.glob("plots/metrics/**/*.tsv"):
        lines = curve.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = lines[:1] + [
            line for line in lines[1:] if line[:1].isdigit() and int(line.split("\t")[0]) <= step
        ]
        curve.write_text("".join(kept), encoding="utf-8")


class Interrupt:
    """Within it the first Ctrl-C only sets ``requested``; a second one interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._answer)
        return self

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

"""Watching a training run: progress bar, curves for DVC, and a Ctrl-C that waits for the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from dvclive import Live
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.run import Run


class Watch:
    """Progress bar and DVCLive curves (in the run's folder ``dvclive``) of a run from step ``start`` on."""

    def __init__(self, run: Run, start: int, console: Console) -> None:
        folder = run.folder / "dvclive"
        forget_after(folder, start)
        self.live = Live(str(folder), resume=start > 0, save_dvc_exp=False, dvcyaml=None, report=None)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[parts]} {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.progress.add_task(
            run.config.train.task, total=run.config.train.steps, completed=start, parts="", rate=""
        )
        self.sums: dict[str, float] = {}
        self.count = 0

    def __enter__(self) -> Watch:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        self.live.end()

    def step(self, step: int, parts: Mapping[str, float], batch: int, *, log: bool) -> None:
        """Show a finished step; with ``log`` add the mean since the last point to the curves."""
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        speed = self.progress.tasks[0].speed
        shown = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
        rate = f"{speed * batch:.0f} samples/s" if speed else ""
        self.progress.update(self.task, completed=step, parts=shown, rate=rate)
        if log:
            self._log(step, "train", {name: value / self.count for name, value in self.sums.items()})
            self.sums, self.count = {}, 0

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Add a validation to the curves."""
        self._log(step, "validation", values)

    def _log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        self.live.step = step
        for name, value in values.items():
            self.live.log_metric(f"{kind}/{name}", value)
        self.live.make_summary()


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

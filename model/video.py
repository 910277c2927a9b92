"""Fuse videos frame by frame; the sound is that of the first.

Every frame is fused by itself with one network, so a scene that stands still gives frames that are equal as
far as the sources are. Reading and writing is FFmpeg's, through PyAV (optional extra `video`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from model.inference import Colour, Fuser, fuse, load_weights
from model.jobs import role_of
from model.sample import Settings
from pipeline.errors import InputError
from pipeline.images import FloatArray, quantise, write_atomically
from pipeline.manifest import TASKS

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".avi": "avi"}
_CODECS = ("libx264", "h264", "mpeg4")  # the first that this FFmpeg can encode
_COLOUR = 8 / 255  # less is compression's noise


@dataclass(frozen=True)
class Footage:
    """A video's first picture stream: size (H, W), frames per second, its number of frames if known."""

    path: Path
    size: tuple[int, int]
    rate: Fraction
    frames: int | None


@dataclass(frozen=True)
class Fused:
    """What was written: frames, and remarks on sources that did not fit each other."""

    frames: int
    remarks: tuple[str, ...]


def footage(path: Path) -> Footage:
    """What a video's header says. Raises InputError when it is no video or PyAV is missing."""
    with _open(path) as container:
        stream = _pictures(container, path)
        rate = stream.average_rate or stream.guessed_rate
        if not rate or not stream.height:
            raise InputError(f"{path}: does not say its size or frame rate; convert it, e.g. to .mp4")
        return Footage(path, (stream.height, stream.width), Fraction(rate), stream.frames or None)


def in_colour(path: Path) -> bool:
    """Whether the first frame has more colour than compression's noise."""
    frames = _frames(path)
    try:
        _, first = next(frames)
    except StopIteration:
        raise InputError(f"{path}: holds no picture that can be decoded") from None
    finally:
        frames.close()
    return float(np.ptp(first, axis=0).max()) > _COLOUR


def run_video(
    paths: Sequence[Path],
    output: Path,
    task: str | None,
    weights: str | None,
    settings: Settings,
    console: Console | None = None,
) -> None:
    """`rwkvfusion fuse --video`: fuse videos in the order of their roles, with a bar, and say what was done.

    The task is told by the names, or by one of two videos being in colour. Raises InputError.
    """
    console = console or Console()
    if output.exists() and not settings.overwrite:
        raise InputError(f"{output}: exists; add --overwrite to replace it")
    if task is None:
        task = _task(paths)
    fuser = load_weights(weights or task, settings.device, settings.dtype)
    if fuser.task != task:
        raise InputError(f"{fuser.path}: weights for {fuser.task}, the task is {task}; leave one of them out")
    ordered = _ordered(paths, task)
    bar = Progress(
        *("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        frames = bar.add_task("frames", total=None)
        fused = fuse_videos(
            ordered,
            output,
            fuser,
            settings.colour,
            settings.memory,
            lambda done, of: bar.update(frames, completed=done, total=of),
        )
    for remark in fused.remarks:
        console.print(remark, markup=False, highlight=False, soft_wrap=True)
    names = " + ".join(str(path) for path in ordered)
    line = f"{output}: {task} ({names}), {fused.frames} frames"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _task(paths: Sequence[Path]) -> str:
    roles = {role_of(path) for path in paths} - {None}
    for task, groups in TASKS.items():
        if any(roles == set(group) for group in groups):
            return task
    if len(paths) == 2 and len({in_colour(path) for path in paths}) == 2:
        return "visible_infrared"
    names = " and ".join(str(path) for path in paths)
    raise InputError(f"cannot tell the task from {names}; add --task with one of {', '.join(TASKS)}")


def _ordered(paths: Sequence[Path], task: str) -> list[Path]:
    """By role where the names tell, else colour first in visible_infrared, else as given."""
    roles = [role_of(path) for path in paths]
    for group in TASKS[task]:
        if set(roles) == set(group):
            return sorted(paths, key=lambda path: group.index(str(role_of(path))))
    swapped = task == "visible_infrared" and len(paths) == 2 and in_colour(paths[1]) > in_colour(paths[0])
    return list(paths[::-1] if swapped else paths)


def fuse_videos(
    paths: Sequence[Path],
    output: Path,
    fuser: Fuser,
    colour: Colour = "auto",
    memory: int | None = None,
    report: Callable[[int, int | None], object] = lambda done, of: None,
) -> Fused:
    """Fuse videos of one size to ``output``, at the first one's frame times.

    Of a source with another rate the frame nearest in time is taken; the shortest ends the result. Both are
    remarked on. ``report(done, of)`` is told the number of frames. Raises InputError when sizes differ, a
    file cannot be read, or the output's type is not one of `FORMATS`.
    """
    if output.suffix.lower() not in FORMATS:
        raise InputError(f"{output}: cannot write '{output.suffix}'; choose one of {', '.join(FORMATS)}")
    if len(paths) < 2 or fuser.sharpening:
        raise InputError(f"{fuser.task} with {len(paths)} videos: give two or more of equal size")
    films = [footage(path) for path in paths]
    for film in films[1:]:
        if film.size != films[0].size:
            raise InputError(
                f"{film.path}: is {film.size[0]}x{film.size[1]}, {films[0].path} {films[0].size[0]}x"
                f"{films[0].size[1]}; register and resize them first (registration is outside this tool)"
            )
    for path in paths:
        if output.exists() and output.samefile(path):
            raise InputError(f"{output}: is a source; choose another output")
    remarks = [
        f"{film.path} has {float(film.rate):.3f} frames per second, {films[0].path} "
        f"{float(films[0].rate):.3f}: the frame nearest in time is taken"
        for film in films[1:]
        if film.rate != films[0].rate
    ]
    done = 0

    def fused() -> Iterator[FloatArray]:
        nonlocal done
        expected = films[0].frames
        for frames, ended in _together(films):
            if ended is not None:
                remarks.append(f"{ended} is shorter: the result ends with it, after {done} frames")
                return
            yield fuse(frames, fuser, colour=colour, memory=memory)
            done += 1
            report(done, expected)

    write_atomically(output, lambda temporary: _write(temporary, output, films[0], fused()))
    return Fused(done, tuple(remarks))


def _together(films: Sequence[Footage]) -> Iterator[tuple[list[FloatArray], Path | None]]:
    """The first video's frames, each with the nearest in time of the others; lastly who ended too early."""
    others = [_Follower(film) for film in films[1:]]
    with ExitStack() as stack:
        leading = _frames(films[0].path)
        stack.callback(leading.close)
        for other in others:
            stack.callback(other.frames.close)
        for time, first in leading:
            frames = [first]
            for other in others:
                frame = other.at(time)
                if frame is None:
                    yield [], other.film.path
                    return
                frames.append(frame)
            yield frames, None
        for other in others:
            if not other.ends_by(time + 1 / films[0].rate):
                yield [], films[0].path
                return


class _Follower:
    """Frames of a video by time."""

    def __init__(self, film: Footage) -> None:
        self.film = film
        self.frames = _frames(film.path)
        self.here = next(self.frames, None)
        self.next = next(self.frames, None)

    def at(self, time: Fraction) -> FloatArray | None:
        """The frame nearest to that time, None more than a frame after the last."""
        while self.here is not None and self.next is not None:
            if abs(self.next[0] - time) >= abs(self.here[0] - time):
                break
            self.here, self.next = self.next, next(self.frames, None)
        if self.here is None or time - self.here[0] >= 1 / self.film.rate:
            return None
        return self.here[1]

    def ends_by(self, time: Fraction) -> bool:
        """Whether no frame is left that begins at that time or later."""
        while self.next is not None:
            self.here, self.next = self.next, next(self.frames, None)
        return self.here is None or self.here[0] < time


def _frames(path: Path) -> Generator[tuple[Fraction, FloatArray], None, None]:
    """Seconds from the first frame, and the frame as float32 (3, H, W) in [0, 1]."""
    with _open(path) as container:
        stream = _pictures(container, path)
        stream.thread_type = "AUTO"
        rate = Fraction(stream.average_rate or stream.guessed_rate)
        start: Fraction | None = None
        try:
            for number, frame in enumerate(container.decode(stream)):
                time = number / rate if frame.pts is None else frame.pts * frame.time_base
                start = time if start is None else start
                pixels = frame.to_ndarray(format="rgb24").transpose(2, 0, 1)
                yield time - start, pixels.astype(np.float32) / np.float32(255)
        except _library().FFmpegError as error:
            raise InputError(f"{path}: cannot be decoded ({error}); replace the file") from error


def _write(temporary: Path, output: Path, film: Footage, frames: Iterator[FloatArray]) -> None:
    av = _library()
    height, width = film.size
    with (
        _open(film.path) as sound,
        av.open(str(temporary), "w", format=FORMATS[output.suffix.lower()]) as container,
    ):
        codec = next(name for name in _CODECS if name in av.codecs_available)
        pictures = container.add_stream(codec, rate=film.rate)
        pictures.height, pictures.width = height, width
        # Halved chrominance needs even sizes.
        pictures.pix_fmt = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"
        if codec != "mpeg4":
            pictures.options = {"crf": "14", "preset": "medium"}
        heard = sound.streams.audio[0] if sound.streams.audio else None
        kept = None if heard is None else container.add_stream_from_template(heard)
        for fused in frames:
            values = quantise(fused if len(fused) == 3 else np.repeat(fused, 3, axis=0), 8)
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(values.transpose(1, 2, 0)), format="rgb24"
            )
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        if heard is None:
            return
        for packet in sound.demux(heard):
            if packet.dts is not None:
                packet.stream = kept
                container.mux(packet)


def _library() -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"videos need PyAV, which does not import ({error}); pip install 'rwkvfusion[video]'"
        ) from error
    return av


def _open(path: Path) -> Any:
    av = _library()
    if not path.is_file():
        raise InputError(f"{path}: no such video")
    try:
        return av.open(str(path))
    except av.FFmpegError as error:
        raise InputError(f"{path}: cannot be read as a video ({error}); replace the file") from error


def _pictures(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise InputError(f"{path}: holds no pictures; give a video")
    return container.streams.video[0]

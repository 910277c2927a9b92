"""A result written in pieces by a run that may be killed at any time and go on later.

Beside the result OUT lies the folder OUT.partial: the picture so far, the facts of the whole image that have
been learned, a file each (model/whole.py), and a state, which counts the finished pairs of tiles. It is
replaced, whole, when the pixels that it counts are on disk. A lock in it keeps a second run out, whose pixels
might be others.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.canvas import Canvas, canvas_at
from pipeline.errors import InputError
from pipeline.images import FloatArray, GeoReference, quantise, write_atomically
from pipeline.manifest import ZARR_SUFFIX

_STATE, _LOCK = "state.json", "lock"
_OURS = re.compile(r"picture\.(tiff?|zarr)|state\.json|lock|fact-\d+\.npy|.*\.\d+-[0-9a-f]{8}\.tmp")


def in_pieces(output: Path) -> bool:
    """Whether a file of that name can be written in pieces."""
    return output.suffix.lower() in (".tif", ".tiff", ZARR_SUFFIX)


@dataclass
class Pieces:
    """A result on its way: ``shape`` (C, H, W), ``bits`` of depth, ``facts`` that decide its values."""

    output: Path
    shape: tuple[int, int, int]
    bits: int
    facts: Mapping[str, Any]
    _canvas: Canvas = field(init=False)

    def __post_init__(self) -> None:
        dtype = quantise(np.zeros((1, 1, 1), np.float32), self.bits).dtype
        picture = self.folder / f"picture{self.output.suffix.lower()}"
        self._canvas = canvas_at(picture, self.shape, dtype, self.bits)

    @property
    def folder(self) -> Path:
        return self.output.with_name(f"{self.output.name}.partial")

    @property
    def _key(self) -> str:
        told = json.dumps([self.shape, self.bits, self.facts], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the right to write this result.

        Raises InputError when another run does, and when the folder is not one of ours.
        """
        from filelock import FileLock, Timeout  # which few images need

        if self.folder.exists() and not all(_OURS.fullmatch(path.name) for path in self.folder.iterdir()):
            raise InputError(f"{self.folder}: holds files of yours; move them, or give another output")
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise InputError(
                f"{self.output}: another run is writing it; wait for that to end, or give another output"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def resume(self) -> tuple[int, list[NDArray[np.float32]]]:
        """Finished pairs of tiles, and what was learned of the whole; (0, []) after allocating the file anew.

        What another command left, or one whose sources have changed since, is discarded. Raises InputError
        when the disk has no room.
        """
        try:
            state = json.loads((self.folder / _STATE).read_bytes())
            if state["key"] == self._key and self._canvas.path.exists():
                learned = self._learned()
                return (int(state["done"]) if len(learned) == state["learned"] else 0), learned
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not a state of ours: begin anew
        self._allocate()
        return 0, []

    def _learned(self) -> list[NDArray[np.float32]]:
        """The facts of all passes that were finished."""
        found: list[NDArray[np.float32]] = []
        while (file := self._fact(len(found))).is_file():
            found.append(np.load(file, allow_pickle=False))
        return found

    def _fact(self, number: int) -> Path:
        return self.folder / f"fact-{number}.npy"

    def _allocate(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()
        free = shutil.disk_usage(self.folder).free
        if self._canvas.bytes > free:
            self.discard()
            raise InputError(
                f"{self.output}: needs {self._canvas.bytes / 2**30:.3g} GiB, the disk has "
                f"{free / 2**30:.3g} GiB free"
            )
        self._canvas.allocate()
        self._save(0, 0)

    def _save(self, done: int, learned: int) -> None:
        state = json.dumps({"key": self._key, "done": done, "learned": learned}).encode()
        write_atomically(self.folder / _STATE, lambda temporary: temporary.write_bytes(state))

    def learned(self, number: int, fact: NDArray[np.float32]) -> None:
        """Keep what the pass of that number has found."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.save(file, fact)

        write_atomically(self._fact(number), write)

    def write(self, rows: slice, columns: slice, pixels: FloatArray) -> None:
        """Write a part of the picture, (C, h, w) in [0, 1]."""
        self._canvas.write(rows.start, columns.start, quantise(pixels, self.bits))

    def count(self, done: int, learned: int) -> None:
        """Count pairs of tiles as done, once they are on disk."""
        self._canvas.flush()
        self._save(done, learned)

    def finish(self, georeference: GeoReference | None) -> None:
        """Put the finished file in its place and remove the folder."""
        self._canvas.place(self.output, georeference)
        self.discard()

    def discard(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)

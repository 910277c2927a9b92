"""What lets a store survive kills, full disks and second runs: locks, swaps, whole writes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from pipeline.errors import InputError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the right to write the store at `path`; InputError when another process holds it.

    The system frees the lock when its process ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(
            f"{path}: another run is writing this store; wait for it to end and run again"
        ) from error
    try:
        yield
    finally:
        lock.release()


def swap(temporary: Path, path: Path) -> None:
    """Put a finished store in the place of another; `recover` mends a kill between the two renames."""
    old = path.with_name(path.name + ".old")
    if path.exists():
        os.replace(path, old)
    os.replace(temporary, path)
    shutil.rmtree(old, ignore_errors=True)


def recover(path: Path) -> None:
    """Remove what a killed run left: half-built stores beside, half-written files inside."""
    old, temporary = path.with_name(path.name + ".old"), path.with_name(path.name + ".tmp")
    if old.exists() and not path.exists():
        os.replace(old, path)
    for leftover in (old, temporary):
        shutil.rmtree(leftover, ignore_errors=True)
    for file in path.rglob("*.partial"):
        file.unlink()


@contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Turn a full disk into an InputError that names the store, and remove what was built beside it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        shutil.rmtree(path.with_name(path.name + ".tmp"), ignore_errors=True)
        raise InputError(
            f"{path}: the disk is full; free some space and run again: samples finished so far are kept"
        ) from error


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Answer Ctrl-C after the block. Only the main thread receives it, so others need nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if caught:
        raise KeyboardInterrupt

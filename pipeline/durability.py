"""What lets a store survive kills, full disks and second runs: locks, swaps, whole writes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import filelock

from pipeline.errors import InputError
from pipeline.images import write_atomically
from pipeline.leases import leased
from pipeline.objects import ObjectPath, Place, connection


@contextmanager
def locked(path: Place) -> Iterator[Callable[[], None]]:
    """Hold the right to write the store at `path`; InputError when another process holds it.

    Yields a function to call before every write; it raises InputError when the right was lost. On a disk it
    never is: the system frees the lock when its process ends, however it ends. Object storage: `leased`.
    """
    if isinstance(path, ObjectPath):
        with leased(path) as check:
            yield check
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(
            f"{path}: another run is writing this store; wait for it to end and run again"
        ) from error
    try:
        yield lambda: None
    finally:
        lock.release()


def remove(path: Place) -> None:
    """Remove a store, if it is there."""
    if isinstance(path, ObjectPath):
        path.remove_tree()
    else:
        shutil.rmtree(path, ignore_errors=True)


def write_whole(path: Place, content: bytes) -> None:
    """Write a file, which is then there whole or not at all."""
    if isinstance(path, ObjectPath):
        path.write_bytes(content)
    else:
        write_atomically(path, lambda temporary: temporary.write_bytes(content))


def swap(temporary: Place, path: Place) -> None:
    """Put a finished store in the place of another; `recover` mends a kill in between."""
    if isinstance(path, ObjectPath):
        assert isinstance(temporary, ObjectPath)
        _finished(path).write_bytes(b"")
        _replace(path, temporary)
        return
    old = path.with_name(path.name + ".old")
    if path.exists():
        os.replace(path, old)
    os.replace(temporary, path)  # type: ignore[arg-type]
    shutil.rmtree(old, ignore_errors=True)


def recover(path: Place) -> None:
    """Remove what a killed run left: half-built stores beside, half-written files inside."""
    if isinstance(path, ObjectPath):
        beside = path.with_name(path.name + ".tmp")
        if _finished(path).is_file():
            _replace(path, beside)
        beside.remove_tree()
        return
    old, temporary = path.with_name(path.name + ".old"), path.with_name(path.name + ".tmp")
    if old.exists() and not path.exists():
        os.replace(old, path)
    for leftover in (old, temporary):
        shutil.rmtree(leftover, ignore_errors=True)
    for half in ("*.partial", "*.tmp"):  # zarr's, and write_whole's
        for file in path.rglob(half):
            file.unlink()


def _finished(path: ObjectPath) -> ObjectPath:
    """An object that says: the store beside is complete, and is to replace this one."""
    return path.with_name(path.name + ".finished")


def _replace(path: ObjectPath, temporary: ObjectPath) -> None:
    """Copy the finished store over another. Storage knows no renaming: a kill leaves the object that says so,
    and all of this is done again."""
    path.remove_tree()
    temporary.copy_tree(path)
    _finished(path).unlink(missing_ok=True)
    temporary.remove_tree()


@contextmanager
def full_disk_explained(path: Place) -> Iterator[None]:
    """Turn a full disk, or storage that fails, into an InputError that names the store, and remove what was
    built beside it."""
    try:
        with connection(path):
            yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        remove(path.with_name(path.name + ".tmp"))
        raise InputError(
            f"{path}: the disk is full; free some space and run again: samples finished so far are kept"
        ) from error


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Answer Ctrl-C after the block, which would go on in zarr's own thread otherwise.

    Only the main thread receives Ctrl-C, so others need nothing.
    """
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
        signal.raise_signal(signal.SIGINT)  # such a block around this one puts it off further

"""One writer per store in object storage, where no system frees the lock of a process that died.

The lock is an object that its holder writes anew every few seconds. Whoever finds one watches it: a lock that
changes is held, one that stays as it is for `ABANDONED` seconds is taken over. Both are conditional writes of
the storage, so that only one can succeed, and no clocks are compared.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.errors import InputError
from pipeline.objects import ObjectPath

BEAT = 5.0  # seconds between two writes of a held lock
ABANDONED = 30.0  # seconds without one after which its holder counts as dead


@contextmanager
def leased(path: ObjectPath) -> Iterator[Callable[[], None]]:
    """Hold the right to write the store at `path`; InputError when another process holds it.

    Yields a function to call before every write: it raises InputError when the right was lost, because this
    process could not reach the storage for so long that another took over.
    """
    lock = path.with_name(f".{path.name}.lock")
    tag = _acquire(lock, path)
    ended = threading.Event()
    lease = _Lease(path, lock, tag)
    beat = threading.Thread(target=lease.keep, args=(ended,), name="lease", daemon=True)
    beat.start()
    try:
        yield lease.check
    finally:
        ended.set()
        beat.join()
        if lock.tag() == lease.tag:
            lock.unlink(missing_ok=True)


class _Lease:
    """A held lock."""

    def __init__(self, path: ObjectPath, lock: ObjectPath, tag: str) -> None:
        self.path, self.lock, self.tag = path, lock, tag
        self.renewed = time.monotonic()
        self.taken = False

    def keep(self, ended: threading.Event) -> None:
        """Write the lock anew until the event."""
        while not ended.wait(BEAT):
            try:
                tag = self.lock.put_if(_content(), self.tag)
            except InputError:
                continue  # not reachable now: `check` tells when that lasted too long
            if tag is None:
                self.taken = True
                return
            self.tag, self.renewed = tag, time.monotonic()

    def check(self) -> None:
        """Raise InputError when another process may hold the lock by now."""
        if self.taken or time.monotonic() - self.renewed > ABANDONED - BEAT:
            raise InputError(
                f"{self.path}: the lock of this run was lost, because the storage could not be reached in "
                "time; run again: what is finished is kept"
            )


def _acquire(lock: ObjectPath, path: ObjectPath) -> str:
    tag = lock.put_if(_content(), None)
    if tag is not None:
        return tag
    print(f"{path}: a run holds its lock, or left it; watching it for {ABANDONED:.0f} s", flush=True)
    seen, until = lock.tag(), time.monotonic() + ABANDONED
    while time.monotonic() < until and lock.tag() == seen:
        time.sleep(BEAT / 5)
    tag = lock.put_if(_content(), seen) if lock.tag() == seen else None
    if tag is not None:
        return tag
    raise InputError(f"{path}: another run is writing this store; wait for it to end and run again")


def _content() -> bytes:
    """Who holds the lock, and something new every time: a tag is made from the content."""
    return json.dumps([socket.gethostname(), os.getpid(), uuid.uuid4().hex]).encode()

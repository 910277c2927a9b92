"""How much memory there is to work in, and that what was freed of it stays at hand."""

import ctypes
import os
import re
import sys
from pathlib import Path

from pipeline.errors import InputError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_LIMIT, _USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def parse_bytes(text: str) -> int:
    """``4GiB``, ``512MiB``, ``4G`` or a plain number of bytes. Raises InputError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise InputError(f"'{text}' is not an amount of memory; write for example 4GiB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def budget(text: str | None) -> int:
    """Bytes to work in: those of ``text``, else three quarters of what is available. Raises InputError."""
    return parse_bytes(text) if text else available() * 3 // 4


def available() -> int:
    """Bytes that this process may still take: of the machine, or of its container where that has less."""
    free = _of_machine()
    try:
        return min(free, int(_LIMIT.read_text()) - int(_USED.read_text()))
    except (OSError, ValueError):
        return free  # no container, or one without a limit ("max")


def _of_machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 4 * 2**30


def keep_freed_memory() -> None:
    """Have the C library keep large blocks that are freed for the next use.

    Otherwise the system clears new pages for every intermediate result, which took a third of the time of
    640x480 images and half of larger ones. The limits add up to a quarter to the peak. Only glibc does it.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, 256 * 2**20)
        libc.mallopt(_TRIM_THRESHOLD, 1024 * 2**20)

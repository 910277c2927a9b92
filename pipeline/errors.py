"""What a user sees when something goes wrong: one line and an exit code, never a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A mistake in the user's input: one line that names the file or sample, what is wrong and what to do."""


class SetupError(InputError):
    """A mistake that lies in no sample, such as a damaged checkpoint: it ends the run at once."""


def first_line(error: BaseException) -> str:
    """The first line of what a library's error says; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn expected failures into a line on stderr and an exit code; anything else is a bug and keeps its
    traceback.

    2: bad input, full disk, missing permission, impossible path. 130: interrupted (finished work is kept).
    """
    try:
        yield
    except InputError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted; finished work is kept, run the same command again to go on", 130)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _fail(f"no space left on the disk{_place(error)}; free some, then run the same command again", 2)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            _fail(f"{error.strerror}{_place(error)}; change the permissions or write to another folder", 2)
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG):
            _fail(
                f"{error.strerror}{_place(error)}; nothing can be read or written there, give another path", 2
            )
        raise


def _place(error: OSError) -> str:
    return f" ({error.filename})" if error.filename else ""


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)

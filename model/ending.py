"""The process of `fuse`, which users wait for: quick to start, quick to end."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any, NoReturn

from pipeline.errors import exit_on_error


def run_and_end(command: Callable[[], Any]) -> NoReturn:
    """Run a command line, whose every file is closed and every thread joined when it returns, and end.

    Importing torch makes two hundred thousand objects that stay. Python would look through them for rubbish
    time and again, but for a higher threshold. At the end it would take apart what it has loaded: with
    torch's CUDA libraries that takes half a second and touches 130 MiB that the command itself never used.
    """
    gc.set_threshold(100_000)
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]  # a shell may close them
    for stream in streams:
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that a terminal cannot show is no error
    code: Any = 0
    try:
        with exit_on_error():
            command()
    except SystemExit as end:
        code = end.code
        if not isinstance(code, int | None):
            raise  # a message, which Python prints
    logging.shutdown()
    for stream in streams:
        try:
            stream.flush()
        except OSError:  # a closed pipe: nobody reads
            code = code or 1
    os._exit(code or 0)

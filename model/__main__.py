"""`python -m model`: train, evaluate, report, fuse and describe."""

import sys

from model.cli import app
from model.ending import run_and_end
from pipeline.errors import exit_on_error

if __name__ == "__main__":
    if sys.argv[1:2] == ["fuse"]:
        run_and_end(lambda: app(prog_name="python -m model"))
    with exit_on_error():
        app(prog_name="python -m model")

"""`python -m model`: train, evaluate, report, fuse and describe."""

from model.cli import app
from pipeline.errors import exit_on_error

if __name__ == "__main__":
    with exit_on_error():
        app(prog_name="python -m model")

"""What killed processes leave beside the files that they were writing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from pipeline.images import read_image, write_image

KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.writing import write_atomically
def half(temporary):
    temporary.write_bytes(b"half")
    print(temporary, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), half)
"""


def killed_while_writing(path: Path) -> Path:
    """The temporary file that a killed process left."""
    run = subprocess.run([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert run.returncode == -signal.SIGKILL
    left = Path(run.stdout.strip())
    assert left.read_bytes() == b"half"
    return left


def test_the_next_write_into_a_folder_removes_what_was_left(tmp_path: Path) -> None:
    left = killed_while_writing(tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
    array = left.with_name(left.name.replace("a.png", "b.zarr"))
    (array / "c").mkdir(parents=True)
    number = left.name.split(".")[-2].partition("-")[0]
    others = [
        left.with_name(left.name.replace(number, str(os.getpid()))),  # of a process that runs
        left.with_name(left.name.replace(".tmp", "0.tmp")),  # of another machine
        left.with_name("mine.tmp"),
    ]
    for other in others:
        other.write_bytes(b"")
    image = np.zeros((1, 4, 5), np.float32)
    write_image(tmp_path / "c.png", image)
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "c.png"])
    assert np.array_equal(read_image(tmp_path / "c.png").pixels, image)

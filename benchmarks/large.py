"""Fuse a pair of images larger than the memory given; the last line printed is one JSON object.

    python benchmarks/large.py [--side 16384] [--memory 4GiB] [--kill 8] [--folder DIR]

Makes two tiled TIFFs of that side (4 bytes per pixel on disk), fuses them with `rwkvfusion fuse --memory`,
kills the command after so many passes and pairs of tiles (0: never), and gives it again. ``peak_mib`` is the
most memory that either run held, ``seconds`` the time of both, ``cpu_seconds`` their processor time.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

ROOT = Path(__file__).resolve().parents[1]
TILE = 256


def make_image(path: Path, side: int, bands: int) -> None:
    """Shades with noise, different in every tile of the file."""
    random = np.random.default_rng(bands)
    rows, columns = np.mgrid[0:TILE, 0:TILE]
    shades = [
        128 + 60 * np.sin(rows / random.uniform(9, 90)) * np.cos(columns / random.uniform(9, 90))
        for _ in range(16)
    ]
    noise = random.normal(0, 5, (16, TILE, TILE, bands))

    def tiles() -> Iterator[np.ndarray]:
        across = -(-side // TILE)
        for number in range(across**2):
            light = 40 * np.sin(number // across / 9) * np.cos(number % across / 7)
            pixels = shades[number % 13][..., None] + noise[number % 16] + light
            yield pixels.clip(0, 255).astype(np.uint8).squeeze()

    tifffile.imwrite(
        path,
        tiles(),
        shape=(side, side, bands) if bands > 1 else (side, side),
        dtype=np.uint8,
        tile=(TILE, TILE),
        bigtiff=True,
        photometric="rgb" if bands == 3 else "minisblack",
    )


def written(partial: Path) -> int:
    """How many passes over the image, and pairs of tiles after them, are finished."""
    try:
        done = json.loads((partial / "state.json").read_bytes())["done"]
    except (OSError, ValueError):
        return 0
    return int(done) + len(list(partial.glob("fact-*.npy")))


def run(command: list[str], partial: Path, kill_after: int) -> tuple[int, float, float]:
    """Exit status, MiB at the peak, processor seconds; killed once so many steps are written (0: never)."""
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    killed = False
    while True:
        number, status, usage = os.wait4(process.pid, 0 if killed or not kill_after else os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime
        if written(partial) >= kill_after:
            process.send_signal(signal.SIGKILL)
            killed = True
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--kill", type=int, default=8, help="passes and pairs of tiles after which to kill")
    parser.add_argument("--folder", help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for role, bands in (("visible", 3), ("infrared", 1)):
            make_image(folder / f"{role}.tif", options.side, bands)
        sources = [str(folder / f"{role}.tif") for role in ("visible", "infrared")]
        output = folder / "fused.tif"
        command = [
            sys.executable,
            "-m",
            "model",
            "fuse",
            *sources,
            "-o",
            str(output),
            "--memory",
            options.memory,
        ]
        start, peaks, seconds = time.perf_counter(), [], 0.0
        for kill in (options.kill, 0) if options.kill else (0,):
            status, peak, spent = run(command, folder / "fused.tif.partial", kill)
            peaks.append(peak)
            seconds += spent
            print(f"exit {status}: {time.perf_counter() - start:.0f} s, {peak:.0f} MiB", flush=True)
        results = {
            "side": options.side,
            "memory": options.memory,
            "seconds": round(time.perf_counter() - start),
            "cpu_seconds": round(seconds),
            "peak_mib": round(max(peaks)),
            "load": os.getloadavg()[1],
            "written": status == 0 and output.is_file(),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()

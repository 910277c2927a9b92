"""Time of every attention operator against the length of its sequence; prints JSON in its last line.

    python benchmarks/operators.py [--sides 32 64 … 1024] [--channels 32] [--seconds 12]
                                   [--picture docs/images/operators.png]

Each figure is the median forward of one spatial mix (eq. 6-8: norm, projections, operator, output) over a
side x side image, scan strategy 1, float32, no gradients, in processor time of one CPU thread, which other
processes slow little. All operators are measured in turn at one length before the next. An operator whose
next length would by its last two take more than ``--seconds`` is left out from there on.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numba
import torch

from model.operators import OPERATORS, spatial_mix

REPEATS = 3


@torch.inference_mode()
def seconds(operator: str, side: int, channels: int) -> float:
    torch.manual_seed(0)
    mix = spatial_mix(operator, channels, strategy=1, block=0).eval()
    image = torch.randn(1, side, side, channels)
    mix(image[:, :8, :8])  # compiles the kernels
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        mix(image)
        times.append(time.process_time() - started)
    return statistics.median(times)


def expected(measured: dict[int, float], side: int) -> float:
    """Time at the next side if it went on growing as between the last two."""
    if len(measured) < 2:
        return 0.0
    (_, before), (last, now) = list(measured.items())[-2:]
    return now * max(now / before, (side / last) ** 2)


def draw(measured: dict[str, dict[int, float]], channels: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for operator, times in measured.items():
        width = 2.5 if operator == "bi_wkv" else 1.2
        axes.loglog([side**2 for side in times], list(times.values()), "o-", ms=3, lw=width, label=operator)
    axes.set_xlabel("L, tokens of the sequence")
    axes.set_ylabel("processor seconds of one spatial mix")
    axes.set_title(f"{channels} channels, float32, one CPU thread", fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 128, 256, 512, 1024])
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    measured: dict[str, dict[int, float]] = {operator: {} for operator in OPERATORS}
    for side in options.sides:
        for operator, times in measured.items():
            skipped = times and next(reversed(times)) != options.sides[options.sides.index(side) - 1]
            if skipped or expected(times, side) > options.seconds:
                continue
            times[side] = seconds(operator, side, options.channels)
            print(f"{operator} L = {side**2}: {times[side]:.4f} s", flush=True)
    if options.picture:
        draw(measured, options.channels, options.picture)
    facts = {"torch": torch.__version__, "channels": options.channels}
    results = {
        operator: {side**2: round(t, 5) for side, t in times.items()} for operator, times in measured.items()
    }
    print(json.dumps({**facts, "seconds": results}))


if __name__ == "__main__":
    main()

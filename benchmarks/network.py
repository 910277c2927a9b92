"""Time and memory of the whole network against image size; the last line printed is one JSON object.

    python benchmarks/network.py [--preset visible_infrared] [--sides 256 512 1024]
                                 [--attention-sides 64 128 256] [--threads 2]

Every figure is one forward without gradients on the CPU in a process of its own; memory is what the process
holds at its peak beyond what it held before. ``exponent`` says how cost grows with the number of pixels
between the two largest images: 1 is linear. `--sides 256 512 1024 2048` takes minutes and 8 GiB.
"""

import argparse
import json
import math

import torch

from model.complexity import Footprint, measure
from model.presets import preset

WIDE, HIGH = 1024, 768


def exponent(small: float, large: float, side: int, larger: int) -> float:
    """p in cost ~ pixels^p."""
    return round(math.log(large / small) / math.log((larger / side) ** 2), 3)


def run(name: str, operator: str, height: int, width: int, threads: int) -> Footprint:
    footprint = measure(preset(name, operator=operator), height, width, threads=threads)
    memory = (
        f"{footprint.activations / 2**20:.0f} MiB of activations, {footprint.peak / 2**20:.0f} MiB in all"
    )
    print(f"{operator} {width}x{height}: {footprint.seconds:.2f} s, {memory}", flush=True)
    return footprint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="visible_infrared")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--attention-sides", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    results: dict[str, object] = {"torch": torch.__version__, "preset": options.preset}
    for operator, sides in (("bi_wkv", options.sides), ("attention", options.attention_sides)):
        measured = {side: run(options.preset, operator, side, side, options.threads) for side in sides}
        results[f"{operator}_seconds"] = {side: round(f.seconds, 3) for side, f in measured.items()}
        results[f"{operator}_mib"] = {side: round(f.activations / 2**20) for side, f in measured.items()}
        if len(measured) > 1:
            (side, small), (larger, large) = list(measured.items())[-2:]
            results[f"{operator}_time_exponent"] = exponent(small.seconds, large.seconds, side, larger)
            results[f"{operator}_memory_exponent"] = exponent(
                small.activations, large.activations, side, larger
            )
    photo = run(options.preset, "bi_wkv", HIGH, WIDE, options.threads)
    results["peak_gib_1024x768"] = round(photo.peak / 2**30, 3)
    results["activation_gib_1024x768"] = round(photo.activations / 2**30, 3)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

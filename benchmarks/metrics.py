"""How long the fusion metrics take, how that grows with the pixels, and beside the popular Python ports.

The paper's seven full-reference fusion metrics (MI, VIF, SF, Qabf, Qcb, Qcv, Qy) on one 640 x 480
sample; then every metric alone; the seven on 1/4, 1 and 4 times the pixels; a batch on a GPU where
there is one. `--ports DIR` is the folder `Metric` of RollingPlain/IVIF_ZOO (Metric_torch.py,
Qabf.py, Nabf.py, ssim.py), which is run beside it on the same images: it has all of the seven but
Qcv. `--processor` counts this process's processor time, for a machine that is busy with something
else; with one thread that is what a free core would take. Last line: one JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path

import numpy as np
import torch

from model.metrics import SLOW_METRICS, SOURCE_METRICS, spatial_frequency

SEVEN = ("MI", "VIF", "Qabf", "Qcb", "Qcv", "Qy")


def sample(height: int, width: int) -> list[np.ndarray]:
    """Two sources and their mean: smooth random images with noise, 8 bits."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(2):
        walk = generator.normal(size=(height, width)).cumsum(0).cumsum(1)
        walk = 230 * (walk - walk.min()) / (walk.max() - walk.min())
        images.append(np.clip(walk + generator.normal(12, 4, walk.shape), 0, 255).round())
    return [*images, ((images[0] + images[1]) / 2).round()]


clock = time.perf_counter


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The shortest of some runs, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


def seven(images: list[np.ndarray] | list[torch.Tensor]) -> None:
    for name in SEVEN:
        SOURCE_METRICS[name](*images)
    spatial_frequency(images[2])


def ports(folder: Path, images: list[np.ndarray]) -> dict[str, float]:
    """Seconds of each of the ports' functions, called as their own evaluation calls them."""
    sys.path.insert(0, str(folder))
    if find_spec("sklearn") is None:  # only their NMI needs it, which is none of the seven
        for name in ("sklearn", "sklearn.metrics"):
            sys.modules[name] = module_from_spec(ModuleSpec(name, None))
        sys.modules["sklearn.metrics"].normalized_mutual_info_score = None  # type: ignore[attr-defined]
    import Metric_torch as theirs

    tensors = [torch.tensor(image).float() for image in images]
    whole = [image.astype(np.int32) for image in images]
    single = [image.astype(np.float32) for image in images]
    calls = {
        "MI": lambda: theirs.MI_function(*whole, gray_level=256),
        "VIF": lambda: theirs.VIF_function(*tensors),
        "SF": lambda: theirs.SF_function(tensors[2]),
        "Qabf": lambda: theirs.Qabf_function(*single),
        "Qcb": lambda: theirs.Qcb_function(*tensors),
        "Qy": lambda: theirs.Qy_function(*tensors),
    }
    return {name: seconds(call, 1) for name, call in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ports", type=Path, help="folder Metric of RollingPlain/IVIF_ZOO")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="samples at once on a GPU")
    parser.add_argument("--processor", action="store_true", help="processor time in place of elapsed time")
    given = parser.parse_args()
    if given.processor:
        global clock
        clock = time.process_time
    torch.set_num_threads(given.threads)

    images = sample(480, 640)
    ours = seconds(lambda: seven(images), given.repeats)
    print(f"the seven, 640 x 480, {given.threads} threads: {ours:.3f} s")
    result: dict[str, float | None] = {"seven_metrics_s": ours, "speedup_vs_ports": None}

    each = {**SOURCE_METRICS, **SLOW_METRICS}
    times = {name: seconds(lambda m=m: m(*images), 2) for name, m in each.items()}
    times["SF"] = seconds(lambda: spatial_frequency(images[2]), 2)
    for name, spent in times.items():
        print(f"  {name:13} {1e3 * spent:8.1f} ms")

    sizes = {480 * scale * 640 * scale: sample(480 * scale, 640 * scale) for scale in (1, 2)}
    sizes[240 * 320] = sample(240, 320)
    per_pixel = {pixels: seconds(lambda i=i: seven(i), 2) / pixels for pixels, i in sorted(sizes.items())}
    for pixels, spent in per_pixel.items():
        print(f"  {pixels:8} pixels: {1e9 * spent:6.0f} ns per pixel")
    result["ns_per_pixel_4x_over_1x"] = per_pixel[960 * 1280] / per_pixel[480 * 640]

    if given.ports:
        theirs = ports(given.ports, images)
        for name, spent in theirs.items():
            print(f"  port {name:8} {1e3 * spent:8.1f} ms, {spent / times[name]:6.1f} times ours")
        common = sum(times[name] for name in theirs)
        print(f"ports: {sum(theirs.values()):.2f} s, ours of the same names {common:.3f} s")
        result["speedup_vs_ports"] = sum(theirs.values()) / common
    if torch.cuda.is_available():
        batch = [torch.from_numpy(image).cuda().expand(given.batch, -1, -1) for image in images]

        def on_device() -> None:
            seven(batch)
            torch.cuda.synchronize()

        result["gpu_seven_metrics_s_per_sample"] = seconds(on_device, given.repeats) / given.batch
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Speed and memory of fusing visible and infrared images; the last line printed is one JSON object.

    python benchmarks/fuse.py [--size 480 640] [--threads 2] [--images 16] [--repeat 5] [--seafusion DIR]
        [--onnx] [--pt2] [--batches DEVICE]

``network_s``: one forward, the median of ``--repeat``; ``images_per_s``: `rwkvfusion fuse` over a folder of
``--images`` pairs of PNG files, decoding and encoding included, without the start; ``cold_start_s`` and
``peak_mib``: one pair from the start of the process to its end, and the memory that it held at most.
Everything runs in a process of its own. With ``--seafusion`` (a checkout of Linfeng-Tang/SeAFusion on GitHub)
that network is timed in the same way beside ours; ``seafusion_ratio`` says how many times longer it takes.
With ``--onnx`` and ``--pt2`` the same weights are exported (docs/export.md) and run by ONNX Runtime and
torch.export on as many threads: ``onnx_network_s``, ``onnx_ratio``, ``pt2_network_s``, ``pt2_ratio``. Every
``…cpu_s`` is the processor time of a forward, all threads together, and every ``…cpu_ratio`` the ratio of
those: what to look at on a machine that does other work as well.

``gpu_images_per_s`` and ``gpu_compiled_images_per_s``, where there is a GPU: forwards in batches of 1 and 16,
as they are and by `torch.compile` with CUDA graphs. ``--batches cpu`` measures the same on the processor.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

NETWORK = """
import json, statistics, sys, time, torch
height, width, threads, repeat = map(int, sys.argv[1:5])
torch.set_num_threads(threads)
{network}
images = [torch.rand(1, 1, height, width) for _ in range(2)]
with torch.inference_mode():
    forward(images)
    times = []
    for _ in range(repeat):
        start = time.perf_counter(), time.process_time()
        forward(images)
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
print(json.dumps([statistics.median(kind) for kind in zip(*times)]))
"""
OURS = """
import model.cli  # sets the environment that the command sets before torch is loaded
from model.budget import keep_freed_memory
from model.inference import load_weights
keep_freed_memory()
forward = load_weights("visible_infrared").network
"""
SEAFUSION = """
sys.path.insert(0, sys.argv[5])
from FusionNet import FusionNet
network = FusionNet(output=1).eval()
forward = lambda images: network(*images)
"""
ONNX = """
import onnxruntime
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(sys.argv[5], settings)
names = [taken.name for taken in session.get_inputs()]
forward = lambda images: session.run(None, dict(zip(names, (image.numpy() for image in images))))
"""
BATCHES = """
import json, sys, time, torch
from model.inference import load_weights
height, width, repeat, device = *map(int, sys.argv[1:4]), torch.device(sys.argv[4])
network = load_weights("visible_infrared", device).network
finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
rates = {"": {}, "compiled_": {}}
for kind, forward in ("", network), ("compiled_", torch.compile(network, mode="reduce-overhead")):
    for batch in 1, 16:
        images = [torch.rand(batch, 1, height, width, device=device) for _ in range(2)]
        with torch.inference_mode():
            for _ in range(3):
                forward(images)
            finish()
            start = time.perf_counter()
            for _ in range(repeat):
                forward(images)
            finish()
        rates[kind][batch] = round(batch * repeat / (time.perf_counter() - start), 1)
print(json.dumps(rates))
"""
PT2 = """
program = torch.export.load(sys.argv[5]).module()
forward = lambda images: program(*images)
"""


def environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}


def network_seconds(network: str, options: argparse.Namespace, *more: str) -> tuple[float, float]:
    """Seconds of a forward, and of the processor."""
    arguments = [*map(str, options.size), str(options.threads), str(options.repeat), *more]
    code = NETWORK.format(network=network)
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(
        command, env=environment(options.threads), stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, processor = json.loads(result.stdout.splitlines()[-1])
    return seconds, processor


def beside(
    results: dict[str, object], name: str, theirs: tuple[float, float], own: tuple[float, float]
) -> None:
    """Enter another network's times and how many times ours they are."""
    for kind, one, other in zip(("network", "cpu"), theirs, own, strict=True):
        results[f"{name}_{kind}_s"] = round(one, 3)
        results[f"{name}_{'' if kind == 'network' else 'cpu_'}ratio"] = round(one / other, 2)
    print(f"{name}: {theirs[0]:.3f} s, {theirs[1]:.3f} s of the processor", flush=True)


def batches(results: dict[str, object], device: str, options: argparse.Namespace) -> None:
    """Enter images per second in batches, plain and compiled."""
    arguments = [*map(str, options.size), str(options.repeat), device]
    command = [sys.executable, "-c", BATCHES, *arguments]
    result = subprocess.run(
        command, env=environment(options.threads), stdout=subprocess.PIPE, text=True, check=True
    )
    name = "gpu" if device.startswith("cuda") else device
    for kind, rates in json.loads(result.stdout.splitlines()[-1]).items():
        results[f"{name}_{kind}images_per_s"] = rates
        print(f"{name}: {kind}images/s by batch: {rates}", flush=True)


def export(form: str, folder: Path, threads: int) -> str:
    """The shipped weights as a program."""
    path = folder / f"network.{form}"
    command = [sys.executable, "-m", "model", "export", "--weights", "visible_infrared", "--format", form]
    subprocess.run(
        [*command, "-o", str(path)], env=environment(threads), stdout=subprocess.DEVNULL, check=True
    )
    return str(path)


def run(arguments: list[str], threads: int) -> tuple[float, float]:
    """Seconds and MiB at the peak of one `rwkvfusion fuse`."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "model", "fuse", *arguments],
        env=environment(threads),
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"rwkvfusion fuse {' '.join(arguments)} failed")
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return time.perf_counter() - start, usage.ru_maxrss / scale


def make_images(folder: Path, count: int, height: int, width: int) -> None:
    """Pairs of smooth shades with noise: as hard to compress as photographs."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width]
    for role, bands in (("visible", 3), ("infrared", 1)):
        (folder / role).mkdir()
        for number in range(count):
            shade = 128 + 90 * np.sin(rows / 37 + number) * np.cos(columns / 53)
            pixels = shade[..., None] + random.normal(0, 4, (height, width, bands))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8).squeeze()).save(
                folder / role / f"{number:03}.png"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], help="height and width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seafusion", type=Path, help="checkout of Linfeng-Tang/SeAFusion")
    parser.add_argument("--onnx", action="store_true", help="the exported network in ONNX Runtime too")
    parser.add_argument("--pt2", action="store_true", help="the exported network of torch.export too")
    parser.add_argument("--batches", metavar="DEVICE", help="measure batches on it (default: a GPU, if any)")
    options = parser.parse_args()
    results: dict[str, object] = {"size": options.size, "threads": options.threads}
    own = network_seconds(OURS, options)
    results["network_s"], results["network_cpu_s"] = round(own[0], 3), round(own[1], 3)
    print(f"network: {own[0]:.3f} s, {own[1]:.3f} s of the processor", flush=True)
    if options.seafusion is not None:
        theirs = network_seconds(SEAFUSION, options, str(options.seafusion.resolve()))
        beside(results, "seafusion", theirs, own)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for form, network in (("onnx", ONNX), ("pt2", PT2)):
            if getattr(options, form):
                program = export(form, folder, options.threads)
                beside(results, form, network_seconds(network, options, program), own)
        make_images(folder, options.images, *options.size)
        pair = [str(folder / role / "000.png") for role in ("visible", "infrared")]
        run([*pair, "-o", str(folder / "first.png")], options.threads)  # fills the disk's cache
        seconds, peak = run([*pair, "-o", str(folder / "one.png")], options.threads)
        results["cold_start_s"], results["peak_mib"] = round(seconds, 2), round(peak)
        print(f"one pair: {seconds:.2f} s, {peak:.0f} MiB", flush=True)
        folders = [str(folder / role) for role in ("visible", "infrared")]
        many, _ = run([*folders, "-o", str(folder / "fused")], options.threads)
        results["images_per_s"] = round((options.images - 1) / max(many - seconds, 1e-6), 2)
        print(f"{options.images} pairs: {many:.2f} s", flush=True)
    if options.batches is not None or torch.cuda.is_available():
        batches(results, options.batches or "cuda", options)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

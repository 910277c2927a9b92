"""Speed of a training step; the last line printed is one JSON object.

    python benchmarks/train.py [--crop 96] [--batch 4] [--steps 8] [--crops 64 96 128] [--width 16]

The samples are those of benchmarks/data.py. ``data_wait_share``: part of the step spent waiting for the next
batch. ``speedup_vs_plain_fp32``: step time of the plain loop (float32, bi-WKV in plain tensor operations,
files decoded for every crop) over that of the fastest setting (compiled bi-WKV, cached images, float32 or
bfloat16). ``time_exponent``, ``memory_exponent``: how step time and memory grow with the area of the crop
between the smallest and the largest of ``crops``; 1 is linear. Every figure is of a process of its own; times
are medians. On a GPU the same, and ``kernel_share``, the share of GPU time inside the bi-WKV kernels, and
``attention_samples_per_s``, the same network with scaled_dot_product_attention.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import yaml
from data import TASK, make

from model.complexity import resident_bytes
from model.config import load_config
from model.preparation import prepare
from model.processes import Processes, pick_device
from model.train import Trainer
from pipeline.manifest import write_manifest

SCRIPT = Path(__file__).resolve()


def step_times(options: dict) -> dict[str, float]:
    """Times of training steps in this process, in the current folder's project."""
    torch.set_num_threads(options["threads"])
    settings = {key: options[key] for key in ("crop", "batch", "precision")}
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["train"] = {"dataset": "short", "steps": options["steps"] + 3, **settings}
    params["model"] = {"width": options["width"], "operator": options.get("operator", "bi_wkv")}
    own = Path(f"params-{os.getpid()}.yaml")
    own.write_text(yaml.safe_dump(params))
    run = prepare(load_config(own).for_task(TASK), cache="disk" if options["cached"] else "memory")
    for dataset in run.training:
        dataset.cache_bytes = 0
        dataset._cache.clear()
    device = pick_device("auto")
    trainer = Trainer(run, Processes(device), options["workers"])
    before, waits, steps = resident_bytes("VmRSS"), [], []
    batches = trainer.batches()
    for _ in range(options["steps"] + 3):
        started = time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        trainer.update(batch)
        waits.append(got - started)
        steps.append(time.perf_counter() - started)
    result = {
        "step": median(steps[3:]),
        "waited": sum(waits[3:]) / sum(steps[3:]),
        "memory": resident_bytes("VmHWM") - before,
    }
    if device.type == "cuda":
        result["memory"] = torch.cuda.max_memory_allocated()
        result["kernels"] = kernel_share(trainer)
    return result


def kernel_share(trainer: Trainer) -> float:
    """Share of the GPU's time that a step spends inside the bi-WKV kernels."""
    batch = next(iter(trainer.batches()))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        trainer.update(batch)
        torch.cuda.synchronize()
    events = [event for event in profile.key_averages() if event.device_time_total > 0]
    total = sum(event.self_device_time_total for event in events)
    own = sum(event.self_device_time_total for event in events if "wkv" in event.key.lower())
    return own / total


def measured(kernel: str = "auto", **options: object) -> dict[str, float]:
    """`step_times` in a new process with the given bi-WKV kernel."""
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--one", json.dumps(options)],
        env={**os.environ, "RWKVFUSION_KERNEL": kernel},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    print(f"{kernel} {options}: {found['step']:.3f} s a step", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--crops", type=int, nargs="+", default=[64, 96, 128])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(step_times(json.loads(options.one))))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        root = Path("images").absolute()
        write_manifest(Path("short.csv"), make(root, 16), root)
        section = {"short": {"manifest": "short.csv", "root": str(root)}}
        Path("params.yaml").write_text(yaml.safe_dump({"datasets": section}))
        print(json.dumps(compare(options)))


def compare(options: argparse.Namespace) -> dict[str, object]:
    same = {name: getattr(options, name) for name in ("batch", "steps", "width", "threads")}
    fast = {**same, "cached": True, "workers": options.workers}
    plain = measured("reference", **same, crop=options.crop, precision="float32", cached=False, workers=0)
    tried = {
        precision: measured(**fast, crop=options.crop, precision=precision)
        for precision in ("float32", "bfloat16")
    }
    best = min(tried, key=lambda precision: tried[precision]["step"])
    by_crop = {crop: measured(**fast, crop=crop, precision="float32") for crop in sorted(options.crops)}
    small, large = min(by_crop), max(by_crop)
    growth = math.log((large / small) ** 2)
    results: dict[str, object] = {
        "data_wait_share": round(tried[best]["waited"], 4),
        "speedup_vs_plain_fp32": round(plain["step"] / tried[best]["step"], 2),
        "fastest": best,
        "step_s": {name: round(found["step"], 3) for name, found in {"plain": plain, **tried}.items()},
        "samples_per_s": round(options.batch / tried[best]["step"], 2),
        "step_s_by_crop": {crop: round(found["step"], 3) for crop, found in by_crop.items()},
        "mib_by_crop": {crop: round(found["memory"] / 2**20) for crop, found in by_crop.items()},
        "time_exponent": round(math.log(by_crop[large]["step"] / by_crop[small]["step"]) / growth, 2),
        "memory_exponent": round(math.log(by_crop[large]["memory"] / by_crop[small]["memory"]) / growth, 2),
        "torch": torch.__version__,
        "device": str(pick_device("auto")),
    }
    if pick_device("auto").type == "cuda":
        other = measured(**fast, crop=options.crop, precision=best, operator="attention")
        results["kernel_share"] = round(tried[best]["kernels"], 3)
        results["attention_samples_per_s"] = round(options.batch / other["step"], 2)
    return results


if __name__ == "__main__":
    main()

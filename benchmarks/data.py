"""Speed of the data that training is fed with; the last line printed is one JSON object.

    python benchmarks/data.py [--samples 64] [--rows 100000] [--workers 2] [--seconds 6]

Samples are made up: 640x480, visible in colour and infrared in grey as PNG, text of 128 tokens, merged masks.
Crops are 128x128. ``samples_per_s`` comes from a warm cache of decoded images (model/image_cache.py),
``png_samples_per_s`` from decoding the files each time, both with text and masks from their stores.
``startup_s_100k`` is the time from nothing but imported modules to the first batch of a data set of ``rows``
rows, in a process of its own; ``samples_per_s_by_rows`` and ``mib_by_samples`` say whether the cost of a
sample and the memory of the process grow with the data set and with the samples read. The rows of the long
data set repeat the short one's files, by links. The ``cpu`` figures are processor time, of one process, which
other work on the machine changes less.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from scipy.ndimage import gaussian_filter
from torch.utils.data import DataLoader

from model.complexity import resident_bytes
from model.config import load_config
from model.data import Batches, FusionDataset
from model.guidance import open_guidance
from model.image_cache import cache_path, fill_cache
from model.order import EndlessBatches
from model.preparation import prepare
from pipeline.images import write_image
from pipeline.manifest import Sample, Source, content_hash, write_manifest
from pipeline.store import MergedMasks, Store, Text, create_store, open_store

HEIGHT, WIDTH, CROP, BATCH, TOKENS = 480, 640, 128, 16, 128
TASK = "visible_infrared"


def texture(random: np.random.Generator, bands: int) -> np.ndarray:
    """Shades at every scale and some noise, as in a photograph: a PNG of it is about half of the pixels."""
    layers = [
        gaussian_filter(random.normal(size=(bands, HEIGHT, WIDTH)), (0, s, s)) * s for s in (0, 2, 8, 32)
    ]
    image = 0.02 * random.normal(size=(bands, HEIGHT, WIDTH)) + 0.15 * sum(layers)
    return (image - image.min()).astype(np.float32) / np.float32(np.ptp(image))


def make(root: Path, count: int) -> list[Sample]:
    """Images, manifest and guidance of ``count`` samples; returns them."""
    random = np.random.default_rng(0)
    samples = []
    for number in range(count):
        sources = [Source(role, root / role / f"s{number:06d}.png") for role in ("visible", "infrared")]
        write_image(sources[0].path, texture(random, 3))
        write_image(sources[1].path, texture(random, 1))
        samples.append(Sample(f"s{number:06d}", TASK, "train", tuple(sources)))
    content = {sample.id: content_hash(sample) for sample in samples}
    folder = Path("guidance/short")
    texts = create_store(folder / "texts.zarr", "texts", list(content), {}, "1", T=TOKENS, D=512)
    features = random.normal(size=(count, TOKENS, 512)).astype(np.float16)
    texts.write({name: Text(row) for name, row in zip(content, features, strict=True)}, content)
    merged = create_store(folder / "merged.zarr", "merged", list(content), {}, "1", H=HEIGHT, W=WIDTH)
    blobs = gaussian_filter(random.normal(size=(count, HEIGHT, WIDTH)), (0, 20, 20)) > 0.015
    ones = np.ones(6, np.float32)
    masks = {
        name: MergedMasks(
            np.stack([np.roll(blob, 40 * c, c % 2) for c in range(6)]), tuple("abcdef"), ones, ones
        )
        for name, blob in zip(content, blobs, strict=True)
    }
    merged.write(masks, content)
    fill_cache(cache_path("short", TASK), samples, TASK, content)
    return samples


def repeat(samples: list[Sample], rows: int, root: Path) -> None:
    """Write the manifest and the stores of a data set of ``rows`` rows that repeats the samples."""
    names = [f"r{row:06d}" for row in range(rows)]
    repeated = [
        Sample(name, TASK, "train", samples[row % len(samples)].sources) for row, name in enumerate(names)
    ]
    write_manifest(Path("long.csv"), repeated, root)
    for path in (
        Path("guidance/short/texts.zarr"),
        Path("guidance/short/merged.zarr"),
        cache_path("short", TASK),
    ):
        short = open_store(path)
        target = Path("guidance/long") / path.relative_to("guidance/short")
        sizes = short.sizes
        long = create_store(target, short.kind, names, short.config, short.fingerprint, **sizes)
        for name, array in long._arrays.items():
            if array.shards is None and name != "id":
                values = short._arrays[name][:]
                array[:] = values[np.arange(rows) % len(samples)]
            elif array.shards is not None:
                link_shards(short, long, name)


def link_shards(short: Store, long: Store, name: str) -> None:
    """Let the shards of a long store's large array be those of the short one, over and over."""
    length = short._arrays[name].shards[0]
    whole = len(short.ids) // length  # shards that hold nothing but samples
    for number in range(-(-len(long.ids) // length)):
        source, target = (
            store.path.joinpath(name, "c", str(at), *("0" for _ in short._arrays[name].shape[1:]))
            for store, at in ((short, number % whole), (long, number))
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)


def keys(length: int) -> EndlessBatches:
    return EndlessBatches([length], BATCH, 0, 0, 10**9)


def rate(dataset: FusionDataset, workers: int, seconds: float) -> float:
    """Samples per second, after two batches of every worker."""
    loader = DataLoader(Batches([dataset]), batch_size=None, sampler=keys(len(dataset)), num_workers=workers)
    batches: Iterator = iter(loader)
    for _ in range(2 * max(workers, 1)):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        count += len(next(batches).ids)
    return count / (time.perf_counter() - start)


def cost(dataset: FusionDataset) -> float:
    """Processor milliseconds per sample in one process."""
    batches = iter(DataLoader(Batches([dataset]), batch_size=None, sampler=keys(len(dataset))))
    for _ in range(4):
        next(batches)
    start = time.process_time()
    for _ in range(20):
        next(batches)
    return (time.process_time() - start) / (20 * BATCH) * 1e3


def startup() -> None:
    """The other side of `startup_s_100k`: prepare and first batch of the long data set, timed."""
    start, used = time.perf_counter(), time.process_time()
    run = prepare(load_config().for_task(TASK, "long"), cache="disk")
    first = next(iter(DataLoader(Batches(run.training), batch_size=None, sampler=keys(len(run.training[0])))))
    assert len(first.ids) == BATCH
    print(time.perf_counter() - start, time.process_time() - used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--startup", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.startup:
        startup()
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        root = Path("images").absolute()
        samples = make(root, options.samples)
        sections = {n: {"manifest": f"{n}.csv", "root": str(root)} for n in ("short", "long")}
        Path("params.yaml").write_text(yaml.safe_dump({"datasets": sections, "train": {"crop": CROP}}))
        print(json.dumps(measure(samples, root, options)))


def measure(samples: list[Sample], root: Path, options: argparse.Namespace) -> dict[str, object]:
    guidance, images = open_guidance("short"), open_store(cache_path("short", TASK))
    cached = FusionDataset(samples, TASK, guidance, CROP, images=images)
    decoded = FusionDataset(samples, TASK, guidance, CROP, cache_bytes=0)
    # One after the other and again, because the machine may be busy with something else.
    rates = [
        (rate(cached, options.workers, options.seconds), rate(decoded, options.workers, options.seconds))
        for _ in range(2)
    ]
    fast, slow = (max(values) for values in zip(*rates, strict=True))
    print(f"cached {fast:.0f} samples/s, decoding {slow:.0f} samples/s", flush=True)
    by_rows, memory, started = {}, {}, []
    for rows in sorted({options.rows // 100, options.rows // 10, options.rows}):
        for path in Path("guidance").glob("long"):
            subprocess.run(["rm", "-r", str(path)], check=True)
        repeat(samples, rows, root)
        run = prepare(load_config().for_task(TASK, "long"), cache="disk")
        by_rows[rows] = round(max(rate(run.training[0], 0, options.seconds / 2) for _ in range(2)))
        print(f"{rows} rows: {by_rows[rows]} samples/s in one process", flush=True)
    for _ in range(3):
        command = [sys.executable, str(SCRIPT), "--startup"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        started.append(tuple(map(float, printed.split()[-2:])))
    batches = iter(DataLoader(Batches(run.training), batch_size=None, sampler=keys(options.rows)))
    for number in range(1, 1601 // BATCH * 2):
        next(batches)
        if number * BATCH in (800, 1600, 3200):
            memory[number * BATCH] = round(resident_bytes("VmRSS") / 2**20)
    return {
        "samples_per_s": round(fast),
        "speedup_vs_png": round(fast / slow, 2),
        "startup_s_100k": round(min(seconds for seconds, _ in started), 2),
        "startup_cpu_s": round(min(seconds for _, seconds in started), 2),
        "cpu_ms_per_sample": round(cost(cached), 2),
        "png_samples_per_s": round(slow),
        "samples_per_s_by_rows": by_rows,
        "mib_by_samples": memory,
        "workers": options.workers,
        "rows": options.rows,
    }


SCRIPT = Path(__file__).resolve()

if __name__ == "__main__":
    main()

"""Speed and memory of the guidance pipeline around its models; the last line printed is one JSON object.

    python benchmarks/guidance.py [--samples 2000] [--few 200] [--full-size 2] [--workers N] [--quick]

``fake_samples_per_s``: samples per second of wall time through all five stages when every model answers at
once: what decoding, hashing, hand-over and stores cost. ``fake_rss_ratio_2000_vs_200``: peak resident memory
with ``--samples`` over that with ``--few``, each in a process of its own. The images are 640x480, one colour
and one grey PNG per sample, clouds with detail at every scale. ``loop_samples_per_s``: the same fakes in the
loop that one writes first, one sample at a time, a compressed .npz each.

``full_size_model_share``: share of the wall time that the pipeline spends inside models of full size
(Florence-2 base, T5 small, Grounding DINO Swin-T, SAM ViT-B) with random parameters, which are made in
``--checkpoints`` (1.7 GB; a temporary folder by default) and loaded before; and the images per second of each
stage, beside those of the loop over single images that one writes from the libraries' examples. On a GPU if
there is one.

``--quick`` takes a tenth of the samples and no models; ``--full-size 0`` no models either.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline import boxes, captions, masks, texts
from pipeline.config import DatasetConfig, PipelineConfig
from pipeline.guidance import run_guidance
from pipeline.images import SampleImages, read_sample, write_image
from pipeline.manifest import Sample, Source, write_manifest
from pipeline.merging import merge
from pipeline.store import Instances

HEIGHT, WIDTH = 480, 640
SCENES = 32  # different pictures; the others are copies of them
OBJECTS = 4  # per source
TOKENS = 32


class Captioner:
    identity = "instant"

    def __call__(self, samples: Sequence[SampleImages]) -> list[str]:
        return [f"a street, {sample.sample.id}" for sample in samples]


class TextEncoder:
    identity = "instant"

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        return [np.full((TOKENS, 512), len(caption) / 100, np.float32) for caption in captions]


class Detector:
    identity = "instant"

    def __call__(self, samples: Sequence[SampleImages], prompt: Sequence[str]) -> list[tuple[Instances, ...]]:
        corners = np.array([[20 + 140 * i, 40 + 60 * i] for i in range(OBJECTS)], np.float32)
        box = np.concatenate([corners, corners + np.float32([60, 130])], axis=1)
        found = Instances(box, np.full(OBJECTS, 0.9, np.float32), ("person",) * OBJECTS)
        return [tuple(found for _ in sample.images) for sample in samples]


class Segmenter:
    identity = "instant"

    def __call__(
        self, samples: Sequence[SampleImages], boxes: Sequence[tuple[Instances, ...]]
    ) -> list[tuple[Instances, ...]]:
        return [tuple(self.fill(i, s.size) for i in found) for s, found in zip(samples, boxes, strict=True)]

    @staticmethod
    def fill(found: Instances, size: tuple[int, int]) -> Instances:
        """Ellipses in the boxes."""
        mask = np.zeros((len(found), *size), bool)
        for one, (x0, y0, x1, y1) in zip(mask, found.box.astype(int), strict=True):
            y, x = np.mgrid[-1 : 1 : (y1 - y0) * 1j, -1 : 1 : (x1 - x0) * 1j]
            one[y0:y1, x0:x1] = x**2 + y**2 <= 1
        return Instances(found.box, found.score, found.label, np.full(len(found), 0.95, np.float32), mask)


def clouds(seed: int, bands: int) -> np.ndarray:
    """(bands, H, W) in [0, 1] whose spectrum falls as 1/f, as that of photographs."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = 1
    noise = np.fft.rfft2(random.normal(size=(bands, HEIGHT, WIDTH)))
    image = np.fft.irfft2(noise / frequency, s=(HEIGHT, WIDTH))
    low, high = image.min(), image.max()
    return ((image - low) / (high - low)).astype(np.float32)


def make_images(folder: Path, number: int) -> None:
    """`number` samples below `folder`, and a manifest of all and one of the first few."""
    root = Path("images")
    samples = []
    for i in range(number):
        name = f"s{i:05d}"
        sources = (
            Source("visible", root / f"visible/{name}.png"),
            Source("infrared", root / f"infrared/{name}.png"),
        )
        for source, bands in zip(sources, (3, 1), strict=True):
            if i < SCENES:
                write_image(folder / source.path, clouds(2 * i + bands, bands))
            else:
                first = source.path.with_name(f"s{i % SCENES:05d}.png")
                shutil.copyfile(folder / first, folder / source.path)
        samples.append(Sample(name, "visible_infrared", "train", sources))
    write_manifest(folder / "all.csv", samples, root)


def take(folder: Path, number: int) -> None:
    """The manifest of the data set `many`: the first `number` samples."""
    rows = (folder / "all.csv").read_text().splitlines(keepends=True)
    (folder / "many.csv").write_text("".join(rows[: number + 1]))


def configuration() -> PipelineConfig:
    dataset = DatasetConfig(manifest="many.csv", root="images", masks="prompt", prompt=("person",))
    return PipelineConfig(datasets={"many": dataset})


def use_fakes() -> None:
    for stage, fake in ((captions, Captioner), (texts, TextEncoder), (boxes, Detector), (masks, Segmenter)):
        stage.backend = lambda config, fake=fake: fake()


def peak_bytes() -> int:
    """Peak resident memory of this process, without what the process that started it had."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def staged(workers: int | None) -> dict[str, object]:
    use_fakes()
    started, used = time.perf_counter(), time.process_time()
    summaries = run_guidance(configuration(), "many", workers=workers)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    assert all(summary.computed == summary.samples for summary in summaries)
    stages = {summary.stage: round(summary.busy, 2) for summary in summaries}
    return {"seconds": seconds, "cpu": used, "peak": peak_bytes(), "stages": stages}


def one_by_one() -> dict[str, object]:
    """What one writes first: every model on one sample after the other, its results in one file."""
    caption, encode, detect, segment = Captioner(), TextEncoder(), Detector(), Segmenter()
    config = configuration()
    data = config.dataset("many")
    Path("loop").mkdir()
    started, used = time.perf_counter(), time.process_time()
    for sample in data.samples():
        images = read_sample(sample)
        words = caption([images])
        found = segment([images], detect([images], data.prompt))
        merged = merge(found[0], data.prompt, config.merge)
        masks = {f"mask_{i}": one.mask for i, one in enumerate(found[0])}
        np.savez_compressed(f"loop/{sample.id}.npz", text=encode(words)[0], merged=merged.mask, **masks)
    used = time.process_time() - used
    return {"seconds": time.perf_counter() - started, "cpu": used, "peak": peak_bytes()}


def full_size(folder: Path, checkpoints: Path, number: int) -> dict[str, object]:
    """What `full_size.py` measures, each in a process of its own."""
    os.environ["RWKVFUSION_WEIGHTS"] = str(checkpoints)
    from full_size import make_checkpoints

    make_checkpoints(checkpoints)
    pipeline, loop = (
        in_own_process(folder, f"full_size_{what}", number, None) for what in ("staged", "loop")
    )
    return {
        "full_size_samples": number,
        "full_size_model_share": round(pipeline["share"], 3),
        "full_size_images_per_s": pipeline["images_per_s"],
        "full_size_loop_images_per_s": loop["images_per_s"],
    }


def measure(what: str, workers: int | None) -> dict[str, object]:
    """One measurement, in the folder that holds the data set."""
    if what == "staged":
        return staged(workers)
    if what == "one_by_one":
        return one_by_one()
    import full_size as models

    used = time.process_time()
    measured = (models.staged if what == "full_size_staged" else models.one_by_one)(configuration(), "many")
    return {**measured, "cpu": time.process_time() - used, "peak": peak_bytes()}


def in_own_process(folder: Path, what: str, number: int, workers: int | None) -> dict:
    take(folder, number)
    for made in ("guidance", "loop"):
        shutil.rmtree(folder / made, ignore_errors=True)
    command = [sys.executable, os.path.abspath(__file__), "--child", what]
    command += ["--workers", str(workers)] if workers else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    result = json.loads(output.stdout.splitlines()[-1])
    rate = f"{number / result['seconds']:.1f} samples/s, {1000 * result['cpu'] / number:.0f} ms CPU each"
    rate += f", peak {result['peak'] / 2**20:.0f} MiB"
    details = [f"{name} {result[name]}" for name in ("stages", "share", "inside") if name in result]
    print(f"{what}, {number} samples: {rate}", *details, sep=", ", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--few", type=int, default=200)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--full-size", type=int, default=2, metavar="SAMPLES")
    parser.add_argument("--checkpoints", type=Path, help="keeps full-size checkpoints for the next time")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.workers)))
        return
    many, few = (
        (options.samples // 10, options.few // 10) if options.quick else (options.samples, options.few)
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_images(folder, many)
        small = in_own_process(folder, "staged", few, options.workers)
        large = in_own_process(folder, "staged", many, options.workers)
        loop = in_own_process(folder, "one_by_one", few, None)
        checkpoints = (options.checkpoints or folder / "checkpoints").resolve()
        models = options.full_size and not options.quick
        shares = full_size(folder, checkpoints, options.full_size) if models else {}
    results = {
        "samples": many,
        "few": few,
        "cores": os.cpu_count(),
        "fake_samples_per_s": round(many / large["seconds"], 1),
        "fake_rss_ratio_2000_vs_200": round(large["peak"] / small["peak"], 3),
        "fake_cpu_ms_per_sample": round(1000 * large["cpu"] / many, 1),
        "fake_peak_mib": round(large["peak"] / 2**20),
        "loop_samples_per_s": round(few / loop["seconds"], 1),
        **shares,
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()

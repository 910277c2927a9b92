"""Measure a data set's trained networks on its test samples, beside the same weights unguided and rules.

Everything is written under reports/<dataset>/: `fused/` with one image per sample, `samples.csv` with one row
per sample and method, `metrics.json` with all means, `metrics/<task>.json` for `dvc metrics show`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from model.baselines import FUSION_BASELINES, SHARPENING_BASELINES
from model.config import load_config, report_dir
from model.data import by_source, open_guidance
from model.inference import fuse, load_model
from model.metrics import fusion_metrics, sharpening_metrics, target_metrics
from model.results import EFFECT, GUIDED, UNGUIDED, Row, fused_path, summary, write_results
from pipeline.errors import InputError
from pipeline.images import (
    FloatArray,
    luminance,
    quantise,
    read_image,
    read_sources,
    write_image,
)
from pipeline.manifest import SHARPENING_TASKS, TASKS, Sample

Fuser = Callable[[Sequence[FloatArray], NDArray[np.floating] | None, NDArray[np.bool_] | None], FloatArray]
"""Sources (C, H, W), text (T, D) and merged masks (c, H, W), the last two or None, to fused (C, H, W)."""


def evaluate(
    dataset: str,
    tasks: Sequence[str] | None = None,
    fusers: Mapping[str, Fuser] | None = None,
    console: Console | None = None,
) -> list[Row]:
    """Fuse and measure the test samples of each (chosen) task of a data set; write and return the results.

    `fusers` gives the network of a task instead of its trained weights. Raises InputError for an unknown data
    set or task, a data set without test samples, a task without weights, and unreadable images.
    """
    params = load_config()
    config = params.dataset(dataset)
    samples = [sample for sample in config.samples() if sample.split == "test"]
    present = [task for task in TASKS if any(sample.task == task for sample in samples)]
    if not present:
        raise InputError(
            f"{config.manifest}: no sample has split 'test'; mark some rows so to evaluate on them"
        )
    chosen = present if tasks is None else list(tasks)
    for task in chosen:
        if task not in present:
            raise InputError(
                f"{config.manifest}: no test sample of task '{task}'; it has {', '.join(present)}"
            )
    ready = {task: fusers[task] if fusers else _trained(dataset, task) for task in chosen}
    console = console or Console()
    guidance = open_guidance(dataset)
    folder = report_dir(dataset)
    rows: list[Row] = []
    for task in chosen:
        members = [sample for sample in samples if sample.task == task]
        found: list[Row] = []
        bare = 0
        unmerged = params.for_task(task, dataset).model.guidance == "unmerged"
        for sample in track(members, description=task, console=console, transient=True):
            text, merged = guidance.text(sample.id), guidance.merged(sample.id)
            bare += text is None and merged is None
            masks = None if merged is None else merged.mask
            if merged is not None and unmerged:
                masks = by_source(merged.mask, merged.sources, len(sample.sources), sample.id)
            found += measure(
                sample,
                ready[task],
                None if text is None else text.features,
                masks,
                folder,
            )
        console.print(summary(task, found))
        if bare:
            console.print(
                f"{bare} of {len(members)} samples have no guidance stored; "
                f"run `typer pipeline guidance --dataset {dataset}` first to use it"
            )
        rows += found
    write_results(folder, rows)
    return rows


def _trained(dataset: str, task: str) -> Fuser:
    """The network of a task with its trained weights. Raises InputError when it was not trained yet."""
    model = load_model(dataset, task)
    return lambda sources, text, masks: fuse(sources, model, text=text, masks=masks)


def measure(
    sample: Sample,
    fuser: Fuser,
    text: NDArray[np.floating] | None,
    masks: NDArray[np.bool_] | None,
    folder: Path,
) -> list[Row]:
    """Fuse one sample guided, unguided and with each simple rule; write the guided image; measure all.

    Images are measured as they are written: rounded to 8 bits, or in sharpening to the bits of the source.
    """
    images = read_sources(sample)
    sources = [image.pixels for image in images]
    sharpening = sample.task in SHARPENING_TASKS
    bits = images[-1].bits if sharpening else 8
    fused = {GUIDED: fuser(sources, text, masks), UNGUIDED: fuser(sources, None, None)}
    effect = 255 * float(np.abs(fused[GUIDED] - fused[UNGUIDED]).mean(dtype=np.float64))
    write_image(fused_path(folder, sample.id, len(fused[GUIDED])), fused[GUIDED], bits)
    if sharpening:
        fused |= {name: rule(sources) for name, rule in SHARPENING_BASELINES.items()}
    else:
        planes = [luminance(source) for source in sources]
        fused |= {name: rule(planes)[None] for name, rule in FUSION_BASELINES.items()}
    target = None if sample.target is None else read_image(sample.target, sample.bits).pixels
    rows = []
    for method, pixels in fused.items():
        written = _as_written(pixels, bits)
        values = (
            _sharpening_values(sources, target, written)
            if sharpening
            else _fusion_values(sources, target, written)
        )
        extra = {EFFECT: effect} if method == GUIDED else {}
        rows.append(Row(sample.task, sample.id, method, values | extra))
    return rows


def _as_written(pixels: FloatArray, bits: int) -> FloatArray:
    levels = quantise(pixels, bits).astype(np.float32)
    return levels if bits > 16 else levels / np.float32(2**bits - 1)


def _sharpening_values(
    sources: Sequence[FloatArray], target: FloatArray | None, fused: FloatArray
) -> dict[str, float]:
    """Empty without a target: nothing can be measured at full resolution yet."""
    if target is None:
        return {}
    heights = [source.shape[1] for source in sources]
    ratio = max(heights) / min(heights)
    return sharpening_metrics(target.astype(np.float64), fused.astype(np.float64), ratio)


def _fusion_values(
    sources: Sequence[FloatArray], target: FloatArray | None, fused: FloatArray
) -> dict[str, float]:
    """Fusion metrics on luminance, and those against a target too: the simple rules fuse luminance only."""

    def grey(pixels: FloatArray) -> NDArray[np.float64]:
        return luminance(pixels).astype(np.float64)

    values = fusion_metrics([255 * grey(source) for source in sources], 255 * grey(fused))
    if target is not None:
        values |= target_metrics(grey(target)[None], grey(fused)[None])
    return values

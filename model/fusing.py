"""Carry out the jobs of `rwkvfusion fuse`: read, fuse, write; go on when a sample fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from model.config import run_dir
from model.inference import Colour, Fuser, fuse, load_weights
from model.jobs import Job
from pipeline.errors import InputError
from pipeline.images import Image, read_sources, write_image
from pipeline.manifest import SHARPENING_TASKS, Sample, content_hash, file_of

if TYPE_CHECKING:
    from model.guidance import Guidance


@dataclass
class Outcome:
    """How many samples were fused, were there already, and failed."""

    fused: int = 0
    skipped: int = 0
    failed: int = 0


def run_jobs(
    jobs: Sequence[Job],
    *,
    weights: str | None = None,
    dataset: str | None = None,
    guidance: Guidance | None = None,
    colour: Colour = "auto",
    overwrite: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Fuse every job; each sample with ``weights``, or with those of its own task.

    Without ``weights``, a data set's own training (runs/<dataset>/<task>) is preferred to shipped weights.

    Raises InputError for weights that cannot be loaded or are of another task, and for a single job that
    fails; of several, a failing one is reported and the rest go on.
    """
    console = console or Console()
    fusers = {task: _fuser(task, weights, dataset) for task in dict.fromkeys(job.sample.task for job in jobs)}
    outcome = Outcome()
    for job in jobs:
        try:
            _run(job, fusers[job.sample.task], guidance, colour, overwrite, outcome, console)
        except InputError as error:
            if len(jobs) == 1:
                raise
            outcome.failed += 1
            console.print(f"failed {job.sample.id}: {error}", style="red", markup=False, soft_wrap=True)
    return outcome


def _fuser(task: str, weights: str | None, dataset: str | None) -> Fuser:
    if weights is None and dataset is not None:
        own = run_dir(dataset, task) / "weights.safetensors"
        weights = str(own) if own.is_file() else None
    fuser = load_weights(weights or task)
    if fuser.task != task:
        raise InputError(
            f"{fuser.path}: weights for {fuser.task}, but the samples are of task {task}; "
            f"add --task {fuser.task} or leave --weights out"
        )
    return fuser


def _run(
    job: Job,
    fuser: Fuser,
    guidance: Guidance | None,
    colour: Colour,
    overwrite: bool,
    outcome: Outcome,
    console: Console,
) -> None:
    sample = job.sample
    if not overwrite and any(path.exists() for path in _candidates(job)):
        outcome.skipped += 1
        console.print(f"{job.output}: exists, skipped (--overwrite to replace)", markup=False, soft_wrap=True)
        return
    images = read_sources(sample)
    text, masks, note = guidance_for(sample, guidance, fuser)
    pixels = fuse([image.pixels for image in images], fuser, text=text, masks=masks, colour=colour)
    bits = _bits(images, sample)
    output = _output(job, pixels.shape[0], bits)
    for source in sample.sources:
        if output.exists() and output.samefile(file_of(source.path)):
            raise InputError(f"{output}: is the {source.role} source; choose another output")
    write_image(output, pixels, bits)
    outcome.fused += 1
    roles = "+".join(sample.roles)
    console.print(f"{output}: {sample.task} ({roles}), {note}", markup=False, soft_wrap=True)


def guidance_for(
    sample: Sample, guidance: Guidance | None, fuser: Fuser
) -> tuple[NDArray[np.floating] | None, NDArray[np.bool_] | None, str]:
    """A sample's text features (T, D) and masks as the network takes them, and in words what guides it.

    Raises InputError when the sample has changed since its guidance was made.
    """
    if guidance is None:
        return None, None, "unguided"
    text, merged = guidance.text(sample.id), guidance.merged(sample.id)
    for store in (guidance.texts, guidance.masks):
        if (
            store is not None
            and store.is_done(sample.id)
            and store.content(sample.id) not in ("", content_hash(sample))
        ):
            raise InputError(
                f"{store.path}: sample '{sample.id}' has changed since its guidance was made; "
                "run `typer pipeline guidance` again"
            )
    trained, reason = fuser.record.get("text_encoder"), ""
    if text is not None and trained not in (None, guidance.text_encoder):
        text, reason = None, f" (not by text: the weights know {trained}, not {guidance.text_encoder})"
    kinds = [kind for kind, record in (("text", text), ("masks", merged)) if record is not None]
    note = (f"guided by {' and '.join(kinds)}" if kinds else "unguided") + reason
    return None if text is None else text.features, fuser.masks_of(merged, sample.id), note


def _bits(images: Sequence[Image], sample: Sample) -> int:
    """Bit depth of the result: that of the bands in sharpening, the deepest of the sources otherwise."""
    return images[-1].bits if sample.task in SHARPENING_TASKS else max(8, *(image.bits for image in images))


def _output(job: Job, bands: int, bits: int) -> Path:
    """PNG where it holds the image without loss, TIFF otherwise; as asked when the output names a file."""
    if not job.suffix_free:
        return job.output
    png = (bits == 8 and bands in (1, 3)) or (bits == 16 and bands == 1)
    return job.output if png else job.output.with_suffix(".tif")


def _candidates(job: Job) -> list[Path]:
    return [job.output, job.output.with_suffix(".tif")] if job.suffix_free else [job.output]

"""What the page of `rwkvfusion app` does with one visitor's images; the page itself is model/app_page.py.

Everything is written below the visitor's own folder, which lies in the one temporary folder of the program.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from rich.console import Console

from model.config import MASK_GUIDANCE, TEXT_GUIDANCE
from model.fusing import run_jobs
from model.inference import SHIPPED, find_weights, weights_for
from model.jobs import guess_task, jobs_of_paths
from model.measure import Options, measure
from model.pictures import PALETTE, Figure, figure
from model.record import read_record
from model.sample import Settings
from pipeline.errors import InputError
from pipeline.images import FloatArray, display, image_facts, read_image, read_window
from pipeline.manifest import SHARPENING_TASKS, TASKS, Sample

PLACES = ("first", "second", "third")  # folders of the uploads; none of them is a word for a role
_FOLDERS = "|".join((*PLACES, "masks", "fused"))
BRUSHES = PALETTE[:8]  # colours to draw with, one per object
METRICS = ("MI", "VIF", "SF", "Qabf", "Qcb", "Qy", "Qcv")  # the paper's, without LPIPS (needs a download)
FULL_RESOLUTION = ("D_lambda_K", "D_s", "HQNR")  # for sharpening, where there is no ground truth
MOST_PIXELS = 2 * 89_478_485  # what Pillow takes for a decompression bomb, here for every type of file
MEASURED_PIXELS = 4 * 2**20  # metrics of more take minutes
PREVIEW = 1400  # pixels of the longer side on the page


@dataclass(frozen=True)
class Weights:
    """Weights on offer: what `load_weights` takes, their task, whether shipped, which guidance they know."""

    name: str
    task: str
    shipped: bool
    masks: bool
    text: bool
    encoder: str | None

    @property
    def label(self) -> str:
        """How the page names them."""
        own = Path(self.name)
        return self.name if self.shipped else f"{self.task} ({own.name or own})"

    @property
    def why_no_caption(self) -> str:
        """Why a caption cannot guide these weights; empty where it can."""
        if self.text and self.encoder is not None:
            return ""
        known = "masks only" if self.masks else "no guidance"
        return f"The weights for {self.task} were trained with {known}: a caption would change nothing."


def offered_weights(names: Sequence[str] = ()) -> list[Weights]:
    """The named weights, then the shipped ones. Raises InputError for bad names."""
    shipped = [_describe(path.stem) for path in sorted(SHIPPED.glob("*.safetensors"))]
    return [*map(_describe, names), *sorted(shipped, key=lambda each: list(TASKS).index(each.task))]


def suited(offered: Sequence[Weights], files: Sequence[Path], task: str) -> Weights:
    """Those for a task: the first of those given with --weights, else what `rwkvfusion fuse` takes."""
    bands = max(image_facts(file).bands for file in files)
    name = weights_for(task, bands) if task in SHARPENING_TASKS else task
    for weights in offered:
        if (weights.name == name) if weights.shipped else (weights.task == task):
            return weights
    raise InputError(f"there are no weights for {task}; start the page with --weights FILE")


def _describe(name: str) -> Weights:
    path = find_weights(name)
    record = read_record(path)
    guidance = record["model"]["guidance"]
    return Weights(
        name,
        str(record["task"]),
        shipped=path.parent == SHIPPED,
        masks=guidance in MASK_GUIDANCE and guidance != "unmerged",
        text=guidance in TEXT_GUIDANCE,
        encoder=record.get("text_encoder"),
    )


@dataclass(frozen=True)
class Fused:
    """A result: its file, what was done in one line, and the sample with its sources in order."""

    path: Path
    line: str
    sample: Sample


class Visit:
    """One visitor's folder. Uploads are linked into it, results are written into it."""

    def __init__(self, folder: Path, most_pixels: int = MOST_PIXELS) -> None:
        self.folder, self.most_pixels = folder, most_pixels
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, uploads: Sequence[str | None]) -> list[Path]:
        """Give uploads their places; gaps are left out. Raises InputError for what cannot be read.

        The folders that uploads arrive in are named by chance, which might read as a role.
        """
        files = []
        for place, upload in zip(PLACES, uploads, strict=False):
            shutil.rmtree(self.folder / place, ignore_errors=True)
            if upload is None:
                continue
            file = self.folder / place / Path(upload).name
            file.parent.mkdir()
            os.link(upload, file)
            self._check_size(file)
            files.append(file)
        return files

    def _check_size(self, file: Path) -> None:
        facts = image_facts(file)
        height, width = facts.size
        if height * width > self.most_pixels:
            raise InputError(
                f"{file}: has {height}x{width} pixels, the page takes {self.most_pixels / 1e6:.0f} million; "
                "fuse larger images with `rwkvfusion fuse`"
            )

    def take_masks(self, upload: str) -> Path:
        """Give an uploaded file of masks its place."""
        shutil.rmtree(self.folder / "masks", ignore_errors=True)
        file = self.folder / "masks" / Path(upload).name
        file.parent.mkdir()
        os.link(upload, file)
        return file

    def forget(self) -> None:
        """Delete everything of this visitor."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def guess(self, files: Sequence[Path]) -> str:
        """The task that names or facts of the images tell. Raises InputError that says what to choose."""
        try:
            return guess_task(files)
        except InputError as error:
            if "cannot tell" not in str(error):
                raise
            names = " and ".join(file.name for file in files)
            raise InputError(f"cannot tell the task from {names}; choose it under Weights") from error

    def fuse(
        self, files: Sequence[Path], weights: Weights, settings: Settings, masks: Path | None, caption: str
    ) -> Fused:
        """Fuse the files by the code of `rwkvfusion fuse`. Raises InputError."""
        out = self.folder / "fused"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        jobs, _ = jobs_of_paths(files, out, weights.task)
        stem = jobs[0].sample.sources[0].path.stem
        job = replace(jobs[0], output=out / f"{stem}_fused.png", caption=caption or None, masks=masks)
        said = Console(file=io.StringIO(), width=200)
        run_jobs([job], replace(settings, weights=weights.name), said)
        line = str(said.file.getvalue()).strip()  # type: ignore[attr-defined]
        (written,) = out.iterdir()
        return Fused(written, line.removeprefix(f"{written}: "), job.sample)

    def label_map(self, layers: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> Path | None:
        """Layers painted with BRUSHES, uint8 (h, w, 4), as a label map of the image's size; None if empty."""
        labels = np.zeros(size, np.uint8)
        colours = np.array([[int(code[at : at + 2], 16) for at in (1, 3, 5)] for code in BRUSHES])
        for layer in layers:
            apart = np.abs(layer[..., None, :3].astype(int) - colours).sum(axis=-1)
            painted = np.where(layer[..., 3] > 127, apart.argmin(axis=-1) + 1, 0).astype(np.uint8)
            fitted = PillowImage.fromarray(painted).resize(size[::-1], PillowImage.Resampling.NEAREST)
            labels = np.where(np.asarray(fitted) > 0, np.asarray(fitted), labels)
        if not labels.any():
            return None
        path = self.folder / "drawn.png"
        PillowImage.fromarray(labels).save(path)
        return path

    def said(self, error: Exception) -> str:
        """An error in the visitor's words: one line, without this machine's folders."""
        text = " ".join(str(error).split())
        text = re.sub(re.escape(f"{self.folder}{os.sep}") + rf"(?:(?:{_FOLDERS})[/\\])?", "", text)
        return text.replace(f"{SHIPPED}{os.sep}", "")


def metrics_of(fused: Fused) -> dict[str, float]:
    """The paper's metrics of a fusion, those at full resolution of a sharpening; empty for large images."""
    height, width = image_facts(fused.path).size
    if height * width > MEASURED_PIXELS:
        return {}
    names = FULL_RESOLUTION if fused.sample.task in SHARPENING_TASKS else METRICS
    return measure(fused.sample, fused.path, Options(metrics=names)).values


def picture(path: Path, kind: str, label: str) -> Figure:
    """An image to look at on the page, as a data URI."""
    return figure(kind, label, label, preview(path), PREVIEW)


def preview(path: Path) -> NDArray[np.uint8]:
    """An image to look at, uint8 (H, W, 3), reduced; a large one is read in strips."""
    return display(_reduced(path))


def _reduced(path: Path) -> FloatArray:
    """Means of square blocks, so that at least PREVIEW and less than twice as many pixels are left."""
    facts = image_facts(path)
    height, width = facts.size
    block = max(1, max(height, width) // PREVIEW)
    block = min(block, height, width)
    if block == 1:
        return read_image(path).pixels
    rows, columns = height // block, width // block
    tall = max(1, 512 // block) if facts.streams else rows
    strips = []
    for top in range(0, rows, tall):
        count = min(tall, rows - top)
        pixels = read_window(path, top * block, 0, count * block, columns * block).pixels
        strips.append(pixels.reshape(-1, count, block, columns, block).mean(axis=(2, 4)))
    return np.concatenate(strips, axis=1)

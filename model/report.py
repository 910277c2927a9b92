"""One self-contained HTML page that shows what an evaluation found: figures, pictures, curves, origin."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import inspect
import io
import json
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy.ndimage import binary_erosion

from model.config import load_config, report_dir, run_dir
from model.curves import chart, read_curves
from model.metrics import DIRECTIONS, FUSED_METRICS, SOURCE_METRICS, TARGET_METRICS, sharpening
from model.results import EFFECT, GUIDED, LABELS, UNGUIDED, Row, best, fused_path, means, read_results
from pipeline.config import PARAMS, DatasetConfig, guidance_dir
from pipeline.errors import InputError
from pipeline.images import display, luminance, read_image, read_sources, write_atomically
from pipeline.manifest import SHARPENING_TASKS, Sample
from pipeline.store import Caption, MergedMasks, Record, open_store

SHOWN = 12  # samples per task on the page
SIDE = 640  # pixels of the longer side of a picture on the page
HEADLINE = ("MI", "VIF", "Qabf", "PSNR", "SSIM", "spectral_angle", "ERGAS")  # beside a sample's name
STORES = ("captions", "texts", "boxes", "masks", "merged")
PACKAGES = ("rwkvfusion", "torch", "numpy", "scipy", "scikit-image", "zarr", "dvc")
TASK_TITLES = {
    "visible_infrared": "Visible and infrared",
    "medical": "Medical",
    "multi_exposure": "Multi-exposure",
    "multi_focus": "Multi-focus",
    "pansharpening": "Pansharpening",
    "hyper_multispectral": "Hyperspectral and multispectral",
}
# Okabe and Ito's colours, told apart with every kind of colour vision, then lighter and darker companions.
PALETTE = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2",
    "#d55e00", "#cc79a7", "#8dd3c7", "#bebada", "#fb8072",
    "#80b1d3", "#b3de69", "#fccde5", "#bc80bd", "#ccebc5",
    "#ffed6f", "#a6761d", "#66a61e", "#e7298a", "#7570b3",
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One picture of the page, encoded as a data URI."""

    label: str
    alt: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Card:
    """Everything the page shows of one sample."""

    sample: str
    figures: list[Figure]
    caption: str
    objects: list[tuple[str, list[str]]]  # label, colours of its objects in the overlay
    scores: list[tuple[str, str]]  # metric, value


@dataclass(frozen=True)
class Cell:
    """One number of a metrics table."""

    text: str
    best: bool


@dataclass(frozen=True)
class Section:
    """Everything the page shows of one task."""

    task: str
    title: str
    verdict: str
    metrics: list[tuple[str, str, str]]  # name, arrow, what it is
    table: list[tuple[str, list[Cell]]]
    cards: list[Card]
    total: int
    curves: list[tuple[str, list[str], Markup]]  # chart, lines, SVG


def write_report(dataset: str) -> Path:
    """Write reports/<dataset>/index.html from the evaluation's results and return its path.

    Raises InputError when the data set is unknown or was not evaluated.
    """
    config = load_config().dataset(dataset)
    folder = report_dir(dataset)
    rows = read_results(folder)
    samples = {sample.id: sample for sample in config.samples()}
    for row in rows:
        if row.sample not in samples:
            raise InputError(
                f"{config.manifest}: no sample '{row.sample}', which was evaluated; "
                f"run `python -m model evaluate --dataset {dataset}` again"
            )
    tasks = dict.fromkeys(row.task for row in rows)
    sections = [_section(dataset, task, [r for r in rows if r.task == task], samples) for task in tasks]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("report.html").render(
        dataset=dataset,
        sections=sections,
        origin=_origin(dataset, config, list(tasks)),
        parameters=PARAMS.read_text(),
    )
    write_atomically(folder / "index.html", lambda path: path.write_text(page, encoding="utf-8"))
    return folder / "index.html"


def _section(dataset: str, task: str, rows: Sequence[Row], samples: dict[str, Sample]) -> Section:
    methods = means(rows)[task]
    metrics = [name for name in DIRECTIONS if any(name in values for values in methods.values())]
    winners = {name: best(methods, name) for name in metrics}
    table = [
        (
            LABELS.get(method, method),
            [Cell(_number(name, values.get(name)), method in winners[name]) for name in metrics],
        )
        for method, values in methods.items()
    ]
    evaluated = list(dict.fromkeys(row.sample for row in rows))
    picked = np.linspace(0, len(evaluated) - 1, min(SHOWN, len(evaluated))).round().astype(int)
    values = {row.sample: row.values for row in rows if row.method == GUIDED}
    curves = read_curves(run_dir(dataset, task) / "dvclive" / "plots" / "metrics")
    ordered = sorted(curves.items(), key=lambda named: named[0] != "loss")
    return Section(
        task=task,
        title=TASK_TITLES.get(task, task),
        verdict=_verdict(methods, winners),
        metrics=[(name, _arrow(name), _meaning(name, task)) for name in metrics],
        table=table,
        cards=[_card(dataset, samples[evaluated[i]], values[evaluated[i]]) for i in picked],
        total=len(evaluated),
        curves=[(name, list(lines), chart(name, lines)) for name, lines in ordered],
    )


def _verdict(methods: dict[str, dict[str, float]], winners: dict[str, set[str]]) -> str:
    """One sentence: in how many metrics the network beats the rules, and what the guidance does."""
    rules = {name: values for name, values in methods.items() if name not in (GUIDED, UNGUIDED)}
    against = {name: best({GUIDED: methods[GUIDED], **rules}, name) for name in winners}
    won = [name for name, methods_ in against.items() if GUIDED in methods_]
    effect = methods[GUIDED].get(EFFECT, math.nan)
    return (
        f"Best or equal to the simple rules in {len(won)} of {len(against)} metrics"
        f"{' (' + ', '.join(won) + ')' if won else ''}. "
        f"Removing the guidance changes the fused image by {effect:.2f} of 255 grey levels on average."
    )


def _number(metric: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{DIRECTIONS[metric].decimals}f}"


def _arrow(metric: str) -> str:
    return "↑" if DIRECTIONS[metric].better == "higher" else "↓"


def _meaning(metric: str, task: str) -> str:
    """The first line of the metric's own documentation."""
    against_target = {**TARGET_METRICS, "target_PSNR": sharpening.psnr, "target_SSIM": sharpening.ssim}
    fusion = {**SOURCE_METRICS, **FUSED_METRICS}
    function = against_target[metric] if task in SHARPENING_TASKS or metric not in fusion else fusion[metric]
    first = (inspect.getdoc(function) or metric).splitlines()[0]
    return first.partition(": ")[2].replace(" * ", " ") + (
        " To the target." if metric.startswith("target_") else ""
    )


def _card(dataset: str, sample: Sample, values: dict[str, float]) -> Card:
    images = read_sources(sample)
    bands = next((n for n in (1, 4) if fused_path(report_dir(dataset), sample.id, n).exists()), None)
    if bands is None:
        raise InputError(
            f"{report_dir(dataset)}: the fused image of sample '{sample.id}' is missing; "
            f"run `python -m model evaluate --dataset {dataset}` again"
        )
    fused = read_image(
        fused_path(report_dir(dataset), sample.id, bands), images[-1].bits if bands == 4 else None
    )
    figures = [
        _figure(role, f"{role} source of {sample.id}", display(image.pixels))
        for role, image in zip(sample.roles, images, strict=True)
    ]
    merged = _record(dataset, "merged", sample.id)
    objects: dict[str, list[str]] = {}
    if isinstance(merged, MergedMasks) and len(merged.label):
        for label, colour in zip(merged.label, PALETTE, strict=False):
            objects.setdefault(label, []).append(colour)
        picture = overlay(luminance(images[0].pixels), merged.mask)
        figures.append(
            _figure("merged masks", f"objects found in {sample.id}: {', '.join(objects)}", picture)
        )
    figures.append(_figure("fused", f"fused image of {sample.id}", display(fused.pixels)))
    if sample.target is not None:
        target = read_image(sample.target, sample.bits)
        figures.append(_figure("target", f"ground truth of {sample.id}", display(target.pixels)))
    caption = _record(dataset, "captions", sample.id)
    shown = [name for name in DIRECTIONS if name in HEADLINE and name in values]
    return Card(
        sample.id,
        figures,
        caption.text if isinstance(caption, Caption) else "",
        list(objects.items()),
        [(name, _number(name, values[name])) for name in shown],
    )


def _record(dataset: str, stage: str, sample: str) -> Record | None:
    """A sample's guidance, None where it has none."""
    path = guidance_dir(dataset) / f"{stage}.zarr"
    if not path.exists():
        return None
    store = open_store(path)
    return store.get(sample) if sample in store.ids and store.is_done(sample) else None


def overlay(plane: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Luminance (H, W) in [0, 1] as dimmed grey, every mask (c, H, W) tinted and outlined in its colour."""
    picture = np.repeat(0.75 * plane[..., None].astype(np.float64), 3, axis=2)
    for mask, colour in zip(masks, PALETTE, strict=False):
        tint = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        picture[mask] = 0.5 * picture[mask] + 0.5 * tint
        picture[mask & ~binary_erosion(mask, border_value=1)] = tint
    return (255 * picture.clip(0, 1)).round().astype(np.uint8)


def _figure(label: str, alt: str, pixels: NDArray[np.uint8]) -> Figure:
    picture = PillowImage.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), PillowImage.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=88, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Figure(label, alt, uri, picture.width, picture.height)


def _origin(
    dataset: str, config: DatasetConfig, tasks: Sequence[str]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """What made the page: versions, code and data, as titled lists of (name, value)."""
    manifest = Path(config.manifest)
    data = [("manifest", f"{manifest.name} {hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]}")]
    for stage in STORES:
        path = guidance_dir(dataset) / f"{stage}.zarr"
        if path.exists():
            data.append((stage, open_store(path).fingerprint[:16]))
    packages = [("python", platform.python_version())]
    packages += [(name, importlib.metadata.version(name)) for name in PACKAGES]
    return [
        ("Code", [("commit", _commit()), *packages]),
        ("Data fingerprints", data),
        ("Weights", [(task, _weights(run_dir(dataset, task) / "weights.json")) for task in tasks]),
    ]


def _weights(path: Path) -> str:
    """Checksum, size and training time of a task's weights, from the record beside them."""
    if not path.is_file():
        return "no record of their training"
    record = json.loads(path.read_text(encoding="utf-8"))
    size, seconds = f"{record['parameters']:,} parameters", f"trained in {record['seconds']:.0f} s"
    return f"{record['sha256'][:16]}, {size}, {seconds}"


def _commit() -> str:
    """The commit of the working tree, marked when files differ from it."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "not in a git repository"

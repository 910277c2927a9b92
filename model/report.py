"""One self-contained HTML page that shows what an evaluation found: figures, charts, pictures, origin."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from model.cards import Card, make_card
from model.charts import COLOURS, radar, spread
from model.config import load_config, report_dir, run_dir
from model.curves import chart, read_curves
from model.meaning import meaning
from model.ranking import Ranking, extremes, rank
from model.results import (
    GUIDED,
    LABELS,
    UNGUIDED,
    Evaluation,
    Row,
    arrow,
    best,
    direction,
    mean,
    number,
    read_results,
)
from pipeline.config import PARAMS, guidance_dir
from pipeline.errors import InputError
from pipeline.images import write_atomically
from pipeline.store import open_store

SHOWN = 12  # samples per task on the page, at least; every method's best and worst are among them
STORES = ("captions", "texts", "boxes", "masks", "merged")
PACKAGES = ("rwkvfusion", "torch", "numpy", "scipy", "scikit-image", "zarr", "dvc")
TASK_TITLES = {
    "visible_infrared": "Visible and infrared",
    "medical": "Medical",
    "multi_exposure": "Multi-exposure",
    "multi_focus": "Multi-focus",
    "pansharpening": "Pansharpening",
    "hyper_multispectral": "Hyperspectral and multispectral",
    "fusion": "Fusion",
}


@dataclass(frozen=True)
class Cell:
    """One figure of the leaderboard: text, number to sort by, spread, and the picture it leads to."""

    text: str
    value: str
    spread: str
    best: bool
    link: str
    hint: str


@dataclass(frozen=True)
class Line:
    """One method of the leaderboard; ``series`` is the number of its colour."""

    label: str
    series: int
    samples: int
    rank: str
    rank_value: str
    cells: list[Cell]


@dataclass(frozen=True)
class Section:
    """Everything the page shows of one task."""

    task: str
    title: str
    verdict: str
    metrics: list[tuple[str, str, str]]  # name, arrow, what it is
    table: list[Line]
    extremes: list[tuple[str, str, str, str, str]]  # method, best sample, its link, worst sample, its link
    radar: Markup
    spreads: list[tuple[str, str, Markup]]
    cards: list[Card]
    total: int
    curves: list[tuple[str, list[str], Markup]]  # chart, lines, SVG


def write_dataset_report(dataset: str) -> Path:
    """Write reports/<dataset>/index.html. Raises InputError as `write_report` does."""
    load_config().dataset(dataset)
    return write_report(report_dir(dataset))


def write_report(folder: Path) -> Path:
    """Write <folder>/index.html from the evaluation in the folder and return its path.

    Raises InputError when nothing was evaluated there, or an image that was measured is gone.
    """
    evaluation = read_results(folder)
    dataset = evaluation.dataset
    tasks = [task for task in evaluation.tasks if evaluation.of_task(task)]
    sections = [_section(task, evaluation) for task in tasks]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    subject = dataset or folder.resolve().name
    page = environment.get_template("report.html").render(
        title=f"RWKVFusion on {subject}" if dataset else f"Fusion methods on {subject}",
        heading="RWKVFusion" if dataset else "Fusion methods",
        subject=subject,
        introduction=(
            "What the networks make of these samples: figures beside simple rules, pictures beside their "
            "sources, and everything that went into them."
            if dataset
            else "Fused images beside their sources and beside each other: figures, their spread, pictures."
        ),
        notices=[*evaluation.warnings, *[f"{m} {s} failed: {why}" for m, s, why in evaluation.failures]],
        sections=sections,
        origin=_origin(evaluation, tasks),
        parameters=PARAMS.read_text(encoding="utf-8") if dataset else "",
        profile=evaluation.profile,
    )
    write_atomically(folder / "index.html", lambda path: path.write_text(page, encoding="utf-8"))
    return folder / "index.html"


def _section(task: str, evaluation: Evaluation) -> Section:
    rows = evaluation.of_task(task)
    ranking = rank(rows)
    means = ranking.means()
    names = {method: LABELS.get(method, method) for method in ranking.methods}
    ends = extremes(rows)
    evaluated = list(dict.fromkeys(row.sample for row in rows))
    shown = _shown(evaluated, [sample for pair in ends.values() for sample in pair])
    tags: dict[str, list[tuple[str, str]]] = {}
    for method, (top, bottom) in ends.items():
        if top != bottom:
            tags.setdefault(top, []).append(("best", f"best of {names[method]}"))
            tags.setdefault(bottom, []).append(("worst", f"worst of {names[method]}"))
    cards = [
        make_card(
            task,
            sample,
            f"{task}-{place}",  # names that differ may not when only letters of an address are left
            evaluation,
            ranking.methods,
            ranking.metrics,
            tags.get(sample, []),
        )
        for place, sample in enumerate(shown, start=1)
    ]
    anchors = {card.sample: card.anchor for card in cards}
    curves = {}
    if evaluation.dataset is not None:
        curves = read_curves(run_dir(evaluation.dataset, task) / "dvclive" / "plots" / "metrics")
    values = {metric: _values(rows, metric, names) for metric in ranking.metrics}
    return Section(
        task=task,
        title=TASK_TITLES.get(task, task),
        verdict=_verdict(ranking, evaluation, evaluated),
        metrics=[(name, arrow(name), meaning(name, task, evaluation.profile)) for name in ranking.metrics],
        table=[
            _line(method, series, ranking, rows, anchors) for series, method in enumerate(ranking.methods)
        ],
        extremes=[
            (names[method], top, anchors[top], bottom, anchors[bottom])
            for method, (top, bottom) in ends.items()
            if top != bottom
        ],
        radar=radar({names[method]: means[method] for method in ranking.methods}, ranking.metrics),
        spreads=[(name, arrow(name), spread(name, found)) for name, found in values.items() if found],
        cards=cards,
        total=len(evaluated),
        curves=[
            (name, list(lines), chart(name, lines))
            for name, lines in sorted(curves.items(), key=lambda named: named[0] != "loss")
        ],
    )


def _shown(evaluated: Sequence[str], ends: Sequence[str]) -> list[str]:
    """The samples with a card: every method's best and worst, filled up evenly."""
    chosen = set(ends)
    rest = [sample for sample in evaluated if sample not in chosen]
    free = min(max(SHOWN - len(chosen), 0), len(rest))
    chosen |= {rest[index * len(rest) // free] for index in range(free)}
    return [sample for sample in evaluated if sample in chosen]


def _values(rows: Sequence[Row], metric: str, names: dict[str, str]) -> dict[str, dict[str, float]]:
    """Method's label -> sample -> value, in the order of the leaderboard."""
    found: dict[str, dict[str, float]] = {label: {} for label in names.values()}
    for row in rows:
        if metric in row.values:
            found[names[row.method]][row.sample] = row.values[metric]
    return found if any(math.isfinite(v) for values in found.values() for v in values.values()) else {}


def _line(method: str, series: int, ranking: Ranking, rows: Sequence[Row], anchors: dict[str, str]) -> Line:
    own = {row.sample: row.values for row in rows if row.method == method and row.sample in anchors}
    means = ranking.means()
    cells = []
    for metric in ranking.metrics:
        figure = ranking.statistics[method][metric]
        known = {s: v[metric] for s, v in own.items() if not math.isnan(v.get(metric, math.nan))}
        pick = min if direction(metric).better == "higher" else max
        worst = pick(known, key=lambda sample: known[sample]) if known else ""
        cells.append(
            Cell(
                number(metric, figure.mean),
                f"{figure.mean:.9g}",
                "" if math.isnan(figure.deviation) else number(metric, figure.deviation),
                method in best(means, metric),
                anchors.get(worst, ""),
                f"{metric} of {worst}: {number(metric, known[worst])}" if known else "",
            )
        )
    value = ranking.mean_rank[method]
    label = LABELS.get(method, method)
    text = "–" if math.isnan(value) else f"{value:.2f}"
    return Line(label, series % COLOURS, ranking.samples[method], text, f"{value:.9g}", cells)


def _verdict(ranking: Ranking, evaluation: Evaluation, evaluated: Sequence[str]) -> str:
    """In how many metrics the network beats the rules and what the guidance does, or which method leads."""
    means = ranking.means()
    if evaluation.dataset is None or GUIDED not in means:
        if len(means) == 1:
            return ""
        value = ranking.mean_rank[ranking.leader]
        return (
            ""
            if math.isnan(value)
            else f"{LABELS.get(ranking.leader, ranking.leader)} leads with a mean rank of {value:.2f}."
        )
    rules = {name: values for name, values in means.items() if name not in (GUIDED, UNGUIDED)}
    won = [name for name in ranking.metrics if GUIDED in best({GUIDED: means[GUIDED], **rules}, name)]
    effect = mean([evaluation.effects.get(sample, math.nan) for sample in evaluated])
    text = (
        f"Best or equal to the simple rules in {len(won)} of {len(ranking.metrics)} metrics"
        f"{' (' + ', '.join(won) + ')' if won else ''}."
    )
    if math.isnan(effect):
        return text
    return (
        f"{text} Removing the guidance changes the fused image by {effect:.2f} of 255 grey levels on average."
    )


def _origin(evaluation: Evaluation, tasks: Sequence[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What made the page: versions, code and data, as titled lists of (name, value)."""
    packages = [("python", platform.python_version())]
    packages += [(name, importlib.metadata.version(name)) for name in PACKAGES]
    code = ("Code", [("commit", _commit()), *packages])
    if evaluation.dataset is None:
        images: dict[str, list[str]] = {}
        for case in evaluation.cases:
            images.setdefault(case.method, []).append(case.fused.name)
        counts = [(method, f"{len(files)} images") for method, files in images.items()]
        return [code, ("Fused images", counts)]
    dataset = evaluation.dataset
    manifest = Path(load_config().dataset(dataset).manifest)
    if not manifest.is_file():
        raise InputError(f"{manifest}: no such manifest, which '{dataset}' was evaluated by")
    data = [("manifest", f"{manifest.name} {hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]}")]
    for stage in STORES:
        path = guidance_dir(dataset) / f"{stage}.zarr"
        if path.exists():
            data.append((stage, open_store(path).fingerprint[:16]))
    weights = [(task, _weights(run_dir(dataset, task) / "weights.json")) for task in tasks]
    return [code, ("Data fingerprints", data), ("Weights", weights)]


def _weights(path: Path) -> str:
    """Checksum and size of a task's weights, from the record beside them."""
    if not path.is_file():
        return "not trained here"
    record = json.loads(path.read_text(encoding="utf-8"))
    return f"{record['sha256'][:16]}, {record['parameters']:,} parameters"


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

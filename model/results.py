"""Results of an evaluation: what was measured, and the files that hold it.

An evaluation's folder holds ``samples.csv`` (one row per method and sample), ``metrics.json`` (means),
``statistics.json``, ``table.md`` and ``table.tex``, and ``evaluation.json``, which says where the images are.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.metrics import DIRECTIONS, PROFILE, Direction
from pipeline.errors import InputError
from pipeline.images import write_atomically
from pipeline.manifest import Sample, Source

GUIDED, UNGUIDED = "rwkvfusion", "rwkvfusion_unguided"
LABELS = {
    GUIDED: "RWKVFusion",
    UNGUIDED: "RWKVFusion, guidance removed",
    "laplacian_pyramid": "Laplacian pyramid",
    "guided_filter": "Guided filter",
    "detail_injection": "detail injection",
    "gsa": "GSA",
    "mtf_glp": "MTF-GLP",
}
EFFECT = "guidance_effect"  # mean absolute difference guided - unguided, in grey levels of 255
INDEX = "evaluation.json"


@dataclass(frozen=True)
class Case:
    """A method's fused image of one sample."""

    method: str
    sample: Sample
    fused: Path


@dataclass(frozen=True)
class Row:
    """What one method reached on one sample; values by the names of `model.metrics.DIRECTIONS`."""

    task: str
    sample: str
    method: str
    values: dict[str, float]


@dataclass
class Evaluation:
    """Everything that an evaluation found: ``rows`` are in the order of ``cases``, without those that failed.

    ``failures`` are (method, sample, reason). ``effects``: sample -> what removing the guidance changes.
    ``dataset`` is None for folders of images.
    """

    cases: list[Case]
    rows: list[Row]
    dataset: str | None = None
    profile: str = PROFILE
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    effects: dict[str, float] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """Tasks in the order in which they were evaluated."""
        return list(dict.fromkeys(case.sample.task for case in self.cases))

    def of_task(self, task: str) -> list[Row]:
        """The rows of one task."""
        return [row for row in self.rows if row.task == task]


def direction(metric: str) -> Direction:
    """How a metric reads; one that the table of directions does not know is better when higher."""
    return DIRECTIONS.get(metric, Direction())


def arrow(metric: str) -> str:
    """↑ or ↓, the better way."""
    return "↑" if direction(metric).better == "higher" else "↓"


def number(metric: str, value: float | None) -> str:
    """A value with the metric's decimals; – where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{direction(metric).decimals}f}"


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """Names of the metrics that occur, in the order of `DIRECTIONS`."""
    used = dict.fromkeys(name for row in rows for name in row.values)
    return [name for name in DIRECTIONS if name in used] + [name for name in used if name not in DIRECTIONS]


def means(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean over samples as task -> method -> metric, leaving NaN out; NaN where no sample has a value."""
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        metrics = table.setdefault(row.task, {}).setdefault(row.method, {})
        for name, value in row.values.items():
            metrics.setdefault(name, []).append(value)
    return {
        task: {
            method: {name: mean(values) for name, values in metrics.items()}
            for method, metrics in methods.items()
        }
        for task, methods in table.items()
    }


def mean(values: Sequence[float]) -> float:
    """Mean without the NaN; NaN when nothing is left."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def best(methods: Mapping[str, Mapping[str, float]], metric: str) -> set[str]:
    """Methods that share the best printed value of a metric (empty when none has a value)."""
    way = direction(metric)
    values = {m: round(v[metric], way.decimals) for m, v in methods.items() if metric in v}
    values = {m: v for m, v in values.items() if not math.isnan(v)}
    if not values:
        return set()
    winner = (max if way.better == "higher" else min)(values.values())
    return {method for method, value in values.items() if value == winner}


def write_results(folder: Path, evaluation: Evaluation) -> None:
    """Write samples.csv, evaluation.json, metrics.json (of folders method -> metric, of a data set
    task -> method -> metric) and, of a data set, metrics/<task>.json with the network's own means: one small
    file per task makes `dvc metrics show` one row per task. Each is renamed into place.
    """
    columns = metrics_of(evaluation.rows)
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["method", "sample", *columns])
    for row in evaluation.rows:
        cells = [f"{row.values[name]:.9g}" if name in row.values else "" for name in columns]
        writer.writerow([row.method, row.sample, *cells])
    table = buffer.getvalue()
    write_atomically(folder / "samples.csv", lambda path: path.write_text(table, encoding="utf-8"))
    write_json(folder / INDEX, _index(evaluation))
    finite = {
        task: {
            method: {name: _finite(value) for name, value in values.items()}
            for method, values in methods.items()
        }
        for task, methods in means(evaluation.rows).items()
    }
    for task, methods in finite.items():
        ids = {row.sample for row in evaluation.of_task(task)}
        effects = [effect for sample, effect in evaluation.effects.items() if sample in ids]
        if GUIDED in methods and effects:
            methods[GUIDED][EFFECT] = _finite(mean(effects))
    if evaluation.dataset is None:
        write_json(folder / "metrics.json", finite[evaluation.tasks[0]] if finite else {})
        return
    write_json(folder / "metrics.json", finite)
    for task, methods in finite.items():
        if GUIDED in methods:
            write_json(folder / "metrics" / f"{task}.json", methods[GUIDED])


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def write_json(path: Path, value: object) -> None:
    """Write JSON, atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _index(evaluation: Evaluation) -> dict[str, Any]:
    samples = {case.sample.id: case.sample for case in evaluation.cases}
    fused: dict[str, dict[str, str]] = {}
    for case in evaluation.cases:
        fused.setdefault(case.method, {})[case.sample.id] = str(case.fused)
    return {
        "dataset": evaluation.dataset,
        "profile": evaluation.profile,
        "samples": {
            sample.id: {
                "task": sample.task,
                "sources": [[source.role, str(source.path)] for source in sample.sources],
                "target": None if sample.target is None else str(sample.target),
                "bits": sample.bits,
            }
            for sample in samples.values()
        },
        "fused": fused,
        "failures": evaluation.failures,
        "warnings": evaluation.warnings,
        EFFECT: evaluation.effects,
    }


def read_results(folder: Path) -> Evaluation:
    """Read an evaluation back. Raises InputError when it is missing or not ours."""
    path = folder / INDEX
    remedy = f"run `python -m model evaluate --dataset {folder.name}`"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        samples = {name: _sample(name, facts) for name, facts in index["samples"].items()}
        cases = [
            Case(method, samples[sample], Path(place))
            for method, images in index["fused"].items()
            for sample, place in images.items()
        ]
        path = folder / "samples.csv"
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                Row(
                    samples[cells["sample"]].task,
                    cells.pop("sample"),
                    cells.pop("method"),
                    {name: float(value) for name, value in cells.items() if value},
                )
                for cells in csv.DictReader(file)
            ]
        failures = [(method, sample, reason) for method, sample, reason in index["failures"]]
        return Evaluation(
            cases, rows, index["dataset"], index["profile"], failures, index["warnings"], index[EFFECT]
        )
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; {remedy}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a table of results ({error}); {remedy}") from error


def _sample(name: str, facts: Mapping[str, Any]) -> Sample:
    sources = tuple(Source(role, Path(place)) for role, place in facts["sources"])
    target = None if facts["target"] is None else Path(facts["target"])
    return Sample(name, facts["task"], "test", sources, target=target, bits=facts["bits"])

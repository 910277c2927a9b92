"""Results of an evaluation: one row per sample and method, their means, and the files that hold them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from model.metrics import DIRECTIONS
from pipeline.errors import InputError
from pipeline.images import write_atomically

GUIDED, UNGUIDED = "rwkvfusion", "rwkvfusion_unguided"
LABELS = {
    GUIDED: "RWKVFusion",
    UNGUIDED: "RWKVFusion, guidance removed",
    "laplacian_pyramid": "Laplacian pyramid",
    "detail_injection": "detail injection",
}
EFFECT = "guidance_effect"  # mean absolute difference guided - unguided, in grey levels of 255


@dataclass(frozen=True)
class Row:
    """What one method reached on one sample; values by the names of `model.metrics.DIRECTIONS`."""

    task: str
    sample: str
    method: str
    values: dict[str, float]


def fused_path(folder: Path, sample: str, bands: int) -> Path:
    """Where a sample's fused image lies: PNG for grey and colour, TIFF for more bands."""
    return folder / "fused" / f"{sample}.{'png' if bands in (1, 3) else 'tif'}"


def means(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean over samples as task -> method -> metric, leaving NaN out; NaN where no sample has a value."""
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        metrics = table.setdefault(row.task, {}).setdefault(row.method, {})
        for name, value in row.values.items():
            metrics.setdefault(name, []).append(value)
    return {
        task: {
            method: {name: _mean(values) for name, values in metrics.items()}
            for method, metrics in methods.items()
        }
        for task, methods in table.items()
    }


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def best(methods: Mapping[str, Mapping[str, float]], metric: str) -> set[str]:
    """Methods that share the best printed value of a metric (empty when none has a value)."""
    direction = DIRECTIONS[metric]
    values = {m: round(v[metric], direction.decimals) for m, v in methods.items() if metric in v}
    values = {m: v for m, v in values.items() if not math.isnan(v)}
    if not values:
        return set()
    winner = (max if direction.better == "higher" else min)(values.values())
    return {method for method, value in values.items() if value == winner}


def summary(task: str, rows: Sequence[Row]) -> Table:
    """A table of the means of one task for the terminal: metrics down, methods across, the best in bold."""
    methods = means(rows)[task]
    table = Table(title=f"{task}: {len({row.sample for row in rows})} test samples", title_justify="left")
    table.add_column("metric")
    for method in methods:
        table.add_column(LABELS.get(method, method), justify="right")
    for metric, direction in DIRECTIONS.items():
        if not any(metric in values for values in methods.values()):
            continue
        winners = best(methods, metric)
        cells = []
        for method, values in methods.items():
            text = f"{values.get(metric, math.nan):.{direction.decimals}f}"
            cells.append(f"[bold green]{text} *[/]" if method in winners else text)
        table.add_row(f"{metric} {'↑' if direction.better == 'higher' else '↓'}", *cells)
    effect = methods[GUIDED].get(EFFECT, math.nan)
    table.caption = f"* best. Guidance changes the fused image by {effect:.3f} grey levels on average."
    return table


def write_results(folder: Path, rows: Sequence[Row]) -> None:
    """Write samples.csv, metrics.json (task -> method -> metric) and metrics/<task>.json, the network's own
    means: one small file per task makes `dvc metrics show` one row per task. Each is renamed into place.
    """
    used = {name for row in rows for name in row.values}
    columns = [name for name in (*DIRECTIONS, EFFECT) if name in used]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["task", "sample", "method", *columns])
    for row in rows:
        cells = [f"{row.values[name]:.9g}" if name in row.values else "" for name in columns]
        writer.writerow([row.task, row.sample, row.method, *cells])
    finite = {
        task: {
            method: {
                name: round(value, 6) if math.isfinite(value) else None for name, value in values.items()
            }
            for method, values in methods.items()
        }
        for task, methods in means(rows).items()
    }
    write_atomically(folder / "samples.csv", lambda path: path.write_text(buffer.getvalue()))
    _write_json(folder / "metrics.json", finite)
    for task, methods in finite.items():
        _write_json(folder / "metrics" / f"{task}.json", methods[GUIDED])


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def read_results(folder: Path) -> list[Row]:
    """Read samples.csv back. Raises InputError when it is missing or not ours."""
    path = folder / "samples.csv"
    remedy = f"run `python -m model evaluate --dataset {folder.name}`"
    try:
        with path.open(newline="") as file:
            return [
                Row(
                    cells.pop("task"),
                    cells.pop("sample"),
                    cells.pop("method"),
                    {name: float(value) for name, value in cells.items() if value},
                )
                for cells in csv.DictReader(file)
            ]
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: not found; run `python -m model evaluate --dataset {folder.name}`"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a table of results ({error}); {remedy}") from error

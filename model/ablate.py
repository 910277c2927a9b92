"""The ablations of Tables 6, 7 and 8 as DVC experiments, and their results beside the paper's.

A row is a handful of parameters. `queue` hands every row to `dvc exp run --queue`, whose experiment trains
one task and measures it alone (stage `ablation` of dvc.yaml); `results` reads what finished ones measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from model.results import GUIDED, arrow, number
from pipeline.errors import InputError
from pipeline.manifest import nearest

VISIBLE_INFRARED, HYPERSPECTRAL = "visible_infrared", "hyper_multispectral"
COLUMNS = {  # in the order of the paper's tables
    HYPERSPECTRAL: ("PSNR", "spectral_angle", "ERGAS", "SSIM"),
    VISIBLE_INFRARED: ("MI", "VIF", "SF", "Qcb", "Qabf", "Qy", "Qcv", "LPIPS"),
}


@dataclass(frozen=True)
class Variant:
    """One row: its label in the paper, what it sets in params.yaml ({dataset} is filled in), and the paper's
    values by task, in the order of `COLUMNS`."""

    label: str
    settings: Mapping[str, str]
    paper: Mapping[str, tuple[float, ...]]


def _both(hyperspectral: tuple[float, ...], visible: tuple[float, ...]) -> dict[str, tuple[float, ...]]:
    return {HYPERSPECTRAL: hyperspectral, VISIBLE_INFRARED: visible}


# Cao et al., Table 6: Pavia x4 (HMIF) and MSRS (VIF).
TABLE_6 = {
    "a": Variant("Flash attention", {"model.operator": "attention"},
                 _both((36.04, 3.95, 3.06, 0.936), (3.44, 0.81, 11.33, 0.55, 0.62, 0.96, 185.8, 0.685))),
    "b": Variant("Flatten attention", {"model.operator": "flatten_attention"},
                 _both((35.70, 4.13, 3.17, 0.932), (3.21, 0.77, 10.18, 0.54, 0.66, 0.86, 198.4, 0.699))),
    "c": Variant("Window attention", {"model.operator": "window_attention"},
                 _both((35.86, 4.13, 3.20, 0.929), (3.40, 0.82, 11.12, 0.60, 0.69, 0.88, 207.3, 0.682))),
    "d": Variant("VMamba", {"model.operator": "vmamba"},
                 _both((35.61, 4.17, 3.18, 0.930), (3.32, 0.79, 11.03, 0.53, 0.64, 0.89, 199.7, 0.701))),
    "e": Variant("Window BRWKV", {"model.operator": "window_bi_wkv"},
                 _both((35.89, 4.11, 3.15, 0.932), (3.41, 0.82, 11.36, 0.59, 0.66, 0.93, 195.0, 0.679))),
    "f": Variant("Scan configuration 2", {"model.scan": "2"},
                 _both((35.90, 4.09, 3.14, 0.933), (3.36, 0.80, 10.97, 0.57, 0.67, 0.94, 200.7, 0.680))),
    "g": Variant("Scan configuration 3", {"model.scan": "3"},
                 _both((36.09, 3.92, 3.05, 0.936), (3.41, 0.88, 11.49, 0.61, 0.71, 0.96, 178.1, 0.675))),
    "h": Variant("Simple MLPs", {"model.fusion": "mlp"},
                 _both((35.68, 4.16, 3.19, 0.931), (3.25, 0.77, 10.36, 0.57, 0.68, 0.88, 195.7, 0.689))),
    "i": Variant("Cross attentions", {"model.fusion": "cross_attention"},
                 _both((36.00, 3.97, 3.07, 0.936), (3.40, 0.88, 11.53, 0.58, 0.68, 0.91, 192.3, 0.680))),
    "j": Variant("Plain backbone", {"model.backbone": "plain"},
                 _both((35.29, 4.30, 3.29, 0.929), (3.12, 0.71, 9.81, 0.49, 0.62, 0.81, 231.9, 0.710))),
    "k": Variant("Default", {},
                 _both((36.06, 3.95, 3.07, 0.936), (3.42, 0.87, 11.50, 0.60, 0.70, 0.96, 182.2, 0.677))),
}  # fmt: skip
# Table 7: MSRS.
TABLE_7 = {
    "i": Variant("Only caption", {"model.guidance": "text"},
                 {VISIBLE_INFRARED: (3.20, 0.76, 9.93, 0.54, 0.64, 0.91, 204.8, 0.685)}),
    "ii": Variant("Only merged mask", {"model.guidance": "masks"},
                  {VISIBLE_INFRARED: (3.36, 0.78, 11.01, 0.56, 0.67, 0.93, 196.5, 0.680)}),
    "iii": Variant("None of both", {"model.guidance": "none"},
                   {VISIBLE_INFRARED: (3.10, 0.69, 9.72, 0.48, 0.62, 0.79, 234.7, 0.711)}),
    "iv": Variant("Mask concat", {"model.guidance": "unmerged", "merge.mode": "unmerged"},
                  {VISIBLE_INFRARED: (3.38, 0.84, 11.33, 0.57, 0.67, 0.95, 189.7, 0.679)}),
    "v": Variant("Default", {},
                 {VISIBLE_INFRARED: (3.42, 0.87, 11.50, 0.60, 0.70, 0.96, 182.2, 0.677)}),
}  # fmt: skip
# Table 8: M3FD.
TABLE_8 = {
    "auto": Variant("Auto-prompt", {"datasets.{dataset}.masks": "auto"},
                    {VISIBLE_INFRARED: (2.55, 0.75, 14.50, 0.53, 0.69, 0.96, 360.3, 0.647)}),
    "fixed": Variant("Fixed-prompt", {"datasets.{dataset}.masks": "prompt"},
                     {VISIBLE_INFRARED: (2.57, 0.78, 14.46, 0.54, 0.70, 0.96, 358.9, 0.647)}),
}  # fmt: skip
TABLES = {6: TABLE_6, 7: TABLE_7, 8: TABLE_8}
DATA = {
    6: {HYPERSPECTRAL: "Pavia x4", VISIBLE_INFRARED: "MSRS"},
    7: {VISIBLE_INFRARED: "MSRS"},
    8: {VISIBLE_INFRARED: "M3FD"},
}


@dataclass(frozen=True)
class Experiment:
    """One row on one task: the name of its DVC experiment and the command that queues it."""

    table: int
    row: str
    task: str
    name: str
    settings: dict[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        """`dvc exp run --queue` of this row."""
        words = ["dvc", "exp", "run", "--queue", "--name", self.name]
        for name, value in self.settings.items():
            words += ["--set-param", f"{name}={value}"]
        return [*words, f"ablation@{self.task}"]


def experiments(
    table: int, dataset: str, tasks: Sequence[str], rows: Sequence[str] | None, extra: Mapping[str, str]
) -> list[Experiment]:
    """The experiments of a table's (chosen) rows. ``extra`` are further parameters for all of them.

    Raises InputError for an unknown table, row or task.
    """
    variants = variants_of(table)
    for row in rows or ():
        if row not in variants:
            raise InputError(f"Table {table} has no row '{row}'.{nearest(row, variants)}")
    known = DATA[table]
    for task in tasks:
        if task not in known:
            raise InputError(f"Table {table} is about {' and '.join(known)}, not '{task}'")
    return [
        Experiment(
            table,
            row,
            task,
            f"table{table}-{row}-{task.replace('_', '-')}",
            {name.format(dataset=dataset): value for name, value in variant.settings.items()}
            | {"train.dataset": dataset}
            | dict(extra),
        )
        for row, variant in variants.items()
        if not rows or row in rows
        for task in tasks
    ]


def variants_of(table: int) -> dict[str, Variant]:
    """The rows of a table. Raises InputError for another table."""
    if table not in TABLES:
        raise InputError(f"Table {table} is not an ablation; choose one of {', '.join(map(str, TABLES))}")
    return TABLES[table]


def queue(chosen: Sequence[Experiment]) -> None:
    """Queue experiments with DVC. Raises InputError with DVC's words when it refuses."""
    for experiment in chosen:
        _dvc(experiment.command()[1:])


def _dvc(arguments: Sequence[str]) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        said = (run.stderr or run.stdout).strip().splitlines()
        raise InputError(f"dvc {' '.join(arguments[:2])}: {said[-1] if said else 'failed'}")
    return run.stdout


def results(chosen: Sequence[Experiment], dataset: str) -> dict[str, dict[str, float]]:
    """Experiment's name -> metric -> mean of the network, for those of this commit that have finished."""
    found: dict[str, dict[str, float]] = {}
    wanted = {experiment.name: experiment for experiment in chosen}
    for entry in json.loads(_dvc(["exp", "show", "--json"])):
        for group in entry.get("experiments") or ():
            for revision in group.get("revs", ()):
                experiment = wanted.get(revision.get("name") or group.get("name") or "")
                if experiment is None:
                    continue
                path = f"reports/{dataset}/ablation/{experiment.task}/metrics.json"
                metrics = ((revision.get("data") or {}).get("metrics") or {}).get(path, {}).get("data")
                if metrics:
                    values = metrics[experiment.task][GUIDED]
                    found[experiment.name] = {name: v for name, v in values.items() if v is not None}
    return found


def table_of(table: int, task: str, dataset: str, found: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: a row per variant, every metric as ours / the paper's; – where there is none."""
    columns = COLUMNS[task]
    title = f"Table {table}, {task}: ours on {dataset} / the paper's on {DATA[table][task]}"
    heads = ["row", "variant", *[f"{n} {'↓' if n == 'LPIPS' else arrow(n)}" for n in columns]]
    lines = [title, "", _line(heads), _line(["---", "---", *["---:"] * len(columns)])]
    for row, variant in variants_of(table).items():
        own = found.get(f"table{table}-{row}-{task.replace('_', '-')}", {})
        cells = [
            f"{number(name, own.get(name))} / {value:g}"
            for name, value in zip(columns, variant.paper[task], strict=True)
        ]
        lines.append(_line([row, variant.label, *cells]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

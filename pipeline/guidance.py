"""All guidance of a data set: the five stages in order, and a table of what they found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pipeline import boxes, captions, masks, merge, runner, texts
from pipeline.config import PipelineConfig, guidance_dir
from pipeline.store import open_store

STAGES = {
    "captions": captions.stage,
    "texts": texts.stage,
    "boxes": boxes.stage,
    "masks": masks.stage,
    "merge": merge.stage,
}
"""Stage name -> stage(config, dataset), in the order of dvc.yaml; they share one read of the images."""


def run_guidance(
    config: PipelineConfig,
    dataset: str,
    *,
    batch: int = runner.BATCH,
    workers: int | None = None,
    scheduler: str | None = None,
) -> list[runner.Summary]:
    """Bring all guidance stores of a data set up to date, skipping what is current.

    Prints a table if there was something to do and returns one summary per stage.
    Raises InputError (see `runner.run_together`).
    """
    started = time.perf_counter()
    stages = [stage(config, dataset) for stage in STAGES.values()]
    summaries = runner.run_together(stages, batch=batch, workers=workers, scheduler=scheduler)
    if any(summary.computed or summary.failed for summary in summaries):
        _print_table(config, dataset, summaries, time.perf_counter() - started)
    return summaries


def _print_table(
    config: PipelineConfig, dataset: str, summaries: Sequence[runner.Summary], seconds: float
) -> None:
    table = Table(title=f"guidance of {dataset}")
    for column in ("stage", "samples", "computed", "failed", "seconds", "result"):
        table.add_column(column, justify="left" if column in ("stage", "result") else "right")
    results = {"masks": _objects(config, dataset), "merge": _merged(dataset)}
    for s in summaries:
        numbers = [str(s.samples), str(s.computed), str(s.failed), f"{s.busy:.1f}"]
        table.add_row(s.stage, *numbers, results.get(s.stage, ""))
    count = max(summary.samples for summary in summaries)
    table.add_row("in all", str(count), "", "", f"{seconds:.1f}", "with reading and writing")
    Console().print(table)


def _objects(config: PipelineConfig, dataset: str) -> str:
    """Objects per kind of source."""
    store = open_store(guidance_dir(dataset) / "masks.zarr")
    roles = {sample.id: sample.roles for sample in config.dataset(dataset).samples()}
    done = [sample for sample in store.ids if store.is_done(sample)]
    found: Counter[str] = Counter()
    for sample, counts in zip(done, store.numbers("count"), strict=True):
        found.update({role: int(count) for role, count in zip(roles[sample], counts, strict=False)})
    return "objects: " + ", ".join(f"{role} {count}" for role, count in found.items())


def _merged(dataset: str) -> str:
    store = open_store(guidance_dir(dataset) / "merged.zarr")
    merged, dropped, overflow = (int(store.numbers(name).sum()) for name in ("count", "dropped", "overflow"))
    return f"merged {merged}, dropped {dropped}, beyond the last channel {overflow}"

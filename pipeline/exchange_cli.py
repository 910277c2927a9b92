"""Commands that bring guidance in and out of the stores; part of `pipeline` (cli.py)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import exit_on_error

app = typer.Typer()

DatasetOption = Annotated[str, typer.Option(help="Data set: a key of `datasets` in params.yaml.")]


class ExportFormat(StrEnum):
    """What `export` can write."""

    coco = "coco"


@app.command()
def export(
    dataset: DatasetOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file to write.")],
    form: Annotated[ExportFormat, typer.Option("--format", help="Format to write.")] = ExportFormat.coco,
) -> None:
    """Write the masks of every source and the merged ones as COCO JSON for annotation tools."""
    with exit_on_error():
        from pipeline.coco import export_coco
        from pipeline.config import load_pipeline

        done = export_coco(load_pipeline(), dataset, out)
    typer.echo(f"{out}: {done.images} images, {done.annotations} annotations")
    if done.missing:
        _lacking("have no masks yet", done.missing, f"run `python -m pipeline guidance --dataset {dataset}`")
        raise typer.Exit(1)


def _lacking(what: str, samples: Sequence[str], remedy: str) -> None:
    """Name on stderr the first of the samples that were left out, and what to do."""
    names = ", ".join(samples[:5]) + (", …" if len(samples) > 5 else "")
    plural = "" if len(samples) == 1 else "s"
    typer.echo(f"{len(samples)} sample{plural} {what} ({names}); {remedy}", err=True)

"""The command that writes weights as a program; part of `model` (cli.py)."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import exit_on_error

app = typer.Typer()


class ExportFormat(StrEnum):
    """What `export` writes."""

    onnx = "onnx"
    pt2 = "pt2"
    torchscript = "torchscript"


@app.command("export")
def export_command(
    weights: Annotated[
        str, typer.Option(help="Name of known weights, a .safetensors file, or hf://owner/name.")
    ],
    form: Annotated[ExportFormat, typer.Option("--format", help="Kind of program.")] = ExportFormat.onnx,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write. (default: <task>.onnx, .pt2 or .pt)")
    ] = None,
    guided: Annotated[bool, typer.Option("--guided", help="Take masks and text as inputs too.")] = False,
) -> None:
    """Write weights as a program for other runtimes, of any height and width: ONNX, pt2, TorchScript."""
    with exit_on_error():
        from model.export import export

        written = export(weights, out, form.value, guided)
        typer.echo(f"wrote {written} ({written.stat().st_size / 2**20:.1f} MiB)")

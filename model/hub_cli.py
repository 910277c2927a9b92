"""Commands that exchange weights with the Hugging Face Hub; part of `model` (cli.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import exit_on_error

app = typer.Typer(help="Weights in the layout of the Hugging Face Hub.", no_args_is_help=True)

Weights = Annotated[
    str, typer.Argument(help="Task id of known weights, a .safetensors file, a folder, or hf://owner/name.")
]
Licence = Annotated[str, typer.Option(help="Licence of the weights, as the Hub writes it.")]


@app.command("export")
def export_command(
    weights: Weights,
    folder: Annotated[
        Path, typer.Argument(help="Folder to write: config.json, model.safetensors, README.md.")
    ],
    licence: Licence = "apache-2.0",
) -> None:
    """Write weights with their history and a model card into a folder that can be uploaded as it is."""
    with exit_on_error():
        from model.hub import export_folder

        typer.echo(f"wrote {export_folder(weights, folder, licence)}")


@app.command("push")
def push_command(
    weights: Weights,
    repository: Annotated[str, typer.Argument(help="owner/name on the Hub; created if it does not exist.")],
    licence: Licence = "apache-2.0",
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    branch: Annotated[str | None, typer.Option(help="Branch to push to. (default: main)")] = None,
) -> None:
    """Push weights to the Hub, by the account of `hf auth login` or $HF_TOKEN."""
    with exit_on_error():
        from model.hub import push

        typer.echo(push(weights, repository, licence=licence, private=private, branch=branch))

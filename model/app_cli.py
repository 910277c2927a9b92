"""The command `app` of `rwkvfusion` and `python -m model`: a page in the browser; see model/app_server.py."""

from __future__ import annotations

from typing import Annotated

import typer

from model.options import DeviceOption, MemoryOption
from pipeline.errors import InputError, exit_on_error


def app_command(
    host: Annotated[
        str, typer.Option(help="Address to serve on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port. (default: the first free one from 7860 on)")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="Offer this .safetensors file too. May be repeated.")
    ] = None,
    max_upload: Annotated[str, typer.Option(help="Largest file that may be uploaded.")] = "100MiB",
    memory: MemoryOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Open a page that fuses: drop two images, compare, guide, measure, download."""
    with exit_on_error():
        from model.app_server import LOOPBACK, serve
        from model.budget import budget, keep_freed_memory, parse_bytes
        from model.sample import Settings

        keep_freed_memory()
        if parse_bytes(max_upload) == 0:
            raise InputError("--max-upload 0 takes no file at all; give an amount such as 100MiB")
        settings = Settings(device=device, memory=budget(memory), overwrite=True)

        def ready(address: str) -> None:
            typer.echo(f"open {address} in a browser; Ctrl-C ends it and deletes what was uploaded")
            if host not in LOOPBACK:
                typer.echo("anyone who can reach this machine can use the page", err=True)

        try:
            serve(host, port, parse_bytes(max_upload), weights or [], settings, ready)
        except KeyboardInterrupt:
            typer.echo("ended; uploads are deleted")

"""Options that several commands have in common, so that each is worded once."""

from typing import Annotated

import typer

DatasetOption = Annotated[str | None, typer.Option(help="Data set. (default: params.yaml train.dataset)")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
MemoryOption = Annotated[
    str | None, typer.Option(help="Beyond it, in tiles: 4GiB. (default: most of what is free)")
]

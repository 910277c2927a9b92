"""Options that several commands have in common, so that each is worded once."""

from typing import Annotated

import typer

DatasetOption = Annotated[str | None, typer.Option(help="Data set. (default: params.yaml train.dataset)")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1, mps.")]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        help="Memory to use, as 4GiB; larger images are fused in tiles. (default: most of what is free)"
    ),
]

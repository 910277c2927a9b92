"""The command `fuse` of `rwkvfusion` and `python -m model`; what it does is in model/fusing.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from model.options import DeviceOption, MemoryOption
from pipeline.errors import InputError, exit_on_error


class ColourChoice(StrEnum):
    """What `fuse` does with colour."""

    auto = "auto"
    rgb = "rgb"
    ycbcr = "ycbcr"
    gray = "gray"


class DtypeChoice(StrEnum):
    """What the network computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def fuse(
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, or a folder.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Two or more aligned images; or folders or 'patterns*', matched by file name; or one CSV."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Fuse this data set, with its guidance where stored.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only this split of the data set.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Fusion task. (default: told by names or image facts)")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Name of shipped weights, or a .safetensors file. (default: by task and bands)"),
    ] = None,
    caption: Annotated[str | None, typer.Option(help="What the scene holds, in words, as guidance.")] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Label map of the scene's objects as guidance, or a folder of them.")
    ] = None,
    guidance: Annotated[
        Path | None, typer.Option(help="Folder of guidance stores: guidance/<data set>.")
    ] = None,
    colour: Annotated[
        ColourChoice, typer.Option(help="auto: keep the sources' colour (ycbcr); rgb: band by band; gray.")
    ] = ColourChoice.auto,
    bits: Annotated[
        int | None,
        typer.Option(
            min=1, max=32, help="Bits per value where the type has more, as 11. (default: told by the values)"
        ),
    ] = None,
    memory: MemoryOption = None,
    device: DeviceOption = "auto",
    dtype: Annotated[DtypeChoice, typer.Option(help="Precision of the network.")] = DtypeChoice.float32,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the network first; pays for many images of one size.")
    ] = False,
    video: Annotated[bool, typer.Option("--video", help="The sources are videos: frame by frame.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an unexpected error arose.")] = False,
) -> None:
    """Fuse images: rwkvfusion fuse visible.png infrared.png -o fused.png"""
    with exit_on_error(), _unexpected_in_one_line(debug):
        from model.budget import budget, keep_freed_memory
        from model.fusing import run_jobs
        from model.jobs import jobs_of_dataset, jobs_of_paths, printable
        from model.sample import Settings

        keep_freed_memory()
        if (dataset is None) == (not sources):
            raise InputError("give either two or more images (or folders) or --dataset")
        stores = None
        if dataset is not None or guidance is not None:
            from model.guidance import open_guidance, open_stores

            if guidance is not None and not guidance.is_dir():
                raise InputError(f"{guidance}: no such folder of guidance stores")
            stores = open_guidance(dataset or "") if guidance is None else open_stores(guidance)
        settings = Settings(
            weights=weights,
            dataset=dataset,
            guidance=stores,
            caption=caption,
            masks=masks,
            bits=bits,
            colour=colour.value,
            device=device,
            dtype=dtype.value,
            compiled=compiled,
            memory=budget(memory),
            overwrite=overwrite,
        )
        if video:
            from model.video import run_video

            unused = {
                "--dataset": dataset, "--split": split, "--caption": caption, "--masks": masks,
                "--guidance": guidance, "--bits": bits, "--compile": compiled or None,
            }  # fmt: skip
            for option, value in unused.items():
                if value is not None:
                    raise InputError(f"{option} does nothing for videos; leave it out")

            run_video([Path(source) for source in sources or []], out, task, weights, settings)
            return
        if dataset is None:
            if split is not None:
                raise InputError("--split selects from a data set; add --dataset or leave it out")
            jobs, unmatched = jobs_of_paths(sources or [], out, task)
        else:
            jobs, unmatched = jobs_of_dataset(dataset, split, task, out), []
        outcome = run_jobs(jobs, settings)
    for path in unmatched:
        typer.echo(f"no partner for {printable(path)}", err=True)
    if len(jobs) > 1 or outcome.failed:
        left_out = f", {len(unmatched)} without a partner" if unmatched else ""
        typer.echo(f"{outcome.fused} fused, {outcome.skipped} skipped, {outcome.failed} failed{left_out}")
    if outcome.failed:
        raise typer.Exit(1 if outcome.fused or outcome.skipped else 2)


@contextmanager
def _unexpected_in_one_line(debug: bool) -> Iterator[None]:
    """A bug is reported in one line; with --debug it keeps its traceback."""
    try:
        yield
    except (InputError, OSError, typer.Exit):
        raise
    except Exception as error:
        if debug:
            raise
        said = str(error).strip().splitlines()
        print(
            f"error: unexpected {type(error).__name__}: {said[0] if said else ''}; nothing was written for "
            "this sample. Run again with --debug and report what it prints",
            file=sys.stderr,
        )
        raise SystemExit(2) from error

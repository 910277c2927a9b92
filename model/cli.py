"""Commands of the network: `typer model …`, `python -m model …`, and the console script `rwkvfusion`.

Torch is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from model import export_cli, hub_cli
from model.app_cli import app_command
from model.ending import run_and_end
from model.fuse_cli import fuse
from model.options import DatasetOption, DeviceOption
from pipeline.errors import InputError, exit_on_error

# Torch's threads spin while they wait for each other; on cores shared with other work that made a training
# step ten times slower. It must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# GDAL keeps what it has read, up to a twentieth of the machine's memory.
os.environ.setdefault("GDAL_CACHEMAX", "64MB")

app = typer.Typer(help=__doc__.partition(":")[0] + ".", no_args_is_help=True, add_completion=False)
app.add_typer(export_cli.app)
app.add_typer(hub_cli.app, name="hub")


class CacheChoice(StrEnum):
    """Where `train` keeps decoded images."""

    auto = "auto"
    memory = "memory"
    disk = "disk"


@app.command()
def train(
    task: Annotated[str | None, typer.Option(help="Fusion task. (default: params.yaml train.task)")] = None,
    dataset: DatasetOption = None,
    device: DeviceOption = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that load data; 0 is this one.")] = 0,
    cache: Annotated[
        CacheChoice, typer.Option(help="Decoded images in memory or on disk; auto goes by their size.")
    ] = CacheChoice.auto,
    verify: Annotated[bool, typer.Option("--verify", help="Hash all files of large data sets too.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write for TensorBoard too.")] = False,
) -> None:
    """Train one task's network on cached guidance; goes on where an interrupted run stopped."""
    with exit_on_error():
        from model.budget import keep_freed_memory
        from model.train import train as run

        keep_freed_memory()
        run(
            dataset, task, device=device, workers=workers, cache=cache, verify=verify, tensorboard=tensorboard
        )


class Profile(StrEnum):
    """Whose definitions of the metrics."""

    reference = "reference"
    rwkvfusion = "rwkvfusion"


class Downstream(StrEnum):
    """What looks at the fused images (sect. 6.3)."""

    detection = "detection"
    segmentation = "segmentation"
    depth = "depth"


class SeveralValues(TyperCommand):
    """Lets `--sources A B C` and `--fused x=DIR y=DIR` take several values each."""

    options = ("--sources", "--fused")

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Repeat the option's name before each of its values."""
        expanded: list[str] = []
        current = ""
        for word in args:
            if word.startswith("-"):
                current = word if word in self.options else ""
            elif current and expanded[-1] != current:
                expanded.append(current)
            expanded.append(word)
        return super().parse_args(ctx, expanded)


@app.command(cls=SeveralValues)
def evaluate(
    dataset: DatasetOption = None,
    task: Annotated[
        str | None,
        typer.Option(help="Only this task; for folders, their task. (default: all; told by their names)"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Measure these instead of trained ones: a task id, or a .safetensors file."),
    ] = None,
    fused: Annotated[
        list[str] | None,
        typer.Option(help="Folders of fused images, DIR or NAME=DIR, instead of a data set."),
    ] = None,
    sources: Annotated[
        list[Path] | None,
        typer.Option(help="Folders of their sources, one per source; DIR#KEY in MATLAB files."),
    ] = None,
    target: Annotated[Path | None, typer.Option(help="Folder of the ground truth.")] = None,
    bits: Annotated[
        int | None,
        typer.Option(min=1, max=32, help="Bits per value of integers stored in 16: 11 for 0 … 2047."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder to write to. (default: reports/<dataset>)"),
    ] = None,
    sensor: Annotated[
        str | None,
        typer.Option(
            help="Sensor whose optics pansharpening assumes: QB, IKONOS, WV2, WV3 … (default: the data set's)"
        ),
    ] = None,
    profile: Annotated[Profile, typer.Option(help="Definitions of the metrics.")] = Profile.reference,
    lpips: Annotated[
        str | None,
        typer.Option(help="VGG16 weights for LPIPS: a file, or hub to download. (default: torch's cache)"),
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Only these, as MI,Qabf,SSIM. (default: all)")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that measure; 0 is this one. (default: one per core)")
    ] = None,
    downstream: Annotated[
        Downstream | None, typer.Option(help="Measure by a pretrained network for this task instead.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="Its checkpoint: a name on the hub or a folder. (downstream)")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="COCO JSON of boxes, or folder of label maps. (downstream)")
    ] = None,
) -> None:
    """Measure a data set's trained networks beside simple rules, or any folders of fused images."""
    if downstream is not None:
        with exit_on_error():
            _downstream(downstream.value, fused, network, labels, out)
        return
    with exit_on_error():
        from model.measure import Options

        chosen = None if metrics is None else tuple(name.strip() for name in metrics.split(","))
        options = Options(profile.value, chosen, workers, sensor, lpips)
        if fused:
            from model.folders import evaluate_folders
            from model.matching import parse_fused

            if dataset is not None or weights is not None:
                raise InputError("--fused measures folders; leave --dataset and --weights out")
            found = evaluate_folders(
                parse_fused(fused), sources or [], target, out, task=task, bits=bits, options=options
            )
        else:
            from model.budget import keep_freed_memory
            from model.evaluate import evaluate as run

            if sources or target is not None or bits is not None:
                raise InputError("--sources, --target and --bits belong to --fused; add it")
            keep_freed_memory()
            tasks = None if task is None else [task]
            found = run(_dataset(dataset), tasks, weights=weights, out=out, options=options)
        if out is not None and found.rows:
            from model.report import write_report

            typer.echo(f"report: {write_report(out)}")
    if found.failures:
        raise typer.Exit(1 if found.rows else 2)


@app.command()
def report(
    dataset: DatasetOption = None,
    folder: Annotated[Path | None, typer.Option(help="Any folder that `evaluate --out` wrote.")] = None,
) -> None:
    """Write an evaluation as one web page, reports/<dataset>/index.html."""
    with exit_on_error():
        from model.report import write_dataset_report
        from model.report import write_report as write_folder_report

        if dataset is not None and folder is not None:
            raise InputError("give either --dataset or --folder")
        typer.echo(write_dataset_report(_dataset(dataset)) if folder is None else write_folder_report(folder))


@app.command()
def ablate(
    table: Annotated[int, typer.Option(help="Table of the paper: 6, 7 or 8.")],
    dataset: DatasetOption = None,
    task: Annotated[str, typer.Option(help="visible_infrared or hyper_multispectral.")] = "visible_infrared",
    row: Annotated[
        list[str] | None, typer.Option(help="Only this row, as a or iii. May be repeated.")
    ] = None,
    queue: Annotated[bool, typer.Option("--queue", help="Queue the rows with DVC.")] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set this too in every row, as train.steps=2000. May be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Markdown file to write.")] = None,
) -> None:
    """Queue an ablation's rows as DVC experiments, or show their results beside the paper's."""
    with exit_on_error():
        from model.ablate import experiments, results, table_of
        from model.ablate import queue as queue_all
        from pipeline.images import write_atomically

        name = _dataset(dataset)
        extra = dict(_pair(text) for text in setting or ())
        chosen = experiments(table, name, [task], row, extra)
        if queue:
            queue_all(chosen)
            rows = f"{len(chosen)} row{'s' if len(chosen) > 1 else ''}"
            typer.echo(f"{rows} queued; run them with `dvc exp run --run-all`")
            return
        page = table_of(table, task, name, results(chosen, name))
        typer.echo(page)
        if out is not None:
            write_atomically(out, lambda path: path.write_text(page, encoding="utf-8"))


def _pair(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found:
        raise InputError(f"--set {text}: write it as NAME=VALUE")
    return name, value


app.command()(fuse)
app.command("app")(app_command)


@app.command()
def describe(
    preset: Annotated[str | None, typer.Option(help="Task whose full-size network to use.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="History of these weights: a task id, or a .safetensors file.")
    ] = None,
) -> None:
    """Print a network's layers, parameters, FLOPs and memory, or where trained weights come from."""
    with exit_on_error():
        from model.describe import describe_preset, describe_weights

        if (preset is None) == (weights is None):
            raise InputError("give either --preset or --weights")
        typer.echo(describe_preset(preset) if preset is not None else describe_weights(weights or ""))


@app.command()
def erf(
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write (.png).")],
    preset: Annotated[str, typer.Option(help="Task whose full-size network to use.")] = "visible_infrared",
    size: Annotated[int, typer.Option(help="Side of the input image in pixels.")] = 96,
) -> None:
    """Draw the effective receptive field of every attention operator side by side (fig. 10)."""
    with exit_on_error():
        from model.erf import draw

        for operator, share in draw(preset, out, size).items():
            typer.echo(f"{operator}: reaches {100 * share:.1f} % of the pixels")


def _downstream(
    kind: Literal["detection", "segmentation", "depth"],
    fused: list[str] | None,
    network: str | None,
    labels: Path | None,
    out: Path | None,
) -> None:
    from model.downstream import load_network, run_downstream
    from model.matching import parse_fused

    if not fused or network is None:
        raise InputError("--downstream needs --fused NAME=DIR … and --network")
    run_downstream(kind, parse_fused(fused), load_network(kind, network), labels, out)


def _dataset(name: str | None) -> str:
    from model.config import load_config

    config = load_config()
    name = name or config.train.dataset
    config.dataset(name)
    return name


def main() -> None:
    """The console script: `fuse` at the top, every command of both packages below their names."""
    from pipeline.cli import app as pipeline_app

    root = typer.Typer(
        help="Image fusion guided by text and masks.", no_args_is_help=True, add_completion=False
    )
    root.command()(fuse)
    root.command("app")(app_command)
    root.add_typer(
        pipeline_app, name="pipeline", help="Offline guidance: captions, texts, boxes, masks, merge."
    )
    root.add_typer(app, name="model", help="Train, evaluate, report, fuse and describe.")
    if sys.argv[1:2] == ["fuse"]:
        run_and_end(lambda: root(prog_name="rwkvfusion"))
    with exit_on_error():
        root(prog_name="rwkvfusion")

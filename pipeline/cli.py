"""Commands of the guidance pipeline: `typer pipeline …` or `python -m pipeline …`.

Everything heavy is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import exchange_cli
from pipeline.errors import InputError, exit_on_error
from pipeline.exchange_cli import DatasetOption

if TYPE_CHECKING:
    from pipeline.config import PipelineConfig
    from pipeline.runner import Stage, Summary

app = typer.Typer(help=__doc__.partition(":")[0] + ".", no_args_is_help=True, add_completion=False)
weights_app = typer.Typer(help="Checkpoints of the foundation models.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
app.add_typer(exchange_cli.app)

DeviceOption = Annotated[
    str | None,
    typer.Option(help="Where foundation models run: auto, cpu, cuda, cuda:1, … (default: auto)"),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(help="Folder of the checkpoints. (default: $RWKVFUSION_WEIGHTS or the user's cache)"),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        envvar="DASK_SCHEDULER_ADDRESS",
        help="Let the workers of this dask cluster compute, as tcp://host:8786.",
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Argument(help="Checkpoints, see `weights list`. (default: those that params.yaml asks for)"),
]


@app.command()
def demo(
    force: Annotated[bool, typer.Option("--force", help="Generate it again even if it is complete.")] = False,
) -> None:
    """Generate the embedded data set of all six tasks."""
    with exit_on_error():
        from pipeline.config import load_pipeline
        from pipeline.demo import generate

        root = Path(load_pipeline().dataset("demo").root)
        typer.echo(f"{root}: {len(generate(root, force=force))} samples")


@app.command()
def manifest(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of a published data set, or with a sub-folder per source: visible, infrared, …"
        ),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of the data set to make, or to check.")] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="Published layout (msrs, m3fd, …) or pairs. (default: recognised)"),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task of the pairs, where their names do not tell it.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read every sample and report what is wrong; writes nothing.")
    ] = False,
) -> None:
    """List a folder's samples in data_manifests/<dataset>.csv and name the data set in params.yaml.

    With --check, read all samples of a data set, manifest or folder instead, and report what is wrong.
    """
    with exit_on_error():
        if check:
            from pipeline.checking import check_and_report

            raise typer.Exit(check_and_report(folder, dataset, layout, task))
        if folder is None or dataset is None:
            raise InputError("give a FOLDER and --dataset NAME to list it, or --check to check a data set")
        from pipeline.config import DatasetConfig, register_dataset
        from pipeline.layouts import scan_folder
        from pipeline.manifest import keep_splits, write_manifest

        if not dataset.isidentifier():
            raise InputError(f"--dataset '{dataset}': use letters, digits and '_', starting with a letter")
        path = Path("data_manifests") / f"{dataset}.csv"
        scan = scan_folder(folder, layout, task)
        samples = keep_splits(scan.samples, path, folder)
        config = DatasetConfig(
            manifest=str(path),
            root=str(folder),
            masks=scan.masks,
            prompt=scan.prompt if scan.masks == "provided" else (),
            sensor=scan.sensor,
        )
        is_new = register_dataset(dataset, config)
        write_manifest(path, samples, folder)
    tasks = ", ".join(sorted({sample.task for sample in samples}))
    splits = ", ".join(
        f"{number} {split}" for split, number in Counter(sample.split for sample in samples).items()
    )
    typer.echo(f"{path}: {len(samples)} samples ({tasks}; {splits}), layout {scan.layout}")
    if scan.left_over:
        typer.echo(f"{scan.left_over} images in {folder} belong to no sample")
    typer.echo(
        f"params.yaml: data set '{dataset}' {'added' if is_new else 'was there already, left as it is'}"
    )
    typer.echo(f"next: typer pipeline guidance --dataset {dataset}")


@app.command()
def captions(
    dataset: DatasetOption,
    device: DeviceOption = None,
    weights: WeightsOption = None,
    scheduler: SchedulerOption = None,
) -> None:
    """Write one caption per sample."""
    with exit_on_error():
        _use(device, weights)
        from pipeline.captions import stage

        _run(stage, dataset, scheduler)


@app.command()
def texts(
    dataset: DatasetOption,
    device: DeviceOption = None,
    weights: WeightsOption = None,
    scheduler: SchedulerOption = None,
) -> None:
    """Encode the captions as text features."""
    with exit_on_error():
        _use(device, weights)
        from pipeline.texts import stage

        _run(stage, dataset, scheduler)


@app.command()
def boxes(
    dataset: DatasetOption,
    device: DeviceOption = None,
    weights: WeightsOption = None,
    scheduler: SchedulerOption = None,
) -> None:
    """Detect objects in every source."""
    with exit_on_error():
        _use(device, weights)
        from pipeline.boxes import stage

        _run(stage, dataset, scheduler)


@app.command()
def masks(
    dataset: DatasetOption,
    device: DeviceOption = None,
    weights: WeightsOption = None,
    scheduler: SchedulerOption = None,
) -> None:
    """Segment the detected objects in every source."""
    with exit_on_error():
        _use(device, weights)
        from pipeline.masks import stage

        _run(stage, dataset, scheduler)


@app.command()
def merge(dataset: DatasetOption, scheduler: SchedulerOption = None) -> None:
    """Unite the sources' masks into at most 20 channels."""
    with exit_on_error():
        from pipeline.merge import stage

        _run(stage, dataset, scheduler)


@app.command()
def guidance(
    dataset: DatasetOption,
    device: DeviceOption = None,
    weights: WeightsOption = None,
    scheduler: SchedulerOption = None,
) -> None:
    """Run captions, texts, boxes, masks and merge; each skips what is current."""
    with exit_on_error():
        _use(device, weights)
        from pipeline.config import load_pipeline
        from pipeline.guidance import run_guidance
        from pipeline.weights import locate

        config = load_pipeline()
        for name in config.checkpoints(dataset):
            locate(name)  # before hours of work end at a later stage
        summaries = run_guidance(config, dataset, scheduler=scheduler)
    _finish(summaries)


@app.command()
def inspect(
    dataset: DatasetOption,
    sample: Annotated[
        str | None, typer.Option(help="Draw this sample (the manifest's first column) into a PNG.")
    ] = None,
    samples: Annotated[
        str,
        typer.Option(help="Gallery: positions such as 0:20, or names with commas. (default: all)"),
    ] = "",
    split: Annotated[str, typer.Option(help="Gallery: only samples of this split. (default: all)")] = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="PNG or HTML to write. (default: <sample>.png, <dataset>.html)"),
    ] = None,
) -> None:
    """Show guidance: sources, boxes, masks, merged masks, captions; one sample as PNG, many as a page."""
    with exit_on_error():
        from pipeline.config import load_pipeline
        from pipeline.gallery import write_gallery
        from pipeline.inspect import inspect as draw

        if sample and (samples or split):
            raise InputError("--sample draws one PNG, --samples and --split a page; give one of them")
        if sample:
            path = out or Path(f"{sample}.png")
            draw(load_pipeline(), dataset, sample, path)
            lacking: tuple[str, ...] = ()
        else:
            path = out or Path(f"{dataset}.html")
            shown, lacking = write_gallery(load_pipeline(), dataset, path, samples, split)
            rest = f", {len(lacking)} of them incomplete: the page says why" if lacking else ""
            typer.echo(f"{shown} samples{rest}")
    typer.echo(str(path))
    if lacking:
        raise typer.Exit(1)


def _use(device: str | None, weights: Path | None) -> None:
    """Tell the models where to run and where their files are, here and in the processes that this one starts.

    Neither can change a result, so neither stands in params.yaml; both may stand in the environment.
    """
    if device is not None:
        os.environ["RWKVFUSION_DEVICE"] = device
        from pipeline.resident import chosen_device

        chosen_device()
    if weights is not None:
        if not weights.is_dir():
            raise InputError(f"--weights {weights}: no such folder")
        os.environ["RWKVFUSION_WEIGHTS"] = str(weights.resolve())


@weights_app.command("list")
def list_weights() -> None:
    """List the checkpoints: size, licence, use, whether they are there, and where they belong."""
    with exit_on_error():
        from pipeline.checkpoints import CHECKPOINTS
        from pipeline.weights import missing, weights_folder

        folder = weights_folder()
        typer.echo(f"Checkpoints in {folder}:\n")
        typer.echo(f"{'name':<19}  {'state':<7}  {'size':>8}  {'licence':<10}  used for")
        for name, checkpoint in CHECKPOINTS.items():
            state = "missing" if missing(checkpoint, folder) else "there"
            size = f"{checkpoint.size / 1e6:.0f} MB"
            typer.echo(f"{name:<19}  {state:<7}  {size:>8}  {checkpoint.licence:<10}  {checkpoint.use}")
        typer.echo(
            "\n`python -m pipeline weights fetch NAME` downloads one. What each holds, and its origin:\n"
        )
        for name, checkpoint in CHECKPOINTS.items():
            for part in checkpoint.parts:
                files = [Path(path).name for path in (*part.pinned, *part.others)]
                typer.echo(f"{name}/: {part.repo}, revision {part.revision}\n    {', '.join(files)}")


@weights_app.command("fetch")
def fetch_weights(names: Names = None) -> None:
    """Download checkpoints, resuming what was interrupted, and compare their checksums."""
    with exit_on_error():
        from pipeline.weights import fetch

        for name in _checkpoints(names):
            typer.echo(f"{name}: {fetch(name)}")


@weights_app.command("verify")
def verify_weights(names: Names = None) -> None:
    """Read checkpoints again and compare their checksums; exit code 1 if one differs."""
    with exit_on_error():
        from pipeline.weights import verify

        found = {name: verify(name) for name in _checkpoints(names)}
    for name, problems in found.items():
        for problem in problems:
            typer.echo(f"{name}: {problem}", err=True)
        if not problems:
            typer.echo(f"{name}: as it should be")
    if any(found.values()):
        raise typer.Exit(1)


def _checkpoints(names: list[str] | None) -> list[str]:
    """The names given, else those that params.yaml asks for."""
    from pipeline.config import load_pipeline

    chosen = names or load_pipeline().checkpoints()
    if not chosen:
        raise InputError("params.yaml asks for no foundation model; name a checkpoint of `weights list`")
    return chosen


def _run(stage: Callable[[PipelineConfig, str], Stage], dataset: str, scheduler: str | None) -> None:
    """Bring the store of one stage up to date."""
    from pipeline.config import load_pipeline
    from pipeline.runner import run

    _finish([run(stage(load_pipeline(), dataset), scheduler=scheduler)])


def _finish(summaries: Sequence[Summary]) -> None:
    """Exit 1 when samples failed (they are listed in the stage's errors file), 2 when no sample is left."""
    if any(summary.failed for summary in summaries):
        raise typer.Exit(2 if any(summary.failed == summary.samples for summary in summaries) else 1)


def main() -> None:
    """Entry of `python -m pipeline`."""
    with exit_on_error():
        app(prog_name="pipeline")

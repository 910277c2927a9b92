"""Commands that bring guidance in and out of the stores; part of `pipeline` (cli.py)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import InputError, exit_on_error

if TYPE_CHECKING:
    from pipeline.simulated import Response

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
        _lacking("without masks", done.missing, f"run `python -m pipeline guidance --dataset {dataset}`")
        raise typer.Exit(1)


@app.command("import")
def import_(
    dataset: DatasetOption,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of label maps, below the data set's root: 0 is background.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="With --masks: words for the values 1, 2, … such as 'car, person'.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="CSV table with the columns sample and caption.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Text features: safetensors, (tokens, 512) per sample.")
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="With --texts: what made them; networks tell encoders apart by this.")
    ] = "t5-small",
    coco: Annotated[
        Path | None, typer.Option(help="COCO JSON: the objects of the sources, instead of boxes and masks.")
    ] = None,
    coco_merged: Annotated[
        Path | None, typer.Option(help="COCO JSON: the merged masks, instead of merge.")
    ] = None,
) -> None:
    """Take over captions, text features or masks that others made; the stages then leave them alone."""
    with exit_on_error():
        from pipeline import coco_import, importing
        from pipeline.config import load_pipeline
        from pipeline.progress import samples

        if not any((masks, captions, texts, coco, coco_merged)):
            raise InputError("nothing to import; give --masks, --captions, --texts, --coco or --coco-merged")
        config, done = load_pipeline(), []
        if masks:  # first: naming the label maps in the manifest changes what the samples consist of
            words = [word.strip() for word in re.split(r"[,.]", prompt or "") if word.strip()]
            done.append(importing.import_masks(config, dataset, masks, words))
        if captions:
            done.append(importing.import_captions(config, dataset, captions))
        if texts:
            done.append(importing.import_texts(config, dataset, texts, encoder))
        if coco:
            done.append(coco_import.import_coco(config, dataset, coco))
        if coco_merged:
            done.append(coco_import.import_coco(config, dataset, coco_merged, merged=True))
    for one in done:
        entries = "1 entry" if one.unused == 1 else f"{one.unused} entries"
        rest = f", {entries} of the file not used" if one.unused else ""
        typer.echo(f"{one.what}: {samples(one.done)} imported{rest}")
        if one.missing:
            _lacking(f"without {one.what}", one.missing, "import again with them to fill these too")
    if any(one.missing for one in done):
        raise typer.Exit(1)
    typer.echo(f"next: typer pipeline guidance --dataset {dataset}")


@app.command()
def degrade(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images.")],
    dataset: Annotated[str | None, typer.Option(help="Data set of full-resolution pan and ms.")] = None,
    cubes: Annotated[
        Path | None, typer.Option(help="Hyperspectral cube, or folder of them, instead of a data set.")
    ] = None,
    sensor: Annotated[
        str, typer.Option(help="wv2, wv3, wv4, gf2, qb, ikonos, geoeye1 or other. (of --cubes: whose bands)")
    ] = "",
    response: Annotated[
        Path | None, typer.Option(help="Table of the broad bands' weights for the narrow ones. (--cubes)")
    ] = None,
    wavelengths: Annotated[
        str, typer.Option(help="Of the first and last band in nm, as 430:860. (--cubes with --sensor)")
    ] = "",
    bits: Annotated[
        int | None,
        typer.Option(min=1, max=32, help="Bits per value of the cubes, where their type has more."),
    ] = None,
    ratio: Annotated[int, typer.Option(help="How many times finer the sharp source is.")] = 4,
    size: Annotated[int, typer.Option(help="Side of the targets cut from a scene, 0: whole scenes.")] = 256,
    name: Annotated[
        str | None, typer.Option(help="Name of the data set to make. (default: <dataset>_reduced)")
    ] = None,
) -> None:
    """Make a data set with targets: from satellite scenes by Wald's protocol, or from hyperspectral cubes."""
    with exit_on_error():
        if (dataset is None) == (cubes is None):
            raise InputError("give either --dataset, for pan and ms, or --cubes, for hyperspectral images")
        made = name or f"{dataset or (cubes and cubes.stem)}_reduced"
        if not made.isidentifier():
            raise InputError(f"--name '{made}': use letters, digits and '_', starting with a letter")
        others = 0
        if cubes is not None:
            from pipeline.simulated import simulate

            samples, others = simulate(
                cubes, _response(response, sensor, wavelengths), out, made, ratio, size, bits
            )
        else:
            from pipeline.config import load_pipeline
            from pipeline.reduced import Reduction
            from pipeline.reduced import degrade as reduce_scenes

            if response is not None or wavelengths or bits is not None:
                raise InputError("--response, --wavelengths and --bits belong to --cubes")
            samples = reduce_scenes(load_pipeline(), dataset or "", Reduction(sensor, ratio, size), out, made)
    typer.echo(f"{out}: {len(samples)} samples, listed in data_manifests/{made}.csv")
    if others:
        typer.echo(f"{others} images with other numbers of bands left out")
    typer.echo(f"params.yaml: data set '{made}'; next: python -m model train --dataset {made}")


def _response(table: Path | None, sensor: str, wavelengths: str) -> Response:
    """What --response or --sensor with --wavelengths say. Raises InputError for anything else."""
    from pipeline.sensors import EDGES, check_sensor
    from pipeline.simulated import Response, read_response

    if table is not None:
        if sensor or wavelengths:
            raise InputError("--response replaces --sensor and --wavelengths; leave those out")
        return read_response(table)
    first, _, last = wavelengths.partition(":")
    try:
        ends = float(first), float(last)
    except ValueError:
        ends = (0.0, 0.0)
    if not 0 < ends[0] < ends[1] or check_sensor(sensor) not in EDGES:
        raise InputError(
            "--cubes needs --response FILE, or the name of a --sensor with --wavelengths FIRST:LAST (nm)"
        )
    return Response(None, sensor, ends)


def _lacking(what: str, samples: Sequence[str], remedy: str) -> None:
    """Name on stderr the first of the samples that were left out, and what to do."""
    names = ", ".join(samples[:5]) + (", …" if len(samples) > 5 else "")
    plural = "" if len(samples) == 1 else "s"
    typer.echo(f"{len(samples)} sample{plural} {what} ({names}); {remedy}", err=True)

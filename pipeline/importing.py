"""Guidance that others made, into the stores: captions, text features, label maps (COCO: coco_import.py).

Every importer finds the samples of the data set by the names that the file uses: a sample's name in the
manifest, or the stem of one of its source files if no other sample has it.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from safetensors import SafetensorError, safe_open

from pipeline.config import TEXT_WIDTH, PipelineConfig, guidance_dir, update_dataset
from pipeline.errors import InputError
from pipeline.images import image_facts
from pipeline.imported import write_imported
from pipeline.manifest import Sample, content_hash, file_of, write_manifest
from pipeline.store import Caption, Record, Text

LABEL_MAPS = (".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Imported:
    """What an import did: samples filled, samples of the data set it lacks, entries of the file not used."""

    what: str
    done: int
    missing: tuple[str, ...]
    unused: int = 0


class SampleNames:
    """Finds samples by the names that files use for them."""

    def __init__(self, samples: Sequence[Sample], place: str) -> None:
        self._place = place
        self._ids = {sample.id: sample for sample in samples}
        self._stems: dict[str, dict[str, Sample]] = {}
        for sample in samples:
            for source in sample.sources:
                self._stems.setdefault(file_of(source.path).stem, {})[sample.id] = sample

    def find(self, name: str) -> Sample | None:
        """The sample of that name, file stem or file name, None when there is none. InputError if several."""
        for key in (name, Path(name).stem):
            if key in self._ids:
                return self._ids[key]
            found = list(self._stems.get(key, {}).values())
            if len(found) > 1:
                raise InputError(
                    f"{self._place}: '{name}' can be sample '{found[0].id}' or '{found[1].id}'; "
                    "use the names of the manifest's first column"
                )
            if found:
                return found[0]
        return None

    def match(self, names: Iterable[str]) -> tuple[dict[str, str], int]:
        """Sample id -> name in the file, and the number of names without a sample.

        Raises InputError when two names are one sample, or none is any.
        """
        found: dict[str, str] = {}
        unused = 0
        for name in names:
            sample = self.find(name)
            if sample is None:
                unused += 1
            elif sample.id in found:
                raise InputError(
                    f"{self._place}: '{found[sample.id]}' and '{name}' are both '{sample.id}'; keep one"
                )
            else:
                found[sample.id] = name
        if not found:
            raise InputError(
                f"{self._place}: none of its {unused} entries names a sample of the data set; "
                "use the names of the manifest's first column or the stems of the source files"
            )
        return found, unused


def import_captions(config: PipelineConfig, dataset: str, path: Path) -> Imported:
    """Fill ``captions.zarr`` from a CSV table with a column ``caption``.

    The sample's name stands in the column ``sample``, else in the first one (that of the authors' tables has
    no name). Empty captions count as missing. Raises InputError when the table is none of this.
    """
    samples = config.dataset(dataset).samples()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            columns, rows = list(table.fieldnames or ()), list(table)
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); give a CSV table") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV table in UTF-8 ({error})") from error
    if "caption" not in columns or len(set(columns)) < 2:
        raise InputError(f"{path}: needs the columns 'sample' and 'caption'; it has {', '.join(columns)}")
    key = "sample" if "sample" in columns else next(name for name in columns if name != "caption")
    captions: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        name, text = (str(row[column] or "").strip() for column in (key, "caption"))
        if name in captions:
            raise InputError(f"{path}: row {number}: '{name}' has a caption already; keep one")
        if text:
            captions[name] = text
    found, unused = SampleNames(samples, str(path)).match(captions)
    write_records(
        config, dataset, "captions", found, lambda sample: Caption(captions[found[sample]]), origin_of([path])
    )
    return summary("captions", samples, found, unused)


def import_texts(config: PipelineConfig, dataset: str, path: Path, encoder: str) -> Imported:
    """Fill ``texts.zarr`` from safetensors: one file, or a folder of them, one tensor (1, T, 512) or (T, 512)
    per sample under its file's stem. This is the layout of the authors' T5 features.

    Features beyond ``texts.max_tokens`` are cut, tokens of zeros at the end left out. ``encoder`` says what
    made them: a network uses text only of the encoder that it was trained with. Raises InputError when a
    tensor has another shape, or values that are no float16.
    """
    samples = config.dataset(dataset).samples()
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise InputError(f"{path}: no such file, nor a folder with .safetensors files")
    place: dict[str, Path] = {}
    tokens = 1
    for file in files:
        with _tensors(file) as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                if key in place:
                    raise InputError(f"{file}: '{key}' stands in {place[key]} too; keep one of them")
                place[key] = file
                shape = tensors.get_slice(key).get_shape()
                if len(shape) < 2 or shape[-1] != TEXT_WIDTH or any(size != 1 for size in shape[:-2]):
                    raise InputError(
                        f"{file}: '{key}' has shape {tuple(shape)}, not (tokens, {TEXT_WIDTH}); "
                        "encode the captions with T5-small"
                    )
                tokens = max(tokens, shape[-2])
    found, unused = SampleNames(samples, str(path)).match(place)
    limit = config.texts.max_tokens

    def record(sample: str) -> Text:
        return Text(_features(place[found[sample]], found[sample])[:limit])

    origin = origin_of(files, path) | {"identity": f"imported {encoder}", "max_tokens": limit}
    write_records(config, dataset, "texts", found, record, origin, T=min(tokens, limit), D=TEXT_WIDTH)
    return summary("texts", samples, found, unused)


def _tensors(file: Path) -> Any:
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: cannot be read as safetensors ({error}); replace the file") from error


def _features(file: Path, key: str) -> np.ndarray:
    with _tensors(file) as tensors:
        try:
            values = np.asarray(tensors.get_tensor(key), np.float32)
        except (TypeError, AttributeError, SafetensorError) as error:
            raise InputError(f"{file}: '{key}' cannot be read ({error}); save it as float16") from error
    values = values.reshape(-1, TEXT_WIDTH)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise InputError(f"{file}: '{key}' holds values that are not finite in float16; encode it again")
    used = np.flatnonzero(half.any(axis=1))
    return half[: used[-1] + 1 if len(used) else 1]


def import_masks(config: PipelineConfig, dataset: str, folder: Path, prompt: Sequence[str]) -> Imported:
    """Name the label maps of a folder in the manifest and set ``masks: provided`` (see `label_maps`).

    A label map has the stem of the sample or of one of its sources, one band, and the size of the first
    source. With ``prompt``, its v-th word names the value v, and replaces the data set's prompt. Nothing is
    copied. Raises InputError when the folder is not below the data set's root or a map does not fit.
    """
    data = config.dataset(dataset)
    samples, root = data.samples(), Path(data.root)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of the label maps")
    if not folder.resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"{folder}: is not below {root}, where the manifest names files; copy or link it there"
        )
    below = root / folder.resolve().relative_to(root.resolve())
    maps = {file.name: file for file in sorted(below.iterdir()) if file.suffix.lower() in LABEL_MAPS}
    found, unused = SampleNames(samples, str(folder)).match(maps)
    for sample in samples:
        if sample.id in found:
            _check_label_map(maps[found[sample.id]], image_facts(sample.sources[0].path, sample.bits).size)
    named = [
        dataclasses.replace(sample, mask=maps[found[sample.id]]) if sample.id in found else sample
        for sample in samples
    ]
    write_manifest(Path(data.manifest), named, root)
    named_values = {"prompt": list(prompt)} if prompt else {}
    update_dataset(dataset, {"masks": "provided", **named_values})
    return summary("masks", samples, found, unused)


def _check_label_map(path: Path, size: tuple[int, int]) -> None:
    try:
        with PillowImage.open(path) as image:
            bands, (width, height) = image.getbands(), image.size
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read as a label map ({error}); replace the file") from error
    if len(bands) != 1 or (height, width) != size:
        raise InputError(
            f"{path}: a label map of {size[0]}x{size[1]} with one band is needed, "
            f"not {height}x{width} with {len(bands)}; export class numbers, not colours"
        )


def origin_of(files: Sequence[Path], name: Path | None = None) -> dict[str, Any]:
    """The configuration of an imported store: what it is from, and the SHA-256 of the files."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return {"imported": (name or files[0]).name, "sha256": digest.hexdigest()}


def write_records(
    config: PipelineConfig,
    dataset: str,
    kind: str,
    found: Mapping[str, object],
    record: Callable[[str], Record],
    origin: Mapping[str, Any],
    **sizes: int,
) -> None:
    """Replace a store of the data set by the records of the samples ``found``."""
    content = {sample.id: content_hash(sample) for sample in config.dataset(dataset).samples()}
    path = guidance_dir(dataset) / f"{kind}.zarr"
    write_imported(path, kind, content, found, record, origin, **sizes)


def summary(what: str, samples: Sequence[Sample], found: Mapping[str, object], unused: int) -> Imported:
    """What an import of the samples ``found`` did."""
    missing = tuple(sample.id for sample in samples if sample.id not in found)
    return Imported(what, len(samples) - len(missing), missing, unused)

"""Instances as COCO JSON with run-length encoded masks, for annotation tools and back.

Format: Lin et al., "Microsoft COCO", ECCV 2014, https://cocodataset.org/#format-data; masks as pycocotools
encodes them. One COCO image per source of a sample, with ``role`` and ``sample`` beside the usual fields, and
one with the role ``merged`` (the file of the first source) for the merged masks. All lie on the sample's
common grid, which is that of its first source.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from pipeline.config import PipelineConfig, guidance_dir
from pipeline.errors import InputError
from pipeline.images import write_atomically
from pipeline.manifest import Sample
from pipeline.store import MAX_INSTANCES, Instances, MergedMasks, SampleInstances, open_store

MERGED = "merged"
"""Role of the COCO images that hold merged masks."""

Entry = dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """What an export wrote: COCO images, annotations, and the samples without current guidance."""

    images: int
    annotations: int
    missing: tuple[str, ...]


def export_coco(config: PipelineConfig, dataset: str, out: Path) -> Exported:
    """Write the instances of every source and the merged masks of a data set to the JSON file ``out``.

    An annotation has the usual COCO fields (``bbox`` is the detector's box, for merged masks that of the
    mask) and ``score``, ``predicted_iou`` and ``source`` (a role, or ``merged``); a merged one also has
    ``sources``, the roles that saw the object. Numbers are the shortest that give the stored float32.
    Raises InputError when a store is missing or damaged, or holds no sample of the data set.
    """
    data = config.dataset(dataset)
    samples, root = data.samples(), Path(data.root)
    found, merged = (open_store(guidance_dir(dataset) / f"{kind}.zarr") for kind in ("masks", "merged"))
    done = [sample for sample in samples if found.is_done(sample.id) and merged.is_done(sample.id)]
    if not done:
        raise InputError(
            f"{found.path.parent}: holds the masks of no sample of '{dataset}'; "
            f"run `python -m pipeline guidance --dataset {dataset}`"
        )
    content = _Content()
    for sample in done:
        record, united = found.get(sample.id), merged.get(sample.id)
        assert isinstance(record, SampleInstances)
        assert isinstance(united, MergedMasks)
        files = [file_name(source.path, root) for source in sample.sources]
        size = (record.height, record.width)
        for role, file, instances in zip(sample.roles, files, record.sources, strict=True):
            content.add_source(sample, role, file, size, instances)
        content.add_merged(sample, files[0], size, united)
    text = json.dumps(content.document(dataset), ensure_ascii=False, indent=None, separators=(",", ":"))
    write_atomically(out, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    kept = {sample.id for sample in done}
    missing = tuple(sample.id for sample in samples if sample.id not in kept)
    return Exported(len(content.images), len(content.annotations), missing)


def file_name(path: Path, root: Path) -> str:
    """How a COCO file names an image: its path below the data set's root."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


@dataclass
class _Content:
    images: list[Entry] = field(default_factory=list)
    annotations: list[Entry] = field(default_factory=list)

    def add_source(
        self, sample: Sample, role: str, file: str, size: tuple[int, int], found: Instances
    ) -> None:
        self._add_image(sample, role, file, size)
        assert found.mask is not None
        assert found.iou is not None
        corners = [[_short(value) for value in box] for box in found.box]
        boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in corners]
        self._add(found.mask, found.label, found.score, found.iou, boxes, [{"source": role} for _ in boxes])

    def add_merged(self, sample: Sample, file: str, size: tuple[int, int], merged: MergedMasks) -> None:
        self._add_image(sample, MERGED, file, size)
        seen = np.zeros(len(merged.label), np.uint32) if merged.sources is None else merged.sources
        roles = [[role for bit, role in enumerate(sample.roles) if int(bits) >> bit & 1] for bits in seen]
        facts = [{"source": MERGED, "sources": names} for names in roles]
        self._add(merged.mask, merged.label, merged.score, merged.iou, None, facts)

    def _add_image(self, sample: Sample, role: str, file: str, size: tuple[int, int]) -> None:
        self.images.append(
            {"id": len(self.images) + 1, "file_name": file, "height": size[0], "width": size[1]}
            | {"sample": sample.id, "role": role, "task": sample.task, "split": sample.split}
        )

    def _add(
        self,
        masks: np.ndarray,
        labels: Sequence[str],
        scores: np.ndarray,
        ious: np.ndarray,
        boxes: Sequence[Sequence[float]] | None,
        facts: Sequence[Entry],
    ) -> None:
        for index, label in enumerate(labels):
            encoded = rle.encode(np.asfortranarray(masks[index], dtype=np.uint8))
            box = rle.toBbox(encoded).tolist() if boxes is None else list(boxes[index])
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": len(self.images),
                    "category_id": label,
                    "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")},
                    "area": int(rle.area(encoded)),
                    "bbox": box,
                    "iscrowd": 0,
                    "score": _short(scores[index]),
                    "predicted_iou": _short(ious[index]),
                }
                | facts[index]
            )

    def document(self, dataset: str) -> Entry:
        """The whole file; labels become category numbers in alphabetical order."""
        names = sorted({annotation["category_id"] for annotation in self.annotations})
        number = {name: index for index, name in enumerate(names, start=1)}
        return {
            "info": {"description": f"Guidance masks of {dataset}", "version": "1"},
            "licenses": [],
            "categories": [{"id": number[name], "name": name, "supercategory": "object"} for name in names],
            "images": self.images,
            "annotations": [a | {"category_id": number[a["category_id"]]} for a in self.annotations],
        }


def _short(value: np.floating) -> float:
    """The shortest decimal that is this float32 again."""
    return float(str(np.float32(value)))


@dataclass(frozen=True)
class CocoFile:
    """A COCO file whose references hold: its images, and the annotations of each by image id."""

    path: Path
    images: tuple[Entry, ...]
    annotations: Mapping[Any, Sequence[Entry]]

    def instances(self, image: Entry) -> Instances:
        """The objects of one image in the file's order, of more than `MAX_INSTANCES` the largest.

        A missing ``score`` or ``predicted_iou`` counts as 1, for a person drew the mask; a missing ``bbox``
        becomes that of the mask. Masks without pixels are left out.
        """
        height, width = int(image["height"]), int(image["width"])
        objects = [(a, self._mask(a, height, width)) for a in self.annotations[image["id"]]]
        objects = [(a, mask) for a, mask in objects if mask.any()]
        kept = sorted(range(len(objects)), key=lambda i: -int(objects[i][1].sum()))[:MAX_INSTANCES]
        objects = [objects[i] for i in sorted(kept)]
        boxes = [_xyxy(a, mask) for a, mask in objects]
        return Instances(
            box=np.array(boxes, np.float32).reshape(-1, 4),
            score=np.array([a.get("score", 1) for a, _ in objects], np.float32),
            label=tuple(a["label"] for a, _ in objects),
            iou=np.array([a.get("predicted_iou", 1) for a, _ in objects], np.float32),
            mask=np.array([mask for _, mask in objects], bool).reshape(-1, height, width),
        )

    def _mask(self, annotation: Entry, height: int, width: int) -> np.ndarray:
        """Polygons, plain or compressed run lengths to a mask bool (height, width)."""
        shape = annotation["segmentation"]
        place = f"{self.path}: annotation {annotation.get('id')}"
        try:
            if isinstance(shape, list):
                encoded = rle.merge(rle.frPyObjects(shape, height, width))
            elif isinstance(shape["counts"], list):
                encoded = rle.frPyObjects(shape, height, width)
            else:
                encoded = shape
            if list(encoded["size"]) != [height, width]:
                raise InputError(f"{place}: its mask is {encoded['size']}, its image {[height, width]}")
            return np.asarray(rle.decode(encoded), dtype=bool)
        except InputError:
            raise
        except Exception as error:  # pycocotools raises bare exceptions of several types
            raise InputError(f"{place}: its segmentation cannot be read ({error}); draw it again") from error


def _xyxy(annotation: Entry, mask: np.ndarray) -> list[float]:
    box = annotation.get("bbox")
    if not box:
        box = rle.toBbox(rle.encode(np.asfortranarray(mask, dtype=np.uint8)))
    x, y, w, h = (float(value) for value in box)
    return [x, y, x + w, y + h]


def read_coco(path: Path) -> CocoFile:
    """Read a COCO instance file. Every annotation gets its category's name as ``label``.

    Raises InputError when it is no such file, or an annotation lacks a segmentation, names an image or a
    category that is not there, or has a size, box or score that is no number.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); give a COCO JSON file") from error
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(document, dict) or not {"images", "annotations", "categories"} <= document.keys():
        raise InputError(f"{path}: not a COCO instance file: it needs images, annotations and categories")
    try:
        names = {category["id"]: str(category["name"]) for category in document["categories"]}
        annotations: dict[Any, list[Entry]] = {image["id"]: [] for image in document["images"]}
        for image in document["images"]:
            place = f"{path}: image {image['id']}"
            _need(image, ("file_name", "height", "width"), place)
            _need_numbers({key: [image[key]] for key in ("height", "width")}, place)
        for annotation in document["annotations"]:
            place = f"{path}: annotation {annotation.get('id')}"
            _need(annotation, ("image_id", "category_id", "segmentation"), place)
            box = annotation.get("bbox") or [0, 0, 0, 0]
            marks = {key: [annotation.get(key, 1)] for key in ("score", "predicted_iou")}
            _need_numbers(marks | {"bbox": box}, place)
            if len(box) != 4:
                raise InputError(f"{place}: its bbox is not x, y, width, height; correct it or leave it out")
            if annotation["image_id"] not in annotations or annotation["category_id"] not in names:
                raise InputError(f"{place}: names an image or a category that the file does not list")
            annotations[annotation["image_id"]].append(
                annotation | {"label": names[annotation["category_id"]]}
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a COCO instance file ({type(error).__name__}: {error})") from error
    return CocoFile(path, tuple(document["images"]), annotations)


def _need(entry: Entry, keys: Iterable[str], place: str) -> None:
    for key in keys:
        if not entry.get(key) and entry.get(key) != 0:
            raise InputError(f"{place}: has no '{key}'; export it with masks from the annotation tool")


def _need_numbers(values: Mapping[str, Sequence[Any]], place: str) -> None:
    for key, numbers in values.items():
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise InputError(f"{place}: its {key} is no number; correct it or leave it out")

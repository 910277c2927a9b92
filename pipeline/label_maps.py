"""Objects that nobody has to look for: people's label maps (`masks: provided`), or none (`masks: none`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as PillowImage
from scipy import ndimage

from pipeline.errors import InputError
from pipeline.images import SampleImages
from pipeline.store import MAX_INSTANCES, Instances


def nothing(sample: SampleImages) -> tuple[Instances, ...]:
    """No objects in any source."""
    return tuple(_instances(np.zeros((0, *sample.size), bool), ()) for _ in sample.images)


def provided(sample: SampleImages, names: Sequence[str]) -> tuple[Instances, ...]:
    """The objects of the sample's label map: in the first source, none in the others.

    0 is background. With names, value v is the class ``names[v - 1]`` and every connected region of a class
    is an object; without, every value is one object of unknown kind. Of more than 64 the largest are kept.
    Raises InputError when the map is missing, unreadable, of another size, or has a value without a name.
    """
    labels = _read(sample)
    values = [int(value) for value in np.unique(labels) if value]
    if names and values and max(values) > len(names):
        raise InputError(
            f"{sample.sample.mask}: holds value {max(values)} but the data set's prompt names "
            f"{len(names)} classes; name them all in order, or leave the prompt empty if values are objects"
        )
    objects: list[tuple[np.ndarray, str]] = []
    for value in values:
        if names:
            regions, count = ndimage.label(labels == value, structure=np.ones((3, 3)))
            objects += [(regions == region, names[value - 1]) for region in range(1, count + 1)]
        else:
            objects.append((labels == value, "object"))
    objects = sorted(objects, key=lambda pair: -int(pair[0].sum()))[:MAX_INSTANCES]
    masks = np.array([mask for mask, _ in objects], bool).reshape(-1, *sample.size)
    return (_instances(masks, tuple(label for _, label in objects)), *nothing(sample)[1:])


def _read(sample: SampleImages) -> np.ndarray:
    path = sample.sample.mask
    if path is None:
        raise InputError(
            f"sample '{sample.sample.id}': the manifest names no mask, which `masks: provided` needs; "
            "fill its `mask` column or set masks: auto"
        )
    try:
        with PillowImage.open(path) as image:
            labels = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read as a label map ({error}); replace the file") from error
    if labels.ndim != 2 or labels.shape != sample.size:
        height, width = sample.size
        raise InputError(
            f"{path}: a label map of {height}x{width} with one band is needed, not {labels.shape}"
        )
    return labels


def _instances(masks: np.ndarray, labels: tuple[str, ...]) -> Instances:
    ones = np.ones(len(masks), np.float32)
    boxes = [_box(mask) for mask in masks]
    return Instances(np.array(boxes, np.float32).reshape(-1, 4), ones, labels, ones, masks)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Half-open (x0, y0, x1, y1) of the pixels of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1

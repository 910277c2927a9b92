"""Stored object masks as the channels that the network takes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor

from pipeline.config import MASK_CHANNELS
from pipeline.errors import InputError
from pipeline.images import READING_ERRORS


def by_source(mask: np.ndarray, sources: np.ndarray | None, count: int, sample: str) -> np.ndarray:
    """Bool (c, H, W) as merge.mode `unmerged` leaves them to (20 count, H, W), 20 channels for each source.

    ``sources``: uint32 (c,), bit s = seen in source s. Raises InputError where masks are merged after all.
    """
    bits = np.zeros(0, np.uint32) if sources is None else sources
    if mask[len(bits) :].any() or (bits & (bits - 1)).any() or not bits.all():
        raise InputError(
            f"sample '{sample}': its masks are merged, but model.guidance is unmerged: "
            "set merge.mode: unmerged and run `typer pipeline merge` again"
        )
    channels = np.zeros((count * MASK_CHANNELS, *mask.shape[1:]), dtype=bool)
    for source in range(count):
        own = np.flatnonzero(bits == 1 << source)
        channels[source * MASK_CHANNELS :][: len(own)] = mask[own]
    return channels


def mask_channels(mask: np.ndarray, sets: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bool (c, H, W) to the network's (20 sets, H, W) of 0 and 1; absent objects are empty channels."""
    channels = torch.zeros(sets * MASK_CHANNELS, *mask.shape[1:], dtype=dtype)
    channels[: len(mask)] = torch.from_numpy(np.ascontiguousarray(mask))
    return channels


Masks = Callable[[int, int, int, int], np.ndarray]
"""Object masks by window: (top, left, height, width) to bool (c, height, width)."""


def open_masks(path: Path, size: tuple[int, int]) -> Masks:
    """Object masks of a file, at most 20, largest first.

    An image is a label map: every value but 0 is one object. NPY holds a label map (H, W) of integers or
    masks (c, H, W) of truth values. Of more than 20 objects the rest are united in the last mask, as merging
    does. Raises InputError when the file cannot be read, has colours, or is of another size (H, W).
    """
    array = _stored(path, size)
    if array.ndim == 3 and array.dtype == np.bool_:
        order = np.argsort([-int(mask.sum()) for mask in array], kind="stable")
    elif array.ndim == 2 and array.dtype.kind in "bui":
        values, counts = np.unique(array, return_counts=True)
        order = values[np.argsort(-counts, kind="stable")]
        order = order[order != 0]
    else:
        raise InputError(
            f"{path}: a label map has one band of whole numbers, this is {array.dtype} {array.shape}"
        )
    own, rest = order[: MASK_CHANNELS - 1], order[MASK_CHANNELS - 1 :]

    def window(top: int, left: int, height: int, width: int) -> np.ndarray:
        part = array[..., top : top + height, left : left + width]
        if array.ndim == 3:
            masks, last = part[own], part[rest].any(axis=0, keepdims=True)
        else:
            masks, last = part == own[:, None, None], np.isin(part, rest)[None]
        return np.concatenate([masks, last]) if len(rest) else masks

    return window


def _stored(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The array of a file, which is decoded only if it has the image's size."""
    if not path.is_file():
        raise InputError(f"{path}: no such file of masks")
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            _check_size(path, array.shape, size)
            return np.asarray(array)
        if path.suffix.lower() in (".tif", ".tiff"):
            import tifffile  # takes a fifth of a second to load

            with tifffile.TiffFile(path) as tiff:
                _check_size(path, tiff.series[0].shape, size)
                return np.asarray(tiff.asarray())
        with PillowImage.open(path) as image:
            _check_size(path, image.size[::-1], size)
            return np.asarray(image)
    except InputError:
        raise
    except READING_ERRORS as error:
        raise InputError(f"{path}: cannot be read as a label map ({error}); replace the file") from error


def _check_size(path: Path, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    if size not in (shape[-2:], shape[:2]):
        raise InputError(f"{path}: the masks are {'x'.join(map(str, shape))}, the image {size[0]}x{size[1]}")

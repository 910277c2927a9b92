"""Fusion from Python: `from model import fuse, load_weights`. What goes in comes out: type, layout, depth.

>>> import numpy as np
>>> from model import fuse, load_weights
>>> weights = load_weights("visible_infrared")
>>> visible = np.full((48, 64, 3), 90, np.uint8)
>>> infrared = np.zeros((48, 64), np.uint8)
>>> fused = fuse([visible, infrared], weights)
>>> fused.shape, fused.dtype
((48, 64, 3), dtype('uint8'))

Tensors are C x H x W, or a batch B x C x H x W:

>>> import torch
>>> batch = fuse([torch.rand(2, 3, 48, 64), torch.rand(2, 1, 48, 64)], weights)
>>> batch.shape, batch.dtype
(torch.Size([2, 3, 48, 64]), torch.float32)

Pillow images, in grey, with the mask of an object:

>>> from PIL import Image
>>> images = [Image.fromarray(visible), Image.fromarray(infrared)]
>>> person = np.zeros((1, 48, 64), bool)
>>> person[0, 10:30, 20:28] = True
>>> fuse(images, weights, colour="gray", masks=person).mode
'L'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from model.fusing import check_outputs
from model.inference import Colour, Fuser, load_weights
from model.inference import fuse as fuse_arrays
from model.jobs import Job
from model.sample import Prepared, Settings, fuse_prepared, prepare
from pipeline.errors import InputError
from pipeline.images import FloatArray, quantise, write_image
from pipeline.manifest import TASKS, Sample, Source

__all__ = ["fuse", "load_weights"]

ImageT = TypeVar("ImageT", NDArray[Any], Tensor, PillowImage.Image)


@overload
def fuse(
    sources: Sequence[ImageT],
    weights: Fuser | str | Path,
    *,
    caption: str | None = None,
    masks: NDArray[np.bool_] | None = None,
    colour: Colour = "auto",
    memory: int | None = None,
) -> ImageT: ...
@overload
def fuse(
    sources: Sequence[Sequence[ImageT]],
    weights: Fuser | str | Path,
    *,
    caption: str | None = None,
    masks: NDArray[np.bool_] | None = None,
    colour: Colour = "auto",
    memory: int | None = None,
) -> list[ImageT]: ...
@overload
def fuse(
    sources: Sequence[str | Path],
    weights: Fuser | str | Path,
    *,
    out: str | Path,
    caption: str | None = None,
    masks: str | Path | None = None,
    colour: Colour = "auto",
    memory: int | None = None,
) -> Path: ...
def fuse(
    sources: Sequence[Any],
    weights: Fuser | str | Path,
    *,
    out: str | Path | None = None,
    caption: str | None = None,
    masks: Any = None,
    colour: Colour = "auto",
    memory: int | None = None,
) -> Any:
    """Fuse the sources of one sample, or of a batch of samples; the result is as the first source is.

    ``sources``, two or more in the order of the weights' roles, registered and of one size (the last one
    smaller by a whole ratio in sharpening). Each is

    - an array H x W, H x W x C (C <= 4) or C x H x W, integers of up to 32 bits (the type's greatest value is
      white) or floats in [0, 1]; a fourth dimension in front is a batch;
    - a tensor C x H x W or H x W, or a batch B x C x H x W, of the same types, on any device;
    - a Pillow image, as its pixels stand in it (mode I holds 16 bits);
    - a list of any of these, which is a batch too;
    - a path: then ``out`` is the file to write, whose path is returned. Type, depth and georeference are
      those of `rwkvfusion fuse`.

    ``caption`` guides in words, if the weights know an encoder; ``masks`` are objects (c, H, W), c <= 20, of
    the one sample (for paths: a file). ``colour``: auto, rgb, ycbcr or gray. ``memory``: bytes for the
    network, beyond which it works in tiles.

    A sample's result does not depend on the others in its batch. Threads may share weights. Raises
    InputError (a ValueError) when something does not fit.
    """
    fuser = weights if isinstance(weights, Fuser) else load_weights(weights)
    if len(sources) < 2:
        raise InputError(
            f"{len(sources)} source{'' if len(sources) == 1 else 's'} given; fusion needs at least two"
        )
    paths = [isinstance(source, str | Path) for source in sources]
    if all(paths):
        return _fuse_files(sources, fuser, out, caption, masks, colour, memory)
    if any(paths):
        raise InputError("some sources are paths and some images; give one or the other")
    if out is not None:
        raise InputError("out= names the file to write when the sources are paths; save this result yourself")
    if masks is not None:
        masks = np.asarray(masks, dtype=bool)
    text = None
    if caption is not None:
        from model.caption import encode

        text = encode(caption, fuser)

    def one(images: Sequence[Any]) -> Any:
        planes = [_pixels(image) for image in images]
        fused = fuse_arrays(planes, fuser, text=text, masks=masks, colour=colour, memory=memory)
        return _like(images[0], fused)

    if not _is_batch(sources[0]):
        return one(sources)
    if masks is not None:
        raise InputError("masks belong to one sample: fuse the samples of the batch one by one")
    lengths = {len(source) for source in sources}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(
            f"the sources are batches of {sorted(lengths)} samples; give as many of each, one or more"
        )
    results = [one(images) for images in zip(*sources, strict=True)]
    if isinstance(sources[0], Tensor):
        return torch.stack(results)
    return np.stack(results) if isinstance(sources[0], np.ndarray) else results


def _is_batch(source: Any) -> bool:
    return isinstance(source, list | tuple) or (isinstance(source, np.ndarray | Tensor) and source.ndim == 4)


def _pixels(image: Any) -> NDArray[Any]:
    """What `model.inference.fuse` takes. Tensors never have their channels last."""
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        array = (image.float() if image.is_floating_point() else image).numpy()
        return array[None] if array.ndim == 2 else array
    if isinstance(image, PillowImage.Image):
        mode = image.mode
        if mode == "La":
            image = image.convert("LA")  # Pillow knows no shorter way
        if mode not in ("L", "RGB", "F") and not mode.startswith("I"):
            image = image.convert("L" if mode in ("1", "LA", "La") else "RGB")
        array = np.asarray(image)
        if mode == "I" and not 0 <= array.min() <= array.max() <= 65535:
            raise InputError(
                f"a Pillow image of mode I holds 16 bits, 0 … 65535; this has {array.min()} … {array.max()}"
            )
        return array.astype(np.uint16) if mode.startswith("I") else array
    if isinstance(image, str | Path):
        raise InputError("paths are fused one sample at a time: fuse([path, path], weights, out=path)")
    return np.asarray(image)


def _like(image: Any, fused: FloatArray) -> Any:
    """The fused image (C, H, W) in the type, layout and depth of a source."""
    if isinstance(image, PillowImage.Image):
        if image.mode == "F" and len(fused) == 1:
            return PillowImage.fromarray(fused[0])
        deep = image.mode.startswith("I") and len(fused) == 1
        values = quantise(fused, 16 if deep else 8)
        return PillowImage.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0).copy())
    flat = image.ndim == 2 and len(fused) == 1
    if isinstance(image, Tensor):
        tensor = torch.from_numpy(fused[0] if flat else fused)
        if not image.is_floating_point():
            tensor = (tensor.double() * torch.iinfo(image.dtype).max).round()
        return tensor.to(image.device, image.dtype)
    last = image.ndim == 2 or image.shape[2] <= 4 < image.shape[0]
    array = fused[0] if flat else fused.transpose(1, 2, 0) if last else fused
    if image.dtype.kind in "ui":
        array = np.rint(array.astype(np.float64) * np.iinfo(image.dtype).max)
    return np.ascontiguousarray(array.astype(image.dtype))


def _fuse_files(
    sources: Sequence[str | Path],
    fuser: Fuser,
    out: str | Path | None,
    caption: str | None,
    masks: str | Path | None,
    colour: Colour,
    memory: int | None,
) -> Path:
    if out is None:
        raise InputError("the sources are paths: name the file to write with out=")
    if not isinstance(masks, str | Path | None):
        raise InputError("the sources are paths: name a file of masks too")
    roles = TASKS[fuser.task][0]
    named = tuple(
        Source(roles[min(number, len(roles) - 1)], Path(path)) for number, path in enumerate(sources)
    )
    objects = None if masks is None else Path(masks)
    job = Job(Sample(Path(out).stem, fuser.task, "test", named), Path(out), masks=objects)
    check_outputs([job])
    prepared = prepare(job, fuser, Settings(caption=caption, colour=colour, overwrite=True))
    assert isinstance(prepared, Prepared)  # only without `overwrite` it is a result
    prepared, result = replace(prepared, memory=memory), prepared.result
    write_image(result.path, fuse_prepared(prepared, fuser, colour), result.bits, result.georeference)
    return result.path

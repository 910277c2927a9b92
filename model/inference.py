"""Fuse images of any size with trained weights, in colour, never stretched.

One sample is fused at a time, so its result does not depend on its neighbours. Memory grows with the area;
images beyond a budget are fused in tiles (model/tiling.py), which fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from model.combine import Colour, combine
from model.config import MASK_GUIDANCE, ModelConfig, run_dir
from model.devices import pick_device
from model.masks import by_source
from model.network import RWKVFusion
from model.record import HUB_WEIGHTS, read_weights, record_of
from model.tiled import Patches, TiledFusion
from model.tiling import plan
from model.whole import Shape, shape_of
from pipeline.config import build
from pipeline.errors import InputError, first_line
from pipeline.images import FloatArray, read_image
from pipeline.manifest import SHARPENING_TASKS, TASKS, nearest

if TYPE_CHECKING:
    from pipeline.store import MergedMasks  # imports zarr, which images without stored guidance need not

SHIPPED = Path(__file__).with_name("weights")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SourceLike = NDArray[Any] | str | Path
BYTES_PER_CHANNEL = 80
"""Memory of a forward per pixel and channel of the first level: 52 to 59 measured, and freed memory kept."""


@dataclass(frozen=True, eq=False)
class Fuser:
    """A trained network ready to fuse: where its weights come from, their record (json), its device.

    ``dtype``: float32, or what the network computes in under autocast. ``turn`` is held during every forward:
    threads may share a fuser, but the network's modules know of one image only (model/whole.py).
    """

    path: Path
    record: dict[str, Any]
    network: RWKVFusion
    device: torch.device
    dtype: torch.dtype = torch.float32
    turn: Lock = field(default_factory=Lock, repr=False)

    @cached_property
    def shape(self) -> Shape:
        """How the network's images are cut into tiles."""
        with self.turn:
            return shape_of(self.network)

    @property
    def task(self) -> str:
        return str(self.record["task"])

    @property
    def shipped(self) -> bool:
        return self.path.parent == SHIPPED

    @property
    def sharpening(self) -> bool:
        return self.task in SHARPENING_TASKS

    @property
    def takes_guidance(self) -> bool:
        """Whether text or masks can change what the network makes of the images."""
        return self.network.config.guidance != "none"

    def pixels_within(self, memory: int | None) -> float:
        """How many pixels a forward on the CPU can take without needing more than ``memory`` bytes."""
        return inf if memory is None else max(memory, 0) / (BYTES_PER_CHANNEL * self.network.config.width)

    def masks_of(self, merged: MergedMasks | None, sample: str) -> NDArray[np.bool_] | None:
        """A sample's stored masks as the network takes them. Raises InputError as `by_source` does."""
        config = self.network.config
        if merged is None or config.guidance != "unmerged":
            return None if merged is None else merged.mask
        return by_source(merged.mask, merged.sources, len(config.in_channels), sample)


def find_weights(name: str | Path) -> Path:
    """Path of weights by name (those shipped with the package, else a task's of the demo), by the path of a
    file or of a folder laid out as on the Hugging Face Hub, or by ``hf://owner/name`` there (model/hub.py).

    Raises InputError that names the nearest name, or how to get weights.
    """
    if str(name).startswith("hf://"):
        from model.hub import fetch

        return fetch(str(name)) / HUB_WEIGHTS
    if Path(name).suffix == ".safetensors":
        if not Path(name).is_file():
            raise InputError(f"{name}: no such weights file; train some with `python -m model train`")
        return Path(name)
    known = dict.fromkeys([*TASKS, *_shipped()])
    if name not in known and Path(name).is_dir():
        if not (Path(name) / HUB_WEIGHTS).is_file():
            raise InputError(
                f"{name}: has no {HUB_WEIGHTS}; name a folder that `hub export` wrote, or a file"
            )
        return Path(name) / HUB_WEIGHTS
    if name not in known:
        raise InputError(f"unknown weights '{name}'.{nearest(str(name), known)} Or give a .safetensors file.")
    for path in (SHIPPED / f"{name}.safetensors", run_dir("demo", str(name)) / "weights.safetensors"):
        if path.is_file():
            return path
    raise InputError(
        f"no weights for '{name}' yet; run `make demo`, or `python -m model train --task {name}` "
        "on your own data and pass the file with --weights"
    )


def _shipped() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def weights_for(task: str, bands: int) -> str:
    """The name of a task's weights for sources of so many bands: `pansharpening_8` has eight of them.

    The shipped ones of the most bands that are not too many; the task's own where there are none.
    """
    suffixes = [name.removeprefix(f"{task}_") for name in _shipped() if name.startswith(f"{task}_")]
    fitting = [int(suffix) for suffix in suffixes if suffix.isdigit() and int(suffix) <= bands]
    return f"{task}_{max(fitting)}" if fitting else task


def load_weights(name: str | Path, device: str | torch.device = "cpu", dtype: str = "float32") -> Fuser:
    """Load weights by task id or path; the file is safetensors, nothing in it is executed.

    ``device``: ``auto``, ``cpu``, ``cuda``, ``cuda:1``; ``dtype``: ``float32``, ``bfloat16``, ``float16``.
    Raises InputError for unknown names, missing or damaged files and weights of another network.
    """
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype '{dtype}'.{nearest(dtype, DTYPES)}")
    place = pick_device(device)
    path = find_weights(name)
    record, state = read_weights(path)
    config = build(ModelConfig, record["model"], str(record_of(path)))
    try:
        network = RWKVFusion(config)
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: not weights of this network ({first_line(error)}); train again") from error
    return Fuser(path, record, network.to(place).eval(), place, DTYPES[dtype])


def load_model(dataset: str, task: str, device: str | torch.device = "cpu") -> Fuser:
    """The weights that were trained on a data set for a task. Raises InputError when there are none."""
    path = run_dir(dataset, task) / "weights.safetensors"
    if not path.is_file():
        raise InputError(
            f"{path}: not trained yet; run `python -m model train --task {task} --dataset {dataset}`"
        )
    return load_weights(path, device)


def fuse(
    sources: Sequence[SourceLike],
    weights: Fuser | str | Path,
    *,
    text: NDArray[np.floating] | None = None,
    masks: NDArray[np.bool_] | None = None,
    colour: Colour = "auto",
    memory: int | None = None,
) -> FloatArray:
    """Fuse the sources of one sample; returns float32 (C, H, W) in [0, 1] of the first source's size.

    ``sources``: paths, or arrays H x W, C x H x W or H x W x C (up to 4 bands last); integers are divided by
    their type's maximum, floats lie in [0, 1]. Sharpening tasks fuse all bands; where the low-resolution
    source has more than the weights were trained on, groups of neighbouring bands are sharpened one after
    the other. The others fuse luminance; more sources than the network takes are folded in one after
    the other. ``text``: features (T, 512); ``masks``: (c, H, W), merged, or for a network of unmerged masks
    as `by_source` lays them out. ``colour``: ``ycbcr`` adds the sources' fused chrominance, ``rgb`` fuses
    R, G, B one by one, ``gray`` gives luminance, ``auto`` is ``ycbcr`` when a source is in colour.
    ``memory``: bytes for the network's intermediate results; an image that needs more is fused in tiles.

    Raises InputError when sources do not fit each other, the weights or the guidance.
    """
    fuser = weights if isinstance(weights, Fuser) else load_weights(weights)
    images = [_pixels(source) for source in sources]
    check(images, fuser, colour)
    size = images[0].shape[1:]
    check_masks(masks, fuser, (size[0], size[1]))
    shape = fuser.shape
    tiling = plan((size[0], size[1]), fuser.pixels_within(memory), shape.align, shape.reach)
    if len(tiling) == 1:
        own = None if masks is None else masks[None]
        return combine([image[None] for image in images], fuser, text, own, colour)[0]
    patches = Patches(
        (size[0], size[1]),
        [window_of(image) for image in images],
        [size[0] // image.shape[1] for image in images],
        [image.shape[0] for image in images],
    )
    own_masks = None if masks is None else window_of(masks)
    tiles = TiledFusion(patches, fuser, text, own_masks, colour, tiling, shape)
    for _ in range(tiles.passes - 1):
        tiles.learn()
    fused: FloatArray | None = None
    for pair in tiling.pairs:
        for rows, columns, pixels in tiles.fuse(pair):
            if fused is None:
                fused = np.empty((len(pixels), *size), np.float32)
            fused[:, rows, columns] = pixels
    assert fused is not None
    return fused


def window_of(array: NDArray[Any]) -> Callable[[int, int, int, int], NDArray[Any]]:
    """Windows (top, left, height, width) of an array (C, H, W)."""
    return lambda top, left, height, width: array[:, top : top + height, left : left + width]


def _pixels(source: SourceLike) -> FloatArray:
    if isinstance(source, (str, Path)):
        return read_image(Path(source)).pixels
    array = np.asarray(source)
    if array.dtype.kind not in "uif" or array.dtype in (np.int64, np.uint64):
        raise InputError(
            f"a source array is of type {array.dtype}, which no image has; give integers of 8, 16 or 32 bits "
            "(the type's greatest value is white), or floats in [0, 1]"
        )
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(f"a source has shape H x W, C x H x W or H x W x C, this one has {array.shape}")
    if array.shape[2] <= 4 < array.shape[0]:
        array = array.transpose(2, 0, 1)
    if np.issubdtype(array.dtype, np.integer):
        array = array / np.float32(np.iinfo(array.dtype).max)
    pixels = array.astype(np.float32)
    if not (np.isfinite(pixels).all() and pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6):
        raise InputError("a source array has values that are NaN or outside [0, 1]; scale it first")
    return pixels.clip(0, 1)


class HasShape(Protocol):
    """An image (C, H, W), or what is known of one before it is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def check(images: Sequence[HasShape], fuser: Fuser, colour: Colour = "auto") -> None:
    """Check that the sources fit each other and the weights. Raises InputError."""
    if colour not in get_args(Colour):
        raise InputError(f"unknown colour '{colour}'.{nearest(colour, get_args(Colour))}")
    wanted = fuser.network.config.in_channels
    if fuser.sharpening:
        bands = tuple(image.shape[0] for image in images)
        base = fuser.network.config.base
        if len(bands) != len(wanted) or any(
            have < want or (have > want and place != base)
            for place, (have, want) in enumerate(zip(bands, wanted, strict=True))
        ):
            raise InputError(
                f"{fuser.path}: trained for {fuser.task} of {wanted} bands, these sources have {bands}; "
                "give the sources in that order or train weights for them"
            )
        height, width = images[0].shape[1:]
        for number, image in enumerate(images[1:], start=2):
            h, w = image.shape[1:]
            if height % h or height // h * w != width:
                raise InputError(
                    f"source {number} is {h}x{w}, the first is {height}x{width}; it must be smaller by a "
                    "whole ratio, the same in both directions"
                )
        return
    for number, image in enumerate(images, start=1):
        if image.shape[0] not in (1, 3):
            raise InputError(
                f"source {number} has {image.shape[0]} bands; {fuser.task} takes grey or RGB images"
            )
    if len(images) < len(wanted):
        raise InputError(
            f"{fuser.path}: fuses {len(wanted)} sources, got {len(images)}; give the missing one"
        )
    for number, image in enumerate(images[1:], start=2):
        if image.shape[1:] != images[0].shape[1:]:
            raise InputError(
                f"source {number} is {image.shape[1]}x{image.shape[2]}, the first is {images[0].shape[1]}x"
                f"{images[0].shape[2]}; register and resize them first (registration is outside this tool)"
            )


def check_masks(masks: NDArray[np.bool_] | None, fuser: Fuser, size: tuple[int, int]) -> None:
    """Check that masks are (c, H, W) of that size and as many as the network takes. Raises InputError."""
    config = fuser.network.config
    if masks is None or config.guidance not in MASK_GUIDANCE:
        return
    sets, most = config.mask_inputs // config.mask_channels, config.mask_inputs
    fits = masks.ndim == 3 and masks.shape[1:] == size and masks.shape[0] <= most
    if not fits or (sets > 1 and masks.shape[0] != most):
        raise InputError(
            f"masks have shape c x {size[0]} x {size[1]} with c {'<=' if sets == 1 else '='} {most}, "
            f"these have {masks.shape}"
        )

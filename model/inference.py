"""Fuse images of any size with trained weights, in colour, never stretched.

One sample is fused at a time, so its result does not depend on its neighbours. Memory grows with the area:
about 1.7 GiB per megapixel for a network of three levels on the CPU (2.4 in `rwkvfusion fuse`, which trades
memory for time), beside 0.5 GiB for the libraries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from model.colour import fuse_chroma, rgb_to_ycbcr, ycbcr_to_rgb
from model.config import MASK_GUIDANCE, TEXT_GUIDANCE, ModelConfig, run_dir
from model.masks import by_source, mask_channels
from model.network import RWKVFusion
from model.record import read_record
from pipeline.config import build
from pipeline.errors import InputError
from pipeline.images import FloatArray, luminance, read_image
from pipeline.manifest import SHARPENING_TASKS, TASKS, nearest

if TYPE_CHECKING:
    from pipeline.store import MergedMasks  # imports zarr, which images without stored guidance need not

SHIPPED = Path(__file__).with_name("weights")
Colour = Literal["auto", "rgb", "ycbcr", "gray"]
SourceLike = NDArray[Any] | str | Path


@dataclass(frozen=True, eq=False)
class Fuser:
    """A trained network ready to fuse: where its weights come from, their record (json) and its device."""

    path: Path
    record: dict[str, Any]
    network: RWKVFusion
    device: torch.device

    @property
    def task(self) -> str:
        return str(self.record["task"])

    @property
    def sharpening(self) -> bool:
        return self.task in SHARPENING_TASKS

    def masks_of(self, merged: MergedMasks | None, sample: str) -> NDArray[np.bool_] | None:
        """A sample's stored masks as the network takes them. Raises InputError as `by_source` does."""
        config = self.network.config
        if merged is None or config.guidance != "unmerged":
            return None if merged is None else merged.mask
        return by_source(merged.mask, merged.sources, len(config.in_channels), sample)


def find_weights(name: str | Path) -> Path:
    """Path of weights by task id (shipped with the package, else trained on the demo) or by path.

    Raises InputError that names the nearest task, or how to get weights.
    """
    if Path(name).suffix == ".safetensors":
        if not Path(name).is_file():
            raise InputError(f"{name}: no such weights file; train some with `python -m model train`")
        return Path(name)
    if name not in TASKS:
        raise InputError(f"unknown weights '{name}'.{nearest(str(name), TASKS)} Or give a .safetensors file.")
    for path in (SHIPPED / f"{name}.safetensors", run_dir("demo", str(name)) / "weights.safetensors"):
        if path.is_file():
            return path
    raise InputError(
        f"no weights for '{name}' yet; run `make demo`, or `python -m model train --task {name}` "
        "on your own data and pass the file with --weights"
    )


def load_weights(name: str | Path, device: str | torch.device = "cpu") -> Fuser:
    """Load weights by task id or path; the file is safetensors, nothing in it is executed.

    Raises InputError for unknown names, missing or damaged files and weights of another network.
    """
    path = find_weights(name)
    record = read_record(path)
    config = build(ModelConfig, record["model"], str(path.with_suffix(".json")))
    content = path.read_bytes()
    if record.get("sha256") != hashlib.sha256(content).hexdigest():
        raise InputError(
            f"{path}: does not match the checksum in its .json; fetch or train the weights again"
        )
    try:
        network = RWKVFusion(config)
        network.load_state_dict({name: value.float() for name, value in load(content).items()})
    except (SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{path}: not weights of this network ({str(error).splitlines()[0]}); train anew"
        ) from error
    return Fuser(path, record, network.to(device).eval(), torch.device(device))


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
) -> FloatArray:
    """Fuse the sources of one sample; returns float32 (C, H, W) in [0, 1] of the first source's size.

    ``sources``: paths, or arrays H x W, C x H x W or H x W x C (up to 4 bands last); integers are divided by
    their type's maximum, floats lie in [0, 1]. Sharpening tasks fuse all bands; where the low-resolution
    source has more than the weights were trained on, groups of neighbouring bands are sharpened one after
    the other. The others fuse luminance; more sources than the network takes are folded in one after
    the other. ``text``: features (T, 512); ``masks``: (c, H, W), merged, or for a network of unmerged masks
    as `by_source` lays them out. ``colour``: ``ycbcr`` adds the sources' fused chrominance, ``rgb`` fuses
    R, G, B one by one, ``gray`` gives luminance, ``auto`` is ``ycbcr`` when a source is in colour.

    Raises InputError when sources do not fit each other, the weights or the guidance.
    """
    fuser = weights if isinstance(weights, Fuser) else load_weights(weights)
    if colour not in get_args(Colour):
        raise InputError(f"unknown colour '{colour}'.{nearest(colour, get_args(Colour))}")
    images = [_pixels(source) for source in sources]
    _check(images, fuser)
    guidance = _guidance(fuser, text, masks, images[0].shape[1:])
    if fuser.sharpening:
        return _sharpen(fuser, images, guidance)
    coloured = [image for image in images if image.shape[0] == 3]
    if colour == "gray" or not coloured:
        return _fold(fuser, [luminance(image)[None] for image in images], guidance)
    if colour == "rgb":
        bands = [[image[band % image.shape[0]][None] for image in images] for band in range(3)]
        return np.concatenate([_fold(fuser, band, guidance) for band in bands])
    luma = _fold(fuser, [luminance(image)[None] for image in images], guidance)[0]
    return ycbcr_to_rgb(luma, fuse_chroma([rgb_to_ycbcr(image)[1:] for image in coloured]))


def _pixels(source: SourceLike) -> FloatArray:
    if isinstance(source, (str, Path)):
        return read_image(Path(source)).pixels
    array = np.asarray(source)
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


def _check(images: Sequence[FloatArray], fuser: Fuser) -> None:
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


_Guidance = tuple[Tensor | None, Tensor | None, Tensor | None]


def _guidance(
    fuser: Fuser, text: NDArray[np.floating] | None, masks: NDArray[np.bool_] | None, size: tuple[int, ...]
) -> _Guidance:
    config = fuser.network.config
    features = length = channels = None
    if text is not None and config.guidance in TEXT_GUIDANCE:
        if text.ndim != 2 or text.shape[1] != config.text_width:
            raise InputError(f"text features have shape T x {config.text_width}, these have {text.shape}")
        features = torch.from_numpy(np.array(text, dtype=np.float32))[None].to(fuser.device)
        length = torch.tensor([len(text)], device=fuser.device)
    if masks is not None and config.guidance in MASK_GUIDANCE:
        sets, most = config.mask_inputs // config.mask_channels, config.mask_inputs
        fits = masks.ndim == 3 and masks.shape[1:] == tuple(size) and masks.shape[0] <= most
        if not fits or (sets > 1 and masks.shape[0] != most):
            raise InputError(
                f"masks have shape c x {size[0]} x {size[1]} with c {'<=' if sets == 1 else '='} {most}, "
                f"these have {masks.shape}"
            )
        channels = mask_channels(masks, sets)[None].to(fuser.device)
    return features, length, channels


def _sharpen(fuser: Fuser, images: Sequence[FloatArray], guidance: _Guidance) -> FloatArray:
    """Sharpen all bands; more than the network was trained for go through it in groups of neighbours."""
    base, count = fuser.network.config.base, fuser.network.config.out_channels
    assert base is not None
    bands = images[base].shape[0]
    fused = np.empty((bands, *images[0].shape[1:]), dtype=np.float32)
    for start in range(0, bands, count):
        group = slice(min(start, bands - count), min(start, bands - count) + count)
        inputs = [*images[:base], images[base][group], *images[base + 1 :]]
        fused[group] = _apply(fuser, inputs, guidance)
    return fused


def _fold(fuser: Fuser, planes: Sequence[FloatArray], guidance: _Guidance) -> FloatArray:
    """Fuse n planes with a network of k <= n sources: fused so far, with the next k - 1, and so on."""
    count = len(fuser.network.config.in_channels)
    fused = _apply(fuser, planes[:count], guidance)
    rest = list(planes[count:])
    while rest:
        group = [fused, *rest[: count - 1]]
        # Too few left to fill the network: the last plane may come in once more, it is there already.
        group += [group[-1]] * (count - len(group))
        fused = _apply(fuser, group, guidance)
        rest = rest[count - 1 :]
    return fused


@torch.inference_mode()
def _apply(fuser: Fuser, images: Sequence[FloatArray], guidance: _Guidance) -> FloatArray:
    text, length, masks = guidance
    inputs = [torch.from_numpy(np.ascontiguousarray(image))[None].to(fuser.device) for image in images]
    fused = fuser.network(inputs, text, length, masks)[0].float().clamp(0, 1).cpu().numpy()
    if not np.isfinite(fused).all():
        raise InputError(
            f"{fuser.path}: gives values that are not finite for this sample; report it with the images"
        )
    return fused

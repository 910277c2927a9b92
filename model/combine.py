"""From windows of the sources to fused ones: luminance, bands, colour, more sources than the network takes.

Arrays are (B, C, H, W) in [0, 1]: one image, or a pair of tiles of one (model/whole.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.colour import fuse_chroma, rgb_to_ycbcr, ycbcr_to_rgb
from model.config import MASK_GUIDANCE, TEXT_GUIDANCE
from model.masks import mask_channels
from pipeline.errors import InputError
from pipeline.images import FloatArray, luminance

if TYPE_CHECKING:
    from model.inference import Fuser
    from model.whole import Whole

Colour = Literal["auto", "rgb", "ycbcr", "gray"]


def combine(
    images: Sequence[FloatArray],
    fuser: Fuser,
    text: NDArray[np.floating] | None,
    masks: NDArray[np.bool_] | None,
    colour: Colour,
    whole: Whole | None = None,
) -> FloatArray:
    """Fuse images, which `model.inference.check` has passed, or tiles of a ``whole``.

    ``images``: one (B, C, H, W) per source; ``masks`` (B, c, H, W). Returns (B, C, H, W).
    """
    guidance = _guidance(fuser, text, masks, len(images[0]), whole)
    if fuser.sharpening:
        return _sharpen(fuser, images, guidance)
    coloured = [image for image in images if image.shape[1] == 3]
    if colour == "gray" or not coloured:
        return _fold(fuser, [_luminance(image) for image in images], guidance)
    if colour == "rgb":
        bands = [[image[:, band % image.shape[1]][:, None] for image in images] for band in range(3)]
        return np.concatenate([_fold(fuser, band, guidance) for band in bands], axis=1)
    luma = _fold(fuser, [_luminance(image) for image in images], guidance)
    return np.stack([
        ycbcr_to_rgb(own[0], fuse_chroma([rgb_to_ycbcr(image[number])[1:] for image in coloured]))
        for number, own in enumerate(luma)
    ])  # fmt: skip


def forwards(bands: Sequence[int], fuser: Fuser, colour: Colour) -> int:
    """How many times `combine` calls the network, for sources of so many bands."""
    config = fuser.network.config
    if fuser.sharpening:
        assert config.base is not None
        return -(-bands[config.base] // config.out_channels)
    planes = 3 if colour == "rgb" and 3 in bands else 1
    return planes * max(-(-(len(bands) - 1) // (len(config.in_channels) - 1)), 1)


def _luminance(image: FloatArray) -> FloatArray:
    return np.stack([luminance(one)[None] for one in image])


@dataclass(frozen=True)
class _Guidance:
    text: Tensor | None
    length: Tensor | None
    masks: Tensor | None
    whole: Whole | None


def _guidance(
    fuser: Fuser,
    text: NDArray[np.floating] | None,
    masks: NDArray[np.bool_] | None,
    batch: int,
    whole: Whole | None,
) -> _Guidance:
    config = fuser.network.config
    features = length = channels = None
    if text is not None and config.guidance in TEXT_GUIDANCE:
        if text.ndim != 2 or text.shape[1] != config.text_width:
            raise InputError(f"text features have shape T x {config.text_width}, these have {text.shape}")
        features = torch.from_numpy(np.array(text, dtype=np.float32)).expand(batch, -1, -1).to(fuser.device)
        length = torch.tensor([len(text)] * batch, device=fuser.device)
    if masks is not None and config.guidance in MASK_GUIDANCE:
        sets = config.mask_inputs // config.mask_channels
        channels = torch.stack([mask_channels(own, sets) for own in masks]).to(fuser.device)
    return _Guidance(features, length, channels, whole)


def _sharpen(fuser: Fuser, images: Sequence[FloatArray], guidance: _Guidance) -> FloatArray:
    """Sharpen all bands; more than the network was trained for go through it in groups of neighbours."""
    base, count = fuser.network.config.base, fuser.network.config.out_channels
    assert base is not None
    bands = images[base].shape[1]
    fused = np.empty((len(images[0]), bands, *images[0].shape[2:]), dtype=np.float32)
    for start in range(0, bands, count):
        group = slice(min(start, bands - count), min(start, bands - count) + count)
        inputs = [*images[:base], images[base][:, group], *images[base + 1 :]]
        fused[:, group] = _apply(fuser, inputs, guidance)
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
    inputs = [torch.from_numpy(np.ascontiguousarray(image)).to(fuser.device) for image in images]
    arguments = (inputs, guidance.text, guidance.length, guidance.masks)
    half, whole = fuser.dtype != torch.float32, guidance.whole
    with fuser.turn, torch.autocast(fuser.device.type, fuser.dtype) if half else nullcontext():
        if whole is None:
            fused = fuser.network(*arguments)
        else:
            with whole.forward(fuser.network):
                fused = fuser.network.forward(*arguments)  # never the compiled one, which knows no tiles
    fused = fused.float().clamp(0, 1).cpu().numpy()
    if not np.isfinite(fused).all():
        raise InputError(
            f"{fuser.path}: gives values that are not finite for this sample; report it with the images"
        )
    return fused

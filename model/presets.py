"""The full-size network of each task, as Tables 2-5 use it; that of params.yaml, for the demo, is smaller.

Sharpening: two levels, their depths chosen so that parameters and FLOPs come out as in Tables 4 and 5
(WorldView-3: one panchromatic and 8 bands; Chikusei: RGB and 128 bands). The other tasks, whose images are
larger and for which the paper gives no count: three levels. All are 32 channels wide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from model.config import ModelConfig
from pipeline.errors import InputError
from pipeline.manifest import nearest


def fusion(**changes: Any) -> ModelConfig:
    """Two sources of luminance to one, guided by text and masks; ``changes`` are fields of ModelConfig."""
    config = ModelConfig(width=32, encoder_depths=(2, 1, 1), decoder_depths=(2, 1), channel_ratio=2.0)
    return replace(config, **changes)


def pansharpening(**changes: Any) -> ModelConfig:
    """WorldView-3: one panchromatic band and 8 multispectral ones, guided by text. Table 4."""
    config = ModelConfig(
        width=32,
        encoder_depths=(5, 4),
        decoder_depths=(4,),
        channel_ratio=2.0,
        guidance="text",
        in_channels=(1, 8),
        out_channels=8,
        base=1,
    )
    return replace(config, **changes)


def hyper_multispectral(**changes: Any) -> ModelConfig:
    """Chikusei: RGB and 128 hyperspectral bands, guided by text. Table 5."""
    config = ModelConfig(
        width=32,
        encoder_depths=(3, 5),
        decoder_depths=(3,),
        channel_ratio=2.0,
        guidance="text",
        in_channels=(3, 128),
        out_channels=128,
        base=1,
    )
    return replace(config, **changes)


PRESETS: dict[str, Callable[..., ModelConfig]] = {
    "visible_infrared": fusion,
    "medical": fusion,
    "multi_exposure": fusion,
    "multi_focus": fusion,
    "pansharpening": pansharpening,
    "hyper_multispectral": hyper_multispectral,
}
"""Preset by task id."""


def preset(name: str, **changes: Any) -> ModelConfig:
    """The preset of a task, with ``changes`` applied. Raises InputError with the nearest name."""
    if name not in PRESETS:
        raise InputError(f"unknown preset '{name}'.{nearest(name, PRESETS)}")
    return PRESETS[name](**changes)

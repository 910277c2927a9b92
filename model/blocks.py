"""A BRWKV layer: spatial mix (eq. 6-8), channel mix (eq. 9-11), multi-modal fusion (eq. 15-18).

Images travel as (B, H, W, C), text as (B, T, C). Residual connections, which the paper's equations leave out,
stand around every part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.spatial_mix import SpatialMix, Text

if TYPE_CHECKING:
    from model.whole import Whole

_PORTION = 1 << 16  # tokens that the channel mix takes at once where no gradient is wanted: bounds its memory


class Convolution(nn.Conv2d):
    """A 3 x 3 convolution of (B, H, W, C) images."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(channels, out_channels, 3, stride, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ChannelMix(nn.Module):
    """Eq. 9-11, token by token: any (..., C) to the same shape, without a residual."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = max(1, round(channels * ratio))
        self.norm = nn.RMSNorm(channels, eps=1e-6)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, hidden, bias=False)
        self.value = nn.Linear(hidden, channels, bias=False)
        self.output = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # A program for every size (model/export.py) cannot choose by size.
        if torch.compiler.is_exporting() or torch.is_grad_enabled() or x.numel() <= _PORTION * x.shape[-1]:
            return self._mix(x)
        portions = x.flatten(0, -2).split(_PORTION)
        return torch.cat([self._mix(portion) for portion in portions]).view(x.shape)

    def _mix(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        value = self.value(F.relu(self.key(x)).square())
        return self.output(torch.sigmoid(self.receptance(x)) * value)


class MultiModalFusion(nn.Module):
    """Eq. 15-18: the raw sources, the masks and the text enter a layer of the encoder.

    Eq. 15 overwrites X_feat; eq. 16 and 17 are read with the features before the gate in the mask path. Masks
    enter through a convolution without bias, so that absent masks and empty ones are the same. ``text_mix``
    is a spatial mix, or the cross-attention that Table 6 puts in its place. ``whole`` is set where the image
    is only a part of a larger one, whose mean it knows (model/whole.py).
    """

    whole: Whole | None = None

    def __init__(
        self,
        channels: int,
        source_channels: int,
        mask_channels: int,
        text_mix: nn.Module | None,
        ratio: float,
    ) -> None:
        super().__init__()
        self.feature = Convolution(channels, channels)
        self.feature_norm = nn.RMSNorm(channels, eps=1e-6)
        self.source = Convolution(source_channels, channels)
        self.source_norm = nn.RMSNorm(channels, eps=1e-6)
        self.mask = Convolution(mask_channels, channels, bias=False) if mask_channels else None
        self.text_mix = text_mix
        self.text_channel_mix = ChannelMix(channels, ratio) if text_mix is not None else None

    def forward(
        self, x: Tensor, sources: Tensor, masks: Tensor | None, text: Text | None
    ) -> tuple[Tensor, Text | None]:
        both = self.feature_norm(self.feature(x)) + self.source_norm(self.source(sources))
        mean = both.mean(dim=(1, 2), keepdim=True) if self.whole is None else self.whole.mean(both)
        guided = both * F.gelu(mean)
        if masks is not None and self.mask is not None:
            guided = guided + both * self.mask(masks)
        x = x + guided
        if self.text_mix is None or self.text_channel_mix is None:
            return x, text
        image, words = self.text_mix(x, text)
        x = x + image
        x = x + self.text_channel_mix(x)
        if text is None or words is None:
            return x, None
        tokens = text.tokens + words
        return x, Text(tokens + self.text_channel_mix(tokens), text.length)


class BRWKVLayer(nn.Module):
    """Spatial mix, then channel mix; in the encoder, multi-modal fusion before both."""

    def __init__(self, mix: SpatialMix, channel_mix: ChannelMix, fusion: nn.Module | None = None) -> None:
        super().__init__()
        self.fusion = fusion
        self.spatial_mix = mix
        self.channel_mix = channel_mix

    def forward(
        self, x: Tensor, sources: Tensor | None = None, masks: Tensor | None = None, text: Text | None = None
    ) -> tuple[Tensor, Text | None]:
        if self.fusion is not None and sources is not None:
            x, text = self.fusion(x, sources, masks, text)
        x = x + self.spatial_mix(x)[0]
        return x + self.channel_mix(x), text

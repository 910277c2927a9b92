"""The parts of a BRWKV layer: spatial mix (eq. 6-8), channel mix (eq. 9-11), multi-modal fusion (eq. 15-18).

Images travel as (B, H, W, C), text as (B, T, C). Residual connections, which the paper's equations leave out,
stand around every part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.bi_wkv import bi_wkv
from model.scan import paths, scan, scan_ratio, unscan

# A key far below any a network makes: e^{k - max} is exactly 0, so the token is in no sum.
_ABSENT_KEY = -1e4


@dataclass(frozen=True)
class Text:
    """Text features on their way through the encoder: tokens (B, T, C), length (B,) of real tokens."""

    tokens: Tensor
    length: Tensor

    def padding(self) -> Tensor:
        """(B, T), true where a token is padding."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) >= self.length[:, None]


class Convolution(nn.Conv2d):
    """A 3 x 3 convolution of (B, H, W, C) images."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(channels, out_channels, 3, stride, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SpatialMix(nn.Module):
    """Eq. 6-8 over the scans of an image and, beside it, text tokens at one end of every scan.

    Image and text are normalised, mixed and returned without a residual. Padding tokens of the text stand at
    the far end, carry no weight, and do not count in L, which is each sample's own H W + T.
    """

    def __init__(self, channels: int, strategy: int, block: int, text_first: bool = True) -> None:
        super().__init__()
        self.paths = paths(strategy, block)
        self.scans = scan_ratio(strategy)
        self.text_first = text_first
        width = self.scans * channels
        self.norm = nn.RMSNorm(channels, eps=1e-6)
        self.receptance_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, channels, bias=False)
        # Reach from the whole image down to a sixteenth, bonus from context only to mostly the token itself.
        place = torch.arange(width)
        self.decay = nn.Parameter(16.0 * place / max(width - 1, 1))
        self.bonus = nn.Parameter(3.0 * (place % 3))

    def forward(self, x: Tensor, text: Text | None = None) -> tuple[Tensor, Tensor | None]:
        height, width = x.shape[1:3]
        pixels = height * width
        sequence = scan(self.norm(x), self.paths)
        decay: Tensor = self.decay
        absent, order = None, None
        if text is not None:
            tokens, absent, order = self._place(text)
            ends = [self.norm(tokens).repeat(1, 1, self.scans), sequence]
            sequence = torch.cat(ends if self.text_first else ends[::-1], dim=1)
            # The operator divides by the padded length; each sample's decay makes it that sample's own.
            own = (pixels + text.length).to(decay.dtype)
            decay = decay * (sequence.shape[1] / own)[:, None]
        receptance, key, value = self.receptance_key_value(sequence).chunk(3, dim=-1)
        if absent is not None:
            rest = (pixels, 0) if not self.text_first else (0, pixels)
            key = key.masked_fill(F.pad(absent, rest)[..., None], _ABSENT_KEY)
        mixed = torch.sigmoid(receptance) * bi_wkv(decay, self.bonus, key, value)
        if text is None:
            return self.output(unscan(mixed, self.paths, height, width)), None
        count = text.tokens.shape[1]
        sizes = [count, pixels] if self.text_first else [pixels, count]
        parts = mixed.split(sizes, dim=1)
        words, image = parts if self.text_first else parts[::-1]
        if order is not None:
            words = _gather(words, order.argsort(dim=1))
        return self.output(unscan(image, self.paths, height, width)), self.output(words)

    def _place(self, text: Text) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens with their padding at the end away from the image, where that is, and their order."""
        padding = text.padding()
        if not self.text_first:
            return text.tokens, padding, None
        count = text.tokens.shape[1]
        order = (torch.arange(count, device=padding.device) + text.length[:, None]) % max(count, 1)
        return _gather(text.tokens, order), padding.gather(1, order), order


def _gather(tokens: Tensor, order: Tensor) -> Tensor:
    return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))


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
        x = self.norm(x)
        value = self.value(F.relu(self.key(x)).square())
        return self.output(torch.sigmoid(self.receptance(x)) * value)


class MultiModalFusion(nn.Module):
    """Eq. 15-18: the raw sources, the masks and the text enter a layer of the encoder.

    Eq. 15 overwrites X_feat; eq. 16 and 17 are read with the features before the gate in the mask path. Masks
    enter through a convolution without bias, so that absent masks and empty ones are the same.
    """

    def __init__(
        self,
        channels: int,
        source_channels: int,
        mask_channels: int,
        text_mix: SpatialMix | None,
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
        guided = both * F.gelu(both.mean(dim=(1, 2), keepdim=True))
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

    def __init__(
        self, mix: SpatialMix, channel_mix: ChannelMix, fusion: MultiModalFusion | None = None
    ) -> None:
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

"""What Table 6 puts in place of the multi-modal fusion module (sect. 5.3), of the same interface."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.spatial_mix import Text

HEAD_WIDTH = 32


class MLPFusion(nn.Module):
    """Two perceptrons of three layers, one for image, sources and masks pixel by pixel, one for the text.

    The text's mean over real tokens stands beside every pixel; a linear layer joins the two. Absent masks and
    absent text are zeros. Image and text keep a residual connection, as in the default.
    """

    def __init__(self, channels: int, source_channels: int, mask_channels: int, use_text: bool) -> None:
        super().__init__()
        self.mask_channels = mask_channels
        self.image = _perceptron(channels + source_channels + mask_channels, channels)
        self.words = _perceptron(channels, channels) if use_text else None
        self.join = nn.Linear(2 * channels if use_text else channels, channels)

    def forward(
        self, x: Tensor, sources: Tensor, masks: Tensor | None, text: Text | None
    ) -> tuple[Tensor, Text | None]:
        parts = [x, sources]
        if self.mask_channels:
            empty = (*x.shape[:3], self.mask_channels)
            parts.append(x.new_zeros(empty) if masks is None else masks)
        image = self.image(torch.cat(parts, dim=-1))
        if self.words is not None:
            summary = torch.zeros_like(x[:, 0, 0])
            if text is not None:
                words = self.words(text.tokens)
                real = words.masked_fill(text.padding()[..., None], 0.0)
                summary = real.sum(dim=1) / text.length.clamp(min=1)[:, None].to(real.dtype)
                text = Text(text.tokens + words, text.length)
            image = torch.cat([image, summary[:, None, None].expand_as(x).to(image.dtype)], dim=-1)
        return x + self.join(image), text


class CrossAttention(nn.Module):
    """Text queries the image, and the image queries the text, in place of the spatial mix of eq. 18.

    Queries and keys are normalised per head, as in Flux.1. An absent text, or one without tokens, gives the
    image nothing: beside the text's tokens stands one of zeros.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        wanted = max(1, channels // HEAD_WIDTH)
        self.heads = max(heads for heads in range(1, wanted + 1) if channels % heads == 0)
        self.image_norm = nn.RMSNorm(channels, eps=1e-6)
        self.text_norm = nn.RMSNorm(channels, eps=1e-6)
        self.image_query_key_value = nn.Linear(channels, 3 * channels, bias=False)
        self.text_query_key_value = nn.Linear(channels, 3 * channels, bias=False)
        self.query_norm = nn.RMSNorm(channels // self.heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(channels // self.heads, eps=1e-6)
        self.image_output = nn.Linear(channels, channels, bias=False)
        self.text_output = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor, text: Text | None = None) -> tuple[Tensor, Tensor | None]:
        """What to add to the image (B, H, W, C) and to the text (B, T, C)."""
        if text is None:
            return torch.zeros_like(x), None
        image = self._heads(self.image_query_key_value(self.image_norm(x.flatten(1, 2))))
        words = self._heads(self.text_query_key_value(self.text_norm(text.tokens)))
        present = F.pad(~text.padding(), (1, 0), value=True)[:, None, None]
        seen = F.scaled_dot_product_attention(
            image[0], _with_zero(words[1]), _with_zero(words[2]), attn_mask=present
        )
        read = F.scaled_dot_product_attention(words[0], image[1], image[2])
        return self.image_output(_flat(seen)).view_as(x), self.text_output(_flat(read))

    def operations(self, height: int, width: int, words: int) -> int:
        """Multiplications with addition of the two attentions, without those of the linear layers."""
        if not words:
            return 0
        return 2 * height * width * (2 * words + 1) * self.image_output.in_features

    def _heads(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.query_norm(query).to(value.dtype), self.key_norm(key).to(value.dtype), value


def _perceptron(channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (channels, out_channels, out_channels):
        layers += [nn.Linear(width, out_channels), nn.RMSNorm(out_channels, eps=1e-6), nn.ReLU()]
    return nn.Sequential(*layers)


def _with_zero(tokens: Tensor) -> Tensor:
    """A token of zeros before the others of (B, heads, T, D)."""
    return F.pad(tokens, (0, 0, 1, 0))


def _flat(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)

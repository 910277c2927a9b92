"""Spatial mix (eq. 6-8) around any attention operator: scans, text tokens, windows.

Images travel as (B, H, W, C), text as (B, T, C). The operators themselves are in operators.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.scan import paths, scan, scan_ratio, unscan
from model.windows import merge, partition

_ALL = slice(None)


@dataclass(frozen=True)
class Text:
    """Text features on their way through the encoder: tokens (B, T, C), length (B,) of real tokens."""

    tokens: Tensor
    length: Tensor

    def padding(self) -> Tensor:
        """(B, T), true where a token is padding."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) >= self.length[:, None]


@dataclass(frozen=True)
class Layout:
    """What a sequence of L tokens holds: H W pixels, and before or after them ``words`` text tokens.

    ``absent`` (B, L) is true at padding tokens of the text, ``length`` (B,) counts the others; both are None
    where there is no text.
    """

    height: int
    width: int
    words: int = 0
    text_first: bool = True
    absent: Tensor | None = None
    length: Tensor | None = None

    def split(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, C) to its text (B, words, C) and its pixels (B, H W, C)."""
        if self.text_first:
            return sequence[:, : self.words], sequence[:, self.words :]
        pixels = self.height * self.width
        return sequence[:, pixels:], sequence[:, :pixels]

    def join(self, text: Tensor, pixels: Tensor) -> Tensor:
        """Inverse of `split`."""
        return torch.cat([text, pixels] if self.text_first else [pixels, text], dim=1)


class SpatialMix(nn.Module, ABC):
    """Eq. 6-8 over the scans of an image and, beside it, text tokens at one end of every scan.

    Image and text are normalised, mixed and returned without a residual. Padding tokens of the text stand at
    the far end, carry no weight, and do not count in L, which is each sample's own H W + T. With ``window``,
    all this happens inside windows of that side: every window sees the whole text, and what the windows make
    of the text is averaged.

    A subclass is one operator: it implements `operate`, and `make_parameters` where it has some of its own.
    """

    def __init__(
        self, channels: int, strategy: int, block: int, text_first: bool = True, window: int | None = None
    ) -> None:
        super().__init__()
        self.paths = paths(strategy, block)
        self.scans = scan_ratio(strategy)
        self.text_first = text_first
        self.window = window
        width = self.scans * channels
        self.norm = nn.RMSNorm(channels, eps=1e-6)
        self.receptance_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, channels, bias=False)
        self.make_parameters(width)

    def make_parameters(self, width: int) -> None:
        """Add the operator's own parameters for sequences of that many channels."""

    @abstractmethod
    def operate(self, sequence: Tensor, layout: Layout) -> Tensor:
        """Attend: the scanned sequence (B, L, n C) to the gated attention (B, L, n C) of eq. 8."""

    @abstractmethod
    def attention_operations(self, length: int) -> int:
        """Multiplications with addition of the operator on L tokens, without those of its layers."""

    def operations(self, height: int, width: int, words: int) -> int:
        """Those of eq. 6 and of the operator, for one image and its text."""
        sequences, length = 1, height * width + words
        if self.window is not None:
            sequences, length = -(-height // self.window) * -(-width // self.window), self.window**2 + words
        return sequences * (
            length * self.receptance_key_value.weight.numel() + self.attention_operations(length)
        )

    def receptance(self, sequence: Tensor, channels: slice = _ALL) -> Tensor:
        """R of eq. 6, (B, L, n C), or some of its channels; key and value likewise. One by one, so that each
        is freed once used."""
        return self._project(sequence, 0, channels)

    def key(self, sequence: Tensor, channels: slice = _ALL) -> Tensor:
        """K of eq. 6."""
        return self._project(sequence, 1, channels)

    def value(self, sequence: Tensor, channels: slice = _ALL) -> Tensor:
        """V of eq. 6."""
        return self._project(sequence, 2, channels)

    def _project(self, sequence: Tensor, part: int, channels: slice) -> Tensor:
        weight: Tensor = self.receptance_key_value.weight.chunk(3)[part]
        return F.linear(sequence, weight[channels])

    def forward(self, x: Tensor, text: Text | None = None) -> tuple[Tensor, Tensor | None]:
        if self.window is None:
            return self._mix(x, text)
        batch, height, width = x.shape[:3]
        windows = partition(x, self.window)
        count = windows.shape[0] // batch
        if text is not None:
            text = Text(
                text.tokens.repeat_interleave(count, dim=0), text.length.repeat_interleave(count, dim=0)
            )
        image, words = self._mix(windows, text)
        image = merge(image, height, width)
        return image, None if words is None else words.unflatten(0, (batch, count)).mean(dim=1)

    def _mix(self, x: Tensor, text: Text | None) -> tuple[Tensor, Tensor | None]:
        height, width = x.shape[1:3]
        sequence = scan(self.norm(x), self.paths)
        if text is None:
            mixed = self.operate(sequence, Layout(height, width))
            del sequence
            return self.output(unscan(mixed, self.paths, height, width)), None
        pixels, count = height * width, text.tokens.shape[1]
        tokens, absent, order = self._place(text)
        rest = (0, pixels) if self.text_first else (pixels, 0)
        layout = Layout(
            height, width, count, self.text_first, F.pad(absent, rest), (pixels + text.length).float()
        )
        sequence = layout.join(self.norm(tokens).repeat(1, 1, self.scans), sequence)
        mixed = self.operate(sequence, layout)
        del sequence
        words, image = layout.split(mixed)
        if order is not None:
            words = _gather(words, order.argsort(dim=1))
        return self.output(unscan(image, self.paths, height, width)), self.output(words)

    def _place(self, text: Text) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens with their padding at the end away from the image, where that is, and their order."""
        padding = text.padding()
        if not self.text_first:
            return text.tokens, padding, None
        count = text.tokens.shape[1]
        order = torch.arange(count, device=padding.device) + text.length[:, None]
        order = torch.where(order < count, order, order - count)
        return _gather(text.tokens, order), padding.gather(1, order), order


def _gather(tokens: Tensor, order: Tensor) -> Tensor:
    return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))

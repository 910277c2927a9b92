"""The attention operators of Table 6, each a spatial mix of its own: `ModelConfig.operator` chooses.

All take the scanned sequence (B, L, n C) and its three projections of eq. 6. Where there is no gate by σ(R),
as in attention, the receptance is the query. Padding tokens of the text have no influence in any of them.
"""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.bi_wkv import bi_wkv
from model.scan import rescan, unscan
from model.selective_scan import selective_scan
from model.spatial_mix import Layout, SpatialMix, Text

if TYPE_CHECKING:
    from model.whole import Whole

WINDOW = 8
HEAD_WIDTH = 32  # of the attentions; the nearest that divides the channels
STATES = 16  # N of the selective scan
_LARGE = 1 << 16  # tokens
_TOGETHER = 16  # channels
# A key far below any a network makes: e^{k - max} is exactly 0, so the token is in no sum.
_ABSENT_KEY = -1e4


class BiWKV(SpatialMix):
    """Eq. 7: the paper's operator.

    ``whole`` is set where the image is only a part of a larger one, over all of which it then runs
    (model/whole.py).
    """

    whole: Whole | None = None

    def make_parameters(self, width: int) -> None:
        # Reach from the whole image down to a sixteenth, bonus from context only to mostly the token itself.
        place = torch.arange(width)
        self.decay = nn.Parameter(16.0 * place / max(width - 1, 1))
        self.bonus = nn.Parameter(3.0 * (place % 3))

    def forward(self, x: Tensor, text: Text | None = None) -> tuple[Tensor, Tensor | None]:
        return super().forward(x, text) if self.whole is None else self.whole.mix(self, x, text)

    def operate(self, sequence: Tensor, layout: Layout) -> Tensor:
        return torch.cat([self._some(sequence, layout, own) for own in self.portions(sequence)], dim=-1)

    def portions(self, sequence: Tensor) -> list[slice]:
        """The channels that are taken at once. They do not know of each other, and fewer at a time need less
        memory: where no gradient is wanted, large sequences are gone through in several portions."""
        count = self.decay.numel()
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or sequence.numel() <= _LARGE * count:
            return [slice(None)]
        return [slice(start, start + _TOGETHER) for start in range(0, count, _TOGETHER)]

    def _some(self, sequence: Tensor, layout: Layout, channels: slice) -> Tensor:
        key, value = self.key(sequence, channels), self.value(sequence, channels)
        decay: Tensor = self.decay[channels]
        if layout.absent is not None and layout.length is not None:
            key = key.masked_fill(layout.absent[..., None], _ABSENT_KEY)
            # The operator divides by the padded length; each sample's decay makes it that sample's own.
            decay = decay * (sequence.shape[1] / layout.length.to(decay.dtype))[:, None]
        attention = bi_wkv(decay, self.bonus[channels], key, value)
        del key, value
        return self.gated(sequence, attention, channels)

    def gated(self, sequence: Tensor, attention: Tensor, channels: slice = slice(None)) -> Tensor:
        """σ(R) times the attention (eq. 8)."""
        receptance = self.receptance(sequence, channels)
        if torch.is_grad_enabled():
            return torch.sigmoid(receptance) * attention
        return receptance.sigmoid_().mul_(attention)

    def attention_operations(self, length: int) -> int:
        """Eq. 14, whose factor 2 is the stacking of two scans along the channels."""
        return 13 * length * self.decay.numel()


class Attention(SpatialMix):
    """Softmax attention of every token to every other (Vaswani et al. 2017), quadratic in L."""

    def make_parameters(self, width: int) -> None:
        wanted = max(1, width // HEAD_WIDTH)
        self.heads = max(heads for heads in range(1, wanted + 1) if width % heads == 0)

    def operate(self, sequence: Tensor, layout: Layout) -> Tensor:
        query, key, value = self._heads(sequence)
        present = None if layout.absent is None else ~layout.absent[:, None, None]
        return _flat(F.scaled_dot_product_attention(query, key, value, attn_mask=present))

    def attention_operations(self, length: int) -> int:
        return 2 * length**2 * self.output.in_features

    def _heads(self, sequence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, (B, heads, L, width of a head)."""
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.receptance(sequence), self.key(sequence), self.value(sequence))
        )
        return query, key, value


class FlattenAttention(Attention):
    """Focused linear attention (Han et al. 2023), eq. 4-7 there:

        y_t = φ(q_t) Σ_i φ(k_i)^T v_i / φ(q_t) Σ_i φ(k_i)^T + DWC(v)_t,   φ(x) = |x⁺| / |(x⁺)³| (x⁺)³

    with a 5 x 5 depthwise convolution of the image's values, which text tokens go without.
    """

    def make_parameters(self, width: int) -> None:
        super().make_parameters(width)
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)

    def operate(self, sequence: Tensor, layout: Layout) -> Tensor:
        query, key, value = self._heads(sequence)
        query, key = _focus(query), _focus(key) / sequence.shape[1]
        if layout.absent is not None:
            key = key.masked_fill(layout.absent[:, None, :, None], 0.0)
        numerator = query @ (key.transpose(-1, -2) @ value)
        denominator = query @ key.sum(dim=-2)[..., None]
        words, pixels = layout.split(_flat(value))
        image = unscan(pixels, self.paths, layout.height, layout.width)
        local = self.depthwise(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        local = layout.join(torch.zeros_like(words), rescan(local, self.paths))
        return _flat(numerator / denominator) + local

    def attention_operations(self, length: int) -> int:
        width = self.output.in_features
        return 2 * length * width * (width // self.heads) + length * width


class VMamba(SpatialMix):
    """Selective scan S6 of the values over the scans (VMamba, Liu et al. 2024), gated by SiLU(R).

    Δ comes from the key, B and C from the values. The scan is causal: what lies ahead on one scan is seen on
    its reversal, and text tokens reach the image in the layers where they stand before it.
    """

    def make_parameters(self, width: int) -> None:
        self.state_in_out = nn.Linear(width, 2 * STATES, bias=False)
        self.log_rate = nn.Parameter(torch.log(torch.arange(1.0, STATES + 1)).repeat(width, 1))
        # Steps from 0.001 to 0.1, evenly in the logarithm: the inverse of softplus.
        steps = torch.linspace(log(1e-3), log(1e-1), width).exp()
        self.step_bias = nn.Parameter(steps.expm1().log())
        self.direct = nn.Parameter(torch.ones(width))

    def operate(self, sequence: Tensor, layout: Layout) -> Tensor:
        value = F.silu(self.value(sequence))
        wide = torch.promote_types(value.dtype, torch.float32)
        step = F.softplus(self.key(sequence).to(wide) + self.step_bias)
        if layout.absent is not None:
            step = step.masked_fill(layout.absent[..., None], 0.0)
        enter, leave = self.state_in_out(value).to(wide).chunk(2, dim=-1)
        states = selective_scan(value.to(wide), step, self.log_rate.exp(), enter, leave)
        mixed = states.to(value.dtype) + self.direct * value
        return mixed * F.silu(self.receptance(sequence))

    def attention_operations(self, length: int) -> int:
        """Two passes of two, a decay, and the sum over states; plus the direct path."""
        return length * self.output.in_features * (7 * STATES + 1)


OPERATORS: dict[str, tuple[type[SpatialMix], int | None]] = {
    "bi_wkv": (BiWKV, None),
    "window_bi_wkv": (BiWKV, WINDOW),
    "attention": (Attention, None),
    "flatten_attention": (FlattenAttention, None),
    "window_attention": (Attention, WINDOW),
    "vmamba": (VMamba, None),
}
"""Operator by the name it has in the configuration, and the side of its windows."""


def spatial_mix(
    operator: str, channels: int, strategy: int, block: int, text_first: bool = True
) -> SpatialMix:
    """The spatial mix with the operator of that name."""
    kind, window = OPERATORS[operator]
    return kind(channels, strategy, block, text_first, window)


def _flat(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)


def _focus(x: Tensor) -> Tensor:
    """φ of Han et al. 2023, eq. 5, over the last dimension: sharper directions, the same length."""
    x = F.relu(x) + 1e-6
    power = x**3
    return power * (x.norm(dim=-1, keepdim=True) / power.norm(dim=-1, keepdim=True))

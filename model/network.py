"""RWKVFusion (sect. 3.2, fig. 5): a U-Net of BRWKV layers whose encoder is guided by text and masks.

With ``backbone: plain`` (sect. 6.1) the same layers stand in one row at full size, between SwinIR's ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import BRWKVLayer, ChannelMix, Convolution, MultiModalFusion
from model.config import MASK_GUIDANCE, TEXT_GUIDANCE, ModelConfig
from model.fusion_variants import CrossAttention, MLPFusion
from model.operators import spatial_mix
from model.spatial_mix import Text
from model.windows import extend


class RWKVFusion(nn.Module):
    """Fuse any number of aligned sources under optional guidance.

    The last convolution starts at zero and its output is added to a base: the mean of the sources, or for
    sharpening the upsampled source `config.base`. An untrained network therefore returns that base.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        encoder_depths, decoder_depths = config.encoder_depths, config.decoder_depths
        plain = config.backbone == "plain"
        if plain:
            encoder_depths, decoder_depths = (sum(encoder_depths),), (sum(decoder_depths),)
        widths = [config.width * 2**level for level in range(len(encoder_depths))]
        blocks = count()
        source_channels = sum(config.in_channels)
        self.stem: nn.Module = (
            nn.Linear(source_channels, widths[0]) if plain else Convolution(source_channels, widths[0])
        )
        layers = count()
        self.encoder = nn.ModuleList(
            nn.ModuleList(_guided_layer(config, width, blocks, next(layers)) for _ in range(depth))
            for width, depth in zip(widths, encoder_depths, strict=True)
        )
        steps = list(pairwise(widths))
        self.down = nn.ModuleList(Convolution(fine, coarse, stride=2) for fine, coarse in steps)
        self.up = nn.ModuleList(nn.Linear(coarse, 4 * fine) for fine, coarse in steps)
        self.skip = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in steps)
        self.decoder = nn.ModuleList(
            nn.ModuleList(_layer(config, width, blocks) for _ in range(depth))
            for width, depth in zip(widths, decoder_depths, strict=False)
        )
        self.text = self.text_down = None
        if config.guidance in TEXT_GUIDANCE:
            self.text = nn.Linear(config.text_width, widths[0])
            self.text_down = nn.ModuleList(nn.Linear(fine, coarse) for fine, coarse in steps)
        self.body = Convolution(widths[0], widths[0]) if plain else None
        self.head = Convolution(widths[0], config.out_channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(
        self,
        sources: Sequence[Tensor],
        text: Tensor | None = None,
        text_length: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        """Fuse a batch.

        Args:
            sources: one (B, C_i, H_i, W_i) per source in [0, 1], as many and with as many channels as
                config.in_channels says; the first gives H and W, others are interpolated to it.
            text: features (B, T, text_width), or None.
            text_length: real tokens per sample (B,); the rest is padding and has no influence. None: all T.
            masks: (B, config.mask_inputs, H, W), bool or number, or None; merged, or unmerged those of the
                first source, then those of the second.

        Returns:
            The fused image (B, out_channels, H, W), about [0, 1] and not clipped.

        Raises:
            ValueError: sources, text or masks that do not fit the configuration.
        """
        self._check(sources, text, text_length, masks)
        height, width = sources[0].shape[-2:]
        aligned = [_resize(source, height, width) for source in sources]
        base = self._base(aligned)
        stride = 2 ** len(self.down)
        image = extend(torch.cat(aligned, dim=1), stride).permute(0, 2, 3, 1)
        guide = None
        if masks is not None and self.config.guidance in MASK_GUIDANCE:
            guide = extend(masks.to(image.dtype), stride).permute(0, 2, 3, 1)
        words = self._text(text, text_length)

        x = self.stem(image)
        first = x if self.body is not None else None
        skips: list[Tensor] = []
        for level, layers in enumerate(self.encoder):
            if level:
                skips.append(x)
                x = self.down[level - 1](x)
                image = _halve(image)
                guide = None if guide is None else _halve(guide)
                if words is not None and self.text_down is not None:
                    words = Text(self.text_down[level - 1](words.tokens), words.length)
            for layer in layers:  # type: ignore[attr-defined]
                x, words = layer(x, image, guide, words)
        for level, layers in reversed(list(enumerate(self.decoder))):
            if skips:
                x = _double(self.up[level](x)) + self.skip[level] * skips.pop()
            for layer in layers:  # type: ignore[attr-defined]
                x, _ = layer(x)
        if self.body is not None and first is not None:
            x = first + self.body(x)
        fused = self.head(x).permute(0, 3, 1, 2)[..., :height, :width]
        return base + fused

    def _base(self, aligned: Sequence[Tensor]) -> Tensor:
        config = self.config
        if config.base is not None:
            return aligned[config.base]
        if set(config.in_channels) == {config.out_channels}:
            return torch.stack(list(aligned)).mean(dim=0)
        return aligned[0].new_zeros(())

    def _text(self, text: Tensor | None, length: Tensor | None) -> Text | None:
        if text is None or self.text is None:
            return None
        if length is None:
            length = torch.full((text.shape[0],), text.shape[1], device=text.device)
        else:
            text = text[:, : int(length.max())]
        if text.shape[1] == 0:
            return None
        padding = Text(text, length).padding()
        text = text.to(self.text.weight.dtype).masked_fill(padding[..., None], 0.0)
        return Text(self.text(text), length)

    def _check(
        self, sources: Sequence[Tensor], text: Tensor | None, length: Tensor | None, masks: Tensor | None
    ) -> None:
        config = self.config
        got = tuple(source.shape[1] for source in sources)
        if got != tuple(config.in_channels):
            raise ValueError(f"the network takes sources of {tuple(config.in_channels)} channels, got {got}")
        batch, _, height, width = sources[0].shape
        if any(source.shape[0] != batch for source in sources):
            raise ValueError(f"sources differ in batch size: {[source.shape[0] for source in sources]}")
        if text is not None and (text.dim() != 3 or text.shape[::2] != (batch, config.text_width)):
            raise ValueError(f"text must be ({batch}, T, {config.text_width}), got {tuple(text.shape)}")
        if text is not None and length is not None and length.shape != (batch,):
            raise ValueError(f"text_length must be ({batch},), got {tuple(length.shape)}")
        wanted = (batch, config.mask_inputs or config.mask_channels, height, width)
        if masks is not None and masks.shape != wanted:
            raise ValueError(f"masks must be {wanted}, got {tuple(masks.shape)}")


def _layer(config: ModelConfig, width: int, blocks: Iterator[int]) -> BRWKVLayer:
    mix = spatial_mix(config.operator, width, config.scan, next(blocks))
    return BRWKVLayer(mix, ChannelMix(width, config.channel_ratio))


def _guided_layer(config: ModelConfig, width: int, blocks: Iterator[int], index: int) -> BRWKVLayer:
    fusion = _fusion(config, width, blocks, index)
    layer = _layer(config, width, blocks)
    layer.fusion = fusion
    return layer


def _fusion(config: ModelConfig, width: int, blocks: Iterator[int], index: int) -> nn.Module:
    use_text, source_channels = config.guidance in TEXT_GUIDANCE, sum(config.in_channels)
    if config.fusion == "mlp":
        return MLPFusion(width, source_channels, config.mask_inputs, use_text)
    text_mix: nn.Module | None = None
    if use_text and config.fusion == "cross_attention":
        text_mix = CrossAttention(width)
    elif use_text:
        text_mix = spatial_mix(config.operator, width, config.scan, next(blocks), text_first=index % 2 == 0)
    return MultiModalFusion(width, source_channels, config.mask_inputs, text_mix, config.channel_ratio)


def _resize(source: Tensor, height: int, width: int) -> Tensor:
    if source.shape[-2:] == (height, width):
        return source
    return F.interpolate(source, (height, width), mode="bicubic", align_corners=False)


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def _double(x: Tensor) -> Tensor:
    """(B, H, W, 4 C) to (B, 2 H, 2 W, C)."""
    return F.pixel_shuffle(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)

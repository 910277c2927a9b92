"""What tiles have to know of the whole image, so that together they are what the network makes of it at once.

Two things in the network look at all pixels: the gate of multi-modal fusion (eq. 15) takes a mean over the
image, and bi-WKV (eq. 7) runs over all of it. Each is a fact of the whole image that can be summed up tile
by tile, but only when the facts before it in the network are known. So the facts are learned one by one, each
from one pass over all tiles, which goes through the network as far as that fact and no further. Then tiles
are fused.

That is exact but for rounding, for the operator `bi_wkv` in scan strategy 1. Other rows of Table 6 see their
tile only, beside the means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.bi_wkv import bi_wkv
from model.blocks import Convolution, MultiModalFusion
from model.network import RWKVFusion
from model.operators import BiWKV
from model.segments import Array, Tokens, carry, summarise
from model.spatial_mix import SpatialMix, Text
from model.tiling import Tile, Tiling

APART = 128  # pixels that tiles overlap by where the operator sees its tile only
_OUT = -1e4  # a key so far below any a network makes that its token is in no sum


class Reached(Exception):
    """A pass has come to the fact that it is to learn."""


def is_exact(mix: nn.Module) -> bool:
    """Whether tiles of this spatial mix can be what the whole image gives."""
    return isinstance(mix, BiWKV) and mix.window is None and len(mix.paths) == 1


@dataclass(frozen=True)
class Shape:
    """What of a network decides how it is cut into tiles.

    ``align``: the multiple that it halves; ``reach``: how many pixels from its border a tile's result is
    wrong, because convolutions see padding there; ``mixes``: the same up to each exact spatial mix;
    ``facts``: how many there are to learn for one forward.
    """

    align: int
    reach: int
    mixes: dict[nn.Module, int]
    facts: int


def shape_of(network: RWKVFusion) -> Shape:
    """Follow a forward through the network. Parallel convolutions are counted one after the other."""
    align, mixes = 2 ** len(network.down), dict[nn.Module, int]()
    side = 8 * align
    reach = facts = 0

    def grow(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal reach, facts
        if isinstance(module, MultiModalFusion):
            facts += 1
            return
        scale = side // inputs[0].shape[1]
        reach = -(-reach // scale) * scale
        if isinstance(module, Convolution):
            reach += scale
        elif is_exact(module):
            mixes[module] = reach
            facts += 1

    with ExitStack() as stack, torch.inference_mode():
        for module in network.modules():
            if isinstance(module, Convolution | MultiModalFusion | SpatialMix):
                stack.callback(module.register_forward_pre_hook(grow).remove)
        place = next(network.parameters())
        network.forward([place.new_zeros(1, bands, side, side) for bands in network.config.in_channels])
    apart = 0 if len(mixes) == sum(isinstance(m, SpatialMix) for m in network.modules()) else APART // 2
    return Shape(align, reach + apart, mixes, facts)


Fact = NDArray[np.float32]
"""A mean (C,), or what enters every part of a scan, (2, parts + 1, 2, C): from the left and from the right,
in the order of the scan and last what leaves it, key and value."""


class Whole:
    """The facts of one image, in the order in which fusing one window asks for them."""

    def __init__(self, tiling: Tiling, shape: Shape, facts: list[Fact] | None = None) -> None:
        self.tiling, self.shape = tiling, shape
        self.facts = facts if facts is not None else []
        self._tiles: tuple[Tile, ...] = ()
        self._asked = 0
        self._learning: _Mean | _Scan | None = None

    def learn(
        self, fused: Callable[[tuple[Tile, ...]], object], report: Callable[[int], object] = lambda done: None
    ) -> None:
        """Learn the next fact from one pass. ``fused(pair)`` fuses two tiles, ``report`` counts them."""
        for done, pair in enumerate(self.tiling.pairs, start=1):
            try:
                fused(pair)
            except Reached:
                report(done)
        learned, self._learning = self._learning, None
        assert learned is not None, "all facts are known"
        self.facts.append(learned.finish())

    def window(self, pair: tuple[Tile, ...]) -> None:
        """Begin a pair of tiles."""
        self._tiles, self._asked = pair, 0

    @contextmanager
    def forward(self, network: RWKVFusion) -> Iterator[None]:
        """Surround one forward of the network on a batch of one pair."""
        with ExitStack() as stack:
            for module in network.modules():
                if isinstance(module, MultiModalFusion) or module in self.shape.mixes:
                    module.whole = self  # type: ignore[assignment]
                    stack.callback(setattr, module, "whole", None)
            yield

    def _next(self) -> Fact | None:
        self._asked += 1
        return self.facts[self._asked - 1] if self._asked <= len(self.facts) else None

    def mean(self, x: Tensor) -> Tensor:
        """The mean over the image of what are tiles (pair, h, w, C) of it, (1, 1, 1, C)."""
        fact = self._next()
        if fact is not None:
            return torch.from_numpy(fact).to(x)[None, None, None]
        if not isinstance(self._learning, _Mean):
            self._learning = _Mean(self.tiling)
        self._learning.add(self._tiles, x)
        raise Reached

    def mix(self, mix: BiWKV, x: Tensor, text: Text | None) -> tuple[Tensor, Tensor | None]:
        """What `SpatialMix.forward` gives, for tiles (pair, h, w, C) of the image."""
        fact = self._next()
        part = _Part(self, mix, x.shape[1], 0 if text is None else text.tokens.shape[1])
        normed = mix.norm(x)
        both = torch.cat([normed, normed.flip(0, 1, 2)], dim=-1)
        del normed
        words = None if text is None else mix.norm(text.tokens).repeat(1, 1, mix.scans)
        if fact is None:
            if not isinstance(self._learning, _Scan):
                self._learning = _Scan(part, mix, words)
            for own in mix.portions(both):
                key, value = part.lines(mix.key(both, own)), part.lines(mix.value(both, own))
                self._learning.add(self._tiles, key, value, own)
            raise Reached
        found = []
        for own in mix.portions(both):
            key, value = part.lines(mix.key(both, own)), part.lines(mix.value(both, own))
            entering = torch.from_numpy(fact[..., own]).to(x.device)
            attention = part.attend(self._tiles, key, value, entering, own)
            del key, value
            found.append(mix.gated(both, part.image(attention), own))
            del attention
        mixed = torch.cat(found, dim=-1)
        del both, found
        ahead, back = mixed.chunk(2, dim=-1)
        image = mix.output(torch.cat([ahead, back.flip(0, 1, 2)], dim=-1))
        if words is None:
            return image, None
        entering = torch.from_numpy(fact).to(x.device)
        return image, mix.output(mix.gated(words, part.attend_words(words, entering)))


class _Mean:
    """A mean over the image, being summed up."""

    def __init__(self, tiling: Tiling) -> None:
        self._tiling, self._sum, self._count = tiling, np.zeros(1), 0

    def add(self, tiles: tuple[Tile, ...], x: Tensor) -> None:
        tiling = self._tiling
        for tile, pixels in zip(tiles, x, strict=True):
            scale = tiling.rows.side // pixels.shape[0]
            rows, columns = (
                slice((axis.own(index).start - start) // scale, (axis.own(index).stop - start) // scale)
                for axis, index, start in zip(
                    (tiling.rows, tiling.columns), (tile.row, tile.column), tiling.corner(tile), strict=True
                )
            )
            own = pixels[rows, columns]
            self._sum = self._sum + own.sum(dim=(0, 1), dtype=torch.float64).cpu().numpy()
            self._count += own.shape[0] * own.shape[1]

    def finish(self) -> Fact:
        return np.asarray(self._sum / self._count, np.float32)


class _Part:
    """Where tiles lie on one scan, in pixels of its level of the network."""

    def __init__(self, whole: Whole, mix: BiWKV, height: int, words: int) -> None:
        tiling = whole.tiling
        self.mix, self.words = mix, words
        self.by_columns = mix.paths == ("columns",)
        self.scale = tiling.rows.side // height
        axes = (tiling.rows, tiling.columns)
        self.across, self.along = axes[::-1] if self.by_columns else axes  # of lines, and of a line's pixels
        self.margin = -(-whole.shape.mixes[mix] // self.scale)
        self.length = self.across.length * self.along.length // self.scale**2 + words
        self.rate = mix.decay.float() / self.length

    def lines(self, x: Tensor) -> Tensor:
        """(pair, h, w, C) to (pair, lines, n, C)."""
        return x.transpose(1, 2) if self.by_columns else x

    def image(self, x: Tensor) -> Tensor:
        """Inverse of `lines`."""
        return x.transpose(1, 2) if self.by_columns else x

    def number(self, tile: Tile) -> tuple[int, int]:
        """Of a tile across the lines, and along them."""
        return (tile.column, tile.row) if self.by_columns else (tile.row, tile.column)

    def known(self, index: int) -> slice:
        """The pixels of a line that a tile knows: not those next to its border inside the image."""
        side, last = self.along.side // self.scale, len(self.along.starts) - 1
        return slice(0 if index == 0 else self.margin, side if index == last else side - self.margin)

    def borders(self, to_the_right: bool) -> list[int]:
        """Where along a line one tile's stretch ends and the next one's begins, for either direction."""
        known = [self.known(index) for index in range(len(self.along.starts))]
        starts = [start // self.scale for start in self.along.starts]
        end = self.along.length // self.scale
        if to_the_right:
            return [*(start + own.start for start, own in zip(starts, known, strict=True)), end]
        return [0, *(start + own.stop for start, own in zip(starts, known, strict=True))]

    def attend(
        self, tiles: tuple[Tile, ...], key: Tensor, value: Tensor, entering: Tensor, channels: slice
    ) -> Tensor:
        """Eq. 7 for lines (pair, lines, n, C), with what enters at both of their ends as a token each."""
        rate = self.rate[channels]
        count, parts = key.shape[2], len(self.along.starts)
        rows = key.new_empty(2, *key.shape[:2], count + 2, key.shape[3])
        rows[0, :, :, 1:-1], rows[1, :, :, 1:-1] = key, value
        for number, tile in enumerate(tiles):
            line, index = self.number(tile)
            own, first = self.known(index), self.across.starts[line] // self.scale
            rows[0, number, :, 1 : own.start + 1] = _OUT
            rows[0, number, :, own.stop + 1 : -1] = _OUT
            states = entering[:, :-1].unflatten(1, (-1, parts))[:, first : first + key.shape[1], index]
            for end, state, away in ((0, states[0], own.start), (-1, states[1], count - own.stop)):
                # Its place is at the tile's border, but it tells what enters `away` pixels further in.
                rows[0, number, :, end] = (state[:, 0] + away * rate).clamp(min=_OUT)
                rows[1, number, :, end] = state[:, 1]
        flat = rows.flatten(1, 2)
        decay = rate * (count + 2)
        return bi_wkv(decay, self.mix.bonus[channels], flat[0], flat[1])[:, 1:-1].unflatten(0, key.shape[:2])

    def attend_words(self, words: Tensor, entering: Tensor) -> Tensor:
        """Eq. 7 for the text (B, T, C) at one end of the scan; the image is one token beside it."""
        key, value = self.mix.key(words), self.mix.value(words)
        # What leaves the image at the text's side.
        state = entering[1 if self.mix.text_first else 0, -1].to(key.dtype)
        token = [state[side].expand(len(words), 1, -1) for side in (0, 1)]
        order = slice(None, None, 1 if self.mix.text_first else -1)
        keys, values = (
            torch.cat([own, other][order], dim=1) for own, other in zip((key, value), token, strict=True)
        )
        found = bi_wkv(self.rate * keys.shape[1], self.mix.bonus, keys, values)
        return found[:, :-1] if self.mix.text_first else found[:, 1:]


class _Scan:
    """What enters the parts of a scan, being gathered: a token for every line of every tile."""

    def __init__(self, part: _Part, mix: BiWKV, words: Tensor | None) -> None:
        self._part = part
        lines, parts = part.across.length // part.scale, len(part.along.starts)
        channels = mix.decay.numel()
        self._tokens = np.empty((2, 2, lines, parts, channels), np.float32)
        self._text = Tokens.none(channels)
        if words is not None:
            found = summarise(mix.key(words[:1]), mix.value(words[:1]), part.rate, not mix.text_first)
            self._text = Tokens(*(numbers[0].double().cpu().numpy() for numbers in found))

    def add(self, tiles: tuple[Tile, ...], key: Tensor, value: Tensor, channels: slice) -> None:
        part, rate = self._part, self._part.rate[channels]
        for number, tile in enumerate(tiles):
            line, index = part.number(tile)
            own, first = part.across.own(line), part.across.starts[line]
            inside = slice((own.start - first) // part.scale, (own.stop - first) // part.scale)
            target = slice(own.start // part.scale, own.stop // part.scale)
            for direction, to_the_right in enumerate((True, False)):
                begin, end = part.borders(to_the_right)[index : index + 2]
                start = part.along.starts[index] // part.scale
                stretch = slice(begin - start, end - start)
                found = summarise(
                    key[number, inside, stretch], value[number, inside, stretch], rate, not to_the_right
                )
                for kind, numbers in enumerate(found):
                    self._tokens[direction, kind, target, index, channels] = numbers.float().cpu().numpy()

    def finish(self) -> Fact:
        part, fact = self._part, []
        rate: Array = part.rate.double().cpu().numpy()
        for direction, to_the_right in enumerate((True, False)):
            key, value = self._tokens[direction].astype(np.float64)
            order = slice(None, None, 1 if to_the_right else -1)
            tokens = Tokens(key[order, order], value[order, order])
            lengths = [int(n) for n in np.diff(part.borders(to_the_right))][order]
            begins_with_text = part.mix.text_first == to_the_right
            start = self._text if begins_with_text else Tokens.none(len(rate))
            entering, last = carry(tokens, lengths, rate, start)
            flat = [
                np.concatenate([x[order, order].reshape(-1, len(rate)), own[None]])
                for x, own in ((entering.key, last.key), (entering.value, last.value))
            ]
            fact.append(np.stack(flat, axis=1))
        return np.asarray(np.stack(fact), np.float32)

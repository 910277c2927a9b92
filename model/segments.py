"""bi-WKV (eq. 7) over a part of a sequence: whatever lies beyond an end is told as one token at that end.

With the rate r = w / L, tokens t before a place a act on every token behind it as one token just before a:

    k = log Σ_t e^{k_t - r (a - 1 - t)},   v = Σ_t e^{k_t - r (a - 1 - t)} v_t / e^k

and likewise from the right. Two stretches join to one by the same sum, so tiles can be summarised one by one,
their summaries carried over the whole sequence, and every tile then be given what enters it. All terms are
positive and stand as logarithms: nothing cancels and nothing overflows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
ABSENT = -1e30  # the key of what is not there: finite, so that no difference of two is undefined


def summarise(key: Tensor, value: Tensor, rate: Tensor, to_the_left: bool) -> tuple[Tensor, Tensor]:
    """The token (lines, C) that keys and values (lines, n, C) are to what lies right of them, or left."""
    count = key.shape[1]
    distance = torch.arange(count, device=key.device, dtype=torch.float32)
    if not to_the_left:
        distance = distance.flip(0)
    weight = key.float() - distance[:, None] * rate.float()
    top = weight.amax(dim=1, keepdim=True)
    weight = (weight - top).exp_()
    total = weight.sum(dim=1)
    return top[:, 0] + total.log(), (weight.mul_(value)).sum(dim=1) / total


@dataclass
class Tokens:
    """Keys and values (…, C) of tokens that stand for stretches of the sequence."""

    key: Array
    value: Array

    @classmethod
    def none(cls, *shape: int) -> Tokens:
        """Stretches without a token."""
        return cls(np.full(shape, ABSENT), np.zeros(shape))

    def then(self, later: Tokens, fall: Array) -> Tokens:
        """This stretch and the ``later`` one as one; ``fall`` (C,): rate times the later one's length."""
        before = self.key - fall
        key = np.logaddexp(before, later.key)
        value = np.exp(before - key) * self.value + np.exp(later.key - key) * later.value
        return Tokens(key, value)

    def __getitem__(self, place: tuple[slice | int, slice | int] | int) -> Tokens:
        return Tokens(self.key[place], self.value[place])


def carry(parts: Tokens, lengths: list[int], rate: Array, start: Tokens) -> tuple[Tokens, Tokens]:
    """What enters every part from the left, and what leaves the last one.

    ``parts`` (lines, n, C): a line of the scan is cut into n parts of ``lengths``, lines follow each other;
    ``start`` (C,): what stands before the first.
    """
    lines, count, channels = parts.key.shape
    inside = [Tokens.none(lines, channels)]  # of a line, before each of its parts
    for part, length in enumerate(lengths):
        inside.append(inside[-1].then(parts[:, part], rate * length))
    whole, fall = inside.pop(), rate * sum(lengths)
    before = Tokens(np.empty((lines, channels)), np.empty((lines, channels)))  # of a line's first part
    state = start
    for line in range(lines):
        before.key[line], before.value[line] = state.key, state.value
        state = state.then(whole[line], fall)
    entering = Tokens(np.empty(parts.key.shape), np.empty(parts.key.shape))
    for part in range(count):
        both = before.then(inside[part], rate * sum(lengths[:part]))
        entering.key[:, part], entering.value[:, part] = both.key, both.value
    return entering, state

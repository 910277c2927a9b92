"""The selective scan S6 of Mamba (Gu and Dao 2023), in plain tensors: exact, linear in L, any device.

h_t = e^{-Δ_t A} h_{t-1} + Δ_t B_t x_t,    y_t = C_t h_t        per channel, h of N states, h_0 = 0
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan(x: Tensor, step: Tensor, rate: Tensor, enter: Tensor, leave: Tensor) -> Tensor:
    """y (B, L, C) of x and step Δ >= 0 (B, L, C), rate A > 0 (C, N), enter B and leave C (B, L, N).

    The sequence is cut into about √L chunks of √L tokens, which are scanned side by side, twice: from zero,
    to learn what each leaves to the next, then from what has come in. No decay is ever divided by.
    """
    length = x.shape[1]
    size = math.isqrt(length - 1) + 1
    chunks = -(-length // size)

    def cut(tokens: Tensor) -> Tensor:
        return F.pad(tokens, (0, 0, 0, chunks * size - length)).unflatten(1, (chunks, size))

    rows, steps, enters, leaves = cut(step * x), cut(step), cut(enter), cut(leave)

    def advance(state: Tensor, t: int) -> Tensor:
        decay = torch.exp(-steps[:, :, t, :, None] * rate)  # (B, chunks, C, N)
        return decay * state + rows[:, :, t, :, None] * enters[:, :, t, None, :]

    state = x.new_zeros(x.shape[0], chunks, *rate.shape)
    for t in range(size):
        state = advance(state, t)
    decay = torch.exp(-steps.sum(dim=2)[..., None] * rate)
    entering = [torch.zeros_like(state[:, 0])]
    for chunk in range(chunks - 1):
        entering.append(decay[:, chunk] * entering[-1] + state[:, chunk])
    state = torch.stack(entering, dim=1)
    outputs = []
    for t in range(size):
        state = advance(state, t)
        outputs.append(torch.einsum("bkcn,bkn->bkc", state, leaves[:, :, t]))
    return torch.stack(outputs, dim=2).flatten(1, 2)[:, :length]

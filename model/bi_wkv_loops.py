"""The compiled loops of the CPU kernel of the bi-WKV operator (eq. 7); bi_wkv_cpu shares them among threads.

Three phases, each over (batch item, chunk of tokens):

1. `summarise` / `summarise_grad`: what a chunk adds to the scans of its neighbours;
2. `rebase` and `carry`: the scans over chunks, in float64, with the decay e^{-w n/L} of a whole chunk
   computed directly (multiplying a rounded decay by itself L times would bias far weights by L * 2^-25);
3. `scan` / `scan_grad`: the scans inside a chunk, started from the carries.

Numerators and denominators ride in one row of 2 C numbers, [E v | E]: they obey the same recurrence. Every
inner loop runs over channels and writes a single array, which is what the compiler needs to vectorise it.

Values are measured from their mean with weights e^k over the sequence: y moves with v, so nothing changes but
rounding. Where one token dominates, the mean is next to its value, and gradients lose no digits; where none
does, y is next to the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numba.extending import overload

_OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    # No nnan or ninf: NaN in the input must come out as NaN.
    "fastmath": {"contract", "nsz", "arcp"},
}
CHUNK = 64  # tokens: keeps the working set in cache, and the error of the repeated decay below 64 * 2^-25


def _exp(x: Any) -> Any:
    """e^x for x <= 0; compiled per precision by `_overload_exp`."""
    return np.exp(x)


@overload(_exp, inline="always")
def _overload_exp(x: Any) -> Callable[..., Any]:
    if getattr(x, "bitwidth", 64) != 32:

        def exp64(x: Any) -> Any:
            return math.exp(x)

        return exp64

    log2e, ln2_high, ln2_low = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
    c2, c3, c4 = np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24)
    c5, c6, c7 = np.float32(1 / 120), np.float32(1 / 720), np.float32(1 / 5040)
    one, half, least = np.float32(1), np.float32(0.5), np.float32(-87)

    def exp32(x: Any) -> Any:
        # x = n ln 2 + r, |r| <= ln 2 / 2: Taylor in r (error 5e-9), then 2^n through the exponent bits. The
        # library's exp is a call per element; this vectorises. Below -87 it is exactly 0; NaN passes through.
        bounded = least if x < least else x
        n = np.floor(bounded * log2e + half)
        r = bounded - n * ln2_high - n * ln2_low
        series = one + r * (one + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * (c6 + r * c7))))))
        power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
        return np.float32(0) if x < least else series * power

    return exp32


@njit(**_OPTIONS)
def _weigh(k: np.ndarray, v: np.ndarray, top: np.ndarray, rows: np.ndarray) -> None:
    """rows[j] = [E_j (v_j - anchor) | E_j] with E = e^{k - key}; key and anchor are the first two of top."""
    n, channels = k.shape
    rows[n : n + 3] = 0  # for `_reduce`, which takes four tokens at a time
    for j in range(n):
        key, value, row = k[j], v[j], rows[j]
        for c in range(channels):
            row[channels + c] = _exp(key[c] - top[0, c])
        for c in range(channels):
            row[c] = row[channels + c] * (value[c] - top[1, c])


@njit(**_OPTIONS)
def _reduce(rows: np.ndarray, n: int, decay: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """The state after a left-to-right scan of `rows` begun at 0, and after a right-to-left one.

    Of a last chunk whose n is no multiple of 4 the first one has decayed too often: nobody reads it.
    """
    left[:] = 0
    right[:] = 0
    for j in range(0, n, 4):
        r0, r1, r2, r3 = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
        for c in range(decay.shape[0]):
            d = decay[c]
            left[c] = (((left[c] * d + r0[c]) * d + r1[c]) * d + r2[c]) * d + r3[c]
    for j in range((n - 1) // 4 * 4, -1, -4):
        r0, r1, r2, r3 = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
        for c in range(decay.shape[0]):
            d = decay[c]
            right[c] = (((right[c] * d + r3[c]) * d + r2[c]) * d + r1[c]) * d + r0[c]


@njit(**_OPTIONS)
def _scan_left(rows: np.ndarray, n: int, decay: np.ndarray, left: np.ndarray) -> None:
    """Exclusive scan: left[j] of the rows before j; left[0] given."""
    for j in range(1, n):
        row, before, here = rows[j - 1], left[j - 1], left[j]
        for c in range(decay.shape[0]):
            here[c] = before[c] * decay[c] + row[c]


@njit(**_OPTIONS)
def _scan_right(rows: np.ndarray, n: int, decay: np.ndarray, right: np.ndarray) -> None:
    """Exclusive scan: right[j] of the rows after j; right[n-1] given."""
    for j in range(n - 2, -1, -1):
        row, after, here = rows[j + 1], right[j + 1], right[j]
        for c in range(decay.shape[0]):
            here[c] = after[c] * decay[c] + row[c]


@njit(**_OPTIONS)
def summarise(
    k: np.ndarray,
    v: np.ndarray,
    decay: np.ndarray,
    tops: np.ndarray,
    sums: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Phase 1, chunks first..last: both summaries, relative to the largest key per channel and its value.

    k, v (B, L, C); decay (B, 2 C); tops (B, N, 4, C): that key, that value, and the rows added without decay;
    sums (B, N, 2, 2 C), left and right.
    """
    length, channels = k.shape[1:]
    chunks = tops.shape[1]
    rows = np.empty((CHUNK + 3, 2 * channels), k.dtype)
    for index in range(first, last):
        b, m = index // chunks, index % chunks
        begin, end = m * CHUNK, min((m + 1) * CHUNK, length)
        top = tops[b, m]
        top[0] = -1e30  # not -inf: a chunk of absent tokens must sum to 0, not to NaN
        top[1] = 0
        for t in range(begin, end):
            key, value = k[b, t], v[b, t]
            for c in range(channels):
                top[1, c] = value[c] if key[c] > top[0, c] else top[1, c]
            for c in range(channels):
                top[0, c] = key[c] if key[c] > top[0, c] else top[0, c]
        _weigh(k[b, begin:end], v[b, begin:end], top, rows)
        plain = top[2:].reshape(2 * channels)
        plain[:] = 0
        for j in range(0, end - begin, 4):
            r0, r1, r2, r3 = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
            for c in range(2 * channels):
                plain[c] += r0[c] + r1[c] + r2[c] + r3[c]
        _reduce(rows, end - begin, decay[b], sums[b, m, 0], sums[b, m, 1])


@njit(**_OPTIONS)
def rebase(tops: np.ndarray, top: np.ndarray, sums: np.ndarray) -> None:
    """Find the base of every sequence, top (B, 2, C): largest key, anchor. Bring the sums to it, in place."""
    batch, chunks, _, channels = tops.shape
    mean = np.empty((2, channels), np.float64)
    for b in range(batch):
        key, anchor = top[b]
        key[:] = -1e30
        mean[:] = 0
        for m in range(chunks):
            for c in range(channels):
                key[c] = max(key[c], tops[b, m, 0, c])
        for m in range(chunks):
            scale, value, total, weight = tops[b, m]
            for c in range(channels):
                scale[c] = _exp(scale[c] - key[c])  # in the place of the chunk's largest key
            for c in range(channels):
                mean[0, c] += scale[c] * (total[c] + value[c] * weight[c])
            for c in range(channels):
                mean[1, c] += scale[c] * weight[c]
        for c in range(channels):
            anchor[c] = mean[0, c] / mean[1, c] if mean[1, c] != 0 else 0.0
        for m in range(chunks):
            scale, value = tops[b, m, 0], tops[b, m, 1]
            for side in range(2):
                row = sums[b, m, side]
                for c in range(channels):
                    row[c] = scale[c] * (row[c] + (value[c] - anchor[c]) * row[channels + c])
                for c in range(channels):
                    row[channels + c] *= scale[c]


@njit(**_OPTIONS)
def carry(w: np.ndarray, length: int, sums: np.ndarray) -> None:
    """Phase 2, in place: sums (B, N, 2, 2 C) of single chunks become the states that enter each chunk."""
    batch, chunks, _, width = sums.shape
    channels = width // 2
    state = np.empty(width, np.float64)
    leap = np.empty(width, np.float64)
    for b in range(batch):
        for side in range(2):
            state[:] = 0
            for step in range(chunks):
                m = step if side == 0 else chunks - 1 - step
                if step < 2 or step == chunks - 1:  # the last chunk may be shorter
                    tokens = min(CHUNK, length - m * CHUNK)
                    for c in range(width):
                        leap[c] = math.exp(-w[b, c % channels] * tokens / length)
                row = sums[b, m, side]
                for c in range(width):
                    own = row[c]
                    row[c] = state[c]
                    state[c] = state[c] * leap[c] + own


@njit(**_OPTIONS)
def scan(
    k: np.ndarray, v: np.ndarray, decay: np.ndarray, bonus: np.ndarray, top: np.ndarray,
    carries: np.ndarray, y: np.ndarray, first: int, last: int,
) -> None:  # fmt: skip
    """Phase 3: y (B, L, C) of chunks first..last; bonus e^u (B, C), top (B, 2, C) largest key, anchor."""
    length, channels = k.shape[1:]
    chunks = carries.shape[1]
    rows = np.empty((CHUNK + 3, 2 * channels), k.dtype)
    right, state = np.empty_like(rows), np.empty(2 * channels, k.dtype)
    for index in range(first, last):
        b, m = index // chunks, index % chunks
        begin, end = m * CHUNK, min((m + 1) * CHUNK, length)
        n = end - begin
        _weigh(k[b, begin:end], v[b, begin:end], top[b], rows)
        right[n - 1] = carries[b, m, 1]
        _scan_right(rows, n, decay[b], right)
        state[:] = carries[b, m, 0]
        anchor, factor, extra = top[b, 1], decay[b], bonus[b]
        for j in range(n):
            out, row, after = y[b, begin + j], rows[j], right[j]
            for c in range(channels):
                out[c] = anchor[c] + (state[c] + after[c] + extra[c] * row[c]) / (
                    state[channels + c] + after[channels + c] + extra[c] * row[channels + c]
                )
            for c in range(2 * channels):
                state[c] = state[c] * factor[c] + row[c]


@njit(**_OPTIONS)
def _grad_rows(
    rows: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    bonus: np.ndarray,
    grad: np.ndarray,
    out: np.ndarray,
) -> None:
    """out[j] = [p_j | q_j]: p = grad / D, q = -p y."""
    n, channels = grad.shape
    out[n : n + 3] = 0
    for j in range(n):
        row, before, after, g, pq = rows[j], left[j], right[j], grad[j], out[j]
        for c in range(channels):
            pq[c] = 1 / (before[channels + c] + after[channels + c] + bonus[c] * row[channels + c])
        for c in range(channels):
            pq[channels + c] = -(before[c] + after[c] + bonus[c] * row[c]) * pq[c] * pq[c] * g[c]
        for c in range(channels):
            pq[c] = pq[c] * g[c]


@njit(**_OPTIONS)
def summarise_grad(
    k: np.ndarray, v: np.ndarray, decay: np.ndarray, bonus: np.ndarray, top: np.ndarray,
    carries: np.ndarray, grad: np.ndarray, sums: np.ndarray, first: int, last: int,
) -> None:  # fmt: skip
    """Backward phase 1: summaries of p and q, shaped as in `summarise`."""
    length, channels = k.shape[1:]
    chunks = carries.shape[1]
    rows = np.empty((CHUNK + 3, 2 * channels), k.dtype)
    left, right, pq = np.empty_like(rows), np.empty_like(rows), np.empty_like(rows)
    for index in range(first, last):
        b, m = index // chunks, index % chunks
        begin, end = m * CHUNK, min((m + 1) * CHUNK, length)
        n = end - begin
        _weigh(k[b, begin:end], v[b, begin:end], top[b], rows)
        left[0] = carries[b, m, 0]
        right[n - 1] = carries[b, m, 1]
        _scan_left(rows, n, decay[b], left)
        _scan_right(rows, n, decay[b], right)
        _grad_rows(rows, left, right, bonus[b], grad[b, begin:end], pq)
        _reduce(pq, n, decay[b], sums[b, m, 0], sums[b, m, 1])


@njit(**_OPTIONS)
def scan_grad(
    k: np.ndarray, v: np.ndarray, decay: np.ndarray, bonus: np.ndarray, top: np.ndarray,
    carries: np.ndarray, grad: np.ndarray, grad_carries: np.ndarray, dk: np.ndarray, dv: np.ndarray,
    dw: np.ndarray, du: np.ndarray, first: int, last: int,
) -> None:  # fmt: skip
    """Backward phase 3: dk, dv (B, L, C); dw, du (B, N, C), a partial sum per chunk (dw lacks its -λ/L)."""
    length, channels = k.shape[1:]
    chunks = carries.shape[1]
    rows = np.empty((CHUNK + 3, 2 * channels), k.dtype)
    left, right, pq = np.empty_like(rows), np.empty_like(rows), np.empty_like(rows)
    pq_left, pq_right = np.empty_like(rows), np.empty_like(rows)
    spread = np.empty(2 * channels, k.dtype)
    for index in range(first, last):
        b, m = index // chunks, index % chunks
        begin, end = m * CHUNK, min((m + 1) * CHUNK, length)
        n = end - begin
        _weigh(k[b, begin:end], v[b, begin:end], top[b], rows)
        left[0] = carries[b, m, 0]
        right[n - 1] = carries[b, m, 1]
        _scan_left(rows, n, decay[b], left)
        _scan_right(rows, n, decay[b], right)
        _grad_rows(rows, left, right, bonus[b], grad[b, begin:end], pq)
        pq_left[0] = grad_carries[b, m, 0]
        pq_right[n - 1] = grad_carries[b, m, 1]
        _scan_left(pq, n, decay[b], pq_left)
        _scan_right(pq, n, decay[b], pq_right)
        dw_chunk, du_chunk = dw[b, m], du[b, m]
        dw_chunk[:] = 0
        du_chunk[:] = 0
        for j in range(n):
            row, before, after = rows[j], left[j], right[j]
            terms, gone, coming = pq[j], pq_left[j], pq_right[j]
            dvalue, dkey = dv[b, begin + j], dk[b, begin + j]
            for c in range(2 * channels):
                spread[c] = gone[c] + coming[c]
            for half in range(2):
                for c in range(channels):
                    spread[half * channels + c] += bonus[b, c] * terms[half * channels + c]
            for c in range(channels):
                dvalue[c] = row[channels + c] * spread[c]
            for c in range(channels):
                dkey[c] = row[c] * spread[c] + row[channels + c] * spread[channels + c]
            # E (p v + q) is p E (v - y), and y is near v where the bonus rules: written with v - y =
            # (v (f + g) - F - G) / D, the bonus's own share is gone before it could cancel.
            for c in range(channels):
                weight, others = row[channels + c], before[channels + c] + after[channels + c]
                apart = row[c] * others - weight * (before[c] + after[c])
                du_chunk[c] += bonus[b, c] * terms[c] * apart / (others + bonus[b, c] * weight)
            # Every state meets the gradients on the far side of its token: eq. 7 seen from the decay.
            for c in range(channels):
                dw_chunk[c] += coming[c] * before[c] + coming[channels + c] * before[channels + c]
            for c in range(channels):
                dw_chunk[c] += gone[c] * after[c] + gone[channels + c] * after[channels + c]

"""The CPU kernel of the bi-WKV operator (eq. 7): the compiled loops of bi_wkv_loops, shared among threads.

The loops release the GIL and are started from plain threads: numba's own thread pool aborts when autograd's
thread and the caller's use it at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.bi_wkv_loops import CHUNK, carry, rebase, scan, scan_grad, summarise, summarise_grad

_FLOAT32_EXPONENT = 56.0  # with shifted keys float32 has room for decays and bonuses up to e^56
_INLINE_ELEMENTS = 1 << 15  # smaller inputs are not worth waking a thread


@lru_cache(maxsize=1)
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """One pool per process: the threads of a parent do not live on in its forks."""
    return ThreadPoolExecutor(count, thread_name_prefix="bi_wkv")


def _share(kernel: Callable[..., None], jobs: int, elements: int, *arguments: Any) -> None:
    """Run `kernel(*arguments, first, last)` over all jobs on as many threads as torch may use."""
    threads = min(torch.get_num_threads(), jobs)
    if threads == 1 or elements < _INLINE_ELEMENTS:
        kernel(*arguments, 0, jobs)
        return
    bounds = [jobs * part // threads for part in range(threads + 1)]
    tasks = [
        _threads(torch.get_num_threads(), os.getpid()).submit(kernel, *arguments, first, last)
        for first, last in pairwise(bounds[1:])
    ]
    kernel(*arguments, bounds[0], bounds[1])
    for task in tasks:
        task.result()


def _exceeds_float32(w: Tensor, u: Tensor) -> bool:
    return bool(((w.abs() + u.clamp(min=0)).amax() > _FLOAT32_EXPONENT) | (u.amin() < -_FLOAT32_EXPONENT))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _decay(w: Tensor, length: int, dtype: torch.dtype) -> np.ndarray:
    decay = torch.exp(w.double() / -length)
    return _array(torch.cat([decay, decay], dim=-1).to(dtype))


def carries_shape(batch: int, length: int, channels: int) -> tuple[int, int, int, int]:
    """Of the states kept for the backward pass: two scans of 2 C numbers entering every chunk."""
    return batch, -(-length // CHUNK), 2, 2 * channels


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, and what the backward pass needs: the carries (B, N, 2, 2 C) and (B, 2, C): largest key, anchor.

    w and u (B, C), float64 for float64 keys and else float32; k and v (B, L, C).
    """
    given, kept, sums = k.dtype, w.dtype, torch.float64 if _exceeds_float32(w, u) else w.dtype
    w, u, k, v = (x.to(sums) for x in (w, u, k, v))
    batch, length, channels = k.shape
    carries = torch.empty(carries_shape(*k.shape), dtype=sums)
    chunks = carries.shape[1]
    keys, values, decay, bonus = _array(k), _array(v), _decay(w, length, sums), _array(u.exp())
    y = torch.empty(k.shape, dtype=sums)
    tops, top = np.empty((batch, chunks, 4, channels), keys.dtype), np.empty((batch, 2, channels), keys.dtype)
    _share(summarise, batch * chunks, k.numel(), keys, values, decay, tops, carries.numpy())
    rebase(tops, top, carries.numpy())
    carry(_array(w.double()), length, carries.numpy())
    _share(scan, batch * chunks, k.numel(), keys, values, decay, bonus, top, carries.numpy(), y.numpy())
    return y.to(given), carries.to(kept), torch.from_numpy(top).to(kept)


def backward(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, carries: Tensor, top: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients for w and u (B, C), k and v, from the gradient of y and what `forward` kept."""
    given, kept = k.dtype, w.dtype
    if kept != torch.float64 and _exceeds_float32(
        w, u
    ):  # what was kept has too few digits and too little range
        w, u, k, v = (x.double() for x in (w, u, k, v))
        _, carries, top = forward(w, u, k, v)
    grad, k, v = (x.to(w.dtype) for x in (grad, k, v))
    batch, length, channels = k.shape
    chunks = carries.shape[1]
    decay, bonus = _decay(w, length, w.dtype), _array(u.exp())
    shared = (_array(k), _array(v), decay, bonus, _array(top), _array(carries), _array(grad))
    sums = np.empty(carries.shape, shared[0].dtype)
    _share(summarise_grad, batch * chunks, k.numel(), *shared, sums)
    carry(_array(w.double()), length, sums)
    dk, dv = torch.empty(k.shape, dtype=k.dtype), torch.empty(k.shape, dtype=k.dtype)
    parts = np.empty((2, batch, chunks, channels), sums.dtype)
    _share(scan_grad, batch * chunks, k.numel(), *shared, sums, dk.numpy(), dv.numpy(), parts[0], parts[1])
    dw, du = torch.from_numpy(parts.sum(axis=2, dtype=np.float64))
    dw = dw * torch.exp(w.double() / -length) / -length
    return dw.to(kept), du.to(kept), dk.to(given), dv.to(given)

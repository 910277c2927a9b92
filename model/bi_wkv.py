"""The bi-directional WKV operator, eq. 7 of the paper, exact and in time linear in the sequence length.

    y_t = (sum_{i != t} e^{k_i - w (|t-i| - 1) / L} v_i + e^{u + k_t} v_t) / (the same with v = 1)

One name, `bi_wkv`, with two kernels behind it: `reference` (plain tensor operations, any device) and `cpu`
(compiled with numba, see bi_wkv_cpu). The derivation and the measured figures are in docs/operator.md.
"""

from __future__ import annotations

import math
import os
import warnings
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

KERNELS = ("auto", "cpu", "reference")
VARIABLE = "RWKVFUSION_KERNEL"
# With keys shifted by their largest, float32 has room for decays and bonuses up to e^56; beyond, float64.
_FLOAT32_EXPONENT = 56.0


def bi_wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from every token to every other, per channel, by eq. 7.

    Args:
        w: decay over the whole sequence, (C,), or (B, C) to give each batch item its own; may be negative.
        u: bonus of the current token, (C,).
        k: keys (B, L, C), L >= 1. A key of -inf (or far below the others) takes its token out of every sum.
        v: values (B, L, C), same dtype as k: float16, bfloat16, float32 or float64.

    Returns:
        y (B, L, C), dtype of k. Sums are float32 (float64 for float64 input or for extreme w and u).

    Raises:
        ValueError: a shape or dtype that does not fit, or an unknown value of RWKVFUSION_KERNEL.
    """
    _check(w, u, k, v)
    wide = torch.promote_types(k.dtype, torch.float32)
    if wide == torch.float32 and _exceeds_float32(w, u):
        wide = torch.float64
    decay = w.to(wide).expand(k.shape[0], k.shape[2])
    arguments = (decay, u.to(wide), k.to(wide), v.to(wide))
    if k.numel() == 0:
        y = arguments[3] + arguments[2]
    elif _kernel(k.device.type) == "cpu":
        y = torch.ops.rwkvfusion.bi_wkv(*arguments)[0]
    else:
        y = reference(*arguments)
    return y.to(k.dtype)


def reference(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Eq. 7 in plain tensor operations, differentiable by autograd: w (B, C), u (C,), k and v (B, L, C).

    All four of one dtype, which is also that of the sums; `bi_wkv` chooses it.
    """
    top, place = k.detach().max(dim=1, keepdim=True)
    # y moves with v: measured from the heaviest token's value, gradients lose no digits where it dominates.
    anchor = v.detach().gather(1, place)
    weight = torch.exp(k - top)
    rows = torch.stack([weight * (v - anchor), weight])  # numerator and denominator obey the same recurrence
    scans = _left_scan(rows, w) + _left_scan(rows.flip(2), w).flip(2)
    numerator, denominator = scans + torch.exp(u) * rows
    return anchor + numerator / denominator


def _left_scan(rows: Tensor, w: Tensor) -> Tensor:
    """F_1 = 0, F_{t+1} = e^{-w/L} F_t + rows_t along dimension 2 of rows (2, B, L, C)."""
    length = rows.shape[2]
    size = math.isqrt(length - 1) + 1
    chunks = -(-length // size)
    rows = F.pad(rows, (0, 0, 0, chunks * size - length)).unflatten(2, (chunks, size))
    place = torch.arange(size + 1, device=rows.device, dtype=rows.dtype)[:, None]
    exponent = (w / length)[:, None, None] * place  # (B, 1, size + 1, C)
    # Inside a chunk: a running sum of rows whose decay is undone, then redone. sums[t] has the rows before t.
    sums = F.pad(torch.cumsum(rows * torch.exp(exponent[..., :-1, :]), dim=3), (0, 0, 1, 0))
    inside = sums[..., 1:, :] * torch.exp(-exponent[..., :-1, :])
    summary = inside[..., -1, :].double()
    before = sums[..., :-1, :] * torch.exp(exponent[..., 1:2, :] - exponent[..., :-1, :])
    # Over chunks: the same, in float64, with the decay of whole chunks.
    leap = torch.arange(chunks, device=rows.device, dtype=torch.float64)[:, None] * size / length
    leaps = w.double()[:, None] * leap  # (B, chunks, C)
    reach = torch.cumsum(summary * torch.exp(leaps), dim=2) * torch.exp(-leaps)
    entering = F.pad(reach[:, :, :-1], (0, 0, 1, 0)).to(rows.dtype)
    scanned = before + entering[..., None, :] * torch.exp(-exponent[..., :-1, :])
    return scanned.flatten(2, 3)[:, :, :length]


def _check(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> None:
    if k.dim() != 3 or k.shape != v.shape or k.dtype != v.dtype or not k.is_floating_point():
        raise ValueError(
            "bi_wkv: k and v must be floating-point (B, L, C) of one shape and dtype, "
            f"got {tuple(k.shape)} {k.dtype} and {tuple(v.shape)} {v.dtype}"
        )
    batch, _, channels = k.shape
    if w.shape not in ((channels,), (batch, channels)) or u.shape != (channels,):
        raise ValueError(
            f"bi_wkv: for k of shape {tuple(k.shape)}, w must be ({channels},) or ({batch}, {channels}) "
            f"and u ({channels},), got {tuple(w.shape)} and {tuple(u.shape)}"
        )


def _exceeds_float32(w: Tensor, u: Tensor) -> bool:
    if w.numel() == 0 or torch.compiler.is_compiling():
        return False
    with torch.no_grad():
        reach = w.abs() + u.clamp(min=0)
        return bool((reach.amax() > _FLOAT32_EXPONENT) | (u.amin() < -_FLOAT32_EXPONENT))


def _kernel(device: str) -> str:
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in KERNELS:
        raise ValueError(f"{VARIABLE}={choice!r} is unknown: choose one of {', '.join(KERNELS)}")
    if choice == "reference" or (choice == "auto" and device != "cpu"):
        return "reference"
    if device != "cpu":
        raise ValueError(f"{VARIABLE}=cpu was given a tensor on {device}: set it to auto or reference")
    reason = _why_no_numba()
    if reason is None:
        return "cpu"
    if choice == "cpu":
        raise ValueError(f"{VARIABLE}=cpu needs numba, which does not import here ({reason}): install numba")
    return "reference"


@lru_cache(maxsize=1)
def _why_no_numba() -> str | None:
    """None where the compiled kernel can be used, else the reason, warned about once."""
    try:
        import model.bi_wkv_cpu  # noqa: F401
    except ImportError as error:
        warnings.warn(
            f"bi_wkv falls back to its slow reference: numba does not import ({error})", stacklevel=4
        )
        return str(error)
    return None


@torch.library.custom_op("rwkvfusion::bi_wkv", mutates_args=(), device_types="cpu")
def _forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from model import bi_wkv_cpu

    return bi_wkv_cpu.forward(w, u, k, v)


@torch.library.custom_op("rwkvfusion::bi_wkv_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, carries: Tensor, top: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from model import bi_wkv_cpu

    return bi_wkv_cpu.backward(grad, w, u, k, v, carries, top)


@_forward.register_fake
def _(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from model.bi_wkv_cpu import carries_shape

    top = k.new_empty((k.shape[0], 2, k.shape[2]))
    return torch.empty_like(k), k.new_empty(carries_shape(*k.shape)), top


@_backward.register_fake
def _(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, carries: Tensor, top: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(w), torch.empty_like(u), torch.empty_like(k), torch.empty_like(v)


def _keep(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]
) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.set_materialize_grads(False)  # those of the saved states would be large zeros


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, grad: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    return tuple(torch.ops.rwkvfusion.bi_wkv_backward(grad, *ctx.saved_tensors))  # type: ignore[attr-defined]


_forward.register_autograd(_differentiate, setup_context=_keep)

"""The bi-directional WKV operator, eq. 7 of the paper, exact and in time linear in the sequence length.

    y_t = (sum_{i != t} e^{k_i - w (|t-i| - 1) / L} v_i + e^{u + k_t} v_t) / (the same with v = 1)

One name, `bi_wkv`, with three kernels behind it: `reference` (plain tensor operations, any device), `cpu`
(compiled with numba, bi_wkv_cpu) and `cuda` (CUDA C++ compiled at first use, bi_wkv_cuda). The derivation and
the measured figures are in docs/operator.md.
"""

from __future__ import annotations

import math
import os
import warnings
from functools import lru_cache, partial
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

KERNELS = ("auto", "cuda", "cpu", "reference")
VARIABLE = "RWKVFUSION_KERNEL"
EXPORTED_CHUNK = 512  # about the root of L for images of common sizes
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def bi_wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from every token to every other, per channel, by eq. 7.

    Args:
        w: decay over the whole sequence, (C,), or (B, C) to give each batch item its own; may be negative.
        u: bonus of the current token, (C,).
        k: keys (B, L, C), L >= 1. A key of -inf (or far below the others) takes its token out of every sum.
        v: values (B, L, C), same dtype as k: float16, bfloat16, float32 or float64.

    Returns:
        y (B, L, C), dtype of k. Sums are float32, or float64 for float64 input and for extreme w and u.

    Raises:
        ValueError: a shape, dtype or device that does not fit, an unknown value of RWKVFUSION_KERNEL, or a
            kernel asked for by name that cannot run here.
    """
    _check(w, u, k, v)
    batch, _, channels = k.shape
    wide = torch.promote_types(k.dtype, torch.float32)
    decay, bonus = (x.to(wide).expand(batch, channels) for x in (w, u))
    if k.numel() == 0:
        return v + k
    # PyTorch leaves tangents of forward-mode derivatives out of custom operators without a word.
    tangents = any(unpack_dual(x).tangent is not None for x in (w, u, k, v))
    if tangents or _kernel(k.device.type, k.device.index, k.dtype) == "reference":
        return reference(decay, bonus, k, v)
    y: Tensor = torch.ops.rwkvfusion.bi_wkv(decay, bonus, k, v)[0]
    return y


def reference(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Eq. 7 in plain tensor operations, differentiable by autograd: w and u (B, C), k and v (B, L, C).

    Sums are float64 where the device has it: with float32, |w| beyond 56 would overflow.
    """
    sums = torch.float32 if k.device.type == "mps" else torch.float64
    given, (w, u, k, v) = k.dtype, (x.to(sums) for x in (w, u, k, v))
    top, place = k.detach().max(dim=1, keepdim=True)
    # y moves with v: measured from the heaviest token's value, gradients lose no digits where it dominates.
    anchor = v.detach().gather(1, place)
    weight = torch.exp(k - top)
    rows = torch.stack([weight * (v - anchor), weight])  # numerator and denominator obey the same recurrence
    scans = _left_scan(rows, w) + _left_scan(rows.flip(2), w).flip(2)
    numerator, denominator = scans + torch.exp(u)[:, None] * rows
    return (anchor + numerator / denominator).to(given)


def _left_scan(rows: Tensor, w: Tensor) -> Tensor:
    """F_1 = 0, F_{t+1} = e^{-w/L} F_t + rows_t along dimension 2 of rows (2, B, L, C)."""
    length = rows.shape[2]
    if torch.compiler.is_exporting():
        # One program serves every length: their size is fixed, and also that several chunks enter others.
        size, chunks = EXPORTED_CHUNK, length // EXPORTED_CHUNK + 3
    else:
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
    if k.dim() != 3 or k.shape != v.shape or k.dtype != v.dtype or k.dtype not in DTYPES:
        raise ValueError(
            "bi_wkv: k and v must be floating-point (B, L, C) of one shape and dtype (16, 32 or 64 bits), "
            f"got {tuple(k.shape)} {k.dtype} and {tuple(v.shape)} {v.dtype}"
        )
    batch, _, channels = k.shape
    if w.shape not in ((channels,), (batch, channels)) or u.shape != (channels,):
        raise ValueError(
            f"bi_wkv: for k of shape {tuple(k.shape)}, w must be ({channels},) or ({batch}, {channels}) "
            f"and u ({channels},), got {tuple(w.shape)} and {tuple(u.shape)}"
        )
    if len({x.device for x in (w, u, k, v)}) > 1:
        raise ValueError(
            f"bi_wkv: w, u, k, v are on {w.device}, {u.device}, {k.device}, {v.device}: move them to one"
        )


def _kernel(device: str, index: int | None, dtype: torch.dtype) -> str:
    """Which kernel is to run: `cuda`, `cpu` or `reference`."""
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in KERNELS:
        raise ValueError(f"{VARIABLE}={choice!r} is unknown: choose one of {', '.join(KERNELS)}")
    own = device if device in ("cpu", "cuda") else "reference"
    if choice == "reference" or (choice == "auto" and own == "reference"):
        return "reference"
    if choice not in ("auto", own):
        raise ValueError(f"{VARIABLE}={choice} was given a tensor on {device}: set it to auto or reference")
    reason = _why_no_numba() if own == "cpu" else _why_no_cuda(index or 0, dtype)
    if reason is None:
        return own
    if choice == own:
        raise ValueError(f"{VARIABLE}={choice} cannot run here: {reason}")
    return "reference"


# What torch.compiler.assume_constant_result sets: traced code takes the answer as it is. Calling that imports
# torch._dynamo, which would cost everybody who compiles nothing two seconds.
_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def _why_no_numba() -> str | None:
    """None where the compiled kernel can be used, else the reason, warned about once."""
    try:
        import model.bi_wkv_cpu  # noqa: F401
    except ImportError as error:
        return _warn(f"numba does not import ({error}); install numba")
    return None


@lru_cache
def _why_no_cuda(index: int, dtype: torch.dtype) -> str | None:
    """None where the CUDA kernels can be used, else the reason, warned about once."""
    from model.bi_wkv_cuda import why_unusable

    reason = why_unusable(index, dtype)
    return _warn(f"the CUDA kernels cannot be used ({reason})") if reason else None


def _warn(reason: str) -> str:
    warnings.warn(f"bi_wkv falls back to its slow reference: {reason}", stacklevel=5)
    return reason


# torch.library.custom_op would say this shorter, but wraps every kernel so that its first call imports
# torch._dynamo: two seconds before the first fused image.
_FORWARD, _BACKWARD = "rwkvfusion::bi_wkv", "rwkvfusion::bi_wkv_backward"
torch.library.define(
    _FORWARD,
    "(Tensor w, Tensor u, Tensor k, Tensor v) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    _BACKWARD,
    "(Tensor grad, Tensor w, Tensor u, Tensor k, Tensor v, Tensor carries, Tensor top)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl(_FORWARD, "cpu")
def _(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from model import bi_wkv_cpu

    return bi_wkv_cpu.forward(w, u, k, v)


@torch.library.impl(_FORWARD, "cuda")
def _(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from model import bi_wkv_cuda

    return bi_wkv_cuda.forward(*(x.contiguous() for x in (w, u, k, v)))


@torch.library.impl(_BACKWARD, "cpu")
def _(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, carries: Tensor, top: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from model import bi_wkv_cpu

    return bi_wkv_cpu.backward(grad, w, u, k, v, carries, top)


@torch.library.impl(_BACKWARD, "cuda")
def _(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, carries: Tensor, top: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from model import bi_wkv_cuda

    return bi_wkv_cuda.backward(*(x.contiguous() for x in (grad, w, u, k, v, carries, top)))


@torch.library.register_fake(_FORWARD)
def _(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if k.device.type == "cuda":
        from model.bi_wkv_cuda import carries_shape

        carries = w.new_empty(carries_shape(*k.shape), dtype=torch.float64)
    else:
        from model.bi_wkv_cpu import carries_shape

        carries = w.new_empty(carries_shape(*k.shape))
    top = w.new_empty((k.shape[0], 2, k.shape[2]))
    return torch.empty_like(k, memory_format=torch.contiguous_format), carries, top


@torch.library.register_fake(_BACKWARD)
def _(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, carries: Tensor, top: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dw, du, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (w, u, k, v))
    return dw, du, dk, dv


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


def _refuse(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor | None) -> NoReturn:
    raise NotImplementedError(f"bi_wkv: no second derivatives of this kernel; set {VARIABLE}=reference")


torch.library.register_autograd(_FORWARD, _differentiate, setup_context=_keep)
torch.library.register_autograd(_BACKWARD, _refuse)


def _fold(operator: Any, info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Any, Any]:
    """torch.vmap: the mapped dimension joins the batch, which leads every argument and every result."""
    size = info.batch_size
    mapped = [
        x.expand(size, *x.shape) if place is None else x.movedim(place, 0)
        for x, place in zip(tensors, in_dims, strict=True)
    ]
    results = operator(*(x.flatten(0, 1) for x in mapped))
    return tuple(x.unflatten(0, (size, -1)) for x in results), (0,) * len(results)


torch.library.register_vmap(_FORWARD, partial(_fold, torch.ops.rwkvfusion.bi_wkv))
torch.library.register_vmap(_BACKWARD, partial(_fold, torch.ops.rwkvfusion.bi_wkv_backward))

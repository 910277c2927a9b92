"""The CUDA kernels of the bi-WKV operator (eq. 7), compiled at first use, launched on the current stream.

The sources are `cuda/bi_wkv.cu` and its header. NVRTC, whose library comes with PyTorch's CUDA wheels,
compiles them through `cuda.core`: no toolkit, no host compiler. The machine code is cached in the user's
cache folder under a key made from the sources, the options, the architecture and the compiler's version.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What the sources call the types that keys and values are stored in.
STORAGE = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "Float16",
    torch.bfloat16: "BFloat16",
}


def source_folder() -> Path:
    """Where the CUDA sources are: inside an installed package, or beside it in a checkout.

    Raises:
        FileNotFoundError: in neither place.
    """
    here = Path(__file__).parent
    for folder in (here / "_cuda", here.parent / "cuda"):
        if (folder / "bi_wkv.cu").is_file():
            return folder
    raise FileNotFoundError(
        f"no bi_wkv.cu in {here / '_cuda'} or {here.parent / 'cuda'}: install rwkvfusion again"
    )


@cache
def source() -> str:
    """The kernels as one translation unit."""
    folder = source_folder()
    kernels, header = ((folder / name).read_text(encoding="utf-8") for name in ("bi_wkv.cu", "bi_wkv.cuh"))
    return kernels.replace('#include "bi_wkv.cuh"', header)


@cache
def constants() -> dict[str, int]:
    """The sizes that host and kernels share, as the sources give them."""
    found = {name: int(value) for name, value in re.findall(r"constexpr int (\w+) = (\d+);", source())}
    return {**found, "CHUNK": found["TOKENS"] * found["ROWS"]}


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    if sys.platform == "win32":
        default = os.environ.get("LOCALAPPDATA", str(Path.home()))
    else:
        default = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return Path(default) / "rwkvfusion" / "kernels"


def compile_for(architecture: str, dtype: torch.dtype) -> Any:
    """The kernels' machine code (a `cuda.core.ObjectCode`), from the cache where it is there; needs no GPU.

    Args:
        architecture: as "sm_90".
        dtype: of keys and values.

    Raises:
        ImportError: cuda.core is missing.
        Exception: cuda.core's own, where NVRTC's library is missing or refuses the sources.
    """
    from cuda.core import Program, ProgramOptions
    from cuda.core.utils import FileStreamProgramCache

    options = ProgramOptions(
        name="bi_wkv", arch=architecture, std="c++17", define_macro=("STORAGE", STORAGE[dtype])
    )
    program = Program(source(), "c++", options)
    try:
        with FileStreamProgramCache(cache_folder()) as compiled:
            return program.compile("cubin", cache=compiled)
    except OSError:  # a home that cannot be written to: compile in every process
        return program.compile("cubin")


@cache
def _code(device: int, dtype: torch.dtype) -> Any:
    from cuda.core import Device

    with torch.cuda.device(device):
        Device(device).set_current()  # PyTorch's own context: the device's primary one
        major, minor = torch.cuda.get_device_capability(device)
        return compile_for(f"sm_{major}{minor}", dtype)


@cache
def _kernel(device: int, dtype: torch.dtype, name: str) -> Any:
    return _code(device, dtype).get_kernel(name)


@cache
def why_unusable(device: int, dtype: torch.dtype) -> str | None:
    """None where the kernels can be launched, else the reason in one line. Compiles at the first call."""
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    try:
        _kernel(device, dtype, "scan")
    except (
        Exception
    ) as error:  # whatever keeps them from compiling or loading: the caller says it and goes on
        lines = str(error).strip().splitlines() or [""]
        telling = next((line for line in lines if ": error:" in line), lines[0])
        return f"{type(error).__name__}: {telling}"
    return None


def launch(
    name: str, like: Tensor, grid: tuple[int, int], block: tuple[int, int], *arguments: Tensor | int
) -> None:
    """Queue the kernel `name` for the storage type and on the device and current stream of `like`."""
    from cuda.core import LaunchConfig
    from cuda.core import launch as start

    values = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    with torch.cuda.device(like.device):
        kernel = _kernel(like.device.index, like.dtype, name)
        start(torch.cuda.current_stream(), LaunchConfig(grid=grid, block=block), kernel, *values)


def carries_shape(batch: int, length: int, channels: int) -> tuple[int, int, int, int]:
    """Of the float64 states kept for the backward pass: two scans of 2 C numbers entering every chunk."""
    return batch, -(-length // constants()["CHUNK"]), 2, 2 * channels


def grids(k: Tensor) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    """Grid and block of the kernels over chunks, and of `carry`."""
    size = constants()
    batch, length, channels = k.shape
    lanes = min(size["LANES"], max(8, 1 << (channels - 1).bit_length()))
    chunks = -(-length // size["CHUNK"])
    return (
        ((batch * chunks, -(-channels // lanes)), (lanes, size["ROWS"])),
        ((batch, -(-channels // size["CARRY_LANES"])), (size["CARRY_LANES"], size["CARRY_ROWS"])),
    )


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, and what the backward pass needs: the carries (B, N, 2, 2 C) and (B, 2, C): largest key, anchor.

    w and u (B, C), float64 for float64 keys and else float32; k and v (B, L, C), contiguous.
    """
    batch, length, channels = k.shape
    sums = k.new_empty(carries_shape(*k.shape), dtype=torch.float64)
    tops = w.new_empty((batch, sums.shape[1], 4, channels))
    top, carries = w.new_empty((batch, 2, channels)), torch.empty_like(sums)
    chunks, whole = grids(k)
    inputs = (w, u, k, v, length, channels)
    launch("summarise", k, *chunks, *inputs, tops, sums)
    launch("carry", k, *whole, w, u, length, channels, tops, top, sums, carries)
    del sums, tops  # the allocator gives their memory to y: the stream keeps the order
    y = torch.empty_like(k)
    launch("scan", k, *chunks, *inputs, top, carries, y)
    return y, carries, top


def backward(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, carries: Tensor, top: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients for w and u (B, C), k and v, from the gradient of y and what `forward` kept."""
    _, length, channels = k.shape
    chunks, whole = grids(k)
    inputs = (w, u, k, v, length, channels, top, carries, grad)
    sums, grad_carries = torch.empty_like(carries), torch.empty_like(carries)
    launch("summarise_grad", k, *chunks, *inputs, sums)
    launch("carry", k, *whole, w, u, length, channels, 0, 0, sums, grad_carries)
    del sums
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    dw, du = carries.new_empty((2, *carries.shape[:2], channels))
    launch("scan_grad", k, *chunks, *inputs, grad_carries, dk, dv, dw, du)
    dw = dw.sum(1) * torch.exp(w.double() / -length) / -length
    return dw.to(w.dtype), du.sum(1).to(u.dtype), dk, dv

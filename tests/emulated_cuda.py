"""Run the CUDA sources without a GPU: the same file, compiled by g++ against tests/emulated_cuda.h."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import bi_wkv_cuda

HEADER = Path(__file__).with_suffix(".h")


def compile_for_host(folder: Path, storage: str) -> Path:
    """The kernels for one storage type as a shared library."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here to compile the CUDA sources for the host")
    source, library = folder / f"{storage}.cpp", folder / f"{storage}.so"
    if not library.exists():
        source.write_text(bi_wkv_cuda.source())
        options = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-DSTORAGE={storage}"]
        subprocess.run([compiler, *options, "-include", HEADER, source, "-o", library], check=True)
    return library


class Emulator:
    """Stands in for `bi_wkv_cuda.launch`: CPU tensors, one thread after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.falling = False

    def __call__(
        self, name: str, like: Tensor, grid: tuple[int, int], block: tuple[int, int], *arguments: Tensor | int
    ) -> None:
        library = ctypes.CDLL(str(compile_for_host(self.folder, bi_wkv_cuda.STORAGE[like.dtype])))
        values = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
        assert all(x.is_contiguous() for x in arguments if isinstance(x, Tensor))
        padded = (ctypes.c_longlong * 16)(*values)
        diverged = library.run(
            ctypes.cast(getattr(library, name), ctypes.c_void_p),
            (ctypes.c_uint * 2)(*grid),
            (ctypes.c_uint * 2)(*block),
            int(self.falling),
            padded,
        )
        assert diverged == 0, f"{name}: the threads of a block met different numbers of barriers"


def poison(patch: pytest.MonkeyPatch) -> None:
    """New memory is full of NaN, so that an element nobody writes shows."""
    nan = float("nan")
    patch.setattr(torch, "empty_like", lambda x, **options: torch.full_like(x, nan, **options))
    patch.setattr(Tensor, "new_empty", lambda x, shape, **options: x.new_full(shape, nan, **options))

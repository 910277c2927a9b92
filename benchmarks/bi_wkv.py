"""Time the bi-WKV operator on the CPU, and on a GPU if there is one; the last line printed is a JSON object.

    python benchmarks/bi_wkv.py [--length 307200] [--channels 64] [--threads 2] [--repeat 7]
                                [--vision-rwkv FOLDER]

All ratios are of medians within one run. Baselines: three clones of the input (what moving its bytes costs),
and the operator as one cumulative sum over the whole sequence in plain tensor operations. On a GPU: the time
a copy takes to move 5 N elements (forward) or 8 N (backward), and, with --vision-rwkv, the kernel in a folder
`cuda_new` of a checkout of Vision-RWKV, which nvcc has to build.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from model.bi_wkv import VARIABLE, bi_wkv


def cumulative_sum(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Eq. 7 by undoing the decay, summing, and redoing it: short, slow, and only for moderate w and k."""
    length = k.shape[1]
    place = torch.arange(length, dtype=k.dtype)[:, None] / length
    decay, growth = torch.exp(-w * place), torch.exp(w * place)
    weight = torch.exp(k - k.amax(dim=1, keepdim=True))
    step, bonus = torch.exp(w / length), torch.exp(u)

    def scans(x: Tensor) -> Tensor:
        left = (torch.cumsum(x * growth, dim=1) - x * growth) * decay
        right = (torch.cumsum((x * decay).flip(1), dim=1).flip(1) - x * decay) * growth
        return step * (left + right) + bonus * x

    return scans(weight * v) / scans(weight)


def median_seconds(function: Callable[[], object], repeat: int) -> float:
    function()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def draw(length: int, channels: int, gradients: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(channels,), (channels,), (1, length, channels), (1, length, channels)]
    return [torch.randn(shape, generator=generator).requires_grad_(gradients) for shape in shapes]


def measure(length: int, channels: int, repeat: int) -> dict[str, float]:
    inputs = draw(length, channels)
    with torch.no_grad():
        difference = (bi_wkv(*inputs) - cumulative_sum(*inputs)).abs().max()
        assert difference < 1e-2, f"the two forms disagree by {difference:.1e}"
        clones = median_seconds(lambda: [inputs[2].clone() for _ in range(3)], repeat)
        forward = median_seconds(lambda: bi_wkv(*inputs), repeat)
        plain = median_seconds(lambda: cumulative_sum(*inputs), 3)
        per_token = {}
        for tokens in (65536, 4_000_000):
            long = draw(tokens, 16)
            per_token[tokens] = median_seconds(partial(bi_wkv, *long), repeat) / tokens
    leaves, grad = draw(length, channels, gradients=True), torch.ones_like(inputs[2])
    both = median_seconds(lambda: torch.autograd.grad(bi_wkv(*leaves), leaves, grad), repeat)
    return {
        "cpu_forward_seconds": forward,
        "cpu_forward_backward_seconds": both,
        "cpu_3_clones_seconds": clones,
        "cpu_cumsum_seconds": plain,
        "cpu_forward_speedup_vs_cumsum": plain / forward,
        "cpu_forward_vs_3_clones": forward / clones,
        "cpu_forward_backward_vs_3_clones": both / clones,
        "cpu_per_token_4m_vs_65k": per_token[4_000_000] / per_token[65536],
    }


def median_gpu_seconds(function: Callable[[], object], repeat: int) -> float:
    for _ in range(3):
        function()
    seconds = []
    for _ in range(repeat):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return statistics.median(seconds)


def measure_gpu(length: int, channels: int, repeat: int, vision_rwkv: Path | None) -> dict[str, float]:
    w, u, k, v = (x.cuda() for x in draw(length, channels))
    repeat *= 5
    others = torch.cuda.memory_allocated() - 2 * k.nbytes
    torch.cuda.reset_peak_memory_stats()
    y = bi_wkv(w, u, k, v)
    forward_memory = torch.cuda.max_memory_allocated() - others
    move = median_gpu_seconds(lambda: y.copy_(k), repeat) / 2  # a copy reads N elements and writes N
    forward = median_gpu_seconds(lambda: bi_wkv(w, u, k, v), repeat)
    leaves = [x.requires_grad_() for x in (w, u, k, v)]
    y, grad = bi_wkv(*leaves), torch.ones_like(k)
    torch.cuda.reset_peak_memory_stats()
    backward = median_gpu_seconds(lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True), repeat)
    backward_memory = torch.cuda.max_memory_allocated() - others
    results = {
        "gpu_forward_seconds": forward,
        "gpu_backward_seconds": backward,
        "gpu_forward_vs_moving_5n": forward / (5 * move),
        "gpu_backward_vs_moving_8n": backward / (8 * move),
        "gpu_forward_memory_vs_tensors": forward_memory / (3 * k.nbytes),  # k, v, y
        "gpu_backward_memory_vs_tensors": backward_memory / (6 * k.nbytes),  # and grad, dk, dv
    }
    if vision_rwkv is not None:
        from torch.utils.cpp_extension import load

        sources = [str(vision_rwkv / name) for name in ("bi_wkv.cpp", "bi_wkv_kernel.cu")]
        other = load(name="bi_wkv", sources=sources)
        with torch.no_grad():
            theirs = median_gpu_seconds(lambda: other.bi_wkv_forward(w, u, k, v), repeat)
        results["gpu_vision_rwkv_seconds"] = theirs
        results["gpu_forward_speedup_vs_vision_rwkv"] = theirs / forward
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=640 * 480)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--vision-rwkv", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts: dict[str, object] = vars(options) | {
        "kernel": os.environ.get(VARIABLE, "auto"),
        "torch": torch.__version__,
    }
    results = measure(options.length, options.channels, options.repeat)
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        results |= measure_gpu(options.length, options.channels, options.repeat, options.vision_rwkv)
    print(json.dumps(facts | {name: round(value, 6) for name, value in results.items()}, default=str))


if __name__ == "__main__":
    main()

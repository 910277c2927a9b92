"""What a network costs: operations by module, torch's own count beside them, time and memory of a forward.

An operation is a multiplication with its addition, as in Tables 1, 4 and 5; torch counts both, so its figure
is halved here. Normalisations, activations, gates and resampling are in neither count.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.config import TEXT_GUIDANCE, ModelConfig
from model.fusion_variants import CrossAttention
from model.network import RWKVFusion
from model.spatial_mix import SpatialMix
from pipeline.config import build


@dataclass(frozen=True)
class Footprint:
    """One forward: seconds, and bytes of memory at the peak, of the process and beyond what it began with."""

    seconds: float
    peak: int
    activations: int


def example(config: ModelConfig, height: int, width: int, tokens: int = 0) -> dict[str, Any]:
    """Random inputs of one sample: sources, ``tokens`` tokens of text, masks where they are used."""
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Any] = {
        "sources": [torch.rand(1, bands, height, width, generator=generator) for bands in config.in_channels]
    }
    if tokens and config.guidance in TEXT_GUIDANCE:
        inputs["text"] = torch.randn(1, tokens, config.text_width, generator=generator)
    if config.mask_inputs:
        inputs["masks"] = torch.rand(1, config.mask_inputs, height, width, generator=generator) > 0.9
    return inputs


def count_operations(network: RWKVFusion, inputs: dict[str, Any]) -> tuple[dict[str, int], int]:
    """Operations of one forward by the name of the module that does them, and torch's total."""
    counts: dict[str, int] = {}
    handles = []
    for name, module in network.named_modules():

        def count(module: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
            counts[name] = counts.get(name, 0) + _operations(module, args, output)

        handles.append(module.register_forward_hook(count))
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: value for name, value in counts.items() if value}, counter.get_total_flops() // 2


def _operations(module: nn.Module, args: tuple[Any, ...], output: Any) -> int:
    """What the module itself does, without its parts. `SpatialMix` applies eq. 6 by itself."""
    if isinstance(module, nn.Linear):
        return int(output.numel()) * module.in_features
    if isinstance(module, nn.Conv2d):
        return int(output.numel()) * module.weight[0].numel()
    if isinstance(module, SpatialMix | CrossAttention):
        x: Tensor = args[0]
        words = 0 if len(args) < 2 or args[1] is None else args[1].tokens.shape[1]
        return x.shape[0] * module.operations(x.shape[1], x.shape[2], words)
    return 0


def measure(config: ModelConfig, height: int, width: int, tokens: int = 64, threads: int = 2) -> Footprint:
    """Time and peak memory of one forward without gradients on the CPU, in a process of its own."""
    task = {"model": dataclasses.asdict(config), "size": [height, width], "tokens": tokens}
    result = subprocess.run(
        [sys.executable, "-m", "model.complexity"],
        input=json.dumps(task | {"threads": threads}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Footprint(**json.loads(result.stdout.splitlines()[-1]))


def _measure_here() -> None:
    """The other side of `measure`: the task from standard input, the result as one line of JSON."""
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    config = build(ModelConfig, task["model"], "model")
    network = RWKVFusion(config).eval()
    with torch.inference_mode():
        network(**example(config, 16, 16, task["tokens"]))  # compiles the kernel
        height, width = task["size"]
        inputs = example(config, height, width, task["tokens"])
        before = resident_bytes("VmRSS")
        start = time.perf_counter()
        network(**inputs)
        seconds = time.perf_counter() - start
    peak = resident_bytes("VmHWM")
    print(json.dumps({"seconds": seconds, "peak": peak, "activations": peak - before}))


def resident_bytes(field: str) -> int:
    """Resident bytes of this process, now (VmRSS) or at the peak (VmHWM); not on Linux, always the peak."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    _measure_here()

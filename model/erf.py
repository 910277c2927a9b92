"""Effective receptive fields (sect. 6.2, fig. 10), by RepLKNet's method (Ding et al. 2022).

The field is the mean absolute gradient of the centre of the last features, summed over channels, with respect
to the sources' pixels. Untrained networks of one preset differ in their operator only. They are drawn without
guidance and with the fusion module `mlp`: the pooled gate of eq. 15 reaches the whole image in every variant
and would hide the operators.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from model.network import RWKVFusion
from model.presets import preset
from model.spatial_mix import SpatialMix
from pipeline.errors import InputError
from pipeline.images import write_atomically

CONVOLUTION = "convolution"
"""The network with the operator's output taken away."""


def receptive_field(network: RWKVFusion, size: int, samples: int = 2, seed: int = 0) -> Tensor:
    """(size, size) in double precision: how much each pixel of the sources moves the centre's features."""
    generator = torch.Generator().manual_seed(seed)
    features: list[Tensor] = []
    handle = network.head.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    field = torch.zeros(size, size, dtype=torch.float64)
    try:
        for _ in range(samples):
            sources = [
                torch.rand(1, bands, size, size, generator=generator, requires_grad=True)
                for bands in network.config.in_channels
            ]
            network(sources)
            centre = features.pop()[:, size // 2, size // 2].sum()
            for gradient in torch.autograd.grad(centre, sources):
                field += gradient.double().abs().sum(dim=(0, 1))
    finally:
        handle.remove()
    return field / samples


def receptive_fields(name: str, size: int, samples: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """The field of a preset with each operator, and with convolutions alone."""
    if size < 16:
        raise InputError(f"--size {size} is too small for a receptive field; use 64 or more")
    fields = {}
    for operator in (CONVOLUTION, *get_args(get_type_hints(type(preset(name)))["operator"])):
        torch.manual_seed(seed)
        change = {} if operator == CONVOLUTION else {"operator": operator}
        network = RWKVFusion(preset(name, fusion="mlp", guidance="none", **change)).eval()
        if operator == CONVOLUTION:
            for module in network.modules():
                if isinstance(module, SpatialMix):
                    nn.init.zeros_(module.output.weight)
        fields[operator] = receptive_field(network, size, samples, seed)
    return fields


def draw(name: str, out: Path, size: int) -> dict[str, float]:
    """Write the picture of a preset's fields side by side; returns the share of pixels that each reaches."""
    fields = receptive_fields(name, size)
    reach = {operator: float((field > 0).double().mean()) for operator, field in fields.items()}
    figure = Figure(figsize=(2.2 * len(fields), 2.7), layout="constrained")
    for axes, (operator, field) in zip(figure.subplots(1, len(fields)), fields.items(), strict=True):
        shown = torch.log10(field / field.max()).clamp(min=-6)
        image = axes.imshow(shown.numpy(), vmin=-6, vmax=0, cmap="viridis", interpolation="nearest")
        axes.set_title(f"{operator}\nreaches {100 * reach[operator]:.0f} %", fontsize=9)
        axes.set_axis_off()
    figure.colorbar(image, ax=figure.axes, label="log10 of the gradient", shrink=0.8)
    suffix = out.suffix.lstrip(".").lower()
    if suffix != "png":
        raise InputError(f"{out}: the picture is a PNG; give a name that ends in .png")
    write_atomically(out, lambda temporary: figure.savefig(temporary, dpi=80, format=suffix))
    return reach

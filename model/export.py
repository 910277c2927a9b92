"""Write trained weights as a program for other runtimes: ONNX, PyTorch's pt2, TorchScript.

The program serves every height and width, and holds bi-WKV as plain tensor operations (`bi_wkv.reference`):
nothing of this package is needed to run it. The record of the weights travels inside the file.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from model import bi_wkv
from model.config import MASK_GUIDANCE, TEXT_GUIDANCE, ModelConfig
from model.inference import Fuser, load_weights
from model.network import RWKVFusion
from pipeline.errors import InputError
from pipeline.images import write_atomically
from pipeline.manifest import nearest

Format = Literal["onnx", "pt2", "torchscript"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "pt2": ".pt2", "torchscript": ".pt"}
SMALLEST = 8  # pixels of the shorter side of the coarsest source
RECORD = "rwkvfusion.json"  # the record's name among the extra files of pt2 and TorchScript
_EXAMPLE = (24, 33)  # (H, W) of the coarsest source while tracing; any other size serves as well
_TOKENS = 5


class Program(nn.Module):
    """The network with its padding and cropping in operations that hold for every size.

    Inputs, batch 1: the sources, then ``masks`` (1, mask_inputs, H, W) and ``text`` (1, T, text_width) where
    ``guided``. Output: the fused image (1, out_channels, H, W), clipped to [0, 1].
    """

    def __init__(self, network: RWKVFusion, guided: bool) -> None:
        super().__init__()
        self.network = network
        self.sources = len(network.config.in_channels)
        self.takes_masks = guided and network.config.guidance in MASK_GUIDANCE
        self.takes_text = guided and network.config.guidance in TEXT_GUIDANCE
        self.stride = 2 ** (len(network.config.encoder_depths) - 1)

    def forward(self, *inputs: Tensor) -> Tensor:
        sources, guidance = list(inputs[: self.sources]), list(inputs[self.sources :])
        masks = guidance.pop(0) if self.takes_masks else None
        text = guidance.pop(0) if self.takes_text else None
        height, width = sources[0].shape[-2:]
        sources = [self._extended(_enlarged(source, sources[0])) for source in sources]
        masks = None if masks is None else self._extended(masks)
        fused = self.network(sources, text, None, masks).clamp(0, 1)
        # A slice would have to prove that the extended image is no smaller.
        rows, columns = (torch.arange(size, device=fused.device) for size in (height, width))
        return fused.index_select(2, rows).index_select(3, columns)

    def _extended(self, image: Tensor) -> Tensor:
        """`windows.extend` without its choices, which a program for every size cannot make."""
        for dimension in (2, 3):
            size = image.shape[dimension]
            full = (size + self.stride - 1) // self.stride * self.stride
            place = torch.arange(full, device=image.device)
            image = image.index_select(dimension, size - 1 - (size - 1 - place).abs())
        return image


def export(
    weights: Fuser | str | Path, out: Path | None = None, form: Format = "onnx", guided: bool = False
) -> Path:
    """Export weights (loaded, or a name or path for `load_weights`); returns the file written.

    ``out`` defaults to <task>.onnx, .pt2 or .pt here. Inputs of the program are float32 with batch 1, named
    by role; fusion tasks take luminance (1, 1, H, W), sharpening all bands. With ``guided``, also ``masks``
    and ``text``, as far as the weights know them. Raises InputError for unknown weights or formats, a missing
    package, an output with another suffix.
    """
    if form not in get_args(Format):
        raise InputError(f"unknown format '{form}'.{nearest(form, get_args(Format))}")
    fuser = weights if isinstance(weights, Fuser) else load_weights(weights)
    out = out or Path(fuser.task + SUFFIXES[form])
    if out.suffix != SUFFIXES[form]:
        raise InputError(f"{out}: a file of format {form} ends in {SUFFIXES[form]}; rename the output")
    if out.resolve() == fuser.path.resolve():
        raise InputError(f"{out}: these are the weights themselves; choose another output")
    config = fuser.network.config
    program = Program(deepcopy(fuser.network).cpu(), guided).eval().requires_grad_(False)
    if guided and not (program.takes_masks or program.takes_text):
        raise InputError(f"{fuser.path}: was trained without guidance; leave --guided out")
    inputs, sizes = _inputs(config, program, fuser.record)
    record = json.dumps({**fuser.record, "inputs": list(inputs)})
    write = {"onnx": _onnx, "pt2": _pt2, "torchscript": _torchscript}[form]
    with _plain_operations(), torch.no_grad():
        write_atomically(out, lambda temporary: write(program, inputs, sizes, record, temporary))
    return out


def _inputs(
    config: ModelConfig, program: Program, record: dict[str, Any]
) -> tuple[dict[str, Tensor], list[dict[int, Any]]]:
    """Example inputs by name, and which of their dimensions are free."""
    ratios = record["ratios"]
    fine = max(ratios)
    free = [torch.export.Dim(name, min=SMALLEST) for name in ("h", "w")]
    inputs: dict[str, Tensor] = {}
    sizes: list[dict[int, Any]] = []

    def add(name: str, channels: int, scale: int) -> None:
        inputs[name] = torch.rand(1, channels, *(scale * size for size in _EXAMPLE))
        sizes.append({2 + place: scale * size if scale > 1 else size for place, size in enumerate(free)})

    for role, channels, ratio in zip(record["roles"], config.in_channels, ratios, strict=True):
        add(role, channels, fine // ratio)
    if program.takes_masks:
        add("masks", config.mask_inputs, fine)
    if program.takes_text:
        inputs["text"] = torch.rand(1, _TOKENS, config.text_width)
        sizes.append({1: torch.export.Dim("tokens", min=2, max=4096)})
    return inputs, sizes


def _exported(
    program: Program, inputs: dict[str, Tensor], sizes: list[dict[int, Any]]
) -> torch.export.ExportedProgram:
    return torch.export.export(program, tuple(inputs.values()), dynamic_shapes=(tuple(sizes),), strict=False)


def _onnx(
    program: Program, inputs: dict[str, Tensor], sizes: list[dict[int, Any]], record: str, path: Path
) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error}; ONNX needs the extra: pip install 'rwkvfusion[export]'") from error
    with _quiet("onnxscript", "onnx_ir", "torch.onnx"):
        exported = torch.onnx.export(
            _exported(program, inputs, sizes),
            input_names=list(inputs),
            output_names=["fused"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert exported is not None
    written = exported.model_proto
    onnx.helper.set_model_props(written, {"rwkvfusion": record})
    onnx.checker.check_model(written)
    onnx.save(written, path)


def _pt2(
    program: Program, inputs: dict[str, Tensor], sizes: list[dict[int, Any]], record: str, path: Path
) -> None:
    # torch.export.save wants a name that ends in .pt2; a file object has none.
    with path.open("wb") as file:
        torch.export.save(_exported(program, inputs, sizes), file, extra_files={RECORD: record})


def _torchscript(
    program: Program, inputs: dict[str, Tensor], sizes: list[dict[int, Any]], record: str, path: Path
) -> None:
    with warnings.catch_warnings():
        # Sizes are traced as tensors; what does become a constant is the size of the operator's chunks.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(program, tuple(inputs.values()), check_trace=False)
    torch.jit.save(traced, path, _extra_files={RECORD: record})


def _enlarged(source: Tensor, first: Tensor) -> Tensor:
    if source is first:
        return source
    return nn.functional.interpolate(source, first.shape[-2:], mode="bicubic", align_corners=False)


@contextmanager
def _plain_operations() -> Iterator[None]:
    """Let `bi_wkv` be its reference, which is made of operations that every runtime has."""
    before = os.environ.get(bi_wkv.VARIABLE)
    os.environ[bi_wkv.VARIABLE] = "reference"
    try:
        yield
    finally:
        del os.environ[bi_wkv.VARIABLE]
        if before is not None:
            os.environ[bi_wkv.VARIABLE] = before


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Raise the level of loggers that tell of every node."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""Exported programs give what the network gives, at sizes they were not traced with."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_project import make_weights
from torch import Tensor

from model.export import RECORD, export
from model.inference import Fuser, load_weights
from pipeline.errors import InputError

Run = Callable[[Sequence[Tensor]], np.ndarray]
SIZES = [(24, 33), (9, 8), (37, 50)]  # of the coarsest source; the first is the one traced
LARGE = (260, 255)  # more tokens than parts of the network take at once


def run_onnx(path: Path) -> Run:
    runtime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    session = runtime.InferenceSession(path)
    names = [taken.name for taken in session.get_inputs()]
    return lambda inputs: session.run(
        None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    )[0]


def run_pt2(path: Path) -> Run:
    program = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return lambda inputs: program(*inputs).numpy()


def run_torchscript(path: Path) -> Run:
    program = torch.jit.load(path)
    return lambda inputs: program(*inputs).numpy()


RUNTIMES = {"onnx": run_onnx, "pt2": run_pt2, "torchscript": run_torchscript}


def inputs_of(fuser: Fuser, size: tuple[int, int], guided: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(size))
    config, ratios = fuser.network.config, fuser.record["ratios"]
    scale = max(ratios)
    sources = [
        torch.rand(1, bands, *(scale // ratio * length for length in size), generator=generator)
        for bands, ratio in zip(config.in_channels, ratios, strict=True)
    ]
    if not guided:
        return sources
    masks = torch.rand(1, config.mask_inputs, *(scale * length for length in size), generator=generator) > 0.8
    return [*sources, masks.float(), torch.randn(1, 3 + size[0] % 7, config.text_width, generator=generator)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch about its own exporters
@pytest.mark.parametrize(
    ("form", "task", "guided"),
    [
        ("onnx", "visible_infrared", True),
        ("onnx", "pansharpening", False),
        ("pt2", "visible_infrared", True),
        ("torchscript", "pansharpening", True),
    ],
)
def test_an_exported_program_is_the_network_at_every_size(
    tmp_path: Path, form: str, task: str, guided: bool
) -> None:
    fuser = load_weights(make_weights(tmp_path / "w.safetensors", task, head=0.2))
    run = RUNTIMES[form](export(fuser, tmp_path / f"out.{form.replace('torchscript', 'pt')}", form, guided))
    for size in [*SIZES, LARGE] if task == "visible_infrared" else SIZES:
        inputs = inputs_of(fuser, size, guided)
        count = len(fuser.network.config.in_channels)
        masks, text = inputs[count:] if guided else (None, None)
        with torch.inference_mode():
            expected = fuser.network(inputs[:count], text, None, masks).clamp(0, 1).numpy()
        fused = run(inputs)
        assert fused.shape == expected.shape
        np.testing.assert_allclose(fused, expected, atol=1e-5)
        assert np.abs(fused - inputs[fuser.network.config.base or 0].mean().item()).max() > 0.1


@pytest.mark.filterwarnings("ignore")
def test_the_record_travels_inside(tmp_path: Path) -> None:
    fuser = load_weights(make_weights(tmp_path / "w.safetensors", "visible_infrared"))
    extra = {RECORD: ""}
    torch.jit.load(export(fuser, tmp_path / "out.pt", "torchscript"), _extra_files=extra)
    assert all(parameter.requires_grad for parameter in fuser.network.parameters()), "it can be trained on"
    record = json.loads(extra[RECORD])
    assert record["task"] == "visible_infrared"
    assert record["inputs"] == ["visible", "infrared"]


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "w.safetensors", "visible_infrared")
    with pytest.raises(InputError, match=r"ends in \.onnx"):
        export(weights, tmp_path / "out.pt2", "onnx")
    with pytest.raises(InputError, match=r"unknown format 'onx'\. Did you mean 'onnx'"):
        export(weights, None, "onx")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no such weights file"):
        export(tmp_path / "absent.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.json", "w.safetensors"]

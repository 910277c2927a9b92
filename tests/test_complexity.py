"""Presets meet the paper's parameters and FLOPs, the own count agrees with torch's, memory stays bounded."""

import json
import re
from pathlib import Path

import pytest
import torch
from test_network import network
from tiny_project import make_weights
from typer.testing import CliRunner

from model.cli import app
from model.complexity import count_operations, example, measure
from model.config import ModelConfig
from model.network import RWKVFusion
from model.operators import BiWKV
from model.presets import PRESETS, preset
from model.spatial_mix import SpatialMix
from pipeline.errors import InputError
from pipeline.manifest import TASKS

CLI = CliRunner(env={"COLUMNS": "400"})


def test_every_task_has_a_preset() -> None:
    assert list(PRESETS) == list(TASKS)
    with pytest.raises(InputError, match=r"unknown preset 'medcal'\. Did you mean 'medical'"):
        preset("medcal")


@pytest.mark.parametrize(
    ("name", "parameters", "operations"),
    [("pansharpening", 1.21e6, 2.34e9), ("hyper_multispectral", 1.888e6, 3.134e9)],
)
def test_presets_have_the_papers_size(name: str, parameters: float, operations: float) -> None:
    """Tables 4 and 5: 64 x 64 pixels, text excluded, one multiplication with its addition counted as one."""
    net = RWKVFusion(preset(name)).eval()
    counts, _ = count_operations(net, example(net.config, 64, 64))
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(parameters, rel=0.1)
    assert sum(counts.values()) == pytest.approx(operations, rel=0.1)


@pytest.mark.parametrize(
    "change", [{}, {"operator": "window_bi_wkv"}, {"fusion": "mlp"}, {"backbone": "plain"}], ids=str
)
def test_own_count_is_torchs_and_the_operators(change: dict[str, str]) -> None:
    """torch counts multiplications and additions of matrix products and convolutions, and no bi-WKV."""
    net = network(**change)
    lengths = []
    for module in net.modules():
        if isinstance(module, BiWKV):
            operate = module.operate

            def counted(sequence, layout, operate=operate):  # type: ignore[no-untyped-def]
                lengths.append(sequence.numel())
                return operate(sequence, layout)

            module.operate = counted  # type: ignore[method-assign]
    inputs = example(net.config, 24, 20, tokens=7)
    counts, torchs = count_operations(net, inputs)
    assert sum(counts.values()) == torchs + 13 * sum(lengths)


@pytest.mark.parametrize("change", [{"operator": "attention"}, {"operator": "window_attention"}], ids=str)
def test_own_count_of_attention_is_torchs(change: dict[str, str]) -> None:
    net = network(guidance="none", **change)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        counts, torchs = count_operations(net, example(net.config, 24, 16))
    assert sum(counts.values()) == torchs


def test_counts_leave_no_hook_behind() -> None:
    net = network()
    count_operations(net, example(net.config, 8, 8))
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.slow
def test_memory_of_a_photograph() -> None:
    footprint = measure(preset("visible_infrared"), 768, 1024)
    assert footprint.peak < 2.5 * 2**30
    assert 0 < footprint.activations < footprint.peak


def test_channel_mix_in_portions_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    inputs = example(net.config, 13, 11)
    with torch.inference_mode():
        whole = net(**inputs)
        monkeypatch.setattr("model.blocks._PORTION", 10)
        torch.testing.assert_close(net(**inputs), whole)


def test_describe_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.describe.MEGAPIXEL_SIDE", 64)
    result = CLI.invoke(app, ["describe", "--preset", "pansharpening"])
    assert result.exit_code == 0, result.output
    rows = re.findall(r"^(\S+) +([\d,]+) +[\d.]+$", result.output, re.MULTILINE)
    parts = {part: int(count.replace(",", "")) for part, count in rows}
    net = RWKVFusion(preset("pansharpening"))
    assert sum(parts.values()) == sum(p.numel() for p in net.parameters())
    assert len([part for part in parts if part.startswith("encoder.")]) == 9
    assert "parameters 1.227 M" in result.output
    assert "MiB per megapixel" in result.output


@pytest.mark.parametrize("arguments", [[], ["--preset", "medical", "--weights", "medical"]])
def test_describe_takes_one_thing(arguments: list[str]) -> None:
    result = CLI.invoke(app, ["describe", *arguments])
    assert result.exit_code == 2
    assert "give either --preset or --weights" in result.output


def test_describe_weights_tells_their_history(tmp_path: Path) -> None:
    path = make_weights(tmp_path / "mine.safetensors", "medical")
    record = json.loads(path.with_suffix(".json").read_text())
    record |= {
        "dataset": "harvard",
        "roles": ["mri", "pet"],
        "loss": {"ssim": 2.0},
        "train": {"steps": 300, "batch": 8, "crop": 64, "seed": 5},
        "guidance": "text and masks, either may be left out",
        "train_samples": ["a", "b"],
        "validation_samples": ["c"],
        "metrics": {"Qabf": 0.71234},
        "parameters": 4321,
        "seconds": 12.3,
        "finished": "2026-11-21T01:00:00+00:00",
        "code": "v0.1.0-3-gabc",
        "environment": {"python": "3.11.7", "torch": "2.14.1"},
    }
    path.with_suffix(".json").write_text(json.dumps(record))
    result = CLI.invoke(app, ["describe", "--weights", str(path)])
    assert result.exit_code == 0, result.output
    for fact in (
        *("medical, sources mri + pet", "data set harvard, 2 samples (1 for validation)", "Qabf 0.7123"),
        *("300 steps of 8 crops of 64, seed 5", "4,321 parameters", "width 4, encoder_depths 1-1"),
        *("v0.1.0-3-gabc; python 3.11.7, torch 2.14.1", "train --task medical --dataset harvard"),
        record["sha256"],
    ):
        assert fact in result.output


def test_describe_names_missing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("model.inference.SHIPPED", tmp_path)
    result = CLI.invoke(app, ["describe", "--weights", "medical"])
    assert result.exit_code == 2
    assert "no weights for 'medical' yet" in result.output


def test_every_operator_counts_its_attention() -> None:
    for operator in (
        "bi_wkv",
        "window_bi_wkv",
        "attention",
        "flatten_attention",
        "window_attention",
        "vmamba",
    ):
        net = RWKVFusion(ModelConfig(width=4, operator=operator))  # type: ignore[arg-type]
        for module in net.modules():
            if isinstance(module, SpatialMix):
                assert module.attention_operations(64) > 0

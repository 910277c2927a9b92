"""Weights as the Hugging Face Hub keeps them: folders, the mixin, and a hub on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants
from tiny_project import make_weights, scene
from typer.testing import CliRunner
from writable_hub import WritableHub, running

import model
from model.cli import app
from model.hub import HubNetwork, export_folder, fetch, push
from model.inference import fuse, load_weights
from pipeline.errors import InputError
from pipeline.images import write_image

SOURCES = [scene(1, 3, 20, 30), scene(2, 1, 20, 30)]
LAYOUT = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return make_weights(tmp_path / "mine.safetensors", "visible_infrared", head=0.2)


def test_a_folder_gives_the_same_weights_back(weights: Path, tmp_path: Path) -> None:
    folder = export_folder(weights, tmp_path / "hub")
    assert sorted(path.name for path in folder.iterdir()) == LAYOUT
    expected = model.fuse(SOURCES, load_weights(weights))
    for name in (folder, str(folder), folder / "model.safetensors"):
        assert np.array_equal(model.fuse(SOURCES, name), expected)
    config = json.loads((folder / "config.json").read_text())
    record = json.loads(weights.with_suffix(".json").read_text())
    assert {**config, "sha256": ""} == {**record, "sha256": ""}
    again = export_folder(folder, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_mixin_round_trip(weights: Path, tmp_path: Path) -> None:
    network = HubNetwork.from_pretrained(export_folder(weights, tmp_path / "hub"))
    assert not network.training
    inputs = [torch.rand(1, 1, 24, 32), torch.rand(1, 1, 24, 32)]
    with torch.no_grad():
        expected = load_weights(weights).network(inputs)
        assert torch.equal(network(inputs), expected)
        network.head.bias += 0.25  # as after more training
        network.save_pretrained(tmp_path / "tuned")
        tuned = load_weights(tmp_path / "tuned").network(inputs)
    assert torch.allclose(tuned, expected + 0.25, atol=1e-6), "its own checksum, not that of the original"


@pytest.mark.parametrize("name", ["visible_infrared", "medical", "pansharpening"])
def test_the_card_tells_the_history(name: str, tmp_path: Path) -> None:
    card = ModelCard.load(export_folder(name, tmp_path / name, "cc-by-4.0") / "README.md")
    record = load_weights(name).record
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "rwkvfusion"
    assert {"image-fusion", name.replace("_", "-")} <= set(card.data.tags)
    assert f"{len(record['train_samples'])} samples" in card.text
    assert f"seed {record['train']['seed']}" in card.text
    for metric, value in record["metrics"].items():
        assert f"| {metric} | {value:.4g} |" in card.text
    assert "{{" not in card.text
    assert "None" not in card.text.replace("None were recorded", "").replace("| None |", "")


def test_a_card_that_was_edited_is_kept(weights: Path, tmp_path: Path) -> None:
    folder = export_folder(weights, tmp_path / "hub")
    (folder / "README.md").write_text("mine")
    assert export_folder(weights, folder) == folder
    assert (folder / "README.md").read_text() == "mine"


def test_mistakes_are_named(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="holds other files"):
        export_folder(weights, tmp_path)
    with pytest.raises(InputError, match="is a file; name a folder"):
        export_folder(weights, weights)
    with pytest.raises(InputError, match=r"write weights on the Hub as hf://owner/name"):
        load_weights("hf://only-a-name")
    folder = export_folder(weights, tmp_path / "hub")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="does not match the checksum"):
        load_weights(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        load_weights(folder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "visible_infrared").mkdir()
    assert load_weights("visible_infrared").task == "visible_infrared", "a task's name is no folder's"


def test_the_command_writes_a_folder(weights: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["hub", "export", str(weights), str(tmp_path / "out")])
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == LAYOUT


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """A hub that addresses lead to, whose cache is below the test's folder; the account may write."""
    with running(WritableHub("somebody/fusion")) as served:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace(constants.ENDPOINT, served.address)
        )
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        yield served


def test_push_and_pull(
    hub: WritableHub, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(app, ["hub", "push", str(weights), "somebody/fusion"])
    first = hub.newest
    assert f"{hub.address}/somebody/fusion/commit/{first}" in result.stdout
    assert sorted(hub.commits[first]) == LAYOUT
    other = make_weights(tmp_path / "other.safetensors", "visible_infrared", seed=5, head=0.2)
    newer = export_folder(other, tmp_path / "newer")
    hub.commit({name: (newer / name).read_bytes() for name in LAYOUT} | {"evil.py": b"raise SystemExit"})
    files = [str(tmp_path / "visible.png"), str(tmp_path / "infrared.png")]
    for file, pixels in zip(files, SOURCES, strict=True):
        write_image(Path(file), pixels)
    for revision, expected in ((f"@{first}", weights), ("", other), ("@main", other)):
        out = tmp_path / "out.png"
        address = f"hf://somebody/fusion{revision}"
        fused = CliRunner().invoke(app, ["fuse", *files, "--weights", address, "--overwrite", "-o", str(out)])
        assert fused.exit_code == 0, fused.output
        write_image(tmp_path / "expected.png", fuse(files, expected))
        assert out.read_bytes() == (tmp_path / "expected.png").read_bytes()
    assert not any("evil" in asked for asked in hub.requests), "only weights and their record are fetched"
    assert not list((tmp_path / "cache").rglob("*.py"))
    mixin = HubNetwork.from_pretrained("somebody/fusion", revision=first)
    assert mixin.record["sha256"] == load_weights(f"hf://somebody/fusion@{first}").record["sha256"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_weights(f"hf://somebody/fusion@{first}").task == "visible_infrared", "from the cache"


def test_a_hub_that_refuses_is_named(
    hub: WritableHub, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    result = CliRunner().invoke(app, ["hub", "push", str(weights), "somebody/fusion"])
    assert result.exit_code == 2
    assert "error: somebody/fusion: cannot be pushed (" in result.stderr
    assert "hf auth login" in result.stderr
    with pytest.raises(InputError, match="hf://somebody/else: cannot be fetched"):
        fetch("hf://somebody/else")
    with pytest.raises(InputError, match="hf://somebody/fusion@0123: cannot be fetched"):
        fetch("hf://somebody/fusion@0123")
    hub.commit({"pytorch_model.bin": b"a pickle", "config.json": b"{}"})
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        fetch("hf://somebody/fusion")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(InputError, match="cannot be pushed"):
        push(weights, "somebody/fusion")


def test_nothing_is_fetched_without_a_network() -> None:
    with pytest.raises(InputError, match="hf://somebody/absent: cannot be fetched"):
        fetch("hf://somebody/absent")

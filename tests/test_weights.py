"""Checkpoints: pinned, fetched from a hub on this machine, resumed, verified, and asked for by name."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_hub import Hub, running
from typer.testing import CliRunner

from pipeline import weights
from pipeline.checkpoints import CHECKPOINTS, Checkpoint, Part
from pipeline.cli import app
from pipeline.config import CaptionsConfig, MasksConfig, PipelineConfig, TextsConfig
from pipeline.errors import InputError
from pipeline.weights import checkpoint_identity, fetch, locate, verify

WEIGHTS = os.urandom(300_000)
FILES = {"big/model.bin": WEIGHTS, "config.json": b'{"a": 1}', "vocab.txt": b"a b c"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model, which is pinned as the checkpoint `toy`."""
    part = Part(
        "lab/toy", "v1", {"big/model.bin": sha256(WEIGHTS)}, ("config.json", "vocab.txt", "absent.json")
    )
    monkeypatch.setitem(CHECKPOINTS, "toy", Checkpoint("toy", (part,), 300_000, "MIT", "tests"))
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "weights"))
    weights._identity.cache_clear()
    with running(
        Hub({f"lab/toy/resolve/v1/{path}": body for path, body in FILES.items()}), monkeypatch
    ) as found:
        yield found


def test_what_is_pinned_is_plausible() -> None:
    for name, checkpoint in CHECKPOINTS.items():
        assert checkpoint.name == name
        assert checkpoint.pinned
        assert len(checkpoint.names) == sum(len(p.pinned) + len(p.others) for p in checkpoint.parts)
        for part in checkpoint.parts:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", part.repo)
            assert re.fullmatch(r"[0-9a-f]{40}|main", part.revision)
            # Without a revision the checksums are the only pin, so nothing may go without one.
            assert part.revision != "main" or not part.others
            assert all(re.fullmatch(r"[0-9a-f]{64}", sha) for sha in part.pinned.values())


def test_every_choice_in_params_has_a_checkpoint() -> None:
    config = PipelineConfig(
        datasets={"d": {"manifest": "m", "root": "r", "masks": "auto"}},  # type: ignore[dict-item]
        captions={"backend": "florence2"},  # type: ignore[arg-type]
        texts={"backend": "t5"},  # type: ignore[arg-type]
        boxes={"backend": "groundingdino", "words": "florence2-large"},  # type: ignore[arg-type]
        masks={"backend": "sam", "checkpoint": "sam-vit-h"},  # type: ignore[arg-type]
    )
    asked = config.checkpoints()
    assert asked == ["florence2-base", "t5-small", "groundingdino-swint", "sam-vit-h", "florence2-large"]
    assert set(asked) <= set(CHECKPOINTS)
    assert PipelineConfig(datasets={}).checkpoints() == []
    for section, key in ((CaptionsConfig, "checkpoint"), (MasksConfig, "checkpoint")):
        assert getattr(section(), key) in CHECKPOINTS
    assert TextsConfig(backend="t5").checkpoints == ("t5-small",)


def test_fetched_files_are_the_hubs_and_recorded(hub: Hub) -> None:
    folder = fetch("toy")
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.name != weights.RECORD} == {
        "model.bin": WEIGHTS,
        "config.json": FILES["config.json"],
        "vocab.txt": FILES["vocab.txt"],
    }
    record = json.loads((folder / weights.RECORD).read_text())
    assert {name: entry["sha256"] for name, entry in record.items()} == {
        Path(path).name: sha256(body) for path, body in FILES.items()
    }
    assert locate("toy") == folder
    assert verify("toy") == []
    downloads = len(hub.ranges)
    fetch("toy")
    assert len(hub.ranges) == downloads, "what is there is not downloaded again"


def test_an_interrupted_download_is_resumed(hub: Hub) -> None:
    hub.breaks_at = 100_000
    with pytest.raises(InputError, match="run again to resume"):
        fetch("toy")
    with pytest.raises(InputError, match=r"has no model.bin; run `python -m pipeline weights fetch toy`"):
        locate("toy")
    hub.breaks_at, before = None, len(hub.ranges)
    assert (fetch("toy") / "model.bin").read_bytes() == WEIGHTS
    assert hub.ranges[before] == "bytes=100000-"
    # Interrupted after the last byte: nothing is left to ask for.
    folder = weights.weights_folder() / "toy"
    (folder / weights.UNFINISHED).mkdir()
    (folder / "model.bin").rename(folder / weights.UNFINISHED / "model.bin")
    assert (fetch("toy") / "model.bin").read_bytes() == WEIGHTS


def test_a_file_that_is_not_the_pinned_one_is_not_kept(hub: Hub) -> None:
    hub.files["lab/toy/resolve/v1/big/model.bin"] = b"something else"
    with pytest.raises(InputError, match=f"not {sha256(WEIGHTS)}; nothing was kept"):
        fetch("toy")
    assert not (weights.weights_folder() / "toy" / "model.bin").exists()


def test_small_files_are_held_to_what_was_fetched_first(hub: Hub) -> None:
    folder = fetch("toy")
    (folder / "config.json").write_text("{}")
    assert verify("toy") == [
        f"{folder / 'config.json'}: sha256 is {sha256(b'{}')}, not {sha256(FILES['config.json'])}"
    ]
    with pytest.raises(InputError, match=r"config.json: has changed since it was fetched; run `python -m"):
        checkpoint_identity("toy")
    hub.files["lab/toy/resolve/v1/config.json"] = b"tampered"
    with pytest.raises(InputError, match="nothing was kept"):
        fetch("toy")
    hub.files["lab/toy/resolve/v1/config.json"] = FILES["config.json"]
    fetch("toy")
    assert verify("toy") == []
    assert "lab/toy@v1 sha256:" in checkpoint_identity("toy")


def test_a_hub_that_does_not_answer_is_told_in_a_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"lab/toy, big/model.bin: cannot be fetched .*copy the checkpoint"):
        fetch("toy")


def test_identity_is_that_of_the_bytes(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch("toy")
    published = checkpoint_identity("toy")
    assert capsys.readouterr().err.count("is not the published") == 0
    # A folder of somebody else, without a record: the same bytes are the same checkpoint, others are not.
    other = tmp_path / "other"
    (other / "toy").mkdir(parents=True)
    for path, body in FILES.items():
        (other / "toy" / Path(path).name).write_bytes(body)
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(other))
    assert checkpoint_identity("toy") == published
    assert verify("toy") == []
    (other / "toy" / "model.bin").write_bytes(b"fine-tuned")
    weights._identity.cache_clear()
    assert checkpoint_identity("toy") != published
    assert "is not the published toy; its own checksum goes into the stores" in capsys.readouterr().err
    assert len(verify("toy")) == 1


def test_changing_another_field_of_a_checkpoint_changes_its_identity(hub: Hub) -> None:
    fetch("toy")
    before = checkpoint_identity("toy")
    toy = CHECKPOINTS["toy"]
    CHECKPOINTS["toy"] = dataclasses.replace(toy, parts=(dataclasses.replace(toy.parts[0], revision="v2"),))
    weights._identity.cache_clear()
    assert checkpoint_identity("toy") != before
    CHECKPOINTS["toy"] = toy


def test_commands(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("datasets: {}\n")
    run = CliRunner()
    assert "toy                  missing" in run.invoke(app, ["weights", "list"]).output
    assert run.invoke(app, ["weights", "verify", "toy"]).exit_code == 1
    fetched = run.invoke(app, ["weights", "fetch", "toy"])
    assert (fetched.exit_code, fetched.stdout.strip()) == (0, f"toy: {tmp_path / 'weights' / 'toy'}")
    assert "toy                  there" in run.invoke(app, ["weights", "list"]).output
    verified = run.invoke(app, ["weights", "verify", "toy"])
    assert (verified.exit_code, verified.stdout) == (0, "toy: as it should be\n")
    for wrong, message in (([], "asks for no foundation model"), (["tpy"], "Did you mean 'toy'?")):
        result = run.invoke(app, ["weights", "fetch", *wrong])
        assert result.exit_code == 2
        assert message in result.output


def test_unknown_name() -> None:
    with pytest.raises(InputError, match="Did you mean 't5-small'"):
        fetch("t5-smal")


@pytest.mark.parametrize("text", ["[1]", '{"model.bin": {"sha256": "x"}}', "{", '{"model.bin": 1}'])
def test_a_damaged_record_is_named(hub: Hub, text: str) -> None:
    record = fetch("toy") / "fetched.json"
    record.write_text(text)
    for use in (checkpoint_identity, fetch, verify):
        with pytest.raises(InputError, match=r"fetched\.json: is damaged .*remove it and fetch again"):
            use("toy")

"""Checkpoints: the last two are kept, damaged ones passed over, no code in them is run."""

from pathlib import Path

import pytest
import torch

from model.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint


def state(value: float) -> dict[str, object]:
    return {"network": {"weight": torch.full((3,), value)}, "facts": {"train.lr": "0.1"}}


def test_last_two_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    for step in (100, 20, 3000):
        save_checkpoint(tmp_path, step, state(step))
    assert len(list_checkpoints(tmp_path)) == 2
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["step"] == 3000
    assert found[1]["network"]["weight"].tolist() == [3000] * 3
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_one_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, 1, state(1))
    newest = save_checkpoint(tmp_path, 2, state(2))
    content = bytearray(newest.read_bytes())
    if damage == "one bit":
        content[len(content) // 2] ^= 1
    newest.write_bytes(content[: {"truncated": 100, "empty": 0}.get(damage, len(content))])
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged"):
        found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["step"] == 1


def test_nothing_to_load(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "absent") is None


def test_a_failed_write_leaves_the_checkpoints_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, state(1))

    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, state(2))
    assert [path.name[:13] for path in tmp_path.iterdir()] == ["step-00000001"]


def test_loading_runs_no_code(tmp_path: Path) -> None:
    """A pickle that would create a file when executed is refused."""
    import hashlib
    import io

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(tmp_path / "owned"), "w"))

    buffer = io.BytesIO()
    torch.save({"step": 1, "network": Attack()}, buffer)
    content = buffer.getvalue()
    (tmp_path / f"step-00000001-{hashlib.sha256(content).hexdigest()[:16]}.pt").write_bytes(content)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "owned").exists()

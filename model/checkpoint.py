"""Checkpoints of a training run: written beside and renamed, the last two kept, never executed when read.

A file's name carries the step and the first 16 hex digits of its own SHA-256, so damage is noticed before
a single value of it is used.
"""

import hashlib
import io
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from pipeline.images import write_atomically

KEPT = 2
NAME = re.compile(r"step-(\d{8})-([0-9a-f]{16})\.pt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Save `state` (tensors, numbers, strings and containers of them) and drop all but the last two."""
    buffer = io.BytesIO()
    torch.save({"step": step, **state}, buffer)
    content = buffer.getvalue()
    path = folder / f"step-{step:08d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    for old in list_checkpoints(folder)[KEPT:]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, newest first."""
    return sorted((path for path in folder.glob("step-*.pt") if NAME.fullmatch(path.name)), reverse=True)


def load_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, or None. A damaged one is warned about and set aside."""
    for path in list_checkpoints(folder):
        content = path.read_bytes()
        match = NAME.fullmatch(path.name)
        if match is not None and hashlib.sha256(content).hexdigest().startswith(match[2]):
            return path, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        warnings.warn(f"{path} is damaged; going back to the checkpoint before it", stacklevel=2)
        path.rename(path.with_suffix(".damaged"))
    return None

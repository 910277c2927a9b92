"""Trained weights on disk: the tensors (safetensors), and the record (json) beside them of what they are."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipeline.config import build
from pipeline.errors import InputError

FORMAT = 1
HUB_WEIGHTS, HUB_RECORD = "model.safetensors", "config.json"
"""Names of weights and record in a folder laid out as on the Hugging Face Hub (model/hub.py)."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))
class Record:
    """What a record must hold to load weights, and the types of what it tells of their history."""

    task: str
    roles: list[str]
    ratios: list[int]
    model: dict[str, Any]
    sha256: str
    dataset: str = ""
    loss: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    guidance: str = ""
    text_encoder: str | None = None
    train_samples: list[str] = Field(default_factory=list)
    validation_samples: list[str] = Field(default_factory=list)
    metrics: dict[str, float] = Field(default_factory=dict)
    parameters: int = 0
    step: int = 0
    seconds: float = 0.0
    finished: str = ""
    code: str = ""
    environment: dict[str, str] = Field(default_factory=dict)
    facts: dict[str, str] = Field(default_factory=dict)
    start: dict[str, Any] | None = None


def record_of(path: Path) -> Path:
    """The file of the record of weights: of the same name, or config.json where the folder is the Hub's."""
    own = path.with_suffix(".json")
    return path.with_name(HUB_RECORD) if path.name == HUB_WEIGHTS and not own.is_file() else own


def read_record(path: Path) -> dict[str, Any]:
    """The record beside a weights file. Raises InputError when it is missing or not one of ours."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name the .safetensors file in it")
    record_path = record_of(path)
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{record_path}: cannot be read ({error}); weights come with a .json of the same name"
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(
            f"{record_path}: not a record of rwkvfusion weights in format {FORMAT}; train them again"
        )
    build(Record, record, str(record_path))
    return record


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record of a weights file and its tensors, float32; nothing in the file is executed.

    Raises InputError when one of the two is missing or damaged, or they do not belong together.
    """
    record = read_record(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if record.get("sha256") != hashlib.sha256(content).hexdigest():
        raise InputError(
            f"{path}: does not match the checksum in its .json; fetch or train the weights again"
        )
    try:
        return record, {name: value.float() for name, value in load(content).items()}
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error}); train again") from error


def training_time(path: Path, record: Mapping[str, Any]) -> tuple[float, str] | None:
    """Seconds trained and when that ended, of weights and their record; None where nobody noted it.

    Shipped records hold both; those in a run's folder have them beside it (`Run.clock`).
    """
    times: Mapping[str, Any] = record
    if "seconds" not in times:
        clock = path.parent.with_name(f"{path.parent.name}-time.json")
        try:
            times = json.loads(clock.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
    return float(times["seconds"]), str(times.get("finished", ""))

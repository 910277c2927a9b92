"""One training run on disk: what it is made from, whether it is finished, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from model.config import Config, ModelConfig, run_dir
from model.data import FusionDataset
from model.guidance import Guidance
from model.record import FORMAT
from pipeline.images import write_atomically
from pipeline.manifest import Sample, content_hash

TRAINING_CODE = (
    *("bi_wkv", "bi_wkv_cpu", "bi_wkv_loops", "bi_wkv_cuda"),
    *("selective_scan", "scan", "windows", "spatial_mix", "operators"),
    *("blocks", "fusion_variants", "network", "losses", "masks"),
    *("augmentation", "batches", "data", "guidance", "image_cache", "order", "planes", "train"),
)
"""Modules that decide the weights."""


@dataclass(frozen=True)
class Start:
    """Weights that training starts from: their record and tensors."""

    record: dict[str, Any]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """A task's configuration and data, and the folder its training writes to.

    ``training``: the data set of that name, then those of ``train.mix``. ``facts`` (name -> value as text)
    decide the result: every parameter, every sample's content, the stores, the code, what it starts from.
    """

    config: Config
    model: ModelConfig
    training: tuple[FusionDataset, ...]
    validation: FusionDataset | None
    facts: dict[str, str]
    start: Start | None = None

    @property
    def folder(self) -> Path:
        return run_dir(self.config.train.dataset, self.config.train.task)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def clock(self) -> Path:
        """When and how long was trained: outside the folder, whose content a repetition makes anew."""
        return self.folder.with_name(f"{self.folder.name}-time.json")

    def write_clock(self, seconds: float, finished: bool = False) -> None:
        """Note the seconds trained so far, and the time if that is all."""
        times: dict[str, Any] = {"seconds": round(seconds, 1)}
        if finished:
            times["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps(times) + "\n"
        write_atomically(self.clock, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def seconds_so_far(self) -> float:
        """Seconds trained until the last checkpoint."""
        try:
            return float(json.loads(self.clock.read_text(encoding="utf-8"))["seconds"])
        except (OSError, ValueError, KeyError):
            return 0.0

    def previous_facts(self) -> dict[str, str] | None:
        """Facts of the weights that lie in the folder; None when there are none."""
        try:
            record = json.loads(self.weights.with_suffix(".json").read_text(encoding="utf-8"))
            return dict(record["facts"]) if self.weights.is_file() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def finished(self) -> bool:
        """Whether the weights in the folder were trained from just these facts and are whole."""
        if self.previous_facts() != self.facts:
            return False
        record = json.loads(self.weights.with_suffix(".json").read_text(encoding="utf-8"))
        return bool(record.get("sha256") == hashlib.sha256(self.weights.read_bytes()).hexdigest())

    def changed(self, facts: Mapping[str, str] | None) -> str:
        """How the facts of an earlier run differ from this one's, in words; "" when they do not."""
        if facts is None or facts == self.facts:
            return ""
        names = [name for name in {**facts, **self.facts} if facts.get(name) != self.facts.get(name)]
        samples = [name for name in names if name.startswith("sample ")]
        words = [
            f"{name} was {facts.get(name, 'absent')} and is {self.facts.get(name, 'absent')}"
            for name in names
            if name not in samples
        ]
        if samples:
            words.append(f"{len(samples)} samples changed ({samples[0].removeprefix('sample ')}, …)")
        return "; ".join(words)

    def discard(self) -> None:
        """Remove what an earlier run with other facts left."""
        for name in ("checkpoints", "dvclive"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.clock.unlink(missing_ok=True)
        self.weights.unlink(missing_ok=True)
        self.weights.with_suffix(".json").unlink(missing_ok=True)

    def sample_names(self) -> list[str]:
        """Ids of all training samples, those of further data sets with their names in front."""
        names = [self.config.train.dataset, *self.config.train.mix]
        return [
            sample.id if number == 0 else f"{name}/{sample.id}"
            for number, (name, part) in enumerate(zip(names, self.training, strict=True))
            for sample in part.samples
        ]

    def finish(
        self, state: Mapping[str, Tensor], metrics: Mapping[str, float], step: int, device: torch.device
    ) -> None:
        """Write the weights after ``step`` and, last, the record that makes them count as finished."""
        content = save({name: value.detach().cpu().contiguous() for name, value in state.items()})
        config = self.config
        validation = [] if self.validation is None else self.validation.samples
        first = self.training[0]
        record = {
            "format": FORMAT,
            "task": config.train.task,
            "dataset": config.train.dataset,
            "roles": list(first.samples[0].roles),
            "ratios": list(first.ratios),
            "model": dataclasses.asdict(self.model),
            "loss": dataclasses.asdict(config.loss),
            "train": dataclasses.asdict(config.train),
            "guidance": _guidance_note(first.guidance),
            "text_encoder": first.guidance.text_encoder,
            "train_samples": self.sample_names(),
            "validation_samples": [sample.id for sample in validation],
            "metrics": dict(metrics),
            "parameters": sum(value.numel() for value in state.values()),
            "step": step,
            "code": code_version(),
            "environment": environment(device),
            "sha256": hashlib.sha256(content).hexdigest(),
            "facts": self.facts,
        }
        if self.start is not None:
            record["start"] = self.start.record
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.weights, lambda temporary: temporary.write_bytes(content))
        write_atomically(
            self.weights.with_suffix(".json"), lambda temporary: temporary.write_text(text, encoding="utf-8")
        )


def content_fact(sample: Sample, content: str | None = None) -> str:
    """What a run's facts say of a sample: its split and a hash of its content hash (if that is known)."""
    return f"{sample.split} {hashlib.sha256((content or content_hash(sample)).encode()).hexdigest()[:16]}"


def trained_on(record: Mapping[str, Any], samples: Sequence[Sample]) -> list[str]:
    """Ids of the samples, by content, that weights, or those they grew from, were trained on."""
    training: set[str] = set()
    told: Mapping[str, Any] | None = record
    while told is not None:
        facts = [str(value) for name, value in told.get("facts", {}).items() if name.startswith("sample ")]
        training |= {fact for fact in facts if fact.startswith("train ")}
        told = told.get("start")
    return [sample.id for sample in samples if training and not training.isdisjoint(_as_trained(sample))]


def _as_trained(sample: Sample) -> tuple[str, ...]:
    """The facts of a sample that was trained on, now and in older records, which count a target twice."""
    sample = dataclasses.replace(sample, split="train")
    content = content_hash(sample)
    if sample.target is None:
        return (content_fact(sample, content),)
    target = content_hash(dataclasses.replace(sample, sources=(), mask=sample.target))
    return content_fact(sample, content), content_fact(sample, content + target)


def _guidance_note(guidance: Guidance) -> str:
    kinds = [
        kind for kind, store in (("text", guidance.texts), ("masks", guidance.masks)) if store is not None
    ]
    return f"{' and '.join(kinds)}, either may be left out" if kinds else "none"


def environment(device: torch.device) -> dict[str, str]:
    """What a run was computed with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = {package: version(package) for package in ("numpy", "numba")}
    system = {"python": platform.python_version(), "torch": torch.__version__}
    return {**system, **versions, "machine": platform.machine(), "device": name}


def code_version() -> str:
    """`git describe` of the source tree, else the version of the installed package."""
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--tags"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return version("rwkvfusion")

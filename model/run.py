"""One training run on disk: what it is made from, whether it is finished, and what it leaves behind."""

from __future__ import annotations

import ast
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

from model.config import MASK_GUIDANCE, TEXT_GUIDANCE, Config, ModelConfig, run_dir
from model.data import FusionDataset, Guidance, open_guidance
from model.record import FORMAT
from pipeline.errors import InputError
from pipeline.images import write_atomically
from pipeline.manifest import SHARPENING_TASKS, Sample, content_hash

TRAINING_CODE = (
    *("bi_wkv", "bi_wkv_cpu", "bi_wkv_loops", "bi_wkv_cuda"),
    *("selective_scan", "scan", "windows", "spatial_mix", "operators"),
    *("blocks", "fusion_variants", "network", "losses", "masks", "data", "train"),
)


@dataclass(frozen=True)
class Run:
    """A task's configuration and data, and the folder its training writes to.

    ``facts`` (name -> value as text) decide the result: every parameter, every sample's content, the stores.
    """

    config: Config
    model: ModelConfig
    training: FusionDataset
    validation: FusionDataset | None
    facts: dict[str, str]

    @property
    def folder(self) -> Path:
        return run_dir(self.config.train.dataset, self.config.train.task)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

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
        self.weights.unlink(missing_ok=True)
        self.weights.with_suffix(".json").unlink(missing_ok=True)

    def finish(self, state: Mapping[str, Tensor], metrics: Mapping[str, float], seconds: float) -> None:
        """Write the weights and, last, the record that makes them count as finished."""
        content = save({name: value.detach().cpu().contiguous() for name, value in state.items()})
        config = self.config
        validation = [] if self.validation is None else self.validation.samples
        record = {
            "format": FORMAT,
            "task": config.train.task,
            "dataset": config.train.dataset,
            "roles": list(self.training.samples[0].roles),
            "ratios": list(self.training.ratios),
            "model": dataclasses.asdict(self.model),
            "loss": dataclasses.asdict(config.loss),
            "train": dataclasses.asdict(config.train),
            "guidance": _guidance_note(self.training.guidance),
            "text_encoder": self.training.guidance.text_encoder,
            "train_samples": [sample.id for sample in self.training.samples],
            "validation_samples": [sample.id for sample in validation],
            "metrics": dict(metrics),
            "parameters": sum(value.numel() for value in state.values()),
            "seconds": round(seconds, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "code": code_version(),
            "environment": {"python": platform.python_version(), "torch": torch.__version__},
            "sha256": hashlib.sha256(content).hexdigest(),
            "facts": self.facts,
        }
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.weights, lambda temporary: temporary.write_bytes(content))
        write_atomically(
            self.weights.with_suffix(".json"), lambda temporary: temporary.write_text(text, encoding="utf-8")
        )


def prepare(config: Config) -> Run:
    """Gather what a run is made from. ``config`` is that of one task (`Config.for_task`).

    Raises InputError for missing or stale guidance and for samples that cannot be trained on together.
    """
    settings = config.train
    manifest = config.dataset(settings.dataset).manifest
    samples = [
        sample for sample in config.dataset(settings.dataset).samples() if sample.task == settings.task
    ]
    training = [sample for sample in samples if sample.split == "train"]
    if not training:
        raise InputError(
            f"{manifest}: no sample of task '{settings.task}' has split 'train'; "
            "mark some rows so to train on them"
        )
    held_out = [sample for sample in samples if sample.split == "validation"]
    guidance = open_guidance(settings.dataset, config.model.guidance)
    content = {sample.id: content_hash(sample) for sample in [*training, *held_out]}
    _check_guidance(config, guidance, content)

    def joined(chosen: list[Sample], train: bool) -> FusionDataset:
        return FusionDataset(
            chosen,
            settings.task,
            guidance,
            settings.crop,
            train,
            settings.seed,
            supervised=config.loss.supervised,
            unmerged=config.model.guidance == "unmerged",
        )

    dataset = joined(training, train=True)
    # The residual of a sharpening network is added to the source that has the bands: the last one.
    base = len(dataset.in_channels) - 1 if settings.task in SHARPENING_TASKS else None
    model = dataclasses.replace(
        config.model, in_channels=dataset.in_channels, out_channels=dataset.out_channels, base=base
    )
    facts = {
        f"{section}.{name}": str(value)
        for section, part in (("model", model), ("loss", config.loss), ("train", settings))
        for name, value in dataclasses.asdict(part).items()
    }
    stores = {"texts": guidance.texts, "merged masks": guidance.masks}
    facts |= {f"store of {name}": store.fingerprint for name, store in stores.items() if store is not None}
    facts |= {
        f"sample {sample.id}": content_fact(sample, content[sample.id]) for sample in [*training, *held_out]
    }
    facts["code"] = _code_hash()
    return Run(config, model, dataset, joined(held_out, train=False) if held_out else None, facts)


def content_fact(sample: Sample, sources: str | None = None) -> str:
    """Split and hash of the sample's sources (or their hash, where it is known) and target."""
    digest = hashlib.sha256((sources or content_hash(sample)).encode())
    if sample.target is not None:
        digest.update(content_hash(dataclasses.replace(sample, sources=(), mask=sample.target)).encode())
    return f"{sample.split} {digest.hexdigest()[:16]}"


def trained_on(record: Mapping[str, Any], samples: Sequence[Sample]) -> list[str]:
    """Ids of the samples, by content, that the weights of a record were trained on."""
    facts = [str(value) for name, value in record.get("facts", {}).items() if name.startswith("sample ")]
    training = {fact.partition(" ")[2] for fact in facts if fact.startswith("train ")}
    return [s.id for s in samples if training and content_fact(s).partition(" ")[2] in training]


def _code_hash() -> str:
    """Hash of the code that decides the weights, comments aside: no run is continued by other code."""
    digest = hashlib.sha256()
    for name in TRAINING_CODE:
        tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def _check_guidance(config: Config, guidance: Guidance, content: Mapping[str, str]) -> None:
    """Training without the guidance that params.yaml asks for would go unnoticed: refuse it."""
    name, use = config.train.dataset, config.model.guidance
    remedy = f"run `typer pipeline guidance --dataset {name}` or set model.guidance: none"
    wanted = [("texts", guidance.texts)] * (use in TEXT_GUIDANCE)
    wanted += [("merged masks", guidance.masks)] * (use in MASK_GUIDANCE)
    for kind, store in wanted:
        if store is None:
            raise InputError(
                f"data set '{name}' has no {kind} yet, which model.guidance: {use} needs; {remedy}"
            )
        if not any(store.is_done(sample) for sample in content):
            raise InputError(f"{store.path}: holds none of the {len(content)} samples to train on; {remedy}")
        for sample, value in content.items():
            if store.is_done(sample) and store.content(sample) not in ("", value):
                raise InputError(
                    f"{store.path}: sample '{sample}' has changed since its {kind} were made; {remedy}"
                )


def _guidance_note(guidance: Guidance) -> str:
    kinds = [
        kind for kind, store in (("text", guidance.texts), ("masks", guidance.masks)) if store is not None
    ]
    return f"{' and '.join(kinds)}, either may be left out" if kinds else "none"


def code_version() -> str:
    """`git describe` of the source tree, else the version of the installed package."""
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--tags"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return version("rwkvfusion")

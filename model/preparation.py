"""What a training run is made from: configuration, samples, guidance, images; the facts that decide it."""

from __future__ import annotations

import ast
import dataclasses
import gc
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from model.bi_wkv_cuda import source_folder
from model.config import MASK_GUIDANCE, TEXT_GUIDANCE, Config, ModelConfig
from model.data import CACHE_BYTES, FusionDataset
from model.guidance import open_guidance
from model.image_cache import cache_path, fill_cache, open_cache
from model.planes import decode
from model.record import read_weights
from model.run import TRAINING_CODE, Run, Start, content_fact
from pipeline.config import build
from pipeline.errors import InputError
from pipeline.manifest import SHARPENING_TASKS, Sample, content_hash
from pipeline.store import Store

HASHED_AT_ONCE = 2000  # samples; files of larger data sets are compared when each is first used


def prepare(
    config: Config,
    *,
    cache: str = "auto",
    verify: bool = False,
    workers: int = 0,
    console: Console | None = None,
) -> Run:
    """Gather what a run is made from. ``config`` is that of one task (`Config.for_task`).

    ``cache``: decoded images in ``memory`` or on ``disk`` (model/image_cache.py); ``auto`` takes the disk
    where the memory of all ``workers`` would not hold them. ``verify``: hash the files of large data sets
    too. None of these changes the result. Raises InputError for missing or stale guidance and for samples
    that cannot be trained on together.
    """
    settings = config.train
    names = [settings.dataset, *settings.mix]
    parts = [_Part(config, name, cache, verify, workers, console) for name in names]
    first, dataset = parts[0], parts[0].training
    for part in parts[1:]:
        part.must_fit(first)
    if settings.best_metric and first.validation is None:
        raise InputError(
            f"data set '{first.name}' has no sample of task '{settings.task}' with split 'validation', which "
            f"train.best_metric: {settings.best_metric} needs; mark some or set train.best_metric: ''"
        )
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
    start = _start(Path(settings.start), model) if settings.start else None
    if start is not None:
        facts["start"] = start.record["sha256"]
    for number, part in enumerate(parts):
        facts |= part.facts(f"{part.name}/" if number else "")
    facts["code"] = _code_hash()
    return Run(config, model, tuple(part.training for part in parts), first.validation, facts, start)


def _start(path: Path, model: ModelConfig) -> Start:
    """Read the weights to start from. Raises InputError when they are of another network."""
    record, state = read_weights(path)
    theirs = build(ModelConfig, record["model"], str(path.with_suffix(".json")))
    if theirs != model:
        pairs = [(f.name, getattr(theirs, f.name), getattr(model, f.name)) for f in dataclasses.fields(model)]
        told = ", ".join(f"{name} {has} against {wanted}" for name, has, wanted in pairs if has != wanted)
        raise InputError(
            f"train.start: {path} are weights of another network ({told}); give `model` their values"
        )
    return Start(record, state)


class _Part:
    """One data set of a run: its samples with their images and guidance."""

    def __init__(
        self, config: Config, name: str, cache: str, verify: bool, workers: int, console: Console | None
    ) -> None:
        self.config, self.name = config, name
        section, task = config.dataset(name), config.train.task
        samples = [sample for sample in section.samples() if sample.task == task]
        if len(samples) > HASHED_AT_ONCE:
            gc.freeze()  # they hold no cycles; looking for some again and again takes as long as reading them
        training = [sample for sample in samples if sample.split == "train"]
        if not training:
            raise InputError(
                f"{section.manifest}: no sample of task '{task}' has split 'train'; "
                "set it in some rows to train on them"
            )
        held_out = [sample for sample in samples if sample.split == "validation"]
        if name != config.train.dataset:
            held_out = []
        self.samples = [*training, *held_out]
        self.guidance = open_guidance(name, config.model.guidance)
        eager = verify or len(self.samples) <= HASHED_AT_ONCE
        recorded = {} if eager else self.guidance.contents()
        self.content = {sample.id: recorded.get(sample.id, "") for sample in self.samples}
        images = self._images(training, cache, eager, workers, console)
        for sample in self.samples:
            self.content[sample.id] = self.content[sample.id] or content_hash(sample)
        self._check_guidance()
        self.training = self._dataset(training, True, images, {} if eager else self.content)
        self.validation = self._dataset(held_out, False, None, {}) if held_out else None

    def _images(
        self, training: Sequence[Sample], cache: str, eager: bool, workers: int, console: Console | None
    ) -> Store | None:
        """The cache of decoded images where one is wanted; it knows content hashes too."""
        task, supervised = self.config.train.task, self.config.loss.supervised
        if cache == "auto":
            needed = decode(training[0], task, supervised).nbytes * len(training) * max(workers, 1)
            cache = "disk" if needed > CACHE_BYTES else "memory"
        if cache == "memory":
            return None
        path = cache_path(self.name, task)
        store = None if eager else open_cache(path, training, supervised or task in SHARPENING_TASKS)
        if store is None:
            content = {sample.id: content_hash(sample) for sample in training}
            store = fill_cache(path, training, task, content, supervised, console)
        cached = store.contents()
        for sample in training:
            self.content[sample.id] = self.content[sample.id] or cached[sample.id]
        return store

    def _dataset(
        self, samples: Sequence[Sample], train: bool, images: Store | None, content: Mapping[str, str]
    ) -> FusionDataset:
        settings = self.config.train
        return FusionDataset(
            samples,
            settings.task,
            self.guidance,
            settings.crop,
            train,
            settings.seed,
            unmerged=self.config.model.guidance == "unmerged",
            supervised=self.config.loss.supervised,
            photometric=settings.photometric,
            images=images,
            content=content,
        )

    def must_fit(self, first: _Part) -> None:
        """Raise InputError unless this data set's samples can stand in one batch with the first one's."""
        own, other = (
            {
                "bands of sources": part.training.in_channels,
                "ratios of sources": part.training.ratios,
                "bands of the target": part.training.out_channels,
                "text encoder": part.guidance.text_encoder,
            }
            for part in (self, first)
        )
        for fact, value in own.items():
            if value != other[fact]:
                raise InputError(
                    f"data set '{self.name}' of train.mix has {fact} {value}, '{first.name}' {other[fact]}; "
                    "only data sets of one make-up can be mixed"
                )

    def facts(self, prefix: str) -> dict[str, str]:
        """Fingerprints of the stores, and split and content of every sample."""
        stores = {"texts": self.guidance.texts, "merged masks": self.guidance.masks}
        facts = {
            f"store of {prefix}{n}": store.fingerprint for n, store in stores.items() if store is not None
        }
        return facts | {
            f"sample {prefix}{sample.id}": content_fact(sample, self.content[sample.id])
            for sample in self.samples
        }

    def _check_guidance(self) -> None:
        """Training without the guidance that params.yaml asks for would go unnoticed: refuse it."""
        use = self.config.model.guidance
        remedy = f"run `typer pipeline guidance --dataset {self.name}` or set model.guidance: none"
        wanted = [("texts", self.guidance.texts)] * (use in TEXT_GUIDANCE)
        wanted += [("merged masks", self.guidance.masks)] * (use in MASK_GUIDANCE)
        for kind, store in wanted:
            if store is None:
                raise InputError(
                    f"data set '{self.name}' has no {kind} yet, which model.guidance: {use} needs; {remedy}"
                )
            made_from = store.contents()
            if made_from.keys().isdisjoint(self.content):
                raise InputError(
                    f"{store.path}: holds none of the {len(self.content)} samples to train on; {remedy}"
                )
            for sample, value in self.content.items():
                if made_from.get(sample, "") not in ("", value):
                    raise InputError(
                        f"{store.path}: sample '{sample}' has changed since its {kind} were made; {remedy}"
                    )


def _code_hash() -> str:
    """Hash of the code that decides the weights, comments aside: no run is continued by other code."""
    digest = hashlib.sha256()
    for name in TRAINING_CODE:
        tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
        digest.update(ast.dump(tree).encode())
    for path in sorted(source_folder().glob("*.cu*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

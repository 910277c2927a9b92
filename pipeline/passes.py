"""One pass over a data set's images: what each of its stages computes for a batch of samples."""

from __future__ import annotations

import dataclasses
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pipeline.config import guidance_dir
from pipeline.errors import SetupError
from pipeline.images import SampleImages, read_sample
from pipeline.manifest import Sample, Source
from pipeline.objects import Place
from pipeline.parallel import in_threads
from pipeline.store import Record, SampleInstances, Store, open_store


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a stage gets for one sample: its images and the record of the stage before, if it wants them."""

    sample: Sample
    images: SampleImages | None = None
    before: Any = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W), None when the stage sees neither images nor instances."""
        if self.images is not None:
            return self.images.size
        return (self.before.height, self.before.width) if isinstance(self.before, SampleInstances) else None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage on one data set.

    ``config`` holds everything but files and code that decides its results, the backend's identity included;
    ``sizes`` are those of its store (H and W are taken from the stage before). ``compute`` gets inputs of
    equal size and returns one record each; a ValueError is a fault of a sample, reported and passed over. It
    can be pickled, and loads its model when it is first called.
    """

    name: str
    dataset: str
    samples: Sequence[Sample]
    config: Mapping[str, Any]
    compute: Callable[[Sequence[Inputs]], Sequence[Record]]
    before: str | None = None
    images: bool = True
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Kind and file name of its store."""
        return store_kind(self.name)

    @property
    def path(self) -> Place:
        """Its store."""
        return guidance_dir(self.dataset) / f"{self.kind}.zarr"

    @property
    def path_before(self) -> Place:
        """The store of the stage before."""
        return guidance_dir(self.dataset) / f"{store_kind(self.before or '')}.zarr"

    @property
    def remedy(self) -> str:
        """What to run when the stage before has no record."""
        return f"run {self.before} first: `python -m pipeline {self.before} --dataset {self.dataset}`"

    def lacks(self, sample: str) -> str:
        """Why a sample cannot be computed when the stage before has no current record of it."""
        return f"{self.path_before}: has no current record of sample '{sample}'; {self.remedy}"


def store_kind(stage: str) -> str:
    """Kind of the store that a stage writes."""
    return "merged" if stage == "merge" else stage


@dataclass(frozen=True)
class Batch:
    """Samples that are read together, and for each stage of the pass the ids it has to compute."""

    samples: tuple[Sample, ...]
    pending: tuple[frozenset[str], ...]

    def absolute(self) -> Batch:
        """The same batch for a process in another folder."""
        return dataclasses.replace(self, samples=tuple(_absolute(sample) for sample in self.samples))


@dataclass(frozen=True, eq=False)
class Found:
    """What was read for a batch: images, and for each stage the records of the stage before, by sample id. A
    ValueError stands in place of what cannot be read."""

    images: Mapping[str, SampleImages | ValueError]
    before: Sequence[Mapping[str, Record]]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one stage made of a batch: records and faults by sample id, and the seconds that it computed."""

    records: dict[str, Record]
    errors: dict[str, str]
    seconds: float

    def renamed(self, old: str, new: str) -> Outcome:
        """The same outcome with other words in its messages."""
        errors = {sample: error.replace(old, new) for sample, error in self.errors.items()}
        return dataclasses.replace(self, errors=errors)


class Pass:
    """Stages in order that share one read of the images.

    A stage takes the record of the stage before from the same pass where it was just made, and else from its
    store, as that was when the pass began. A Pass can be pickled and sent to another process.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(dataclasses.replace(stage, samples=()) for stage in stages)
        names = [stage.name for stage in stages]
        self._inside = [names.index(s.before) if s.before in names else None for s in stages]
        self._stores_before = [stage.path_before.absolute() for stage in stages]
        self._id = uuid.uuid4().hex

    def read(self, batch: Batch, workers: int) -> Found:
        """Read what the stages need, decoding in that many threads."""
        wanted = frozenset[str]().union(
            *(ids for stage, ids in zip(self.stages, batch.pending, strict=True) if stage.images)
        )
        samples = [sample for sample in batch.samples if sample.id in wanted]
        images = in_threads(read_sample, samples, workers) if samples else []
        before: list[dict[str, Record]] = []
        for number, (stage, inside, ids) in enumerate(
            zip(self.stages, self._inside, batch.pending, strict=True)
        ):
            if inside is not None:
                ids = ids - batch.pending[inside]
            store = _store(self._stores_before[number], self._id) if stage.before and ids else None
            before.append({sample: store.get(sample) for sample in sorted(ids)} if store else {})
        return Found({sample.id: one for sample, one in zip(samples, images, strict=True)}, before)

    def work(self, batch: Batch) -> list[Outcome]:
        """Read and compute, on a worker of a cluster."""
        return self.compute(batch, self.read(batch, os.cpu_count() or 1))

    def compute(self, batch: Batch, found: Found) -> list[Outcome]:
        """One outcome per stage."""
        outcomes: list[Outcome] = []
        for number in range(len(self.stages)):
            outcomes.append(self._stage(number, batch, found, outcomes))
        return outcomes

    def _stage(self, number: int, batch: Batch, found: Found, earlier: Sequence[Outcome]) -> Outcome:
        started = time.perf_counter()
        stage, inside = self.stages[number], self._inside[number]
        before = {**found.before[number], **(earlier[inside].records if inside is not None else {})}
        outcome = Outcome({}, {}, 0.0)
        ready = []
        for sample in batch.samples:
            if sample.id not in batch.pending[number]:
                continue
            image = found.images[sample.id] if stage.images else None
            if isinstance(image, ValueError):
                outcome.errors[sample.id] = str(image)
            elif stage.before and sample.id not in before:
                failed = earlier[inside].errors if inside is not None else {}
                outcome.errors[sample.id] = failed.get(sample.id) or stage.lacks(sample.id)
            else:
                ready.append(Inputs(sample, image, before.get(sample.id)))
        for group in _by_size(ready):
            outcome.records.update(_compute(stage, group, outcome.errors))
        return dataclasses.replace(outcome, seconds=time.perf_counter() - started)


def _absolute(sample: Sample) -> Sample:
    return dataclasses.replace(
        sample,
        sources=tuple(Source(one.role, one.path.absolute()) for one in sample.sources),
        target=sample.target and sample.target.absolute(),
        mask=sample.mask and sample.mask.absolute(),
    )


@lru_cache(maxsize=8)
def _store(path: Place, of_pass: str) -> Store:
    """A store as it was when a pass first needed it here."""
    return open_store(path)


def _by_size(inputs: Iterable[Inputs]) -> Iterator[list[Inputs]]:
    """Groups that a backend can stack: equal size and number of sources, in order of first appearance."""
    groups: dict[Any, list[Inputs]] = {}
    for one in inputs:
        groups.setdefault((one.size, len(one.sample.sources)), []).append(one)
    yield from groups.values()


def _compute(stage: Stage, group: Sequence[Inputs], errors: dict[str, str]) -> dict[str, Record]:
    """Records of a group; if it fails, of every sample alone, so that one bad sample costs only itself."""
    try:
        records = stage.compute(group)
    except SetupError:
        raise
    except ValueError as error:
        if len(group) > 1:
            return {key: value for one in group for key, value in _compute(stage, [one], errors).items()}
        errors[group[0].sample.id] = str(error)
        return {}
    return {one.sample.id: record for one, record in zip(group, records, strict=True)}

"""The masks stage: the pixels of the object in every box, or people's own masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline import runner
from pipeline.config import DatasetConfig, MasksConfig, PipelineConfig
from pipeline.images import SampleImages
from pipeline.label_maps import nothing, provided
from pipeline.store import Instances, SampleInstances

Found = list[tuple[Instances, ...]]


class Segmenter(Protocol):
    """Fills boxes with masks. `identity` as in `captions.Captioner`."""

    @property
    def identity(self) -> str: ...

    def __call__(self, samples: Sequence[SampleImages], boxes: Sequence[tuple[Instances, ...]]) -> Found:
        """Per sample and source the same instances in the same order, with mask and predicted IoU."""
        ...


def backend(config: MasksConfig) -> Segmenter:
    """The segmenter that params.yaml asks for."""
    if config.backend == "sam":
        from pipeline.sam_masks import SamSegmenter

        return SamSegmenter(config)
    from pipeline.classical_masks import ClassicalSegmenter

    return ClassicalSegmenter()


def stage(config: PipelineConfig, dataset: str) -> runner.Stage:
    """The stage on one data set. Raises InputError for a manifest or parameters that do not fit."""
    data = config.dataset(dataset)
    samples = data.samples()
    segment, identity = _segmenter(config, data)

    def compute(inputs: Sequence[runner.Inputs]) -> list[SampleInstances]:
        images = [one.images for one in inputs if one.images]
        found = segment(images, [one.before.sources for one in inputs])
        return [SampleInstances(*one.size, sources) for one, sources in zip(images, found, strict=True)]

    return runner.Stage(
        name="masks",
        dataset=dataset,
        samples=samples,
        config=dataclasses.asdict(config.masks) | {"identity": identity},
        compute=compute,
        before="boxes",
        sizes={"S": max(len(sample.sources) for sample in samples)},
    )


def _segmenter(
    config: PipelineConfig, data: DatasetConfig
) -> tuple[Callable[[Sequence[SampleImages], Sequence[tuple[Instances, ...]]], Found], str]:
    """How this data set's boxes become masks, and the identity of what does it."""
    if data.masks == "none":
        return lambda images, boxes: [nothing(one) for one in images], "none"
    if data.masks == "provided":
        return lambda images, boxes: [provided(one, data.prompt) for one in images], "provided"
    segmenter = backend(config.masks)
    return segmenter, segmenter.identity

"""The captions stage: what a sample shows, in words, from its images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from pipeline import runner
from pipeline.config import CaptionsConfig, PipelineConfig
from pipeline.images import SampleImages
from pipeline.store import Caption


class Captioner(Protocol):
    """Describes samples. `identity` names model and revision: when it changes, captions are made anew.

    Constructing one is cheap; a model is loaded at the first call.
    """

    @property
    def identity(self) -> str: ...

    def __call__(self, samples: Sequence[SampleImages]) -> list[str]:
        """One caption per sample; the samples have equal sizes."""
        ...


def backend(config: CaptionsConfig) -> Captioner:
    """The captioner that params.yaml asks for."""
    if config.backend == "florence2":
        from pipeline.florence2_captions import Florence2Captioner

        return Florence2Captioner(config)
    from pipeline.classical_captions import ClassicalCaptioner

    return ClassicalCaptioner()


def stage(config: PipelineConfig, dataset: str) -> runner.Stage:
    """The stage on one data set. Raises InputError for a manifest or parameters that do not fit."""
    samples = config.dataset(dataset).samples()
    captioner = backend(config.captions)

    def compute(inputs: Sequence[runner.Inputs]) -> list[Caption]:
        return [Caption(text) for text in captioner([one.images for one in inputs if one.images])]

    return runner.Stage(
        name="captions",
        dataset=dataset,
        samples=samples,
        config=dataclasses.asdict(config.captions) | {"identity": captioner.identity},
        compute=compute,
    )

"""The boxes stage: where objects are in every source, found by prompt or salience, or drawn by people."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline import runner
from pipeline.config import BoxesConfig, DatasetConfig, PipelineConfig
from pipeline.errors import InputError
from pipeline.images import SampleImages
from pipeline.label_maps import nothing, provided
from pipeline.store import Instances, SampleInstances


class Detector(Protocol):
    """Finds objects. `identity` as in `captions.Captioner`."""

    @property
    def identity(self) -> str: ...

    def __call__(self, samples: Sequence[SampleImages], prompt: Sequence[str]) -> list[tuple[Instances, ...]]:
        """Per sample and source the objects named in the prompt, or whatever stands out when it is empty."""
        ...


def backend(config: BoxesConfig) -> Detector:
    """The detector that params.yaml asks for."""
    if config.backend == "groundingdino":
        from pipeline.groundingdino_boxes import GroundingDinoDetector

        return GroundingDinoDetector(config)
    if config.backend == "transformers":
        from pipeline.transformers_boxes import TransformersDetector

        return TransformersDetector(config)
    from pipeline.classical_objects import ClassicalDetector

    return ClassicalDetector(config.threshold, config.max_boxes)


def stage(config: PipelineConfig, dataset: str) -> runner.Stage:
    """The stage on one data set. Raises InputError for a manifest or parameters that do not fit."""
    data = config.dataset(dataset)
    samples = data.samples()
    find, identity = _finder(config, data, dataset)

    def compute(inputs: Sequence[runner.Inputs]) -> list[SampleInstances]:
        images = [one.images for one in inputs if one.images]
        return [
            SampleInstances(*one.size, sources) for one, sources in zip(images, find(images), strict=True)
        ]

    return runner.Stage(
        name="boxes",
        dataset=dataset,
        samples=samples,
        config=dataclasses.asdict(config.boxes)
        | {"identity": identity, "masks": data.masks, "prompt": list(data.prompt)},
        compute=compute,
        sizes={"S": max(len(sample.sources) for sample in samples)},
    )


def _finder(
    config: PipelineConfig, data: DatasetConfig, dataset: str
) -> tuple[Callable[[Sequence[SampleImages]], list[tuple[Instances, ...]]], str]:
    """How this data set's objects are found, and the identity of what finds them."""
    if data.masks == "none":
        return lambda images: [nothing(one) for one in images], "none"
    if data.masks == "provided":
        return lambda images: [provided(one, data.prompt) for one in images], "provided"
    if data.masks == "prompt" and not data.prompt:
        raise InputError(
            f"params.yaml: datasets.{dataset} says masks: prompt but has no prompt; "
            "list the words to look for or set masks: auto"
        )
    detector = backend(config.boxes)
    prompt = data.prompt if data.masks == "prompt" else ()
    if not prompt and config.boxes.checkpoints:  # a Grounding DINO has to be told what to look for
        from pipeline.florence2_words import Florence2Words
        from pipeline.grounding import AutomaticPrompt

        detector = AutomaticPrompt(detector, Florence2Words(config.boxes.words, config.boxes.words_are))
    return lambda images: detector(images, prompt), detector.identity

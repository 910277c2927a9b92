"""The texts stage: features of every caption, for the network to attend to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pipeline import runner
from pipeline.config import TEXT_WIDTH, PipelineConfig, TextsConfig
from pipeline.store import Text


class TextEncoder(Protocol):
    """Turns captions into features. `identity` as in `captions.Captioner`."""

    @property
    def identity(self) -> str: ...

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        """One float32 (tokens, 512) array per caption, without padding."""
        ...


def backend(config: TextsConfig) -> TextEncoder:
    """The encoder that params.yaml asks for."""
    if config.backend == "t5":
        from pipeline.t5_texts import T5TextEncoder

        return T5TextEncoder(config)
    from pipeline.classical_texts import ClassicalTextEncoder

    return ClassicalTextEncoder(config.max_tokens)


def stage(config: PipelineConfig, dataset: str) -> runner.Stage:
    """The stage on one data set. Raises InputError for a manifest or parameters that do not fit."""
    samples = config.dataset(dataset).samples()
    encoder = backend(config.texts)
    longest = config.texts.max_tokens

    def compute(inputs: Sequence[runner.Inputs]) -> list[Text]:
        return [Text(features[:longest]) for features in encoder([one.before.text for one in inputs])]

    return runner.Stage(
        name="texts",
        dataset=dataset,
        samples=samples,
        config=dataclasses.asdict(config.texts) | {"identity": encoder.identity},
        compute=compute,
        before="captions",
        images=False,
        sizes={"T": longest, "D": TEXT_WIDTH},
    )

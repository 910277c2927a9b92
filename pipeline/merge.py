"""The merge stage: one set of masks per sample from those of its sources (the algorithm is merging.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipeline import runner
from pipeline.config import PipelineConfig
from pipeline.merging import merge
from pipeline.store import MergedMasks

IDENTITY = "merge-2"
"""Version of the algorithm: raise it when merging.py gives other results."""


def stage(config: PipelineConfig, dataset: str) -> runner.Stage:
    """The stage on one data set. Raises InputError for a manifest or parameters that do not fit."""
    data = config.dataset(dataset)

    def compute(inputs: Sequence[runner.Inputs]) -> list[MergedMasks]:
        return [merge(one.before.sources, data.prompt, config.merge) for one in inputs]

    return runner.Stage(
        name="merge",
        dataset=dataset,
        samples=data.samples(),
        config=dataclasses.asdict(config.merge) | {"identity": IDENTITY, "prompt": list(data.prompt)},
        compute=compute,
        before="masks",
        images=False,
    )

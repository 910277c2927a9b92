"""Captions by Florence-2."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import CaptionsConfig
from pipeline.florence2 import TASKS, answers
from pipeline.images import SampleImages
from pipeline.model_input import as_rgb8
from pipeline.weights import checkpoint_identity


@dataclass(frozen=True)
class Florence2Captioner:
    """A sentence or more about every chosen source, put together. Implements the Captioner protocol."""

    config: CaptionsConfig

    @property
    def identity(self) -> str:
        """Repository, revision and checksum."""
        return checkpoint_identity(self.config.checkpoint)

    def __call__(self, samples: Sequence[SampleImages]) -> list[str]:
        """The answer about the only chosen source, or `role: answer` for each of several, in their order."""
        chosen = [(sample, self._chosen(sample)) for sample in samples]
        pictures = [as_rgb8(sample.images[s]) for sample, sources in chosen for s in sources]
        texts = answers(
            pictures,
            [TASKS[self.config.task]] * len(pictures),
            self.config.checkpoint,
            self.config.beams,
            self.config.max_new_tokens,
        )
        return [
            next(texts)
            if len(sources) == 1
            else " ".join(f"{sample.sample.roles[s]}: {next(texts)}" for s in sources)
            for sample, sources in chosen
        ]

    def _chosen(self, sample: SampleImages) -> list[int]:
        """Indices of the sources to describe: those of the chosen roles, numbered or not, else all."""
        roles = sample.sample.roles
        wanted = self.config.sources
        named = [s for s, role in enumerate(roles) if {role, re.sub(r"_\d+$", "", role)} & set(wanted)]
        return named or list(range(len(roles)))

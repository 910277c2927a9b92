"""Captions and object words by Florence-2, through the classes of transformers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import CaptionsConfig
from pipeline.images import SampleImages
from pipeline.labels import canonical_label
from pipeline.model_input import as_rgb8
from pipeline.resident import chosen_device, inference, resident
from pipeline.weights import checkpoint_identity

TASKS = {
    "caption": "<CAPTION>",
    "detailed_caption": "<DETAILED_CAPTION>",
    "more_detailed_caption": "<MORE_DETAILED_CAPTION>",
}
OBJECTS = "<OD>"
OBJECT_TOKENS = 1024  # every object takes its words and four places
MOST_WORDS = 30  # of an automatic prompt; Grounding DINO reads 256 tokens
AT_ONCE = 8  # images that a model sees in one call


@dataclass(frozen=True)
class _Florence2:
    model: Any
    processor: Any


def _load(folder: Path) -> _Florence2:
    from transformers import Florence2ForConditionalGeneration, Florence2Processor
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = Florence2ForConditionalGeneration.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    return _Florence2(model, Florence2Processor.from_pretrained(folder, local_files_only=True))


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
            TASKS[self.config.task],
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


@dataclass(frozen=True)
class Florence2Words:
    """What Florence-2 would detect, as words for another detector."""

    checkpoint: str

    @property
    def identity(self) -> str:
        """Repository, revision and checksum, and the task."""
        return f"{OBJECTS} of {checkpoint_identity(self.checkpoint)}"

    def __call__(self, samples: Sequence[SampleImages]) -> list[tuple[str, ...]]:
        """Per sample the canonical labels found in any source, in order of first appearance."""
        pictures = [as_rgb8(image) for sample in samples for image in sample.images]
        raw = answers(pictures, OBJECTS, self.checkpoint, beams=3, most=OBJECT_TOKENS, raw=True)
        return [_words([next(raw) for _ in sample.images]) for sample in samples]


def _words(raw: Sequence[str]) -> tuple[str, ...]:
    """Labels of `label<loc_x0><loc_y0><loc_x1><loc_y1>` sequences, special tokens left out."""
    found: dict[str, None] = {}
    for answer in raw:
        text = re.sub(r"</?s>|<pad>", "", answer)
        for label in re.findall(r"([^<>]+)(?:<loc_\d+>){4}", text):
            found[canonical_label(label)] = None
    return tuple(found)[:MOST_WORDS]


def answers(
    pictures: Sequence[np.ndarray], task: str, checkpoint: str, beams: int, most: int, raw: bool = False
) -> Iterator[str]:
    """Florence-2's answer to a task about each uint8 (H, W, 3) picture, by beam search without sampling.

    ``most`` new tokens per answer. ``raw`` keeps tokens that are no words (places), for tasks that need them.
    """
    florence, device = resident(_load, checkpoint), chosen_device()
    processor = florence.processor
    for start in range(0, len(pictures), AT_ONCE):
        part = list(pictures[start : start + AT_ONCE])
        inputs = processor(text=[task] * len(part), images=part, return_tensors="pt").to(device)
        with inference(device):
            tokens = florence.model.generate(
                **inputs, do_sample=False, num_beams=beams, early_stopping=beams > 1, max_new_tokens=most
            )
        texts = processor.tokenizer.batch_decode(tokens, skip_special_tokens=not raw)
        yield from (text if raw else " ".join(text.split()) for text in texts)

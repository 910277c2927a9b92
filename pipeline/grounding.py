"""What both Grounding DINOs share: prompts as captions, and boxes with labels from token scores."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch

from pipeline.config import BoxesConfig
from pipeline.errors import InputError
from pipeline.images import SampleImages
from pipeline.labels import canonical_label
from pipeline.model_input import as_rgb8
from pipeline.records import Instances
from pipeline.weights import checkpoint_identity

LONGEST = 256
"""Tokens of a prompt that Grounding DINO reads."""

AT_ONCE = 8  # images that a model sees in one call


def as_caption(words: Sequence[str]) -> str:
    """Words as the models were trained to read them: `person . car . bus .`"""
    return " ".join(f"{re.sub(r'[.?]+', ' ', word).strip().lower()} ." for word in words)


def phrase_of_tokens(tokens: Sequence[int], stop: int, special: Sequence[int], words: int) -> torch.Tensor:
    """For every token of a caption the index of its phrase, -1 for full stops and special tokens.

    Raises InputError if the caption is too long for the model.
    """
    if len(tokens) > LONGEST:
        raise InputError(
            f"the prompt has {len(tokens)} tokens, Grounding DINO reads {LONGEST}; shorten it in params.yaml"
        )
    phrases, current = [], 0
    for token in tokens:
        if token == stop:
            phrases.append(-1)
            current += 1
        else:
            phrases.append(-1 if token in special else current)
    if current != words:
        raise InputError(f"the prompt has {current} phrases for {words} words; leave out full stops")
    return torch.tensor(phrases)


def to_instances(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    phrases: torch.Tensor,
    words: Sequence[str],
    size: tuple[int, int],
    config: BoxesConfig,
) -> Instances:
    """Objects of one image from logits (queries, >= tokens) and relative centre boxes (queries, 4) in [0, 1].

    A box scores what its best token scores. Its label is the canonical form of the phrase with that token, so
    one phrase of the prompt and never a mixture. It is kept if that score exceeds ``threshold`` and
    ``text_threshold``; the best ``max_boxes`` are returned as absolute xyxy pixels inside the image.
    """
    tokens = logits[:, : len(phrases)].float().sigmoid().cpu()
    per_phrase = torch.zeros(len(tokens), len(words))
    for phrase in range(len(words)):
        per_phrase[:, phrase] = tokens[:, phrases == phrase].amax(dim=1)
    score, phrase_of_box = per_phrase.max(dim=1)
    order = torch.sort(score, descending=True, stable=True).indices
    height, width = size
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    centre, extent = boxes.float().cpu().split(2, dim=1)
    corners = (torch.cat([centre - extent / 2, centre + extent / 2], dim=1) * scale).clamp(min=0)
    corners = torch.minimum(corners, scale)
    is_box = (corners[:, 2:] - corners[:, :2] > 0).all(dim=1)
    keep = (score > max(config.threshold, config.text_threshold)) & is_box
    chosen = order[keep[order]][: config.max_boxes]
    return Instances(
        box=corners[chosen].numpy(),
        score=score[chosen].numpy(),
        label=tuple(canonical_label(words[int(index)]) for index in phrase_of_box[chosen]),
    )


def nothing_found() -> Instances:
    """No boxes."""
    return Instances(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), ())


@dataclass(frozen=True)
class GroundingDino(ABC):
    """Boxes of the words of a prompt. Implements the Detector protocol."""

    config: BoxesConfig
    checkpoint: ClassVar[str]

    @property
    def identity(self) -> str:
        """Repositories, revisions and checksum."""
        return checkpoint_identity(self.checkpoint)

    def __call__(self, samples: Sequence[SampleImages], prompt: Sequence[str]) -> list[tuple[Instances, ...]]:
        """Objects per sample and source, best first; none without words to look for."""
        if not prompt:
            return [tuple(nothing_found() for _ in sample.images) for sample in samples]
        pictures = [as_rgb8(image) for sample in samples for image in sample.images]
        found = (
            instances
            for start in range(0, len(pictures), AT_ONCE)
            for instances in self.detect(pictures[start : start + AT_ONCE], prompt)
        )
        return [tuple(next(found) for _ in sample.images) for sample in samples]

    @abstractmethod
    def detect(self, pictures: Sequence[np.ndarray], words: Sequence[str]) -> Iterator[Instances]:
        """Objects in each of a few pictures, uint8 (H, W, 3) of equal size."""


class _Prompted(Protocol):
    @property
    def identity(self) -> str: ...

    def __call__(
        self, samples: Sequence[SampleImages], prompt: Sequence[str]
    ) -> list[tuple[Instances, ...]]: ...


class _Words(Protocol):
    @property
    def identity(self) -> str: ...

    def __call__(self, samples: Sequence[SampleImages]) -> list[tuple[str, ...]]: ...


@dataclass(frozen=True)
class AutomaticPrompt:
    """A detector that looks in every sample for the words that another model sees there."""

    detector: _Prompted
    words: _Words

    @property
    def identity(self) -> str:
        """Of both models."""
        return f"{self.detector.identity}; {self.words.identity}"

    def __call__(self, samples: Sequence[SampleImages], prompt: Sequence[str]) -> list[tuple[Instances, ...]]:
        """Objects per sample and source; samples with the same words go through the detector together."""
        together: dict[tuple[str, ...], list[int]] = {}
        for index, words in enumerate(self.words(samples)):
            together.setdefault(words, []).append(index)
        found: dict[int, tuple[Instances, ...]] = {}
        for words, indices in together.items():
            results = self.detector([samples[index] for index in indices], words)
            found |= dict(zip(indices, results, strict=True))
        return [found[index] for index in range(len(samples))]

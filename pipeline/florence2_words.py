"""Words for automatic prompts: what Florence-2 sees in the sources of a sample."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.florence2 import TASKS, answers, load
from pipeline.images import SampleImages
from pipeline.labels import canonical_label
from pipeline.model_input import as_rgb8
from pipeline.resident import resident
from pipeline.weights import checkpoint_identity

OBJECTS = "<OD>"
DESCRIPTION = TASKS["detailed_caption"]
PHRASES = "<CAPTION_TO_PHRASE_GROUNDING>"
BEAMS = 3
DESCRIPTION_TOKENS = 256
OBJECT_TOKENS = 1024  # every object takes its words and four places
MOST_WORDS = 30  # of an automatic prompt; Grounding DINO reads 256 tokens


@dataclass(frozen=True)
class Florence2Words:
    """Words for another detector: the ``objects`` that Florence-2 detects, or the ``phrases`` of its own
    description that it finds in the picture, which name more kinds of things."""

    checkpoint: str
    source: Literal["objects", "phrases"] = "objects"

    @property
    def identity(self) -> str:
        """Repository, revision and checksum, and the tasks."""
        task = OBJECTS if self.source == "objects" else f"{PHRASES} of {DESCRIPTION}"
        return f"{task} of {checkpoint_identity(self.checkpoint)}"

    def __call__(self, samples: Sequence[SampleImages]) -> list[tuple[str, ...]]:
        """Per sample the canonical labels found in any source, in order of first appearance."""
        pictures = [as_rgb8(image) for sample in samples for image in sample.images]
        tasks = [OBJECTS] * len(pictures)
        if self.source == "phrases":
            asked = [DESCRIPTION] * len(pictures)
            described = answers(pictures, asked, self.checkpoint, BEAMS, DESCRIPTION_TOKENS)
            tasks = [f"{PHRASES}{description}" for description in described]
        raw = answers(pictures, tasks, self.checkpoint, BEAMS, OBJECT_TOKENS, raw=True)
        # Pronouns, `the image` and the like, as the checkpoint's own configuration lists them.
        no_objects = resident(load, self.checkpoint).processor.post_processor.banned_grounding_tokens
        return [_words([next(raw) for _ in sample.images], no_objects) for sample in samples]


def _words(raw: Sequence[str], no_objects: Collection[str] = ()) -> tuple[str, ...]:
    """Labels of `label<loc_x0><loc_y0><loc_x1><loc_y1>` sequences, special tokens left out."""
    found: dict[str, None] = {}
    for answer in raw:
        text = re.sub(r"</?s>|<pad>", "", answer)
        for label in re.findall(r"([^<>]+)(?:<loc_\d+>){4}", text):
            if label.strip() not in no_objects:
                found[canonical_label(label)] = None
    return tuple(found)[:MOST_WORDS]

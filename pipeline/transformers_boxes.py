"""Boxes by the Grounding DINO of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import BoxesConfig
from pipeline.grounding import as_caption, detect_all, phrase_of_tokens, to_instances
from pipeline.images import SampleImages
from pipeline.records import Instances
from pipeline.resident import chosen_device, inference, resident
from pipeline.weights import checkpoint_identity

CHECKPOINT = "groundingdino-tiny"


@dataclass(frozen=True)
class _GroundingDino:
    model: torch.nn.Module
    processor: Any


def _load(folder: Path) -> _GroundingDino:
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = GroundingDinoForObjectDetection.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    return _GroundingDino(model, GroundingDinoProcessor.from_pretrained(folder, local_files_only=True))


@dataclass(frozen=True)
class TransformersDetector:
    """Boxes of the words of a prompt. Implements the Detector protocol."""

    config: BoxesConfig

    @property
    def identity(self) -> str:
        """Repository, revision and checksum."""
        return checkpoint_identity(CHECKPOINT)

    def __call__(self, samples: Sequence[SampleImages], prompt: Sequence[str]) -> list[tuple[Instances, ...]]:
        """Objects per sample and source, best first."""
        return detect_all(samples, prompt, self._detect)

    def _detect(self, pictures: Sequence[np.ndarray], words: Sequence[str]) -> Iterator[Instances]:
        dino, device = resident(_load, CHECKPOINT), chosen_device()
        tokenizer = dino.processor.tokenizer
        caption = as_caption(words)
        inputs = dino.processor(
            images=list(pictures), text=[caption] * len(pictures), return_tensors="pt"
        ).to(device)
        phrases = phrase_of_tokens(
            inputs["input_ids"][0].tolist(),
            tokenizer.convert_tokens_to_ids("."),
            tokenizer.all_special_ids,
            len(words),
        )
        with inference(device):
            outputs = dino.model(**inputs)
        for picture, logits, boxes in zip(pictures, outputs.logits, outputs.pred_boxes, strict=True):
            yield to_instances(logits, boxes, phrases, words, picture.shape[:2], self.config)

"""Boxes by the Grounding DINO of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.grounding import GroundingDino, as_caption, phrase_of_tokens, to_instances
from pipeline.records import Instances
from pipeline.resident import Pretrained, chosen_device, from_pretrained, inference, resident

CHECKPOINT = "groundingdino-tiny"


def _load(folder: Path) -> Pretrained:
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

    return from_pretrained(folder, GroundingDinoForObjectDetection, GroundingDinoProcessor)


class TransformersDetector(GroundingDino):
    """The one of transformers."""

    checkpoint = CHECKPOINT

    def detect(self, pictures: Sequence[np.ndarray], words: Sequence[str]) -> Iterator[Instances]:
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

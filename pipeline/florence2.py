"""Florence-2, through the classes of transformers: its answers about pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.resident import Pretrained, chosen_device, from_pretrained, inference, resident

TASKS = {
    "caption": "<CAPTION>",
    "detailed_caption": "<DETAILED_CAPTION>",
    "more_detailed_caption": "<MORE_DETAILED_CAPTION>",
}
AT_ONCE = 8  # images that the model sees in one call


def load(folder: Path) -> Pretrained:
    """The network and its processor."""
    from transformers import Florence2ForConditionalGeneration, Florence2Processor

    return from_pretrained(folder, Florence2ForConditionalGeneration, Florence2Processor)


def answers(
    pictures: Sequence[np.ndarray],
    tasks: Sequence[str],
    checkpoint: str,
    beams: int,
    most: int,
    raw: bool = False,
) -> Iterator[str]:
    """The answer to a task about each uint8 (H, W, 3) picture, by beam search without sampling.

    A task is its token, `<CAPTION>`, followed by what it asks about where it does. ``most`` new tokens per
    answer. ``raw`` keeps tokens that are no words (places), for tasks that need them.
    """
    florence, device = resident(load, checkpoint), chosen_device()
    processor = florence.processor
    for start in range(0, len(pictures), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        inputs = processor(
            text=list(tasks[part]), images=list(pictures[part]), padding=True, return_tensors="pt"
        ).to(device)
        with inference(device):
            tokens = florence.model.generate(
                **inputs, do_sample=False, num_beams=beams, early_stopping=beams > 1, max_new_tokens=most
            )
        texts = processor.tokenizer.batch_decode(tokens, skip_special_tokens=not raw)
        yield from (text if raw else " ".join(text.split()) for text in texts)

"""Text features by the encoder of T5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import TEXT_WIDTH, TextsConfig
from pipeline.resident import Pretrained, chosen_device, from_pretrained, inference, resident
from pipeline.weights import checkpoint_identity

CHECKPOINT = "t5-small"


def _load(folder: Path) -> Pretrained:
    from transformers import AutoTokenizer, T5EncoderModel

    t5 = from_pretrained(folder, T5EncoderModel, AutoTokenizer)
    if t5.model.config.d_model != TEXT_WIDTH:
        raise ValueError(f"features are {t5.model.config.d_model} wide, not {TEXT_WIDTH}")
    return t5


@dataclass(frozen=True)
class T5TextEncoder:
    """Last hidden states of T5's encoder, end-of-sentence token included. Implements TextEncoder.

    Always in float32: T5 overflows in float16, and its small encoder costs next to nothing.
    """

    config: TextsConfig

    @property
    def identity(self) -> str:
        """Repository, revision and checksum."""
        return checkpoint_identity(CHECKPOINT)

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        """One float32 (tokens, 512) array per caption; at most ``max_tokens``, padding masked and cut off."""
        t5, device = resident(_load, CHECKPOINT), chosen_device()
        tokens = t5.processor(
            list(captions),
            padding=True,
            truncation=True,
            max_length=self.config.max_tokens,
            return_tensors="pt",
        ).to(device)
        with inference(device, full=True):
            states = t5.model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).last_hidden_state
        lengths = tokens["attention_mask"].sum(dim=1).tolist()
        return [state[:length].cpu().numpy() for state, length in zip(states, lengths, strict=True)]

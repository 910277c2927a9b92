"""Text features by the encoder of T5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import TEXT_WIDTH, TextsConfig
from pipeline.resident import chosen_device, inference, resident
from pipeline.weights import checkpoint_identity

CHECKPOINT = "t5-small"


@dataclass(frozen=True)
class _T5:
    model: torch.nn.Module
    tokenizer: Any


def _load(folder: Path) -> _T5:
    from transformers import AutoTokenizer, T5EncoderModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = T5EncoderModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    if model.config.d_model != TEXT_WIDTH:
        raise ValueError(f"features are {model.config.d_model} wide, not {TEXT_WIDTH}")
    return _T5(model.float(), AutoTokenizer.from_pretrained(folder, local_files_only=True))


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
        tokens = t5.tokenizer(
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

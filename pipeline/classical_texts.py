"""Text features without weights: vectors from hashed n-grams.

Every word gets a fixed pseudo-random direction made of its n-grams, so equal words have equal features,
similar words similar ones, and nothing is learned. This does not replace T5.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.config import TEXT_WIDTH

FloatArray = NDArray[np.float32]


class ClassicalTextEncoder:
    """Hashed n-gram features of T5-small's width. Implements the TextEncoder protocol.

    Each token (word, number or punctuation mark) is the signed sum of hashed directions of the word and of
    its character 3- to 5-grams; a quarter of each neighbour's vector and a sinusoidal position are added, and
    the result is scaled to root mean square 1, as T5's last RMSNorm would. The last vector marks the end.
    """

    identity = "classical-texts-1"

    def __init__(self, max_tokens: int = 64) -> None:
        self.max_tokens = max_tokens

    def __call__(self, captions: Sequence[str]) -> list[FloatArray]:
        """One (tokens, 512) float32 array per caption, 1 <= tokens <= max_tokens."""
        return [self._encode(caption) for caption in captions]

    def _encode(self, caption: str) -> FloatArray:
        words = re.findall(r"[^\W_]+|[^\w\s]", caption.lower())[: self.max_tokens - 1]
        plain = np.stack([_word(word) for word in [*words, END]])
        mixed = plain.copy()
        mixed[1:] += 0.25 * plain[:-1]
        mixed[:-1] += 0.25 * plain[1:]
        mixed += 0.3 * _positions(len(mixed))
        return (mixed / np.sqrt((mixed**2).mean(axis=1, keepdims=True))).astype(np.float32)


END = "</s>"
_SLOTS = 16  # entries of a vector that one n-gram sets


@lru_cache(maxsize=4096)
def _word(word: str) -> NDArray[np.float64]:
    padded = f"<{word}>"
    grams = [padded[i : i + n] for n in (3, 4, 5) for i in range(len(padded) - n + 1)]
    vector = 2.0 * _direction(f"word {word}")
    for gram in grams:
        vector += _direction(f"gram {gram}") / np.sqrt(len(grams))
    return vector / np.sqrt((vector**2).mean())


def _direction(text: str) -> NDArray[np.float64]:
    """A sparse vector of +1 and -1 at places that depend on nothing but the text."""
    vector = np.zeros(TEXT_WIDTH)
    for slot in range(_SLOTS):
        code = zlib.crc32(f"{slot} {text}".encode())
        vector[code % TEXT_WIDTH] += 1.0 if code >> 16 & 1 else -1.0
    return vector


def _positions(length: int) -> NDArray[np.float64]:
    """Sinusoidal positions (Vaswani et al., 2017), (length, 512)."""
    rate = 10000.0 ** (-np.arange(0, TEXT_WIDTH, 2) / TEXT_WIDTH)
    angle = np.arange(length)[:, None] * rate
    return np.stack([np.sin(angle), np.cos(angle)], axis=2).reshape(length, TEXT_WIDTH)

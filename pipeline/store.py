"""The Zarr contract between guidance stages and the trainer (docs/stores.md). The only module that imports zarr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SCHEMA = 1
MAX_INSTANCES = 64  # instances per source: the bits of one uint64
MAX_CHANNELS = 20  # merged mask channels (paper, sect. 4)


@dataclass(frozen=True)
class Caption:
    """What one sample shows, in words."""

    text: str


@dataclass(frozen=True, eq=False)
class Text:
    """Features of one caption: float16 or float32 (tokens, width)."""

    features: np.ndarray


@dataclass(frozen=True, eq=False)
class Instances:
    """Objects found in ONE source: box float32 (k, 4) xyxy absolute pixels, score float32 (k,) in [0, 1],
    k labels, predicted IoU float32 (k,) and mask bool (k, H, W), the last two None before segmentation."""

    box: np.ndarray
    score: np.ndarray
    label: tuple[str, ...]
    iou: np.ndarray | None = None
    mask: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True, eq=False)
class SampleInstances:
    """Objects of every source of one sample, on the common grid of height x width pixels."""

    height: int
    width: int
    sources: tuple[Instances, ...]


@dataclass(frozen=True, eq=False)
class MergedMasks:
    """Merged masks of one sample: mask bool (c, H, W), c <= 20 channels with label, score and iou (c,);
    how many instances were dropped, how many went together into the last channel, and, if known, the sources
    of each channel as uint32 (c,), bit s = seen in source s."""

    mask: np.ndarray
    label: tuple[str, ...]
    score: np.ndarray
    iou: np.ndarray
    dropped: int = 0
    overflow: int = 0
    sources: np.ndarray | None = None


Record = Caption | Text | SampleInstances | MergedMasks


class Store:
    """One store: n samples in manifest order, each done or not."""

    path: Path
    kind: str
    ids: tuple[str, ...]
    fingerprint: str

    def is_done(self, sample: str) -> bool:
        """Whether the sample's record is complete."""
        raise KeyError(sample)

    def content(self, sample: str) -> str:
        """Content hash of the sources this sample's record was made from; "" when not done."""
        raise KeyError(sample)

    def get(self, sample: str) -> Record:
        """The sample's record; InputError when it is not done or damaged."""
        raise KeyError(sample)

    def write(self, rows: Mapping[str, Record], content: Mapping[str, str] | None = None) -> None:
        """Write records (any number, any order), then their content hashes, then their done flags."""
        raise KeyError(next(iter(rows)))

    def merged_crop(self, sample: str, y: int, x: int, h: int, w: int) -> np.ndarray:
        """Merged masks of a window as bool (20, h, w); reads only the 128 x 128 tiles it touches."""
        raise KeyError(sample)


def open_store(path: Path, mode: str = "r") -> Store:
    """Open an existing store, mode "r" or "r+"; InputError when absent, damaged or of another schema."""
    raise FileNotFoundError(path)


def create_store(
    path: Path,
    kind: str,
    ids: Sequence[str],
    config: Mapping[str, object],
    fingerprint: str,
    upstream: str | None = None,
    **sizes: int,
) -> Store:
    """Create an empty store beside `path` and rename it there. sizes: S, H, W for masks; S for boxes;
    T, D for texts; H, W for merged."""
    raise FileExistsError(path)

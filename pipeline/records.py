"""What travels between stages: one record per sample and stage, and its form in arrays (docs/stores.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config import MASK_CHANNELS

TILE = 128
"""Side of a chunk of merged masks: a training crop touches one to four."""

PIXEL_TYPES = ("uint8", "uint16", "float32")
"""Types of cached images; a store takes the narrowest that holds all of its samples."""

MAX_INSTANCES = 64
"""Instances per source at most: the bits of one uint64."""


@dataclass(frozen=True)
class Caption:
    """What one sample shows, in words."""

    text: str


@dataclass(frozen=True, eq=False)
class Text:
    """Features of one caption: (tokens, width), float16 when read from a store."""

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


@dataclass(frozen=True, eq=False)
class Pixels:
    """Decoded images of one sample, the bands of all of them on the common grid: (B, H, W) unsigned integers,
    or float32 in [0, 1]; bits (B,) of each band, 32 for float32; and what tells whether its files changed."""

    values: np.ndarray
    bits: np.ndarray
    stamp: str


Record = Caption | Text | SampleInstances | MergedMasks | Pixels
Row = dict[str, Any]
"""Array name -> the values of one sample, not padded."""


@dataclass(frozen=True)
class Array:
    """Type and sizes per sample of one array; `tile` is the inner chunk of a large (sharded) one. The sizes S
    (sources), B (bands), H, W (of the largest sample), T (tokens) and D (width) are those of one store."""

    dtype: str
    sizes: tuple[str | int, ...] = ()
    tile: tuple[str | int, ...] | None = None


_FOUND = {
    "box": Array("float32", ("S", MAX_INSTANCES, 4)),
    "score": Array("float32", ("S", MAX_INSTANCES)),
    "label": Array("str", ("S", MAX_INSTANCES)),
    "count": Array("int32", ("S",)),
    "source_count": Array("int32"),
    "height": Array("int32"),
    "width": Array("int32"),
}

LAYOUT: dict[str, dict[str, Array]] = {
    "captions": {"caption": Array("str")},
    "texts": {"text": Array("float16", ("T", "D"), ("T", "D")), "length": Array("int32")},
    "boxes": _FOUND,
    "masks": {
        "mask": Array("uint64", ("S", "H", "W"), ("S", "H", "W")),
        "iou": Array("float32", ("S", MAX_INSTANCES)),
        **_FOUND,
    },
    "merged": {
        "mask": Array("uint32", ("H", "W"), (TILE, TILE)),
        "label": Array("str", (MASK_CHANNELS,)),
        "score": Array("float32", (MASK_CHANNELS,)),
        "iou": Array("float32", (MASK_CHANNELS,)),
        "sources": Array("uint32", (MASK_CHANNELS,)),
        **{name: Array("int32") for name in ("count", "dropped", "overflow", "height", "width")},
    },
    **{
        f"images_{dtype}": {
            "pixels": Array(dtype, ("B", "H", "W"), ("B", TILE, TILE)),
            "bits": Array("int32", ("B",)),
            "stamp": Array("str"),
            "height": Array("int32"),
            "width": Array("int32"),
        }
        for dtype in PIXEL_TYPES
    },
}
EVERY_KIND = {"id": Array("str"), "content": Array("str"), "done": Array("uint8")}


def pack(masks: np.ndarray, dtype: str) -> np.ndarray:
    """bool (k, ...) -> unsigned integers (...), bit i = masks[i]."""
    bits = np.zeros(masks.shape[1:], np.dtype(dtype).newbyteorder("<"))
    octets = _octets(bits)
    for start in range(0, len(masks), 8):  # eight masks are one byte: the wide integers are touched once
        octet = np.zeros(masks.shape[1:], np.uint8)
        for i, mask in enumerate(masks[start : start + 8]):
            octet |= mask.view(np.uint8) << np.uint8(i)
        octets[..., start // 8] = octet
    return bits.astype(dtype, copy=False)


def unpack(bits: np.ndarray, count: int) -> np.ndarray:
    """Unsigned integers (...) -> bool (count, ...), the inverse of `pack`."""
    octets = _octets(np.ascontiguousarray(bits, bits.dtype.newbyteorder("<")))
    masks = np.empty((count, *bits.shape), bool)
    for start in range(0, count, 8):
        octet = np.ascontiguousarray(octets[..., start // 8])
        for i in range(start, min(start + 8, count)):
            np.not_equal(octet & np.uint8(1 << (i - start)), 0, out=masks[i])
    return masks


def _octets(bits: np.ndarray) -> np.ndarray:
    """The bytes (..., width) of contiguous little-endian integers (...), in their memory."""
    return bits.view(np.uint8).reshape(*bits.shape, bits.dtype.itemsize)


def encode(record: Record) -> Row:
    """The record as one unpadded value per array of its kind of store (and perhaps of others)."""
    if isinstance(record, Caption):
        return {"caption": record.text}
    if isinstance(record, Text):
        return {"text": record.features, "length": len(record.features)}
    if isinstance(record, MergedMasks):
        count, height, width = record.mask.shape
        if count > MASK_CHANNELS:
            raise ValueError(f"{count} merged masks; at most {MASK_CHANNELS} fit")
        sources = np.zeros(count, np.uint32) if record.sources is None else record.sources
        return {
            "mask": pack(record.mask, "uint32"),
            "label": list(record.label),
            "score": record.score,
            "iou": record.iou,
            "sources": sources,
            "count": count,
            "dropped": record.dropped,
            "overflow": record.overflow,
            "height": height,
            "width": width,
        }
    if isinstance(record, Pixels):
        height, width = record.values.shape[1:]
        sizes = {"height": height, "width": width}
        return {"pixels": record.values, "bits": record.bits, "stamp": record.stamp, **sizes}
    return _encode_instances(record)


def decode(kind: str, row: Mapping[str, Any]) -> Record:
    """The record of a store's `kind` from its padded row, the inverse of `encode`."""
    if kind == "captions":
        return Caption(str(row["caption"]))
    if kind == "texts":
        return Text(row["text"][: row["length"]])
    height, width = int(row["height"]), int(row["width"])
    if kind.startswith("images_"):
        return Pixels(row["pixels"][:, :height, :width], row["bits"].copy(), str(row["stamp"]))
    if kind == "merged":
        count = int(row["count"])
        return MergedMasks(
            mask=unpack(row["mask"][:height, :width], count),
            label=_words(row["label"][:count]),
            score=row["score"][:count].copy(),
            iou=row["iou"][:count].copy(),
            dropped=int(row["dropped"]),
            overflow=int(row["overflow"]),
            sources=row["sources"][:count].copy(),
        )
    return SampleInstances(height, width, tuple(_instances(kind, row, s) for s in range(row["source_count"])))


def _instances(kind: str, row: Mapping[str, Any], s: int) -> Instances:
    k = int(row["count"][s])
    box, score = row["box"][s, :k].copy(), row["score"][s, :k].copy()
    label = _words(row["label"][s, :k])
    if kind == "boxes":
        return Instances(box, score, label)
    mask = unpack(row["mask"][s, : int(row["height"]), : int(row["width"])], k)
    return Instances(box, score, label, row["iou"][s, :k].copy(), mask)


def _words(values: np.ndarray) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


def _encode_instances(record: SampleInstances) -> Row:
    number, most = len(record.sources), max((len(source) for source in record.sources), default=0)
    if most > MAX_INSTANCES:
        raise ValueError(f"{most} instances in one source; at most {MAX_INSTANCES} fit")
    row: Row = {
        "box": np.zeros((number, most, 4), np.float32),
        "score": np.zeros((number, most), np.float32),
        "iou": np.zeros((number, most), np.float32),
        "label": np.full((number, most), "", dtype=object),
        "source_count": number,
        "count": np.array([len(source) for source in record.sources], np.int32),
        "mask": np.zeros((number, record.height, record.width), np.uint64),
        "height": record.height,
        "width": record.width,
    }
    for s, source in enumerate(record.sources):
        k = len(source)
        row["box"][s, :k] = np.asarray(source.box).reshape(-1, 4)
        row["score"][s, :k] = source.score
        row["label"][s, :k] = source.label
        if source.iou is not None:
            row["iou"][s, :k] = source.iou
        if source.mask is not None and k:
            row["mask"][s] = pack(source.mask, "uint64")
    return row


def fill(row: np.ndarray, value: Any) -> None:
    """Put a value into the (1, ...) row of a shard, from its corner; what is larger is cut."""
    value = np.asarray(value, dtype=row.dtype)
    window = tuple(slice(min(have, want)) for have, want in zip(value.shape, row.shape[1:], strict=True))
    row.reshape(row.shape[1:])[window] = value[window]

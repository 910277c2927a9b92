"""Windows of one sample out of a sharded array, read straight from its file.

zarr answers the same question in ten times the time: it sends every chunk through an event loop and a pool of
threads, which is most of the cost of a training crop. The form of a shard is that of the Zarr 3 specification
(codec `sharding_indexed`): chunks one after another, then offset and length of each as two uint64, then the
CRC-32C of that index. A chunk is compressed with Zstandard and followed by its own CRC-32C.
"""

from __future__ import annotations

import itertools
import math
import os
from typing import BinaryIO

import google_crc32c
import numpy as np
from numcodecs.zstd import decompress

from pipeline.objects import Place

_ABSENT = 2**64 - 1  # offset of a chunk that was never written


def read_window(
    file: Place,
    shard: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: np.dtype,
    row: int,
    window: tuple[slice, ...],
) -> np.ndarray:
    """Values of ``window`` (one slice per axis after the first) of row ``row`` of a shard.

    Only the chunks that the window touches are read. ``shard`` and ``chunk`` are their shapes, the row axis
    first, of which a chunk holds one. Raises OSError for a missing file and ValueError for damaged bytes.
    """
    grid = [size // part for size, part in zip(shard, chunk, strict=True)]
    values = np.empty([part.stop - part.start for part in window], dtype)
    touched = [
        range(part.start // side, -(-part.stop // side)) for part, side in zip(window, chunk[1:], strict=True)
    ]
    with file.open("rb", buffering=0) as opened:
        index = _index(opened, math.prod(grid))
        for place in itertools.product(*touched):
            offset, length = index[np.ravel_multi_index((row, *place), grid)]
            tile = _chunk(opened, int(offset), int(length), chunk[1:], dtype)
            origins = [at * side for at, side in zip(place, chunk[1:], strict=True)]
            edges = [
                (max(part.start, origin), min(part.stop, origin + side))
                for part, origin, side in zip(window, origins, chunk[1:], strict=True)
            ]
            into = tuple(
                slice(a - part.start, b - part.start) for (a, b), part in zip(edges, window, strict=True)
            )
            out = tuple(slice(a - origin, b - origin) for (a, b), origin in zip(edges, origins, strict=True))
            values[into] = tile[out]
    return values


def _index(file: BinaryIO, count: int) -> np.ndarray:
    """Offsets and lengths (count, 2) of a shard's chunks."""
    size = 16 * count + 4
    file.seek(-size, os.SEEK_END)
    return np.frombuffer(_checked(file.read(size), size), "<u8").reshape(-1, 2)


def _chunk(file: BinaryIO, offset: int, length: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if offset == _ABSENT:
        raise ValueError("a chunk is missing")
    file.seek(offset)
    values = np.frombuffer(decompress(_checked(file.read(length), length)), dtype)
    return values.reshape(shape)


def _checked(data: bytes, size: int) -> bytes:
    """The bytes without the checksum at their end."""
    content = data[:-4]
    if len(data) != size or google_crc32c.value(content) != int.from_bytes(data[-4:], "little"):
        raise ValueError("a checksum does not match")
    return content

"""The files of sharded arrays, read and written directly: windows of one sample, and whole shards.

zarr does the same in ten times the time: it sends every chunk through an event loop and a pool of threads,
which is most of the cost of a training crop and of storing merged masks. The form of a shard is that of the
Zarr 3 specification (codec `sharding_indexed`): chunks one after another, then offset and length of each as
two uint64, then the CRC-32C of that index. A chunk is compressed with Zstandard and followed by its own
CRC-32C. Chunks lie in the order in which zarr puts them, so that its bytes and these are the same.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

import google_crc32c
import numpy as np
from numcodecs.zstd import compress, decompress

from pipeline.durability import write_whole
from pipeline.objects import Place

LEVEL = 3
"""Of Zstandard."""

MOST_ROWS = 32
"""Samples of a shard, fewer when they would be more than this many bytes:"""

MOST_BYTES = 2**28

_ABSENT = 2**64 - 1  # offset of a chunk that was never written

EncodedRow = Sequence[bytes]
"""The encoded chunks of one row of a shard, in C order."""


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
    grid = _grid(shard, chunk)
    values = np.empty([part.stop - part.start for part in window], dtype)
    touched = [
        range(part.start // side, -(-part.stop // side)) for part, side in zip(window, chunk[1:], strict=True)
    ]
    with file.open("rb", buffering=0) as opened:
        index = _index(opened, math.prod(grid))
        for place in itertools.product(*touched):
            offset, length = index[np.ravel_multi_index((row, *place), grid)]
            content = decompress(_chunk(opened, int(offset), int(length)))
            tile = np.frombuffer(content, dtype).reshape(chunk[1:])
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


def shard_shape(shape: tuple[int, ...], tile: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    """Shape of the shards of rows of that shape in tiles of that shape.

    The number of rows is a power of two, so that shards of several stores have borders in common.
    """
    padded = [-(-size // side) * side for size, side in zip(shape, tile, strict=True)]
    rows = max(1, min(MOST_ROWS, MOST_BYTES // (math.prod(padded) * dtype.itemsize)))
    return (1 << rows.bit_length() - 1, *padded)


@dataclass(frozen=True)
class ShardedArray:
    """A sharded array of a store, as its files: one shard after the other along the first axis, that of the
    rows. ``shape`` is that of a row, which is padded with zeros to that of the shard."""

    folder: Place
    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype

    def file(self, row: int) -> Place:
        """The file of the shard with that row."""
        return self.folder.joinpath("c", str(row // self.shard[0]), *("0" for _ in self.shape))

    def read(self, row: int, window: tuple[slice, ...]) -> np.ndarray:
        """Values of a window; see `read_window`."""
        row_inside = row % self.shard[0]
        return read_window(self.file(row), self.shard, self.chunk, self.dtype, row_inside, window)

    def encode(self, values: np.ndarray) -> EncodedRow:
        """A row with these values in its corner and zeros elsewhere; what is larger than the row is cut."""
        inside, sides = values[tuple(map(slice, self.shape))], self.chunk[1:]
        chunks = []
        for corner in itertools.product(*map(range, [0] * len(sides), self.shard[1:], sides)):
            tile = inside[tuple(slice(at, at + side) for at, side in zip(corner, sides, strict=True))]
            if tile.shape != sides:
                whole = np.zeros(sides, self.dtype)
                whole[tuple(map(slice, tile.shape))] = tile
                tile = whole
            tile = np.ascontiguousarray(tile, self.dtype.newbyteorder("<"))
            chunks.append(_with_checksum(compress(tile, LEVEL)))
        return chunks

    def encoded(self, block: slice, done: Sequence[bool]) -> list[EncodedRow]:
        """The rows of a shard as they are in its file, zeros where they are not done."""
        zeros = self.encode(np.zeros([0] * len(self.shape)))
        if not any(done):
            return [zeros] * len(done)
        grid = _grid(self.shard, self.chunk)
        with self.file(block.start).open("rb", buffering=0) as opened:
            places = _index(opened, math.prod(grid)).reshape(grid[0], -1, 2).tolist()
            return [
                [_with_checksum(_chunk(opened, *place)) for place in row] if is_done else zeros
                for row, is_done in zip(places, done, strict=False)
            ]

    def write(self, block: slice, rows: Sequence[EncodedRow]) -> None:
        """Write the whole shard that holds these rows and no others."""
        grid = _grid(self.shard, self.chunk)
        chunks = list(itertools.chain(*rows))
        index = np.full((math.prod(grid), 2), _ABSENT, "<u8")
        order = [number for number in _z_order(grid) if number < len(chunks)]
        lengths = [len(chunks[number]) for number in order]
        index[order, 0] = np.cumsum([0, *lengths[:-1]])
        index[order, 1] = lengths
        content = [*(chunks[number] for number in order), _with_checksum(index.tobytes())]
        write_whole(self.file(block.start), b"".join(content))


def _grid(shard: tuple[int, ...], chunk: tuple[int, ...]) -> tuple[int, ...]:
    """Chunks of a shard along every axis."""
    return tuple(size // part for size, part in zip(shard, chunk, strict=True))


@lru_cache(maxsize=16)
def _z_order(grid: tuple[int, ...]) -> list[int]:
    """The chunks of a shard, numbered in C order, along a Z-order curve whose fastest axis is the first."""
    places = np.indices(grid).reshape(len(grid), -1)
    code = np.zeros(places.shape[1], np.int64)
    for bit in range(max(grid).bit_length()):
        for axis, place in enumerate(places):
            code |= (place >> bit & 1) << (bit * len(grid) + axis)
    return np.argsort(code).tolist()


def _index(file: BinaryIO, count: int) -> np.ndarray:
    """Offsets and lengths (count, 2) of a shard's chunks."""
    size = 16 * count + 4
    file.seek(-size, os.SEEK_END)
    return np.frombuffer(_checked(file.read(size), size), "<u8").reshape(-1, 2)


def _chunk(file: BinaryIO, offset: int, length: int) -> bytes:
    if offset == _ABSENT:
        raise ValueError("a chunk is missing")
    file.seek(offset)
    return _checked(file.read(length), length)


def _checked(data: bytes, size: int) -> bytes:
    """The bytes without the checksum at their end."""
    content = data[:-4]
    if len(data) != size or google_crc32c.value(content) != int.from_bytes(data[-4:], "little"):
        raise ValueError("a checksum does not match")
    return content


def _with_checksum(content: bytes) -> bytes:
    return content + google_crc32c.value(content).to_bytes(4, "little")

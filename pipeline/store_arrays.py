"""The Zarr arrays of a store: made, opened, in which chunks. Of the guidance only this module knows zarr."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import ObjectStore

from pipeline.objects import ObjectPath, Place
from pipeline.records import EVERY_KIND, LAYOUT, Array
from pipeline.shards import LEVEL, shard_shape

_CHUNK_SAMPLES, _CHUNK_VALUES = 256, 2**14  # samples of a small array in a chunk: more while values are few
_CODECS = (ZstdCodec(level=LEVEL), Crc32cCodec())

Attributes = dict[str, Any]
Arrays = dict[str, Any]
"""Name -> zarr array, for the arrays of `records.EVERY_KIND` and of the store's kind in `records.LAYOUT`."""


def open_arrays(path: Place, mode: Literal["r", "r+"]) -> tuple[Attributes, Arrays]:
    """The attributes and arrays of the store at ``path``. Raises what zarr raises for one that is damaged."""
    return _contents(zarr.open_group(_zarr_store(path, mode == "r"), mode=mode, zarr_format=3))


def create_arrays(
    path: Place, ids: Sequence[str], attributes: Mapping[str, Any], sizes: Mapping[str, int]
) -> tuple[Attributes, Arrays]:
    """Make the arrays of an empty store for the samples ``ids``, none of them done.

    ``attributes``: of the store, with its ``kind``; ``sizes``: those that `records.Array` names by letters.
    """
    group = zarr.create_group(_zarr_store(path), zarr_format=3, attributes=dict(attributes))
    for name, array in (EVERY_KIND | LAYOUT[attributes["kind"]]).items():
        _create_array(group, name, array, len(ids), sizes)
    for name, values in {"id": list(ids), "content": [""] * len(ids), "done": [0] * len(ids)}.items():
        _array(group, name)[:] = np.array(values, dtype=np.uint8 if name == "done" else object)
    return _contents(group)


def _zarr_store(path: Place, read_only: bool = False) -> Any:
    """What zarr opens."""
    return ObjectStore(path.folder_store, read_only=read_only) if isinstance(path, ObjectPath) else path


def _contents(group: zarr.Group) -> tuple[Attributes, Arrays]:
    attributes: Attributes = group.attrs.asdict()
    return attributes, {name: _array(group, name) for name in EVERY_KIND | LAYOUT[attributes["kind"]]}


def _create_array(group: zarr.Group, name: str, array: Array, n: int, sizes: Mapping[str, int]) -> None:
    shape = tuple(size if isinstance(size, int) else sizes[size] for size in array.sizes)
    shards: tuple[int, ...] | None = None
    chunks = (max(_CHUNK_SAMPLES, _CHUNK_VALUES // math.prod(shape)), *shape)
    if array.tile:
        tile = tuple(size if isinstance(size, int) else sizes[size] for size in array.tile)
        chunks, shards = (1, *tile), shard_shape(shape, tile, np.dtype(array.dtype))
    group.create_array(
        name,
        shape=(n, *shape),
        chunks=chunks,
        shards=shards,
        dtype=str if array.dtype == "str" else array.dtype,
        compressors=_CODECS,
    )


def _array(group: zarr.Group, name: str) -> Any:
    """An array that writes chunks of zeros too: zarr omits them, and a lost file would look like one."""
    return cast(Any, group[name]).with_config({"write_empty_chunks": True})

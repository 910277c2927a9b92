"""The stores between guidance stages and the trainer (docs/stores.md): records, and which of them count."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np

from pipeline.config import MASK_CHANNELS
from pipeline.durability import full_disk_explained, locked, recover, remove, swap, uninterrupted
from pipeline.errors import InputError
from pipeline.objects import Place, connection
from pipeline.records import (
    EVERY_KIND,
    LAYOUT,
    MAX_INSTANCES,
    Caption,
    Instances,
    MergedMasks,
    Pixels,
    Record,
    Row,
    SampleInstances,
    Text,
    decode,
    encode,
    fill,
    unpack,
)
from pipeline.shards import MOST_ROWS, EncodedRow, ShardedArray
from pipeline.store_arrays import create_arrays, open_arrays
from pipeline.store_facts import SCHEMA, damaged, fingerprint, read_attributes, remedy, why_stale

__all__ = [
    "MAX_INSTANCES",
    "SCHEMA",
    "Caption",
    "Instances",
    "MergedMasks",
    "Pixels",
    "Record",
    "SampleInstances",
    "Store",
    "Text",
    "create_store",
    "fingerprint",
    "locked",
    "open_store",
    "prepare_store",
]

_KEPT_BYTES = 2**25  # a small array below this is read once


class Store:
    """One store: n samples in manifest order, each done or not. Made by `open_store` and `create_store`."""

    def __init__(self, path: Place, attributes: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self.path = path
        self.kind: str = attributes["kind"]
        self.fingerprint: str = attributes["fingerprint"]
        self.upstream: str | None = attributes["upstream"]
        self.config: dict[str, Any] = attributes["config"]
        self._arrays = arrays
        self._blocks: dict[str, tuple[int, np.ndarray]] = {}
        for name in EVERY_KIND:
            for row in range(0, self._arrays[name].shape[0], self._arrays[name].chunks[0]):
                self._check_file(name, row)
        self.ids: tuple[str, ...] = tuple(str(sample) for sample in self._read("id", slice(None)))
        self._index = {sample: row for row, sample in enumerate(self.ids)}
        self._done: np.ndarray = self._read("done", slice(None))
        self._content: list[str] = [str(value) for value in self._read("content", slice(None))]
        self._large = {
            name: ShardedArray(path / name, array.shape[1:], array.shards, array.chunks, array.dtype)
            for name, array in self._arrays.items()
            if array.shards
        }
        # Samples that are written together: one shard.
        self.rows: int = min([MOST_ROWS, *(array.shard[0] for array in self._large.values())])

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that differ between stores of one kind (S, H, W, T, D as far as they apply)."""
        return {
            size: self._arrays[name].shape[1 + axis]
            for name, array in LAYOUT[self.kind].items()
            for axis, size in enumerate(array.sizes)
            if isinstance(size, str)
        }

    def is_done(self, sample: str) -> bool:
        """Whether the sample is in the store and its record is complete."""
        return sample in self._index and bool(self._done[self._index[sample]])

    def content(self, sample: str) -> str:
        """Content hash of the files this sample's record was made from; "" when it is not done."""
        return self._content[self._index[sample]] if self.is_done(sample) else ""

    def contents(self) -> dict[str, str]:
        """Content hash of every sample that is done."""
        return {self.ids[row]: self._content[row] for row in np.flatnonzero(self._done).tolist()}

    def row(self, sample: str) -> int:
        """Position of the sample in the store."""
        return self._index[sample]

    def numbers(self, name: str) -> np.ndarray:
        """A small numeric array (count, dropped, height, …) for all done samples, in order."""
        return np.asarray(self._read(name, slice(None))[self._done.astype(bool)])

    def size(self, sample: str) -> tuple[int, int]:
        """(height, width) of the sample's common grid."""
        row = self._done_row(sample)
        return int(self._read_row("height", row)), int(self._read_row("width", row))

    def get(self, sample: str) -> Record:
        """The sample's record. Raises InputError when it is not done or its chunks are damaged."""
        return decode(self.kind, self._row(self._done_row(sample)))

    def merged_crop(self, sample: str, y: int, x: int, h: int, w: int) -> np.ndarray:
        """Merged masks of a window as bool (20, h, w); only the 128 x 128 tiles it touches are read."""
        return unpack(self._crop("mask", sample, y, x, h, w), MASK_CHANNELS)

    def pixel_crop(self, sample: str, y: int, x: int, h: int, w: int) -> Pixels:
        """A window of cached images: values (B, h, w); only the 128 x 128 tiles it touches are read."""
        values = self._crop("pixels", sample, y, x, h, w)
        return Pixels(values, self._read_row("bits", self._index[sample]), self.stamp(sample))

    def stamp(self, sample: str) -> str:
        """What tells whether the files of cached images have changed since (model/image_cache.py)."""
        return str(self._read_row("stamp", self._done_row(sample)))

    def origins(self, sample: str) -> np.ndarray:
        """The sources of each merged channel as uint32 (c,), bit s = seen in source s."""
        row = self._done_row(sample)
        return np.asarray(self._read_row("sources", row))[: int(self._read_row("count", row))]

    def _crop(self, name: str, sample: str, y: int, x: int, h: int, w: int) -> np.ndarray:
        height, width = self.size(sample)
        if not (0 <= y <= y + h <= height and 0 <= x <= x + w <= width):
            raise ValueError(f"window {y}:{y + h}, {x}:{x + w} leaves the {height}x{width} sample '{sample}'")
        return self._window(name, self._index[sample], slice(y, y + h), slice(x, x + w))

    def write(self, rows: Mapping[str, Record], content: Mapping[str, str] | None = None) -> None:
        """Write records (any number, any order), then their content hashes, then their done flags.

        Ctrl-C is answered after the write. A full disk raises InputError and leaves a valid store
        in which these samples are not done. One process may write at a time: hold `locked(path)`.
        """
        self._put(
            {self._index[sample]: partial(encode, record) for sample, record in rows.items()},
            {self._index[sample]: (content or {}).get(sample, "") for sample in rows},
        )

    def _put(self, rows: Mapping[int, Callable[[], Row]], content: Mapping[int, str]) -> None:
        with uninterrupted(), full_disk_explained(self.path):
            if any(self._done[row] for row in rows):
                self._done[list(rows)] = 0
                self._arrays["done"][:] = self._done
            for start in sorted({row // self.rows * self.rows for row in rows}):
                self._put_block(slice(start, min(start + self.rows, len(self.ids))), rows)
            for row, value in content.items():
                self._content[row] = value
            self._arrays["content"][:] = np.array(self._content, dtype=object)
            done = self._done.copy()
            done[list(rows)] = 1
            self._arrays["done"][:] = done
            self._done = done

    def _put_block(self, block: slice, rows: Mapping[int, Callable[[], Row]]) -> None:
        """Write one whole shard: the new rows, the rows done before, zeros elsewhere. The bytes of a finished
        store therefore do not depend on the order of writes, and no write covers a part of a shard."""
        large = {name: self._large_rows(name, block) for name in self._large}
        small = {name: self._small_rows(name, block) for name in LAYOUT[self.kind] if name not in large}
        for row in sorted(rows.keys() & range(block.start, block.stop)):
            values, place = rows[row](), row - block.start
            for name, shard in small.items():
                fill(shard[place : place + 1], values[name])
            for name, encoded in large.items():
                encoded[place] = self._large[name].encode(np.asarray(values[name]))
        for name, shard in small.items():
            self._arrays[name][block] = shard
            self._blocks.pop(name, None)
        for name, encoded in large.items():
            self._large[name].write(block, encoded)

    def _small_rows(self, name: str, block: slice) -> np.ndarray:
        """The rows of a small array as they are now, zeros where a row is not done."""
        array, missing = self._arrays[name], self._done[block] == 0
        nothing = "" if array.dtype.kind in "TOU" else 0
        if missing.all():
            dtype = array.dtype if nothing == 0 else object
            return np.full((len(missing), *array.shape[1:]), nothing, dtype)
        values = np.asarray(self._read(name, block))
        values[missing] = nothing
        return values

    def _large_rows(self, name: str, block: slice) -> list[EncodedRow]:
        """The rows of a large array as they are now, encoded, zeros where a row is not done."""
        done = self._done[block].astype(bool).tolist()
        if any(done):
            self._check_file(name, block.start)
        with self._reading(name):
            return self._large[name].encoded(block, done)

    def _window(self, name: str, row: int, *window: slice) -> np.ndarray:
        """One sample's values of a large array, or a window of its last axes."""
        array = self._large[name]
        missing = len(array.shape) - len(window)
        self._check_file(name, row)
        with self._reading(name):
            return array.read(row, (*map(slice, [0] * missing, array.shape[:missing]), *window))

    def _read_row(self, name: str, row: int) -> Any:
        """One sample's values of a small array: a short one is kept whole, of others the last chunk read."""
        array = self._arrays[name]
        length = len(self.ids) if array.ndim == 1 or array.nbytes < _KEPT_BYTES else array.chunks[0]
        start = row // length * length
        kept = self._blocks.get(name)
        if kept is None or kept[0] != start:
            for chunk in range(start, min(start + length, len(self.ids)), array.chunks[0]):
                if self._done[chunk : chunk + array.chunks[0]].any():
                    self._check_file(name, chunk)
            kept = self._blocks[name] = (start, self._read(name, slice(start, start + length)))
        return kept[1][row - start]

    def _read(self, name: str, selection: Any) -> Any:
        with self._reading(name):
            return self._arrays[name][selection]

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Name the store, the array and the remedy when bytes of it turn out to be damaged."""
        try:
            with connection(self.path):
                yield
        except (MemoryError, InputError):
            raise
        except Exception as error:  # zarr and its codecs raise a dozen types for damaged bytes
            raise damaged(self.path, f"array '{name}': {error}") from error

    def _check_file(self, name: str, row: int) -> None:
        """zarr reads a missing file as zeros; a done sample must have one."""
        array = self._arrays[name]
        number = row // (array.shards or array.chunks)[0]
        below = f"{name}/c/{number}" + "/0" * (array.ndim - 1)
        if not (self.path / below).is_file():
            raise damaged(self.path, f"{below} is missing")

    def _done_row(self, sample: str) -> int:
        if not self.is_done(sample):
            raise InputError(f"{self.path}: sample '{sample}' is not done; {remedy(self.path)}")
        return self._index[sample]

    def _row(self, row: int) -> Row:
        return {
            name: self._window(name, row) if array.tile else self._read_row(name, row)
            for name, array in LAYOUT[self.kind].items()
        }


@uninterrupted()
def open_store(path: Place, mode: Literal["r", "r+"] = "r") -> Store:
    """Open a store. Raises InputError when it is absent, damaged or of another schema."""
    attributes = read_attributes(path)
    if attributes is None:
        raise InputError(f"{path}: no such store; {remedy(path)}")
    if attributes.get("schema") != SCHEMA:
        raise InputError(
            f"{path}: written in schema {attributes.get('schema')}, not {SCHEMA}; {remedy(path)}"
        )
    try:
        with connection(path):
            return Store(path, *open_arrays(path, mode))
    except InputError:
        raise
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise damaged(path, str(error)) from error


@uninterrupted()
def create_store(
    path: Place,
    kind: str,
    ids: Sequence[str],
    config: Mapping[str, Any],
    fingerprint: str,
    upstream: str | None = None,
    **sizes: int,
) -> Store:
    """Create an empty store beside `path` and rename it there, replacing what was there.

    sizes: S (sources) for boxes; S, H, W for masks; H, W for merged; T, D for texts; none for captions.
    """
    with full_disk_explained(path):
        swap(_create(path, kind, ids, config, fingerprint, upstream, sizes).path, path)
    return open_store(path, "r+")


def prepare_store(
    path: Place,
    kind: str,
    content: Mapping[str, str],
    config: Mapping[str, Any],
    fingerprint: str,
    upstream: str | None = None,
    **sizes: int,
) -> tuple[Store, str]:
    """Open the store of a stage for writing, made to fit the samples of `content` (id -> content hash).

    A store of another schema or fingerprint is dropped. One whose samples or sizes differ is built anew
    beside and takes over every record whose sample id and content hash are still the same. Returns the store
    and why records were dropped, "" when they were not. The caller holds `locked(path)`.
    """
    recover(path)
    config = json.loads(json.dumps(config))  # tuples become lists, as in the attributes of a store
    attributes = read_attributes(path)
    reason = why_stale(attributes, config, fingerprint, upstream) if attributes is not None else ""
    if attributes is None or reason:
        return create_store(path, kind, list(content), config, fingerprint, upstream, **sizes), reason
    old = open_store(path, "r+")
    if old.ids == tuple(content) and old.sizes == sizes:
        return old, ""
    with full_disk_explained(path):
        new = _create(path, kind, list(content), config, fingerprint, upstream, sizes)
        kept = {sample for sample in new.ids if content[sample] and old.content(sample) == content[sample]}
        for start in range(0, len(new.ids), new.rows):
            block = [sample for sample in new.ids[start : start + new.rows] if sample in kept]
            if block:
                new._put(
                    {new.row(sample): partial(old._row, old.row(sample)) for sample in block},
                    {new.row(sample): content[sample] for sample in block},
                )
        swap(new.path, path)
    return open_store(path, "r+"), ""


@uninterrupted()
def _create(
    path: Place,
    kind: str,
    ids: Sequence[str],
    config: Mapping[str, Any],
    fingerprint: str,
    upstream: str | None,
    sizes: Mapping[str, int],
) -> Store:
    """Create the empty store under its temporary name."""
    remove(temporary := path.with_name(path.name + ".tmp"))
    attributes = {
        "schema": SCHEMA,
        "kind": kind,
        "fingerprint": fingerprint,
        "upstream": upstream,
        "config": dict(config),
    }
    return Store(temporary, *create_arrays(temporary, ids, attributes, sizes))

"""Windows read straight from shards are what zarr reads, and damage is noticed."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipeline.errors import InputError
from pipeline.records import MergedMasks, Pixels
from pipeline.shards import read_window
from pipeline.store import Store, create_store, open_store

CODECS = (ZstdCodec(level=3), Crc32cCodec())
FILE = Path("values/c/0/0/0/0")


@pytest.fixture(scope="module", params=["uint8", "uint32", "float32"])
def array(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> zarr.Array:
    """5 rows of 3 x 37 x 50 in chunks of 3 x 16 x 16; one shard, larger than the array."""
    group = zarr.create_group(tmp_path_factory.mktemp("zarr"))
    array = group.create_array(
        "values",
        shape=(5, 3, 37, 50),
        chunks=(1, 3, 16, 16),
        shards=(8, 3, 48, 64),
        dtype=request.param,
        compressors=CODECS,
    )
    array[:] = np.random.default_rng(0).integers(0, 250, array.shape).astype(request.param)
    return array


def file_of(array: zarr.Array) -> Path:
    return Path(str(array.store.root)) / FILE


@given(data=st.data())
def test_any_window_is_what_zarr_reads(array: zarr.Array, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, 4))
    window = []
    for size in array.shape[1:]:
        start = data.draw(st.integers(0, size))
        window.append(slice(start, data.draw(st.integers(start, size))))
    got = read_window(file_of(array), array.shards, array.chunks, array.dtype, row, tuple(window))
    expected = array[(row, *window)]
    assert got.dtype == expected.dtype
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("place", [10, -2, -100])
def test_flipped_bits_are_noticed(array: zarr.Array, tmp_path: Path, place: int) -> None:
    content = bytearray(file_of(array).read_bytes())
    content[place] ^= 4
    damaged = tmp_path / "shard"
    damaged.write_bytes(content)
    whole = tuple(slice(0, size) for size in array.shape[1:])
    with pytest.raises(ValueError, match="checksum"):
        read_window(damaged, array.shards, array.chunks, array.dtype, 0, whole)


@pytest.fixture
def pixels(tmp_path: Path) -> Store:
    store = create_store(
        tmp_path / "images" / "x.zarr", "images_uint16", ["a", "b"], {}, "1", B=3, H=200, W=300
    )
    values = np.random.default_rng(1).integers(0, 2**16, (3, 150, 300)).astype(np.uint16)
    store.write({"b": Pixels(values, np.array([16, 16, 11]), "123")}, {"b": "hash"})
    return open_store(store.path)


def test_cached_images_come_back_whole_and_in_windows(pixels: Store) -> None:
    whole = pixels.get("b")
    assert isinstance(whole, Pixels)
    assert (whole.values.shape, whole.values.dtype, whole.stamp) == ((3, 150, 300), np.uint16, "123")
    assert whole.bits.tolist() == [16, 16, 11]
    crop = pixels.pixel_crop("b", 100, 120, 40, 150)
    assert np.array_equal(crop.values, whole.values[:, 100:140, 120:270])
    assert crop.stamp == "123"
    with pytest.raises(ValueError, match="leaves the 150x300 sample"):
        pixels.pixel_crop("b", 140, 0, 20, 20)


def test_a_damaged_cache_says_what_to_do(pixels: Store) -> None:
    file = next((pixels.path / "pixels" / "c").rglob("0"))
    while file.is_dir():
        file = next(file.iterdir())
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"array 'pixels'.*delete it and train again"):
        pixels.pixel_crop("b", 0, 0, 8, 8)


def test_sources_of_merged_channels(tmp_path: Path) -> None:
    store = create_store(tmp_path / "merged.zarr", "merged", ["a"], {}, "1", H=8, W=8)
    ones = np.ones(2, np.float32)
    record = MergedMasks(
        np.ones((2, 8, 8), bool), ("x", "y"), ones, ones, sources=np.array([1, 3], np.uint32)
    )
    store.write({"a": record})
    assert store.origins("a").tolist() == [1, 3]


@pytest.mark.parametrize(
    ("kind", "name", "sizes"),
    [
        ("merged", "mask", {"H": 300, "W": 420}),
        ("merged", "mask", {"H": 128, "W": 640}),
        ("masks", "mask", {"S": 3, "H": 33, "W": 47}),
        ("texts", "text", {"T": 6, "D": 8}),
        ("images_uint16", "pixels", {"B": 3, "H": 200, "W": 900}),
    ],
)
def test_written_shards_have_the_bytes_that_zarr_writes(
    tmp_path: Path, kind: str, name: str, sizes: dict[str, int]
) -> None:
    """A full shard and one that the array does not fill, every row smaller than the array in another way."""
    ids = [f"s{i}" for i in range(37)]
    store = create_store(tmp_path / "x.zarr", kind, ids, {}, "1", **sizes)
    sharded, expected = store._large[name], zarr.open_array(store.path / name, mode="r")
    random = np.random.default_rng(0)
    values = np.zeros(expected.shape, expected.dtype)
    for row in values:
        part = tuple(slice(random.integers(1, size + 1)) for size in row.shape)
        row[part] = random.integers(0, 9, row[part].shape)
    for start in range(0, len(ids), store.rows):
        block = slice(start, min(start + store.rows, len(ids)))
        sharded.write(block, [sharded.encode(row) for row in values[block]])
    assert np.array_equal(expected[:], values)
    files = sorted(file for file in (store.path / name / "c").rglob("*") if file.is_file())
    written = [file.read_bytes() for file in files]
    zarr.open_array(store.path / name, mode="r+").with_config({"write_empty_chunks": True})[:] = values
    assert [file.read_bytes() for file in files] == written
    assert len(files) == -(-len(ids) // store.rows)

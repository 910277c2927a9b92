"""Stores give back what was written, or say that they are damaged; never anything else."""

import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.records import pack, unpack
from pipeline.store import (
    Caption,
    Instances,
    MergedMasks,
    Record,
    SampleInstances,
    Store,
    Text,
    create_store,
    fingerprint,
    locked,
    open_store,
    prepare_store,
)

SIZES = {
    "captions": {},
    "texts": {"T": 6, "D": 8},
    "boxes": {"S": 3},
    "masks": {"S": 3, "H": 33, "W": 47},
    "merged": {"H": 140, "W": 47},
}


def record(kind: str, seed: int) -> Record:
    """A random record that fits SIZES."""
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(20, 34)), int(rng.integers(20, 48))
    if kind == "captions":
        return Caption(f"une scène {seed}, {'é' * seed}")
    if kind == "texts":
        return Text(rng.integers(-8, 8, (int(rng.integers(1, 7)), 8)).astype(np.float32) / 4)
    if kind == "merged":
        height = int(rng.integers(20, 141))
        count = int(rng.integers(0, 21))
        score, iou = rng.random((2, count), dtype=np.float32)
        mask = rng.random((count, height, width)) > 0.5
        label = tuple(f"thing {i}" for i in range(count))
        return MergedMasks(
            mask, label, score, iou, seed, seed % 3, rng.integers(0, 4, count).astype(np.uint32)
        )
    sources = []
    for _ in range(int(rng.integers(1, 4))):
        k = int(rng.integers(0, 65))
        box, score = rng.random((k, 4), dtype=np.float32), rng.random(k, dtype=np.float32)
        label = tuple(f"thing {i}" for i in range(k))
        iou = rng.random(k, dtype=np.float32) if kind == "masks" else None
        mask = rng.random((k, height, width)) > 0.5 if kind == "masks" else None
        sources.append(Instances(box, score, label, iou, mask))
    return SampleInstances(height, width, tuple(sources))


def plain(value: object) -> object:
    """A record as nested lists, to compare."""
    if isinstance(value, np.ndarray):
        return [list(value.shape), value.astype(float).tolist()]
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def make(path: Path, kind: str, n: int = 5) -> dict[str, Record]:
    """Create a store of n samples s0, s1, … with random records."""
    records = {f"s{i}": record(kind, i) for i in range(n)}
    store = create_store(path, kind, list(records), {"backend": "fake"}, "mark", **SIZES[kind])
    store.write(records, {sample: f"hash of {sample}" for sample in records})
    return records


def bytes_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@given(st.integers(0, 20), st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
def test_bit_fields_keep_every_mask(count: int, height: int, width: int, seed: int) -> None:
    masks = np.random.default_rng(seed).random((count, height, width)) > 0.5
    bits = pack(masks, "uint32")
    expected = sum((mask.astype(np.int64) * 2**i for i, mask in enumerate(masks)), np.zeros((height, width)))
    assert (bits == expected).all()
    assert (unpack(bits, count) == masks).all()


def test_bit_fields_hold_64_instances() -> None:
    masks = np.eye(64, dtype=bool).reshape(64, 8, 8)
    assert (unpack(pack(masks, "uint64"), 64) == masks).all()


@pytest.mark.parametrize("kind", SIZES)
def test_records_come_back(tmp_path: Path, kind: str) -> None:
    records = make(tmp_path / "x.zarr", kind, 40)
    store = open_store(tmp_path / "x.zarr")
    assert store.ids == tuple(records)
    assert {sample: plain(store.get(sample)) for sample in records} == {
        sample: plain(value) for sample, value in records.items()
    }
    assert store.content("s7") == "hash of s7"
    assert len(bytes_of(tmp_path / "x.zarr")) < 40


def test_crops_of_merged_masks(tmp_path: Path) -> None:
    records = make(tmp_path / "x.zarr", "merged", 3)
    store = open_store(tmp_path / "x.zarr")
    for sample, whole in records.items():
        assert isinstance(whole, MergedMasks)
        height, width = whole.mask.shape[1:]
        assert store.size(sample) == (height, width)
        crop = store.merged_crop(sample, height - 19, 3, 19, 15)
        assert crop.shape == (20, 19, 15)
        assert (crop[: len(whole.mask)] == whole.mask[:, height - 19 :, 3:18]).all()
        assert not crop[len(whole.mask) :].any()
        with pytest.raises(ValueError, match="leaves"):
            store.merged_crop(sample, 0, width - 3, 4, 4)


def test_bytes_do_not_depend_on_the_order_of_writes(tmp_path: Path) -> None:
    records = make(tmp_path / "once" / "x.zarr", "masks", 40)
    path = tmp_path / "often" / "x.zarr"
    create_store(path, "masks", list(records), {"backend": "fake"}, "mark", **SIZES["masks"])
    order = list(records)
    np.random.default_rng(0).shuffle(order)
    for part in (order[:7], order[:3], order[7:20], order[20:]):
        # Wrong records first: what is written again must leave no trace.
        for content in ("stale", "hash of"):
            rows = {s: records[s] if content == "hash of" else record("masks", 99) for s in part}
            open_store(path, "r+").write(rows, {s: f"{content} {s}" for s in part})
    assert bytes_of(path) == bytes_of(tmp_path / "once" / "x.zarr")


def test_undone_samples_are_not_read(tmp_path: Path) -> None:
    store = create_store(tmp_path / "captions.zarr", "captions", ["a", "b"], {}, "mark")
    store.write({"b": Caption("")})
    again = open_store(tmp_path / "captions.zarr")
    assert [again.is_done(sample) for sample in ("a", "b", "c")] == [False, True, False]
    assert again.get("b") == Caption("")
    with pytest.raises(InputError, match="'a' is not done"):
        again.get("a")


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("harm", ["flipped", "cut", "emptied", "removed"])
def test_damage_is_noticed(tmp_path: Path, kind: str, harm: str) -> None:
    """One file of data after the other is damaged: reading must fail, naming the store and the remedy."""
    path = tmp_path / "demo" / f"{kind}.zarr"
    make(path, kind, 3)
    rng = np.random.default_rng(0)
    for file in [file for file in sorted(path.rglob("*")) if file.is_file() and file.name != "zarr.json"]:
        good = file.read_bytes()
        if harm == "flipped":
            bad = bytearray(good)
            bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
            file.write_bytes(bytes(bad))
        elif harm == "cut":
            file.write_bytes(good[: int(rng.integers(1, len(good)))])
        elif harm == "emptied":
            file.write_bytes(b"")
        else:
            file.unlink()
        with pytest.raises(InputError) as caught:
            read_all(open_store(path))
        assert str(path) in str(caught.value)
        if "not done" not in str(caught.value):
            assert "delete it and run `python -m pipeline" in str(caught.value)
            assert "\n" not in str(caught.value)
        file.write_bytes(good)
    read_all(open_store(path))


def read_all(store: Store) -> None:
    """Read everything of s0, s1, s2."""
    for sample in ("s0", "s1", "s2"):
        store.get(sample)
        assert store.content(sample) == f"hash of {sample}"
    assert store.ids == ("s0", "s1", "s2")


def test_damaged_descriptions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "demo" / "captions.zarr"
    make(path, "captions")
    for file in sorted(path.rglob("zarr.json")):
        good = file.read_bytes()
        for bad in (b"{", b"", b"[]", b'{"zarr_format": 3}', good[:-20]):
            file.write_bytes(bad)
            with pytest.raises(InputError, match=r"captions\.zarr: the store is damaged"):
                open_store(path).get("s0")
        file.write_bytes(good)
    with pytest.raises(InputError, match="no such store; run `python -m pipeline texts --dataset demo`"):
        open_store(tmp_path / "demo" / "texts.zarr")


@pytest.mark.parametrize("allowed", range(12))
def test_full_disk_leaves_a_valid_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    path = tmp_path / "boxes.zarr"
    records = make(path, "boxes")
    write, count = os.replace, 0

    def fill_up(source: object, target: object) -> None:
        nonlocal count
        count += 1
        if count > allowed:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(source, target)

    monkeypatch.setattr(Path, "replace", fill_up)
    store = open_store(path, "r+")
    new = {sample: record("boxes", 50) for sample in ("s1", "s3")}
    if allowed < 10:
        with pytest.raises(InputError, match=r"boxes\.zarr: the disk is full"):
            store.write(new, {"s1": "new", "s3": "new"})
    else:
        store.write(new, {"s1": "new", "s3": "new"})
    monkeypatch.undo()
    after = open_store(path, "r+")
    assert not list(path.rglob("*.partial"))
    for sample, old in records.items():
        if after.is_done(sample):
            known = old if after.content(sample) == f"hash of {sample}" else new[sample]
            assert plain(after.get(sample)) == plain(known)
    assert all(after.is_done(sample) for sample in ("s0", "s2", "s4"))
    after.write(new, {"s1": "new", "s3": "new"})
    assert plain(open_store(path).get("s3")) == plain(new["s3"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if (
        os.name != "posix"
        or not shutil.which("mount")
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def write_in_parts(store: Store, value: Record) -> None:
    for start in range(0, len(store.ids), 32):
        store.write({sample: value for sample in store.ids[start : start + 32]})


def test_a_really_full_disk(small_disk: Path) -> None:
    path = small_disk / "merged.zarr"
    ids = [f"s{i}" for i in range(200)]
    rng = np.random.default_rng(0)
    noise = MergedMasks(rng.random((1, 256, 256)) > 0.5, ("noise",), np.ones(1), np.ones(1))
    store = create_store(path, "merged", ids, {}, "mark", H=256, W=256)
    with pytest.raises(InputError, match="the disk is full"):
        write_in_parts(store, noise)
    after = open_store(path)
    done = [sample for sample in ids if after.is_done(sample)]
    assert 32 <= len(done) < 200
    for sample in (done[0], done[-1]):
        found = after.get(sample)
        assert isinstance(found, MergedMasks)
        assert (found.mask == noise.mask).all()
    assert not list(path.rglob("*.partial"))


def test_records_move_with_their_samples(tmp_path: Path) -> None:
    """New, removed, reordered and changed samples and other sizes: what is still valid is taken over."""
    path = tmp_path / "masks.zarr"
    config = {"backend": "fake"}
    mark = fingerprint(config, None)
    content = {f"s{i}": f"hash {i}" for i in range(40)}
    records = {sample: record("masks", i) for i, sample in enumerate(content)}
    store, _ = prepare_store(path, "masks", content, config, mark, **SIZES["masks"])
    store.write(records, content)
    wanted = {sample: content[sample] for sample in reversed(content) if sample != "s5"}
    wanted = {"new": "hash new"} | wanted | {"s9": "changed"}
    sizes = {"S": 3, "H": 50, "W": 60}
    store, reason = prepare_store(path, "masks", wanted, config, mark, **sizes)
    assert reason == ""
    assert store.ids == tuple(wanted)
    assert {s for s in wanted if not store.is_done(s)} == {"new", "s9"}
    for sample in set(wanted) - {"new", "s9"}:
        assert plain(store.get(sample)) == plain(records[sample])
    # The same bytes as a store that was made so from the start.
    fresh = {sample: wanted[sample] for sample in wanted if store.is_done(sample)}
    other, _ = prepare_store(tmp_path / "other" / "masks.zarr", "masks", wanted, config, mark, **sizes)
    other.write({sample: records[sample] for sample in fresh}, fresh)
    assert bytes_of(other.path) == bytes_of(path)


def test_other_parameters_or_schema_drop_the_records_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "captions.zarr"
    old = {"backend": "classical", "words": (3, 4)}
    prepare_store(path, "captions", {"a": "1"}, old, fingerprint(old, None))[0].write({"a": Caption("x")})
    new = old | {"words": (3, 5)}
    store, reason = prepare_store(path, "captions", {"a": "1"}, new, fingerprint(new, None))
    assert reason == "words changed from [3, 4] to [3, 5]"
    assert not store.is_done("a")
    store, reason = prepare_store(path, "captions", {"a": "1"}, new, fingerprint(new, "up"), "up")
    assert reason == "the stage before it was computed anew"
    description = json.loads((path / "zarr.json").read_text())
    description["attributes"]["schema"] = 0
    (path / "zarr.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="schema 0"):
        open_store(path)
    assert "schema 0" in prepare_store(path, "captions", {"a": "1"}, new, fingerprint(new, None))[1]


def test_a_kill_between_the_renames_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "captions.zarr"
    make(path, "captions", 2)
    shutil.copytree(path, path.with_name("captions.zarr.tmp"))
    path.rename(path.with_name("captions.zarr.old"))
    (path.with_name("captions.zarr.old") / "id" / "c" / "0.1234.partial").write_bytes(b"half")
    content = {"s0": "hash of s0", "s1": "hash of s1"}
    store, reason = prepare_store(path, "captions", content, {"backend": "fake"}, "mark")
    assert (reason, store.is_done("s0"), store.is_done("s1")) == ("", True, True)
    assert [file.name for file in tmp_path.iterdir()] == ["captions.zarr"]
    assert not list(path.rglob("*.partial"))


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "demo" / "captions.zarr"
    with locked(path), pytest.raises(InputError, match=r"captions\.zarr: another run"), locked(path):
        pass
    with locked(path):
        pass


def test_ctrl_c_is_answered_after_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "boxes.zarr"
    replace = Path.replace

    def interrupted(source: Path, target: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        replace(source, target)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        create_store(path, "boxes", ["s0", "s1"], {}, "mark", **SIZES["boxes"])
    store = open_store(path, "r+")
    new = record("boxes", 50)
    with pytest.raises(KeyboardInterrupt):
        store.write({"s1": new}, {"s1": "new"})
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is before
    assert plain(open_store(path).get("s1")) == plain(new)
    assert open_store(path).content("s1") == "new"


def test_a_long_store_is_few_files_and_one_of_many_is_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"s{number:05d}" for number in range(20_000)]
    few = create_store(tmp_path / "few.zarr", "captions", ids, {}, "mark")
    assert len([path for path in few.path.rglob("*") if path.is_file()]) < 20
    monkeypatch.setattr("pipeline.store_arrays._CHUNK_VALUES", 1)  # as stores were written before
    many = create_store(tmp_path / "many.zarr", "captions", ids[:1000], {}, "mark")
    many.write({name: Caption(name) for name in ids[300:320]})
    monkeypatch.undo()
    again = open_store(many.path)
    assert again.get("s00300").text == "s00300"
    assert again.contents().keys() == set(ids[300:320])

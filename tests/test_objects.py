"""Stores in object storage, on a real S3 server of this machine: the arrays are those of a disk."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import fake_backends
import pytest
from moto.server import ThreadedMotoServer
from test_store import SIZES, make, plain, record

from model.guidance import open_guidance
from pipeline import boxes, captions, leases, masks, objects, texts
from pipeline.config import GUIDANCE_VARIABLE, guidance_dir
from pipeline.durability import locked
from pipeline.errors import InputError
from pipeline.guidance import run_guidance
from pipeline.inspect import inspect
from pipeline.objects import ObjectPath
from pipeline.store import create_store, fingerprint, open_store, prepare_store

ROOT = ObjectPath("s3://guidance/tests")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of an S3 server with one empty bucket; the environment says how to reach it."""
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    started.start()
    host, port = started.get_host_and_port()
    address = f"http://{host}:{port}"
    names = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
        client.create_bucket(Bucket="guidance")
        yield address
    started.stop()


@pytest.fixture(autouse=True)
def _empty(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ROOT.remove_tree()
    monkeypatch.chdir(tmp_path)
    for stage in (captions, texts, boxes, masks):
        monkeypatch.setattr(stage, "backend", stage.backend)  # undone after the test


def files(folder: Path | ObjectPath) -> dict[str, bytes]:
    """Everything below, but for locks."""
    found = folder.below() if isinstance(folder, ObjectPath) else folder.rglob("*")
    return {
        str(one.relative_to(folder)): one.read_bytes()
        for one in found
        if one.is_file() and one.name.rpartition(".")[2] not in ("lock", "csv")
    }


def test_guidance_in_a_bucket_has_the_bytes_of_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = fake_backends.make_dataset(tmp_path, [(24, 32) if i % 3 else (20, 48) for i in range(36)])
    bad = tmp_path / samples[4].sources[1].path
    good = bad.read_bytes()
    fake_backends.use_fakes()
    bad.write_bytes(b"no image")
    run_guidance(fake_backends.config(), "mini")
    monkeypatch.setenv(GUIDANCE_VARIABLE, str(ROOT))
    summaries = run_guidance(fake_backends.config(), "mini")
    assert [(s.computed, s.failed) for s in summaries] == [(35, 1)] * 5
    assert files(ROOT / "mini") == files(Path("guidance/mini"))
    failed = (ROOT / "mini" / "captions-errors.csv").read_bytes()
    assert failed == Path("guidance/mini/captions-errors.csv").read_bytes()
    assert b"images/infrared/s004.png" in failed
    bad.write_bytes(good)
    assert [(s.computed, s.current) for s in run_guidance(fake_backends.config(), "mini")] == [(1, 35)] * 5
    in_bucket = files(ROOT / "mini")
    assert not (ROOT / "mini" / "captions-errors.csv").is_file()
    opened = open_guidance("mini")
    assert opened.masks is not None
    merged = opened.merged("s004")
    assert merged is not None
    assert (opened.masks.merged_crop("s004", 1, 1, 15, 20)[0] == merged.mask[0, 1:16, 1:21]).all()
    inspect(fake_backends.config(), "mini", "s004", Path("sheet.png"))
    monkeypatch.delenv(GUIDANCE_VARIABLE)
    run_guidance(fake_backends.config(), "mini")
    assert in_bucket == files(Path("guidance/mini"))


@pytest.mark.parametrize("kind", SIZES)
def test_records_come_back(kind: str) -> None:
    path = ROOT / "x" / f"{kind}.zarr"
    records = make(path, kind, 5)
    store = open_store(path)
    assert [plain(store.get(sample)) for sample in records] == [plain(one) for one in records.values()]
    assert isinstance(guidance_dir("x"), Path)
    (path / "zarr.json").unlink()
    with pytest.raises(InputError, match=r"s3://guidance/tests/x/.*zarr\.json"):
        open_store(path)


def test_a_kill_while_a_store_is_replaced_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after any number of removed objects, the next run has every record."""
    content = {f"s{i}": f"hash of s{i}" for i in range(5)}
    wanted = {sample: content[sample] for sample in reversed(content)}
    config, steps = {"backend": "fake"}, 0
    unlink, finished = ObjectPath.unlink, False

    class Killed(BaseException):
        pass

    def limited(path: ObjectPath, missing_ok: bool = False) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        unlink(path, missing_ok)

    while not finished:
        path = ROOT / f"killed-{steps}" / "captions.zarr"
        mark = fingerprint(config, None)
        store, _ = prepare_store(path, "captions", content, config, mark)
        store.write({sample: record("captions", int(sample[1])) for sample in content}, content)
        left = steps
        monkeypatch.setattr(ObjectPath, "unlink", limited)
        try:
            prepare_store(path, "captions", wanted, config, mark)
            finished = True
        except Killed:
            pass
        monkeypatch.setattr(ObjectPath, "unlink", unlink)
        after, reason = prepare_store(path, "captions", wanted, config, mark)
        assert (after.ids, reason) == (tuple(wanted), "")
        assert all(after.get(sample) == record("captions", int(sample[1])) for sample in wanted)
        assert {one.relative_to(path.parent).partition("/")[0] for one in path.parent.below()} == {path.name}
        steps += 3
    assert steps > 15


def test_one_writer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.1)
    monkeypatch.setattr(leases, "ABANDONED", 1.0)
    path = ROOT / "demo" / "captions.zarr"
    with locked(path) as check:
        check()
        with pytest.raises(InputError, match=r"captions\.zarr: another run is writing"), locked(path):
            pass
        check()
    assert not path.with_name(".captions.zarr.lock").is_file()
    with locked(path):
        pass


def test_the_lock_of_a_dead_run_is_taken_over_and_it_may_not_write_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.1)
    monkeypatch.setattr(leases, "ABANDONED", 0.6)
    path = ROOT / "demo" / "captions.zarr"
    asleep = threading.Event()
    monkeypatch.setattr(leases._Lease, "keep", lambda lease, ended: asleep.wait(20))
    with locked(path) as of_sleeper:
        monkeypatch.undo()
        monkeypatch.setattr(leases, "BEAT", 0.1)
        monkeypatch.setattr(leases, "ABANDONED", 0.6)
        with locked(path) as check:
            check()
            with pytest.raises(InputError, match="the lock of this run was lost"):
                of_sleeper()
            asleep.set()
        with locked(path):
            pass


def test_storage_that_refuses_is_named() -> None:
    nowhere = ObjectPath("s3://no-such-bucket/x/captions.zarr")
    with pytest.raises(InputError, match="s3://no-such-bucket/x"):
        create_store(nowhere, "captions", ["a"], {}, "mark")
    with pytest.raises(InputError, match="ftp://x: not a place in object storage"):
        (ObjectPath("ftp://x/y") / "z").exists()


def test_a_lock_that_cannot_be_reached_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that is down for long: tried again as long as we have patience, not ten times."""
    asked: list[str] = []

    class Down(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Down) as down:
        threading.Thread(target=down.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{down.server_port}")
        monkeypatch.setattr(objects, "PATIENCE", timedelta(seconds=0.3))
        path = ObjectPath("s3://down/demo/captions.zarr")
        with pytest.raises(InputError) as caught, locked(path):
            pass
        down.shutdown()
    assert 1 <= len(asked) < 8
    line = "s3://down/demo/.captions.zarr.lock: the storage refused or does not answer"
    assert str(caught.value).startswith(line)
    assert "Debug" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_answer_as_pathlib_does() -> None:
    path = ROOT / "demo" / "captions.zarr"
    assert (path.name, path.stem, path.parent) == ("captions.zarr", "captions", ROOT / "demo")
    assert path.with_name("x") == ROOT / "demo" / "x"
    assert path.joinpath("c", "0") == path / "c" / "0"
    assert (path / "c").relative_to(path) == "c"
    assert not path.exists()
    (path / "c" / "0").write_bytes(b"1")
    assert path.exists()
    assert (path / "c" / "0").read_text() == "1"
    assert [one.name for one in path.below()] == ["0"]
    with pytest.raises(FileNotFoundError):
        (path / "c").read_bytes()

"""Guidance on a dask cluster: a scheduler and two worker processes give the bytes that one process gives."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fake_backends
import pytest
from distributed import Client, LocalCluster
from test_guidance import contents
from typer.testing import CliRunner

from pipeline import boxes, captions, masks, parallel, texts
from pipeline.cli import app
from pipeline.errors import InputError
from pipeline.guidance import run_guidance
from pipeline.progress import Summary

SIZES = [(24, 32) if i % 3 else (20, 48) for i in range(40)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A scheduler and two workers of one thread each, all processes of their own but the scheduler."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", memory_limit=None
    ) as started:
        yield started


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for stage in (captions, texts, boxes, masks):
        monkeypatch.setattr(stage, "backend", stage.backend)  # undone after the test


def alone(folder: Path) -> dict[str, bytes]:
    """The stores of this process alone, moved away."""
    fake_backends.make_dataset(folder, SIZES)
    fake_backends.use_fakes()
    run_guidance(fake_backends.config(), "mini")
    expected = contents(folder)
    (folder / "guidance").rename(folder / "alone")
    return expected


def test_a_worker_killed_in_the_middle_leaves_no_trace(tmp_path: Path, cluster: LocalCluster) -> None:
    expected = alone(tmp_path)
    fake_backends.use_fakes(0.15)
    summaries: list[Summary] = []

    def run() -> None:
        summaries.extend(run_guidance(fake_backends.config(), "mini", scheduler=cluster.scheduler_address))

    with Client(cluster) as client:
        pids = client.run(os.getpid)
        assert os.getpid() not in pids.values()
        thread = threading.Thread(target=run)
        thread.start()
        while not any(client.processing().values()):
            time.sleep(0.01)
        time.sleep(0.3)
        busy = next(worker for worker, calls in client.processing().items() if calls)
        os.kill(pids[busy], signal.SIGKILL)
        assert thread.is_alive(), "the worker was killed too late to prove anything"
        thread.join(60)
        assert [(s.computed, s.failed) for s in summaries] == [(len(SIZES), 0)] * 5
        assert pids[busy] not in client.run(os.getpid).values()
    assert contents(tmp_path) == expected


def test_faults_on_workers_are_set_apart_as_here(
    tmp_path: Path, cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_backends.make_dataset(tmp_path, SIZES[:5])
    (tmp_path / "images/infrared/s002.png").write_bytes(b"no image")
    fake_backends.use_fakes()
    errors = []
    for scheduler in (None, cluster.scheduler_address):
        summaries = run_guidance(fake_backends.config(), "mini", scheduler=scheduler)
        assert [(s.computed, s.failed) for s in summaries] == [(4, 1)] * 5
        tables = sorted(tmp_path.glob("guidance/mini/*-errors.csv"))
        assert len(tables) == 5
        errors.append([table.read_text() for table in tables])
        (tmp_path / "guidance").rename(tmp_path / f"guidance-{len(errors)}")
    assert errors[0] == errors[1]
    assert "images/infrared/s002.png" in errors[0][0]


def test_clusters_that_cannot_work_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "PATIENCE", 0.3)
    fake_backends.make_dataset(tmp_path, SIZES[:2])
    fake_backends.use_fakes()
    with pytest.raises(InputError, match=r"tcp://127\.0\.0\.1:9: no scheduler answers there"):
        run_guidance(fake_backends.config(), "mini", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match=r"tcp://somewhere: names no port"):
        run_guidance(fake_backends.config(), "mini", scheduler="tcp://somewhere")
    with (
        LocalCluster(n_workers=0, dashboard_address=":0") as empty,
        pytest.raises(InputError, match="has no workers; start one per GPU"),
    ):
        run_guidance(fake_backends.config(), "mini", scheduler=empty.scheduler_address)


@pytest.mark.parametrize("command", ["captions", "texts", "boxes", "masks", "merge", "guidance"])
def test_every_command_hands_the_address_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """A scheduler that is not there is noticed by every stage that has something to compute."""
    fake_backends.make_dataset(tmp_path, SIZES[:2])
    Path("params.yaml").write_text("datasets: {mini: {manifest: mini.csv, root: images}}\n")
    fake_backends.use_fakes()
    run_guidance(fake_backends.config(), "mini")
    store = "merged" if command == "merge" else "captions" if command == "guidance" else command
    shutil.rmtree(f"guidance/mini/{store}.zarr")
    monkeypatch.setattr(parallel, "PATIENCE", 0.3)
    result = CliRunner().invoke(app, [command, "--dataset", "mini", "--scheduler", "tcp://127.0.0.1:9"])
    assert result.exit_code == 2

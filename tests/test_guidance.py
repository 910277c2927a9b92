"""All five stages together: with fakes, killed at random moments, and with the classical backends."""

import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_backends
import numpy as np
import pytest

from pipeline import boxes, captions, masks, runner, texts
from pipeline.config import PipelineConfig
from pipeline.errors import InputError
from pipeline.guidance import STAGES, run_guidance
from pipeline.store import Caption, MergedMasks, SampleInstances, Text, open_store

STORES = ("captions", "texts", "boxes", "masks", "merged")
FAKES = Path(fake_backends.__file__)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for stage in (captions, texts, boxes, masks):
        monkeypatch.setattr(stage, "backend", stage.backend)  # undone after the test


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the five stores."""
    files = [file for file in folder.glob("guidance/mini/*.zarr/**/*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(files)}


def get(kind: str, sample: str) -> object:
    return open_store(Path(f"guidance/mini/{kind}.zarr")).get(sample)


def test_every_stage_hands_on_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = fake_backends.make_dataset(tmp_path, [(24, 32), (20, 48), (64, 24)])
    fake_backends.use_fakes()
    summaries = run_guidance(fake_backends.config(), "mini")
    assert [(s.stage, s.computed, s.failed) for s in summaries] == [(name, 3, 0) for name in STAGES]
    output = capsys.readouterr().out
    assert "visible 3" in output
    assert "merged 3" in output
    for sample, (height, width) in zip(samples, [(24, 32), (20, 48), (64, 24)], strict=True):
        caption, text = get("captions", sample.id), get("texts", sample.id)
        assert isinstance(caption, Caption)
        assert isinstance(text, Text)
        assert (text.features == fake_backends.TextEncoder.features(caption.text)).all()
        found, merged = get("masks", sample.id), get("merged", sample.id)
        assert isinstance(found, SampleInstances)
        assert isinstance(merged, MergedMasks)
        mask = np.zeros((1, height, width), bool)
        mask[:, 2:12, 1:21] = True
        assert all((source.mask == mask).all() for source in found.sources)
        assert merged.label == ("person",)
        assert (merged.mask == mask).all()
    before = contents(tmp_path)
    assert all(s.current == 3 and not s.computed for s in run_guidance(fake_backends.config(), "mini"))
    assert contents(tmp_path) == before


def test_a_largest_sample_that_fails_leaves_no_trace_until_it_is_mended(tmp_path: Path) -> None:
    """Stores are as large as the largest sample that has boxes, which its header alone does not tell."""
    fake_backends.make_dataset(tmp_path, [(24, 32), (64, 80), (20, 40)])
    fake_backends.use_fakes()
    bad = tmp_path / "images/visible/s001.png"
    good = bad.read_bytes()
    bad.write_bytes(good[: len(good) // 2])
    assert [(s.computed, s.failed) for s in run_guidance(fake_backends.config(), "mini")] == [(2, 1)] * 5
    together = contents(tmp_path)
    assert open_store(Path("guidance/mini/merged.zarr")).sizes == {"H": 24, "W": 40}
    shutil.rmtree("guidance")
    for stage in STAGES.values():
        runner.run(stage(fake_backends.config(), "mini"))
    assert contents(tmp_path) == together
    bad.write_bytes(good)
    assert [(s.computed, s.failed) for s in run_guidance(fake_backends.config(), "mini")] == [(1, 0)] * 5
    mended = contents(tmp_path)
    shutil.rmtree("guidance")
    run_guidance(fake_backends.config(), "mini")
    assert contents(tmp_path) == mended


def changed(config: PipelineConfig, tmp_path: Path) -> dict[str, bool]:
    before = contents(tmp_path)
    return {s.stage: bool(s.computed) for s in run_guidance(config, "mini")} | {
        "bytes": contents(tmp_path) != before
    }


def test_parameters_reach_only_what_follows_them(tmp_path: Path) -> None:
    fake_backends.make_dataset(tmp_path, [(24, 32), (24, 32)])
    fake_backends.use_fakes()
    run_guidance(fake_backends.config(), "mini")
    config = fake_backends.config()
    merge = PipelineConfig(datasets=config.datasets, merge={"min_area": 20})  # type: ignore[arg-type]
    assert changed(merge, tmp_path) == {
        "captions": False,
        "texts": False,
        "boxes": False,
        "masks": False,
        "merge": True,
        "bytes": True,
    }
    prompt = fake_backends.config(masks="prompt", prompt=("person",))
    assert changed(prompt, tmp_path) == {
        "captions": False,
        "texts": False,
        "boxes": True,
        "masks": True,
        "merge": True,
        "bytes": True,
    }


@pytest.mark.parametrize(
    ("masks_mode", "prompt", "asked"),
    [("auto", ("car",), {()}), ("prompt", ("car", "bus"), {("car", "bus")}), ("none", ("car",), set())],
)
def test_where_masks_come_from(
    tmp_path: Path, masks_mode: str, prompt: tuple[str, ...], asked: set[tuple[str, ...]]
) -> None:
    fake_backends.make_dataset(tmp_path, [(24, 32)])
    detector = fake_backends.use_fakes()[boxes]
    assert isinstance(detector, fake_backends.Detector)
    run_guidance(fake_backends.config(masks=masks_mode, prompt=prompt), "mini")
    assert detector.prompts == asked
    merged = get("merged", "s000")
    assert isinstance(merged, MergedMasks)
    assert merged.mask.shape == (0 if masks_mode == "none" else 1, 24, 32)


@pytest.mark.parametrize(
    ("prompt", "labels"), [(("person", "car"), ["car", "person", "person"]), ((), ["object", "object"])]
)
def test_label_maps_of_people_are_taken_as_they_are(
    tmp_path: Path, prompt: tuple[str, ...], labels: list[str]
) -> None:
    """With names a value is a class and its regions are objects; without, a value is an object."""
    fake_backends.make_dataset(tmp_path, [(24, 32)], label_maps=True)
    fake_backends.use_fakes()
    run_guidance(fake_backends.config(masks="provided", prompt=prompt), "mini")
    found, merged = get("masks", "s000"), get("merged", "s000")
    assert isinstance(found, SampleInstances)
    assert isinstance(merged, MergedMasks)
    assert sorted(found.sources[0].label) == labels
    assert len(found.sources[1]) == 0
    expected = np.zeros((24, 32), bool)
    expected[2:10, 2:10] = expected[2:10, 14:20] = expected[12:18, 2:20] = True
    assert (merged.mask.sum(0) == expected).all()


def test_label_maps_that_do_not_fit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_backends.make_dataset(tmp_path, [(24, 32)], label_maps=True)
    fake_backends.use_fakes()
    one_class = fake_backends.config(masks="provided", prompt=("person",))
    assert runner.run(boxes.stage(one_class, "mini")).failed == 1
    assert "images/mask/s000.png: holds value 2" in capsys.readouterr().err
    fake_backends.make_dataset(tmp_path, [(24, 32)])
    assert runner.run(boxes.stage(fake_backends.config(masks="provided"), "mini")).failed == 1
    assert "the manifest names no mask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "backend", "checkpoint"),
    [
        ("captions", "florence2", "florence2-base"),
        ("texts", "t5", "t5-small"),
        ("boxes", "groundingdino", "groundingdino-swint"),
        ("masks", "sam", "sam-vit-b"),
    ],
)
def test_backends_without_their_checkpoint_say_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, backend: str, checkpoint: str
) -> None:
    monkeypatch.setenv("RWKVFUSION_WEIGHTS", str(tmp_path / "weights"))
    fake_backends.make_dataset(tmp_path, [(24, 32)])
    config = fake_backends.config(masks="prompt", prompt=("person",))
    config = PipelineConfig(datasets=config.datasets, **{section: {"backend": backend}})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"run `python -m pipeline weights fetch {checkpoint}`"):
        STAGES[section](config, "mini")


def test_a_prompt_without_words_is_refused(tmp_path: Path) -> None:
    fake_backends.make_dataset(tmp_path, [(24, 32)])
    with pytest.raises(InputError, match=r"datasets\.mini says masks: prompt but has no prompt"):
        runner.run(boxes.stage(fake_backends.config(masks="prompt"), "mini"))


def start(folder: Path, seconds: float = 0.02) -> subprocess.Popen[str]:
    command = [sys.executable, str(FAKES), str(seconds)]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """Forty samples, and the stores of a run that nobody disturbed."""
    fake_backends.make_dataset(tmp_path, [(24, 32) if i % 3 else (20, 48) for i in range(40)])
    fake_backends.use_fakes()
    run_guidance(fake_backends.config(), "mini")
    expected = contents(tmp_path)
    (tmp_path / "guidance").rename(tmp_path / "undisturbed")
    return expected


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Every run goes on where the last was killed; when one gets to its end, the next starts anew."""
    moments, finished, unfinished = random.Random(0), 0, 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fake_backends"])  # imported once, not twenty times
    for seconds in [*(moments.uniform(0, 1.2) for _ in range(20)), 60]:
        run = context.Process(target=fake_backends.guide, args=(tmp_path, 0.03))
        run.start()
        run.join(seconds)
        run.kill()
        run.join()
        if run.exitcode == 0:
            assert contents(tmp_path) == whole
            shutil.rmtree(tmp_path / "guidance")
            finished += 1
        else:
            unfinished += contents(tmp_path) != whole
    assert finished >= 1, "the last run has time to finish"
    assert unfinished >= 10, "most kills came too late to prove anything"


def wait_for_stores(folder: Path, run: subprocess.Popen[str]) -> None:
    """Wait until a run has got past its imports: it touches the lock of its first store."""
    lock = folder / "guidance/mini/.captions.zarr.lock"
    lock.unlink(missing_ok=True)
    until = time.monotonic() + 30
    while not lock.exists() and run.poll() is None and time.monotonic() < until:
        time.sleep(0.01)


def test_ctrl_c_stops_soon_and_the_next_run_finishes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    run = start(tmp_path, 0.1)
    wait_for_stores(tmp_path, run)
    time.sleep(0.3)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=20)
    assert run.returncode == 130, output
    assert "Traceback" not in output
    run = start(tmp_path, 0)
    assert run.wait(timeout=60) == 0
    assert contents(tmp_path) == whole


def test_a_second_run_is_refused(tmp_path: Path, whole: dict[str, bytes]) -> None:
    first = start(tmp_path, 0.3)
    wait_for_stores(tmp_path, first)
    with pytest.raises(InputError, match=r"^guidance/mini/captions\.zarr: another run is writing this store"):
        run_guidance(fake_backends.config(), "mini")
    assert first.poll() is None
    first.kill()
    first.wait()


def test_classical_backends_work_unfaked(tmp_path: Path) -> None:
    fake_backends.make_dataset(tmp_path, [(48, 64), (48, 64)])
    for summary in run_guidance(fake_backends.config(), "mini"):
        assert (summary.computed, summary.failed) == (2, 0)
    caption, text = get("captions", "s001"), get("texts", "s001")
    assert isinstance(caption, Caption)
    assert isinstance(text, Text)
    assert "infrared" in caption.text
    assert text.features.shape[1] == 512
    assert np.isfinite(text.features).all()

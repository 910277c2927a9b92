"""A stage does what is missing and nothing else, keeps what is finished, and sets faults apart."""

import csv
import errno
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_backends import Captioner, make_dataset, use_fakes
from fake_backends import config as configuration

from pipeline import boxes, captions, masks, passes, runner, texts
from pipeline.errors import InputError
from pipeline.guidance import run_guidance
from pipeline.images import SampleImages, read_sample, write_image
from pipeline.manifest import Sample, content_hash
from pipeline.store import Caption, SampleInstances, Text, locked, open_store

N = 40
CAPTIONS = Path("guidance/mini/captions.zarr")


@pytest.fixture(autouse=True)
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder holds forty small samples of two sizes; every backend is a fake."""
    monkeypatch.chdir(tmp_path)
    for stage in (captions, texts, boxes, masks):
        monkeypatch.setattr(stage, "backend", stage.backend)  # undone after the test
    make_dataset(tmp_path, [(24, 32) if i % 3 else (20, 48) for i in range(N)])
    return tmp_path


@pytest.fixture
def captioner(monkeypatch: pytest.MonkeyPatch) -> Captioner:
    fake = Captioner()
    monkeypatch.setattr(captions, "backend", lambda config: fake)
    return fake


def seen(captioner: Captioner) -> list[str]:
    """Ids the captioner was given since the last call, sorted."""
    ids = sorted(sample for batch in captioner.seen for sample in batch)
    captioner.seen.clear()
    return ids


def contents() -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(CAPTIONS.rglob("*")) if file.is_file()}


def errors(stage: str = "captions") -> list[dict[str, str]]:
    with Path(f"guidance/mini/{stage}-errors.csv").open() as file:
        return list(csv.DictReader(file))


def test_batches_hold_equal_sizes_and_every_sample_once(captioner: Captioner) -> None:
    sizes = {sample.id: (24, 32) if i % 3 else (20, 48) for i, sample in enumerate(samples())}
    summary = runner.run(captions.stage(configuration(), "mini"), batch=6)
    assert (summary.samples, summary.computed, summary.current, summary.failed) == (N, N, 0, 0)
    assert all(len({sizes[s] for s in batch}) == 1 and len(batch) <= 6 for batch in captioner.seen)
    assert seen(captioner) == [sample.id for sample in samples()]
    store = open_store(CAPTIONS)
    assert all(f"Scène {s}, " in store.get(s).text for s in store.ids)


def samples() -> Sequence[Sample]:
    return configuration().dataset("mini").samples()


def test_what_is_current_is_left_alone(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.run(captions.stage(configuration(), "mini"))
    before = contents()
    seen(captioner)

    def refuse(sample: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(passes, "read_sample", refuse)
    capsys.readouterr()
    assert runner.run(captions.stage(configuration(), "mini")).current == N
    assert capsys.readouterr().out == f"captions: {N} samples up to date\n"
    assert seen(captioner) == []
    assert contents() == before


def test_a_changed_file_is_computed_again_and_only_it(captioner: Captioner) -> None:
    runner.run(captions.stage(configuration(), "mini"))
    old = open_store(CAPTIONS).get("s004")
    seen(captioner)
    write_image(Path("images/visible/s004.png"), np.ones((3, 24, 32), np.float32))
    runner.run(captions.stage(configuration(), "mini"))
    assert seen(captioner) == ["s004"]
    new = open_store(CAPTIONS).get("s004")
    assert isinstance(new, Caption)
    assert new != old
    assert "1.000000" in new.text


def test_new_and_removed_samples(captioner: Captioner) -> None:
    rows = Path("mini.csv").read_text().splitlines()
    Path("mini.csv").write_text("\n".join(rows[:20]))
    runner.run(captions.stage(configuration(), "mini"))
    assert len(seen(captioner)) == 19
    Path("mini.csv").write_text("\n".join([rows[0], *rows[:9:-1]]))
    runner.run(captions.stage(configuration(), "mini"))
    assert seen(captioner) == sorted(row.split(",")[0] for row in rows[20:])
    store = open_store(CAPTIONS)
    assert store.ids == tuple(row.split(",")[0] for row in rows[:9:-1])
    assert all(f"Scène {s}, " in store.get(s).text for s in store.ids)


def test_another_backend_drops_everything_and_says_why(
    captioner: Captioner, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.run(captions.stage(configuration(), "mini"))
    seen(captioner)
    captioner.identity = "fake 2"  # type: ignore[misc]
    runner.run(captions.stage(configuration(), "mini"))
    assert len(seen(captioner)) == N
    assert "because identity changed from fake to fake 2" in capsys.readouterr().out


def unreadable(path: Path) -> None:
    path.write_bytes(b"no image")


def resized(path: Path) -> None:
    write_image(path, np.zeros((1, 7, 7), np.float32))


@pytest.mark.parametrize("harm", [Path.unlink, unreadable, resized])
def test_a_bad_sample_is_set_apart_and_only_it_is_tried_again(
    captioner: Captioner, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Path("images/infrared/s002.png")
    good = bad.read_bytes()
    harm(bad)
    summary = runner.run(captions.stage(configuration(), "mini"))
    assert (summary.computed, summary.failed) == (N - 1, 1)
    assert "1 of 40 samples failed, see guidance/mini/captions-errors.csv" in capsys.readouterr().err
    (row,) = errors()
    assert row["sample"] == "s002"
    assert row["file"] == str(bad)
    assert row["reason"]
    assert row["remedy"]
    seen(captioner)
    assert runner.run(captions.stage(configuration(), "mini")).failed == 1
    bad.write_bytes(good)
    assert runner.run(captions.stage(configuration(), "mini")).computed == 1
    assert seen(captioner) == ["s002"]
    assert not Path("guidance/mini/captions-errors.csv").exists()
    mended = contents()
    shutil.rmtree(CAPTIONS)
    runner.run(captions.stage(configuration(), "mini"))
    assert contents() == mended


def test_a_backend_that_fails_on_one_sample_costs_only_that_one(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(batch: Sequence[SampleImages]) -> list[str]:
        if any(one.sample.id == "s007" for one in batch):
            raise ValueError("cannot describe this; choose another image")
        return [one.sample.id for one in batch]

    picky.identity = "picky"  # type: ignore[attr-defined]
    monkeypatch.setattr(captions, "backend", lambda config: picky)
    assert runner.run(captions.stage(configuration(), "mini")).failed == 1
    (row,) = errors()
    assert (row["sample"], row["reason"], row["remedy"]) == (
        "s007",
        "cannot describe this",
        "choose another image",
    )


def test_a_bug_in_a_backend_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(batch: object) -> list[str]:
        raise RuntimeError("a bug")

    broken.identity = "broken"  # type: ignore[attr-defined]
    monkeypatch.setattr(captions, "backend", lambda config: broken)
    with pytest.raises(RuntimeError, match="a bug"):
        runner.run(captions.stage(configuration(), "mini"))


def test_an_interrupted_run_goes_on_where_it_stopped(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.run(captions.stage(configuration(), "mini"))
    whole = contents()
    shutil.rmtree(CAPTIONS)

    class Interrupted(Captioner):
        def __call__(self, batch: Sequence[SampleImages]) -> list[str]:
            if batch[0].sample.id > "s030":
                raise KeyboardInterrupt
            return super().__call__(batch)

    monkeypatch.setattr(captions, "backend", lambda config: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        runner.run(captions.stage(configuration(), "mini"))
    monkeypatch.setattr(captions, "backend", lambda config: captioner)
    seen(captioner)
    summary = runner.run(captions.stage(configuration(), "mini"))
    assert (summary.current, summary.computed) == (32, N - 32)
    assert len(seen(captioner)) == N - 32
    assert contents() == whole


@pytest.mark.parametrize("allowed", range(8, 14))
def test_a_full_disk_ends_the_run_and_the_next_goes_on(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    runner.run(captions.stage(configuration(), "mini"))
    whole = contents()
    shutil.rmtree(CAPTIONS)
    replace, count = Path.replace, 0

    def fill_up(source: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count > allowed:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", fill_up)  # creating the store takes eight
    with pytest.raises(InputError, match=r"captions\.zarr: the disk is full"):
        runner.run(captions.stage(configuration(), "mini"))
    monkeypatch.setattr(Path, "replace", replace)
    after = open_store(CAPTIONS)
    assert all(f"Scène {s}, " in after.get(s).text for s in after.ids if after.is_done(s))
    runner.run(captions.stage(configuration(), "mini"))
    assert contents() == whole


def test_files_are_hashed_and_decoded_once_for_all_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes()
    hashed: list[str] = []
    decoded: list[str] = []

    def counted(sample: Sample) -> str:
        hashed.append(sample.id)
        return content_hash(sample)

    def read(sample: Sample) -> SampleImages:
        decoded.append(sample.id)
        return read_sample(sample)

    monkeypatch.setattr(runner, "content_hash", counted)
    monkeypatch.setattr(passes, "read_sample", read)
    run_guidance(configuration(), "mini")
    assert sorted(hashed) == sorted(decoded) == [sample.id for sample in samples()]
    write_image(Path("images/visible/s004.png"), np.ones((3, 24, 32), np.float32))
    Path("images/visible/s005.png").unlink()
    for summary in run_guidance(configuration(), "mini"):
        assert (summary.computed, summary.failed, summary.current) == (1, 1, N - 2)
    assert decoded[N:] == ["s004"]


def test_all_stages_of_a_run_name_the_same_fault_which_is_said_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_fakes()
    bad = Path("images/infrared/s002.png")
    unreadable(bad)
    assert [summary.failed for summary in run_guidance(configuration(), "mini")] == [1] * 5
    (first, *others) = (errors(stage) for stage in ("captions", "texts", "boxes", "masks", "merge"))
    assert first[0]["file"] == str(bad)
    assert all(table == first for table in others)
    assert capsys.readouterr().err.count("cannot be read as an image") == 1


def test_stages_want_the_one_before(captioner: Captioner) -> None:
    use_fakes()
    with pytest.raises(InputError, match=r"captions\.zarr: texts needs this store.*run captions first"):
        runner.run(texts.stage(configuration(), "mini"))
    bad = Path("images/visible/s003.png")
    good = bad.read_bytes()
    bad.unlink()
    runner.run(captions.stage(configuration(), "mini"))
    bad.write_bytes(good)
    assert runner.run(texts.stage(configuration(), "mini")).failed == 1
    (row,) = errors("texts")
    assert row["sample"] == "s003"
    assert "run captions first" in row["remedy"]
    runner.run(captions.stage(configuration(), "mini"))
    assert runner.run(texts.stage(configuration(), "mini")).computed == 1
    text = open_store(CAPTIONS.with_name("texts.zarr")).get("s003")
    assert isinstance(text, Text)
    assert text.features.shape == (4, 512)


def test_a_damaged_store_before_stops_the_stage() -> None:
    use_fakes()
    runner.run(captions.stage(configuration(), "mini"))
    chunk = CAPTIONS / "caption" / "c" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"captions\.zarr: the store is damaged.*delete it and run"):
        runner.run(texts.stage(configuration(), "mini"))


def test_a_second_run_on_a_store_is_refused(captioner: Captioner) -> None:
    with locked(CAPTIONS), pytest.raises(InputError, match="another run is writing"):
        runner.run(captions.stage(configuration(), "mini"))
    runner.run(captions.stage(configuration(), "mini"))


def test_boxes_know_the_grid_of_every_sample() -> None:
    use_fakes()
    runner.run(boxes.stage(configuration(), "mini"))
    record = open_store(CAPTIONS.with_name("boxes.zarr")).get("s003")
    assert isinstance(record, SampleInstances)
    assert (record.height, record.width, len(record.sources)) == (20, 48, 2)

"""Anybody's folders: names that match, what is measured, what is written, what an interruption costs."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from conftest import run_here, scratch_copy
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from model import scoring
from model.folders import evaluate_folders
from model.matching import match_fused, match_samples, pair, parse_fused, shared_words, strip
from model.measure import Options
from model.metrics import fusion_metrics
from model.results import Case
from pipeline.errors import InputError
from pipeline.images import read_image, write_image

HERE = Options(workers=0, metrics=("MI", "SF", "Qabf", "Qcv", "SSIM"))


def picture(seed: int, bands: int = 1, low: float = 0.1, high: float = 0.9) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, (bands, 24, 32)).astype(np.float32)


def names(folder: Path, *files: str, bits: int = 8, bands: int = 1) -> Path:
    for seed, file in enumerate(files):
        write_image(folder / file, picture(seed + len(str(folder)), bands), bits)
    return folder


def quiet() -> Console:
    return Console(file=StringIO(), width=300)


@pytest.mark.parametrize(
    ("first", "second", "fused", "sample"),
    [
        ("00020N.png", "00020N.png", "00020N.jpg", "00020N"),
        ("FLIR_00006.jpg", "FLIR_00006.jpg", "FLIR_00006_SwinFusion.png", "FLIR_00006"),
        ("Cave_A.tif", "Cave_B.png", "Cave.png", "cave"),
        ("VIS01.bmp", "IR01.bmp", "fused_01.png", "01"),
        ("image1-vi.png", "image1-IR.png", "IMAGE1.png", "image1"),
        ("AirBellowsGap.tif", "AirBellowsGap.png", "airbellowsgap-result.png", "AirBellowsGap"),
        ("05.png", "05.png", "05_Swin-Fusion.png", "05"),
    ],
)
def test_names_match_as_people_write_them(
    tmp_path: Path, first: str, second: str, fused: str, sample: str
) -> None:
    folders = [names(tmp_path / "vi", first, "image11.png"), names(tmp_path / "ir", second, "image11.png")]
    result = names(tmp_path / "out", fused, "image11.png")
    samples, left_out = match_samples(folders, None, None, None)
    assert {found.id for found in samples} == {sample, "image11"}
    assert left_out == []
    assert samples[0].task == "visible_infrared"
    images = match_fused(samples, "Swin-Fusion" if "Swin-" in fused else "SwinFusion", result)
    assert images[sample].name == fused
    assert images["image11"].name == "image11.png"


def test_no_file_is_lent_to_a_sample_that_lacks_its_own(tmp_path: Path) -> None:
    folders = [names(tmp_path / "x", "a1.png", "b1.png"), names(tmp_path / "y", "a1.png", "b1.png")]
    samples, _ = match_samples(folders, None, None, None)
    assert samples[0].task == "fusion"
    fused = names(tmp_path / "fused", "a1.png")
    assert set(match_fused(samples, "m", fused)) == {"a1"}


def test_a_word_that_all_fused_images_share_is_the_methods(tmp_path: Path) -> None:
    folders = [names(tmp_path / name, "01.png", "02.png") for name in ("vi", "ir")]
    samples, _ = match_samples(folders, None, None, None)
    fused = names(tmp_path / "x", "new_01_Some-Net_v2.png", "new_02_Some-Net_v2.png")
    assert {k: v.name[:6] for k, v in match_fused(samples, "m", fused).items()} == {
        "01": "new_01",
        "02": "new_02",
    }
    assert shared_words(["01_a", "02_b"]) == []
    assert shared_words(["1_2024", "2_2024"]) == []
    assert shared_words(["01_A"]) == []


def test_names_that_could_mean_several_files_are_refused(tmp_path: Path) -> None:
    folders = [names(tmp_path / "x", "1.png"), names(tmp_path / "y", "1_ir.png", "1_b.png")]
    with pytest.raises(InputError, match="could be 1"):
        match_samples(folders, None, None, None)
    with pytest.raises(InputError, match="one stem"):
        match_samples([names(tmp_path / "z", "1.png", "1.jpg"), folders[0]], None, None, None)


@given(st.lists(st.from_regex(r"[A-Za-z0-9]{1,6}(_[a-z0-9]{1,4})?", fullmatch=True), unique=True))
def test_equal_names_always_match_themselves(stems: list[str]) -> None:
    files: Mapping[str, Path] = {stem: Path(f"{stem}.png") for stem in stems}
    assert pair(stems, files) == files
    assert all(strip(stem) for stem in stems)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Three samples: colour visible, grey infrared of 16 bits, and two methods' images."""
    files = ("s1.png", "s2.png", "s3.png")
    made = {
        "visible": names(tmp_path / "visible", *files, bands=3),
        "infrared": names(tmp_path / "infrared", *files, bits=16),
        "one": names(tmp_path / "one", *files, bands=3),
        "two": names(tmp_path / "two", *files),
    }
    return made


def run(folders: dict[str, Path], out: Path | None = None, *methods: str, options: Options = HERE):
    fused = {name: folders[name] for name in methods or ("one", "two")}
    return evaluate_folders(
        fused, [folders["visible"], folders["infrared"]], None, out, quiet(), options=options
    )


def test_every_method_and_sample_is_measured(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run(folders, out)
    assert found.failures == []
    with (out / "samples.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["method", "sample", "MI", "SF", "Qabf", "Qcv", "SSIM"]
    assert [(row["method"], row["sample"]) for row in table] == [
        (method, f"s{number}") for method in ("one", "two") for number in (1, 2, 3)
    ]

    def grey(folder: str) -> np.ndarray:  # ITU-R BT.601, rounded
        pixels = read_image(folders[folder] / "s2.png").pixels.astype(np.float64)
        weights = [0.299, 0.587, 0.114] if len(pixels) == 3 else [1.0]
        return np.rint(255 * np.einsum("c,chw->hw", weights, pixels).round(6))

    expected = fusion_metrics([grey("visible"), grey("infrared")], grey("one"))
    row = next(row for row in table if (row["method"], row["sample"]) == ("one", "s2"))
    for metric in ("MI", "SF", "Qabf", "Qcv", "SSIM"):
        assert float(row[metric]) == pytest.approx(expected[metric], rel=1e-3)
    means = json.loads((out / "metrics.json").read_text())
    assert means["one"]["MI"] == pytest.approx(
        np.mean([float(r["MI"]) for r in table if r["method"] == "one"]), abs=1e-5
    )
    assert (out / "table.tex").read_text().count(r"\\") == 3
    assert "| one | 3 |" in (out / "table.md").read_text()


def test_missing_and_broken_images_are_named_and_the_rest_goes_on(folders: dict[str, Path]) -> None:
    (folders["one"] / "s1.png").unlink()
    (folders["one"] / "s2.png").write_bytes(b"broken")
    write_image(folders["two"] / "s3.png", np.zeros((1, 10, 10), np.float32))
    found = run(folders)
    assert {row.method + row.sample for row in found.rows} == {"ones3", "twos1", "twos2"}
    reasons = {failure[:2]: failure[2] for failure in found.failures}
    assert "no fused image" in reasons["one", "s1"]
    assert "s2.png" in reasons["one", "s2"]
    assert "10x10" in reasons["two", "s3"]
    assert "24x32" in reasons["two", "s3"]
    assert found.warnings == [
        "visible_infrared: of 3 samples some methods were measured on fewer (one: 1, two: 2); means and "
        "ranks over different samples cannot be compared"
    ]


def test_odd_names_of_folders_and_files(folders: dict[str, Path], tmp_path: Path) -> None:
    odd = folders["one"].rename(tmp_path / "lr=0.1")

    out = tmp_path / "out"
    out.mkdir()
    (out / "measured.jsonl").write_bytes(b'\xff\xfe{"key": 3}\n')
    found = run({**folders, "one": odd}, out)
    assert len(found.rows) == 6
    assert not found.failures
    shutil.copy(odd / "s1.png", os.fsencode(odd) + b"/caf\xe9.png")
    with pytest.raises(InputError, match=r"'caf\\udce9.png' is not in UTF-8; rename the file"):
        run({**folders, "one": odd})


def test_a_folder_of_other_names_says_what_it_holds(folders: dict[str, Path], tmp_path: Path) -> None:
    folders["other"] = names(tmp_path / "other", *(f"scene{number}.png" for number in range(7)))
    terminal = Console(file=StringIO(), width=300)
    found = evaluate_folders(
        {"one": folders["one"], "other": folders["other"]},
        [folders["visible"], folders["infrared"]],
        None,
        None,
        terminal,
        options=HERE,
    )
    assert len(found.failures) == 3
    assert "7 files there match no sample (scene0.png" in found.failures[0][2]


def test_stretched_images_are_named(folders: dict[str, Path]) -> None:
    for path in folders["two"].iterdir():
        pixels = read_image(path).pixels
        write_image(path, (pixels - pixels.min()) / np.ptp(pixels))
    warnings = run(folders).warnings
    assert len(warnings) == 1
    assert warnings[0].startswith("two: 3 of 3 fused images look stretched")
    assert str(folders["two"] / "s1.png") in warnings[0]


def test_what_was_measured_is_not_measured_again(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    before = run(folders, out, "one")
    with (out / "measured.jsonl").open("a") as file:
        file.write('{"key": "cut sh')
    measured: list[str] = []
    original = scoring.measure

    def counted(sample, fused, *rest):
        measured.append(f"{fused.parent.name}/{fused.name}")
        return original(sample, fused, *rest)

    monkeypatch.setattr(scoring, "measure", counted)
    again = run(folders, out, "one")
    assert measured == []
    assert [row.values for row in again.rows] == [row.values for row in before.rows]
    run(folders, out)
    assert measured == ["two/s1.png", "two/s2.png", "two/s3.png"]
    write_image(folders["one"] / "s1.png", picture(99))
    run(folders, out)
    assert measured[3:] == ["one/s1.png"], "a changed image is measured again"


def killed(case: Case, options: Options) -> NoReturn:
    """What the system does to a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def test_a_killed_process_is_an_error_in_one_line(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "FEW", 0)
    monkeypatch.setattr(scoring, "_attempt", killed)
    with pytest.raises(InputError, match="run again with fewer --workers"):
        run(folders, None, "one", options=Options(workers=1, metrics=("SF",)))


def test_methods_are_named_by_name_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/lr=0.01").mkdir(parents=True)
    assert parse_fused(["ours=fused", "fused", "runs/lr=0.01"]) == {
        "ours": Path("fused"), "fused": Path("fused"), "lr=0.01": Path("runs/lr=0.01"),
    }  # fmt: skip
    with pytest.raises(InputError, match="has no name"):
        parse_fused(["=fused"])
    with pytest.raises(InputError, match="two methods are called 'a'"):
        parse_fused(["a=x", "a=y"])


def test_sharpening_with_a_target(tmp_path: Path) -> None:
    target = np.random.default_rng(0).integers(0, 2048, (2, 32, 32, 4)).astype(np.uint16)
    for number, cube in enumerate(target):
        for folder, array in (
            ("pan", cube.mean(-1).astype(np.uint16)),
            ("ms", cube.reshape(8, 4, 8, 4, 4).mean((1, 3)).astype(np.uint16)),
            ("target", cube),
            ("exact", cube),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            np.save(tmp_path / folder / f"crop_{number}.npy", array)
    found = evaluate_folders(
        {"exact": tmp_path / "exact"},
        [tmp_path / "pan", tmp_path / "ms"],
        tmp_path / "target",
        None,
        quiet(),
        bits=11,
        options=Options(workers=0),
    )
    assert found.tasks == ["pansharpening"]
    assert [row.values["ERGAS"] for row in found.rows] == [0, 0]


def test_sharpening_without_a_target_is_measured_at_full_resolution(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for folder, shape in (("pan", (64, 64)), ("ms", (16, 16, 4)), ("fused", (64, 64, 4))):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "crop.npy", random.integers(100, 2000, shape).astype(np.uint16))
    sources = [tmp_path / "pan", tmp_path / "ms"]

    def measured(sensor: str) -> dict[str, float]:
        options = Options(workers=0, sensor=sensor)
        found = evaluate_folders(
            {"m": tmp_path / "fused"}, sources, None, None, quiet(), bits=11, options=options
        )
        return found.rows[0].values

    values = measured("IKONOS")
    assert list(values) == ["D_lambda_K", "D_s", "HQNR", "D_lambda", "QNR"]
    assert values["HQNR"] == pytest.approx((1 - values["D_lambda_K"]) * (1 - values["D_s"]))
    assert measured("QB")["D_lambda_K"] != values["D_lambda_K"], "the sensor's optics count"


def test_the_authors_profile_has_its_own_columns(folders: dict[str, Path]) -> None:
    options = Options(profile="rwkvfusion", workers=0)
    fused = {"one": folders["one"]}
    sources = [folders["visible"], folders["infrared"]]
    found = evaluate_folders(fused, sources, None, None, quiet(), options=options)
    assert found.rows
    assert all(name.startswith("rwkvfusion_") for row in found.rows for name in row.values)


def test_the_command_says_what_it_did(folders: dict[str, Path], tmp_path: Path) -> None:
    (folders["two"] / "s2.png").unlink()
    command = ["python", "-m", "model", "evaluate", "--fused", f"first={folders['one']}", str(folders["two"])]
    command += ["--sources", str(folders["visible"]), str(folders["infrared"]), "--metrics", "MI,SF"]
    command += ["--out", str(tmp_path / "out"), "--workers", "0"]
    result = run_here(command, Path(__file__).parents[1])
    assert result.returncode == 1, result.stderr
    assert "failed two s2" in result.stdout
    assert "mean rank" in result.stdout
    lines = (tmp_path / "out" / "samples.csv").read_text().splitlines()
    assert lines[0] == "method,sample,MI,SF"
    assert len(lines) == 1 + 5
    result = run_here([*command, "--metrics", "Qab"], Path(__file__).parents[1])
    assert result.returncode == 2
    assert "unknown metric 'Qab'. Did you mean 'Qabf'?" in result.stderr


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_stopped(folders: dict[str, Path], tmp_path: Path) -> None:
    for number in range(4, 40):
        for folder in folders.values():
            (folder / f"s{number}.png").symlink_to(folder / "s1.png")
    workspace = scratch_copy(tmp_path / "project")
    command = ["python", "-m", "model", "evaluate", "--fused", str(folders["one"]), str(folders["two"])]
    command += ["--sources", str(folders["visible"]), str(folders["infrared"]), "--out", "out"]
    process = workspace.start(*command, "--workers", "2")
    memory = workspace.path / "out" / "measured.jsonl"
    while process.poll() is None and not (memory.is_file() and len(memory.read_text().splitlines()) > 5):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = len(memory.read_text().splitlines())
    result = workspace.run(*command, "--workers", "0")
    assert f"{done} of 78 images were measured before" in result.stdout
    assert len((workspace.path / "out" / "samples.csv").read_text().splitlines()) == 1 + 78

"""Evaluation with fabricated networks: what is written, what is measured, what is refused."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tiny_project import make_project, make_weights

from model.evaluate import evaluate
from model.measure import Options
from model.methods import fused_path
from model.metrics import fusion_metrics
from model.results import Case, Evaluation, Row, best, means, read_results, write_results
from model.run import content_fact
from pipeline.errors import InputError
from pipeline.images import enlarge, luminance, read_image, write_image
from pipeline.manifest import Sample, Source, write_manifest


def texture(bands: int, height: int, width: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    small = generator.random((bands, height // 4, width // 4), dtype=np.float32)
    return enlarge(small, (height, width))


def first_source(sources: Sequence[np.ndarray], text: object, masks: object) -> np.ndarray:
    """A network that copies the first source."""
    return sources[0]


def the_target(sources: Sequence[np.ndarray], text: object, masks: object) -> np.ndarray:
    """A perfect sharpening network for the fabricated scene."""
    return texture(4, 48, 64, 9)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set `tiny`: two focus samples with target, one for training, one pansharpening sample."""
    monkeypatch.chdir(tmp_path)
    root = Path("data")
    samples = []
    for name, split in (("a", "test"), ("b", "test"), ("c", "train")):
        paths = {role: root / f"{name}_{role}.png" for role in ("near", "far", "target")}
        for seed, path in enumerate(paths.values()):
            write_image(path, texture(3, 48, 64, seed))
        sources = tuple(Source(role, paths[role]) for role in ("near", "far"))
        samples.append(Sample(name, "multi_focus", split, sources, target=paths["target"]))
    target = texture(4, 48, 64, 9)
    files = {role: root / f"p_{role}.tif" for role in ("pan", "ms", "target")}
    write_image(files["target"], target, 11)
    write_image(files["pan"], target.mean(0, keepdims=True), 11)
    write_image(files["ms"], target.reshape(4, 12, 4, 16, 4).mean((2, 4)), 11)
    sources = tuple(Source(role, files[role]) for role in ("pan", "ms"))
    samples.append(Sample("p", "pansharpening", "test", sources, target=files["target"], bits=11))
    write_manifest(Path("tiny.csv"), samples, root)
    Path("params.yaml").write_text("datasets:\n  tiny: {manifest: tiny.csv, root: data, masks: none}\n")
    return tmp_path


HERE = Options(workers=0)


def quiet() -> Console:
    return Console(file=StringIO())


FUSERS = {"multi_focus": first_source, "pansharpening": the_target}


def test_every_test_sample_is_fused_and_measured(tiny: Path) -> None:
    terminal = StringIO()
    found = evaluate("tiny", fusers=FUSERS, console=Console(file=terminal, width=140), options=HERE)
    rows = found.rows
    assert {(row.task, row.sample) for row in rows} == {
        ("multi_focus", "a"), ("multi_focus", "b"), ("pansharpening", "p"),
    }  # fmt: skip
    folder = Path("reports/tiny")
    values = {(row.sample, row.method): row.values for row in rows}
    assert set(m for s, m in values if s == "a") == {
        "rwkvfusion", "rwkvfusion_unguided", "average", "maximum", "laplacian_pyramid", "guided_filter",
    }  # fmt: skip

    written = read_image(fused_path(folder, "rwkvfusion", "a", 3)).pixels
    near, far, fused = (
        np.rint(255 * luminance(pixels).astype(np.float64))
        for pixels in (*(read_image(Path(f"data/a_{role}.png")).pixels for role in ("near", "far")), written)
    )
    again = fusion_metrics([near, far], fused)
    ours = {name: values["a", "rwkvfusion"][name] for name in again}
    assert ours == pytest.approx(again, rel=1e-6, nan_ok=True), "what is reported is what the file holds"
    assert values["a", "rwkvfusion"]["target_PSNR"] < 40
    assert found.effects == {"a": 0, "b": 0, "p": 0}
    assert values["p", "rwkvfusion"]["PSNR"] == math.inf
    assert values["p", "rwkvfusion"]["ERGAS"] == 0
    assert values["p", "bicubic"]["PSNR"] < 60
    assert set(m for s, m in values if s == "p") == {
        "rwkvfusion", "rwkvfusion_unguided", "bicubic", "detail_injection", "gsa", "mtf_glp",
    }  # fmt: skip
    assert read_image(fused_path(folder, "rwkvfusion", "p", 4, 11), 11).pixels.shape == (4, 48, 64)

    with (folder / "samples.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) == 2 * 6 + 6
    assert list(table[0])[:3] == ["method", "sample", "MI"]
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["pansharpening"]["rwkvfusion"]["PSNR"] is None, "JSON has no infinity"
    assert figures["multi_focus"]["average"]["Qabf"] == pytest.approx(
        values["a", "average"]["Qabf"], abs=1e-6
    )
    own = json.loads((folder / "metrics" / "multi_focus.json").read_text())
    assert own == figures["multi_focus"]["rwkvfusion"]
    assert "Qabf ↑" in terminal.getvalue()
    assert "2 of 2 samples have no guidance stored" in terminal.getvalue()
    assert not list(tiny.rglob("*.tmp"))


def test_pansharpening_assumes_the_data_sets_sensor_unless_told(tiny: Path) -> None:
    def fused() -> dict[str, bytes]:
        return {path.parent.name: path.read_bytes() for path in Path("reports/tiny/fused").glob("*/p.tif")}

    def run(sensor: str | None = None) -> dict[str, bytes]:
        evaluate("tiny", ["pansharpening"], FUSERS, quiet(), options=Options(workers=0, sensor=sensor))
        return fused()

    unknown = run()
    Path("params.yaml").write_text(
        "datasets:\n  tiny: {manifest: tiny.csv, root: data, masks: none, sensor: qb}\n"
    )
    known = run()
    changed = {method for method in known if known[method] != unknown[method]}
    assert changed == {"gsa", "mtf_glp"}
    assert run("other") == unknown
    assert run("QB") == known
    found = evaluate("tiny", ["pansharpening"], FUSERS, quiet(), options=Options(workers=0, sensor="wv3"))
    assert "the sensor 'wv3' has 8 bands, the image 4" in found.failures[0][2]


def test_guidance_is_removed_for_the_second_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def brighter_when_guided(sources: Sequence[np.ndarray], text: object, masks: object) -> np.ndarray:
        return 0.5 * sources[0] + (0 if text is None else 0.1)

    class Stores:
        """Guidance of every sample: one text feature, no masks."""

        @staticmethod
        def text(sample: str) -> object:
            return type("Text", (), {"features": np.zeros((1, 8), np.float32)})

        @staticmethod
        def merged(sample: str) -> None:
            return None

    monkeypatch.setattr("model.evaluate.open_guidance", lambda dataset: Stores)
    fusers = {"multi_focus": brighter_when_guided}
    found = evaluate("tiny", ["multi_focus"], fusers, Console(file=StringIO()), options=HERE)
    assert found.effects == pytest.approx({"a": 25.5, "b": 25.5}, abs=0.1), "of images rounded to 8 bits"


def test_one_task_leaves_the_others_results(tiny: Path) -> None:
    evaluate("tiny", fusers=FUSERS, console=Console(file=StringIO()), options=HERE)
    before = Path("reports/tiny/samples.csv").read_text()
    evaluate("tiny", ["pansharpening"], FUSERS, Console(file=StringIO()), options=HERE)
    assert Path("reports/tiny/samples.csv").read_text() == before
    figures = json.loads(Path("reports/tiny/metrics.json").read_text())
    assert set(figures) == {"multi_focus", "pansharpening"}
    lines = Path("tiny.csv").read_text().splitlines(keepends=True)
    Path("tiny.csv").write_text("".join(line for line in lines if not line.startswith("b,")))
    evaluate("tiny", ["pansharpening"], FUSERS, Console(file=StringIO()), options=HERE)
    rows = read_results(Path("reports/tiny")).rows
    assert {row.sample for row in rows} == {"a", "p"}, "what left the manifest leaves the results"


def test_what_was_mended_is_warned_of_no_more_and_what_still_fails_stays(tiny: Path) -> None:
    broken = Path("data/b_far.png")
    good = broken.read_bytes()
    broken.write_bytes(b"not an image")
    evaluate("tiny", fusers=FUSERS, console=quiet(), options=HERE)
    folder = Path("reports/tiny")
    evaluate("tiny", ["pansharpening"], FUSERS, quiet(), options=HERE)
    again = read_results(folder)
    assert [failure[1] for failure in again.failures] == ["b"], "of a task that was not evaluated again"
    assert any(text.startswith("multi_focus: 1 of 2 samples have no guidance") for text in again.warnings)
    broken.write_bytes(good)
    index = json.loads((folder / "evaluation.json").read_text())
    index["warnings"] += ["multi_focus: told of an earlier state", "SSIM is missing: told earlier"]
    (folder / "evaluation.json").write_text(json.dumps(index))
    evaluate("tiny", ["multi_focus"], FUSERS, quiet(), options=HERE)
    again = read_results(folder)
    assert again.failures == []
    assert "multi_focus: told of an earlier state" not in again.warnings
    assert "SSIM is missing: told earlier" in again.warnings, "it may be about pansharpening"
    evaluate("tiny", fusers=FUSERS, console=quiet(), options=HERE)
    assert not any("told earlier" in text for text in read_results(folder).warnings)


def test_a_sample_that_cannot_be_read_is_named_and_the_rest_goes_on(tiny: Path) -> None:
    Path("data/b_far.png").write_bytes(b"not an image")
    terminal = StringIO()
    found = evaluate("tiny", ["multi_focus"], FUSERS, Console(file=terminal, width=400), options=HERE)
    assert {row.sample for row in found.rows} == {"a"}
    assert [failure[1] for failure in found.failures] == ["b"]
    assert "b_far.png" in terminal.getvalue()


def test_given_weights_are_used_once_and_what_they_saw_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    samples = make_project(tmp_path, guidance=False)
    weights = make_weights(tmp_path / "mine.safetensors", "visible_infrared")
    record = json.loads(weights.with_suffix(".json").read_text())
    seen = next(sample for sample in samples if sample.id == "vi6")
    record["facts"] = {"sample other_name": content_fact(dataclasses.replace(seen, split="train"))}
    weights.with_suffix(".json").write_text(json.dumps(record))
    found = evaluate("tiny", weights=str(weights), out=Path("out"), console=quiet(), options=HERE)
    assert found.tasks == ["visible_infrared"]
    assert len(found.rows) == 2 * 6
    assert any("trained on 1 of the 2 samples (vi6)" in text for text in found.warnings)
    assert not Path("reports").exists()

    def refused(*_: object, **__: object) -> np.ndarray:
        raise AssertionError("was fused already")

    monkeypatch.setattr("model.methods.fuse", refused)
    again = evaluate("tiny", weights=str(weights), out=Path("out"), console=quiet(), options=HERE)
    assert repr(again.rows) == repr(found.rows), "NaN included"
    Path("out/fused/rwkvfusion/vi7.png").unlink()
    with pytest.raises(AssertionError, match="was fused already"):
        evaluate("tiny", weights=str(weights), out=Path("out"), console=quiet(), options=HERE)
    with pytest.raises(InputError, match="weights for visible_infrared, not for pansharpening"):
        evaluate("tiny", ["pansharpening"], weights=str(weights), console=quiet())


def test_a_network_without_guidance_is_not_compared_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    weights = make_weights(tmp_path / "bare.safetensors", "visible_infrared", changed={"guidance": "none"})
    found = evaluate("tiny", weights=str(weights), console=quiet(), options=HERE)
    assert {row.method for row in found.rows} == {
        "rwkvfusion", "average", "maximum", "laplacian_pyramid", "guided_filter",
    }  # fmt: skip
    assert found.effects == {}
    assert not Path("reports/tiny/fused/rwkvfusion_unguided").exists()


def test_mistakes_are_named_with_their_remedy(tiny: Path) -> None:
    with pytest.raises(InputError, match="run `python -m model train --task multi_focus --dataset tiny`"):
        evaluate("tiny")
    with pytest.raises(InputError, match="Did you mean 'tiny'"):
        evaluate("tinny")
    with pytest.raises(InputError, match="no test sample of task 'medical'; it has multi_focus"):
        evaluate("tiny", ["medical"], {})
    text = Path("tiny.csv").read_text()
    Path("tiny.csv").write_text(text.replace(",test,", ",validation,"))
    with pytest.raises(InputError, match="no sample has split 'test'"):
        evaluate("tiny")
    assert not Path("reports").exists()


def test_results_survive_the_way_through_the_file(tmp_path: Path) -> None:
    sample = Sample(
        "s", "medical", "test", (Source("ct", Path("ct/s.png")), Source("mri", Path("mri/s.png")))
    )
    rows = [
        Row("medical", "s", "average", {"Qabf": 0.1 + 0.2, "PSNR": math.inf}),
        Row("medical", "s", "rwkvfusion", {"Qabf": 0.5, "SCD": math.nan}),
    ]
    cases = [Case(row.method, sample, Path(f"{row.method}/s.png")) for row in rows]
    failures = [("average", "t", "no such file")]
    write_results(tmp_path, Evaluation(cases, rows, "tiny", failures=failures, effects={"s": 2.0}))
    again = read_results(tmp_path)
    assert again.cases == cases
    assert again.failures == failures
    assert again.effects == {"s": 2.0}
    assert [(row.task, row.sample, row.method) for row in again.rows] == [
        (row.task, row.sample, row.method) for row in rows
    ]
    for old, new in zip(rows, again.rows, strict=True):
        assert new.values == pytest.approx(old.values, rel=1e-8, nan_ok=True)
    with pytest.raises(InputError, match="run `python -m model evaluate --dataset absent`"):
        read_results(tmp_path / "absent")
    (tmp_path / "samples.csv").write_text("sample\nx\n")
    with pytest.raises(InputError, match="not a table of results"):
        read_results(tmp_path)


def test_results_are_utf8_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_the_locale(encoding: str | None, stacklevel: int = 2) -> str:
        return encoding or "ascii"

    monkeypatch.setattr(io, "text_encoding", of_the_locale)
    sample = Sample("夜景", "medical", "test", (Source("ct", Path("夜.png")), Source("mri", Path("m.png"))))
    rows = [Row("medical", "夜景", "average", {"Qabf": 0.5})]
    write_results(tmp_path, Evaluation([Case("average", sample, Path("fused/夜景.png"))], rows))
    assert read_results(tmp_path).rows == rows


def test_means_leave_nan_out_and_best_follows_the_direction() -> None:
    rows = [
        Row("medical", "a", "x", {"Qcv": 10.0, "Qabf": 0.5, "SCD": math.nan}),
        Row("medical", "b", "x", {"Qcv": 20.0, "Qabf": math.nan, "SCD": math.nan}),
        Row("medical", "a", "y", {"Qcv": 16.0, "Qabf": 0.5, "SCD": math.nan}),
    ]
    methods = means(rows)["medical"]
    assert methods["x"]["Qcv"] == 15
    assert methods["x"]["Qabf"] == 0.5
    assert math.isnan(methods["x"]["SCD"])
    assert best(methods, "Qcv") == {"x"}
    assert best(methods, "Qabf") == {"x", "y"}, "equal as printed"
    assert best(methods, "SCD") == set()

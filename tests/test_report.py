"""The report page from small fabricated results: what it says, and how it behaves in a browser."""

from __future__ import annotations

import math
import os
import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from model.charts import radar, spread
from model.curves import chart, read_curves
from model.folders import evaluate_folders
from model.measure import Options
from model.methods import fused_path
from model.pictures import PALETTE, coloured, common_peak, difference, overlay
from model.report import write_dataset_report, write_report
from model.results import Case, Evaluation, Row, write_results
from pipeline.errors import InputError
from pipeline.images import write_image
from pipeline.manifest import Sample, Source, write_manifest


def scene(bands: int, height: int, width: int, seed: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + seed + band)) * np.cos(y / (5 + band)) for band in range(bands)]
    return (0.5 + 0.45 * np.stack(waves)).astype(np.float32)


@pytest.fixture
def evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a data set `tiny` of two tasks, evaluated: no guidance, a short training log."""
    monkeypatch.chdir(tmp_path)
    root = Path("data/tiny")
    samples, rows, cases = [], [], []
    for index in range(2):
        name = f"night_{index}"
        paths = {role: root / f"{name}_{role}.png" for role in ("visible", "infrared")}
        write_image(paths["visible"], scene(3, 48, 64, index))
        write_image(paths["infrared"], scene(1, 48, 64, index + 3))
        sources = tuple(Source(role, path) for role, path in paths.items())
        samples.append(Sample(name, "visible_infrared", "test", sources))
        for method, value in (("rwkvfusion", 0.6), ("rwkvfusion_unguided", 0.5), ("average", 0.4)):
            values = {"Qabf": value, "Qcv": 100 * value, "SCD": float("nan")}
            rows.append(Row("visible_infrared", name, method, values))
            fused = fused_path(Path("reports/tiny"), method, name, 3)
            write_image(fused, scene(3, 48, 64, index + 1))
            cases.append(Case(method, samples[-1], fused))
    pan, ms, target = root / "wv_pan.tif", root / "wv_ms.tif", root / "wv_target.tif"
    write_image(pan, scene(1, 32, 32, 0), 11)
    write_image(ms, scene(4, 8, 8, 0), 11)
    write_image(target, scene(4, 32, 32, 0), 11)
    sources = (Source("pan", pan), Source("ms", ms))
    samples.append(Sample("wv", "pansharpening", "test", sources, target=target, bits=11))
    rows += [
        Row("pansharpening", "wv", "rwkvfusion", {"PSNR": 30.0, "ERGAS": 2.0}),
        Row("pansharpening", "wv", "bicubic", {"PSNR": float("inf"), "ERGAS": 3.0}),
    ]
    for method in ("rwkvfusion", "bicubic"):
        fused = fused_path(Path("reports/tiny"), method, "wv", 4, 11)
        write_image(fused, scene(4, 32, 32, 0), 11)
        cases.append(Case(method, samples[-1], fused))
    write_manifest(Path("tiny.csv"), samples, root)
    Path("params.yaml").write_text("datasets:\n  tiny: {manifest: tiny.csv, root: data/tiny, masks: none}\n")
    effects = {"night_0": 1.25, "night_1": 1.75, "wv": 0.25}
    write_results(Path("reports/tiny"), Evaluation(cases, rows, "tiny", effects=effects))
    weights = Path("runs/tiny/visible_infrared/weights.json")
    weights.parent.mkdir(parents=True)
    weights.write_text('{"sha256": "0123456789abcdef0123", "parameters": 12345, "seconds": 6.7}')
    for group in ("train", "validation"):
        log = Path(f"runs/tiny/visible_infrared/dvclive/plots/metrics/{group}/loss.tsv")
        log.parent.mkdir(parents=True)
        log.write_text("step\tloss\n" + "".join(f"{step}\t{1 / (step + 1)}\n" for step in range(0, 50, 10)))
    return tmp_path


def test_the_page_says_who_won_and_where_it_comes_from(evaluated: Path) -> None:
    page = write_dataset_report("tiny").read_text()
    assert page.count("<article") == 3
    assert re.search(r'class="best"><a [^>]*>0\.600</a>', page)
    assert re.search(r'class="best"><a [^>]*>40\.0</a>', page), "Qcv: lower is better"
    assert re.search(r'class="best"><a [^>]*>∞</a>', page)
    assert "1.50 of 255 grey levels" in page
    assert "tiny.csv " in page
    assert "0123456789abcdef, 12,345 parameters" in page
    assert "masks: none" in page, "the parameters stand in the footer"
    assert not re.search(r'(?:src|href)="(?!data:|#)', page), "nothing outside the page"
    assert str(evaluated) not in page
    assert not list(evaluated.rglob("*.tmp"))


def test_what_is_missing_is_named_with_its_remedy(evaluated: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'tiny'"):
        write_dataset_report("tini")
    fused_path(Path("reports/tiny"), "rwkvfusion", "wv", 4, 11).unlink()
    with pytest.raises(InputError, match="'wv' is missing; run `python -m model evaluate --dataset tiny`"):
        write_dataset_report("tiny")
    Path("reports/tiny/samples.csv").unlink()
    with pytest.raises(InputError, match="run `python -m model evaluate --dataset tiny`"):
        write_dataset_report("tiny")


def test_overlay_tints_and_outlines_each_object() -> None:
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 2:10, 2:10] = masks[1, 12:18, 12:18] = True
    picture = overlay(np.full((20, 20), 0.4, np.float32), masks)  # dimmed to 0.3
    assert picture.shape == (20, 20, 3)
    np.testing.assert_array_equal(picture[0, 0], 77)
    assert "#" + bytes(picture[2, 2]).hex() == PALETTE[0]
    assert "#" + bytes(picture[12, 12]).hex() == PALETTE[1]
    assert len(set(PALETTE)) == 20
    assert not np.array_equal(picture[5, 5], picture[14, 14])


def test_curves_of_one_name_share_a_chart(evaluated: Path) -> None:
    curves = read_curves(Path("runs/tiny/visible_infrared/dvclive/plots/metrics"))
    assert {name: list(lines) for name, lines in curves.items()} == {"loss": ["train", "validation"]}
    assert list(curves["loss"]["train"][0]) == [0, 1]
    with Path("runs/tiny/visible_infrared/dvclive/plots/metrics/train/loss.tsv").open("a") as table:
        table.write("30")  # and no more, because the training was killed
    assert read_curves(Path("runs/tiny/visible_infrared/dvclive/plots/metrics")) == curves
    svg = chart("loss", curves["loss"])
    assert svg.count("<polyline") == 2
    numbers = re.findall(r"(-?[\d.]+),(-?[\d.]+)", svg)
    assert all(0 <= float(x) <= 340 and 0 <= float(y) <= 190 for x, y in numbers)
    assert read_curves(Path("runs/absent")) == {}
    assert chart("one", {"a": [(3, 2)]}).count("<polyline") == 1
    assert chart("none", {"a": []}) == ""


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two methods' folders of three samples, evaluated: `a&b <c>` misses one image."""
    for folder, bands in (("visible", 3), ("infrared", 1), ("mean", 1), ("a&b <c>", 3)):
        for index in range(3):
            write_image(tmp_path / folder / f"s{index}.png", scene(bands, 48, 64, index + len(folder)))
    (tmp_path / "a&b <c>" / "s1.png").unlink()
    sources = [tmp_path / "visible", tmp_path / "infrared"]
    fused = {name: tmp_path / name for name in ("mean", "a&b <c>")}
    options = Options(workers=0, metrics=("SF", "SD", "SCD", "Qcv"))
    evaluate_folders(fused, sources, None, tmp_path / "out", Console(file=StringIO()), options=options)
    return tmp_path / "out"


def test_samples_of_any_name_have_their_own_place_on_the_page(tmp_path: Path) -> None:
    names = ("a b", "a.b", "a-b", "图一", "图二", "<b>x", '"quoted"', "=1+1")
    for folder in ("visible", "infrared", "rwkvfusion", "C^2_{x}~"):
        for index, name in enumerate(names):
            write_image(tmp_path / folder / f"{name}.png", scene(1, 48, 64, index + len(folder)))
    sources = [tmp_path / "visible", tmp_path / "infrared"]
    fused = {name: tmp_path / name for name in ("rwkvfusion", "C^2_{x}~")}
    options = Options(workers=0, metrics=("SF", "SD"))
    out = tmp_path / "out"
    evaluate_folders(fused, sources, None, out, Console(file=StringIO()), options=options)
    page = write_report(out).read_text()
    places = re.findall(r'<article[^>]* id="([^"]+)"', page)
    assert len(places) == len(set(places)) == len(names)
    assert "<b>x" not in page
    assert "simple rules" not in page, "folders hold whatever their owners call it"
    assert "leads with a mean rank" in page
    assert r"C\textasciicircum{}2\_\{x\}\textasciitilde{} &" in (out / "table.tex").read_text()


def test_the_page_of_folders_needs_no_project(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    page = write_report(folders).read_text()
    assert "a&amp;b &lt;c&gt;" in page
    assert "<c>" not in page
    assert "no fused image of &#39;s1&#39;" in page
    assert page.count("Difference to infrared</h4>") == 0
    assert page.count("<h4>Difference to infrared") == 3
    anchors = set(re.findall(r'href="#([^"]+)"', page))
    assert anchors <= set(re.findall(r'id="([^"]+)"', page)), "every link leads somewhere"
    (folders.parent / "mean" / "s0.png").unlink()
    with pytest.raises(InputError, match="'s0' is missing; evaluate the folders again"):
        write_report(folders)


def test_charts_show_what_they_are_given() -> None:
    values = {"one": {"a": 1.0, "b": 2.0, "c": 9.0, "d": 1.5}, "two": {"a": math.inf}}
    svg = spread("Qcv", values)
    assert svg.count("<circle") == 4
    assert "medians: one 1.8" in svg
    assert spread("Qcv", {"two": {"a": math.nan}}) == ""
    means = {"x": {"MI": 2.0, "Qcv": 5.0, "SF": 1.0}, "y": {"MI": 1.0, "Qcv": 1.0, "SF": 1.0}}
    drawn = re.findall(r'class="series\d" points="([^"]+)"', radar(means, ["MI", "Qcv", "SF"]))
    reach = [
        [np.hypot(float(x) - 260, float(y) - 190) for x, y in re.findall(r"([\d.]+),([\d.]+)", points)]
        for points in drawn
    ]
    np.testing.assert_allclose(reach, [[140, 28, 140], [28, 140, 140]], atol=0.2)
    assert radar(means, ["MI", "SF"]) == "", "two axes are no polygon"


def test_differences_share_a_scale() -> None:
    grey, colour = np.full((1, 4, 4), 0.5, np.float32), np.zeros((3, 4, 4), np.float32)
    red = np.array([0.3, 0, 0], np.float32)[:, None, None]
    np.testing.assert_allclose(difference(colour, grey), 0.5)
    np.testing.assert_allclose(difference(colour, colour + red), 0.1)
    peak = common_peak([difference(colour, grey), np.zeros((4, 4), np.float32)])
    assert peak == 0.5
    lightness = coloured(np.linspace(0, 0.6, 50, dtype=np.float32)[None], peak).astype(int).sum(-1)[0]
    assert (np.diff(lightness) >= 0).all()
    assert lightness[-1] == lightness[-5], "beyond the peak nothing changes"


def watch(page: Any) -> list[str]:
    """What goes wrong on a page, as it happens."""
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url[:80]))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith(("file:", "data:")) else problems.append(request.url[:80])
        ),
    )
    return problems


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_page_works_in_a_browser(evaluated: Path, browser: Any, width: int, scheme: str) -> None:
    path = write_dataset_report("tiny").resolve()
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    problems = watch(page)
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
    images = page.evaluate("[...document.querySelectorAll('main img')].map(i => [i.naturalWidth, i.alt])")
    assert len(images) == 2 * (2 + 3 + 2 * 3) + (3 + 2 + 2)
    assert all(natural > 0 and alt for natural, alt in images)

    page.focus(".pictures button")  # keyboard: open, next, zoom, close; the focus comes back
    page.keyboard.press("Enter")
    assert page.is_visible("dialog[open] img")
    right = "dialog .pane:last-child img"
    first = page.get_attribute(right, "alt")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute(right, "alt") != first
    page.keyboard.press("+")
    moved = page.evaluate("[...document.querySelectorAll('dialog img')].map(i => i.style.transform)")
    assert "scale(2)" in moved[0]
    assert moved[0] == moved[1], "both sides move together"
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog")
    assert page.evaluate("document.activeElement.closest('.pictures') !== null")
    page.click(".pictures button >> nth=3")
    page.click("dialog [data-close]")
    assert not page.is_visible("dialog")
    if "SCREENSHOTS" in os.environ:  # to look at the page: SCREENSHOTS=folder pytest -m browser
        page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"report-{width}.png", full_page=True)
    page.close()
    assert problems == []


@pytest.mark.browser
def test_the_leaderboard_sorts_and_leads_to_pictures(folders: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    problems = watch(page)
    page.goto(write_report(folders).resolve().as_uri())

    def column() -> list[float]:
        cells = page.query_selector_all(".leaderboard tbody tr td:nth-child(3)")
        return [float(cell.get_attribute("data-value")) for cell in cells]

    page.focus(".leaderboard thead th:nth-child(3) button")
    page.keyboard.press("Enter")
    assert column() == sorted(column(), reverse=True), "SF: best first"
    assert page.get_attribute(".leaderboard thead th:nth-child(3)", "aria-sort") == "descending"
    page.keyboard.press("Enter")
    assert column() == sorted(column())
    page.click(".leaderboard td a >> nth=0")
    target = page.evaluate("location.hash.slice(1)")
    assert page.evaluate("id => document.getElementById(id).classList.contains('card')", target)
    page.close()
    assert problems == []

"""The page of many samples' guidance: what is chosen, what it says, and how it behaves in a browser."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_backends
import pytest
from typer.testing import CliRunner

from pipeline import boxes, captions, masks, texts
from pipeline.cli import app
from pipeline.config import PipelineConfig, load_pipeline
from pipeline.errors import InputError
from pipeline.gallery import select, write_gallery
from pipeline.guidance import run_guidance
from pipeline.manifest import Sample, Source

SIZES = ((24, 32), (40, 30), (24, 32), (24, 32))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineConfig]:
    """Four samples with guidance, one of which has lost an image since."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("gallery"))
        for stage in (captions, texts, boxes, masks):
            patch.setattr(stage, "backend", stage.backend)
        fake_backends.use_fakes()
        fake_backends.make_dataset(Path(), SIZES)
        Path("params.yaml").write_text(
            "datasets:\n  mini:\n    manifest: mini.csv\n    root: images\n    masks: auto\n"
        )
        run_guidance(load_pipeline(), "mini")
        Path("images/infrared/s003.png").write_bytes(b"not an image")
        yield load_pipeline()


def named(*names: str) -> list[Sample]:
    splits = ("train", "train", "test", "test")
    sources = (Source("visible", Path("v.png")), Source("infrared", Path("i.png")))
    return [
        Sample(name, "visible_infrared", split, sources) for name, split in zip(names, splits, strict=True)
    ]


@pytest.mark.parametrize(
    ("which", "split", "expected"),
    [
        ("", "", "a b c d"),
        ("1:3", "", "b c"),
        (":2", "", "a b"),
        ("-1:", "", "d"),
        ("0:20", "", "a b c d"),
        ("", "test", "c d"),
        ("0:1", "test", "c"),
        ("d, a", "", "d a"),
    ],
)
def test_samples_are_chosen_by_position_name_and_split(which: str, split: str, expected: str) -> None:
    assert [sample.id for sample in select(named(*"abcd"), which, split, "m.csv")] == expected.split()


@pytest.mark.parametrize(
    ("which", "split", "message"),
    [
        ("9:", "", "no sample in"),
        ("person_2", "", "Did you mean 'person_1'"),
        ("", "tset", "Did you mean 'test'"),
    ],
)
def test_unknown_samples_are_named(which: str, split: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(named("person_1", "b", "c", "d"), which, split, "m.csv")


def test_the_page_says_everything_about_a_sample(project: PipelineConfig) -> None:
    shown, lacking = write_gallery(project, "mini", Path("one.html"), "s001")
    page = Path("one.html").read_text(encoding="utf-8")
    assert (shown, lacking) == (1, ())
    assert page.count("<section") == 1
    assert page.count("data:image/jpeg") == 3  # visible, infrared, merged
    assert page.count("data:image/png") == 3
    assert "Scène s001, mean" in page
    assert re.findall(r"<span>(person 0\.90)</span>", page) == ["person 0.90"] * 2
    assert "visible + infrared" in page
    # The fake's box 1, 2, 21, 12 in a picture of 40 x 30.
    assert "left: 3.333%; top: 5.000%; width: 66.667%; height: 25.000%" in page


def test_what_is_missing_is_said_on_the_page(project: PipelineConfig) -> None:
    shown, lacking = write_gallery(project, "mini", Path("all.html"))
    assert (shown, lacking) == (4, ("s003",))
    assert "images/infrared/s003.png" in Path("all.html").read_text(encoding="utf-8")


def test_captions_are_text_not_markup(project: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.records import Caption
    from pipeline.store import Store

    get = Store.get
    monkeypatch.setattr(
        Store, "get", lambda s, i: Caption("<script>alert(1)</script>") if s.kind == "captions" else get(s, i)
    )
    write_gallery(project, "mini", Path("x.html"), "s000")
    assert "<script>alert" not in Path("x.html").read_text(encoding="utf-8")


def test_the_command_makes_pages_and_pictures(project: PipelineConfig) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["inspect", "--dataset", "mini", "--samples", "0:2", "-o", "two.html"])
    assert result.exit_code == 0, result.output
    assert Path("two.html").read_text(encoding="utf-8").count("<section") == 2
    assert runner.invoke(app, ["inspect", "--dataset", "mini", "--sample", "s000"]).exit_code == 0
    assert Path("s000.png").is_file()
    assert runner.invoke(app, ["inspect", "--dataset", "mini"]).exit_code == 1  # s003 is incomplete
    assert runner.invoke(app, ["inspect", "--dataset", "mini", "-o", "x.png"]).exit_code == 2
    both = ["inspect", "--dataset", "mini", "--sample", "s000", "--samples", "0:2"]
    assert runner.invoke(app, both).exit_code == 2


def test_without_stores_the_command_is_named(project: PipelineConfig, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        fake_backends.make_dataset(Path(), SIZES[:1])
        with pytest.raises(InputError, match="pipeline guidance --dataset mini"):
            write_gallery(project, "mini", Path("x.html"))


@pytest.mark.browser
def test_the_page_is_paged_by_keyboard_and_asks_for_nothing(project: PipelineConfig, browser: Any) -> None:
    write_gallery(project, "mini", Path("all.html"))
    problems: list[str] = []
    requested: list[str] = []
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requested.append(request.url[:60]))
    page.goto(Path("all.html").resolve().as_uri())
    assert page.inner_text("h2:visible").startswith("s000")
    assert page.locator("section:visible").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 3 * 6
    assert all(width > 0 for width in widths)
    for key, expected in (
        ("ArrowRight", "s001"),
        ("End", "s003"),
        ("ArrowRight", "s003"),
        ("ArrowLeft", "s002"),
        ("Home", "s000"),
    ):
        page.keyboard.press(key)
        assert page.inner_text("h2:visible").startswith(expected), key
    assert page.locator(".box:visible").count() == 2
    page.keyboard.press("b")
    assert page.locator(".box:visible").count() == 0
    page.keyboard.press("m")
    assert page.locator(".tint:visible").count() == 0
    page.click("[data-hide=no-masks]")
    assert page.locator(".tint:visible").count() == 3
    page.select_option("select", index=2)
    assert page.inner_text("output") == "3 of 4"
    page.goto(Path("all.html").resolve().as_uri() + "#s001")
    page.reload()
    assert page.inner_text("h2:visible").startswith("s001")
    page.close()
    assert problems == []
    assert all(url.startswith(("file:", "data:")) for url in requested)

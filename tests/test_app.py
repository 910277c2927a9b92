"""What the page of `rwkvfusion app` does with a visitor's images; the page itself: test_app_page.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_project import make_weights, scene
from typer.testing import CliRunner

from model import app_visit
from model.app_examples import draw_examples
from model.app_visit import BRUSHES, Visit, Weights, metrics_of, offered_weights, preview, suited
from model.cli import app as commands
from model.measure import Options, measure
from model.sample import Settings
from pipeline.errors import InputError
from pipeline.images import display, read_image, write_image


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    return Visit(tmp_path / "visit")


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """A pair in folders of names that mean roles, as a hash of hexadecimal digits might."""
    files = [tmp_path / "ir" / "street.png", tmp_path / "ct" / "street.png"]
    write_image(files[0], scene(1, 3, 40, 52))
    write_image(files[1], scene(2, 1, 40, 52))
    return files


def weights_for(task: str) -> Weights:
    return next(weights for weights in offered_weights() if weights.name == task)


def by_command(out: Path, *arguments: object) -> Path:
    """The result of `fuse` on the command line."""
    result = CliRunner().invoke(commands, ["fuse", *map(str, arguments), "-o", str(out)])
    assert result.exit_code == 0, result.output
    return out


def test_the_page_gives_what_the_command_gives(visit: Visit, tmp_path: Path) -> None:
    deep, flat = tmp_path / "visible.tif", tmp_path / "infrared.tif"
    write_image(deep, scene(1, 3, 40, 52), 16)
    write_image(flat, scene(2, 1, 40, 52), 16)
    masks = tmp_path / "masks.png"
    Image.fromarray(np.kron([[0, 3], [7, 0]], np.ones((20, 26))).astype(np.uint8)).save(masks)
    files = visit.take([str(deep), str(flat)])
    fused = visit.fuse(files, weights_for(visit.guess(files)), Settings(), visit.take_masks(str(masks)), "")
    assert fused.line == "visible_infrared (visible+infrared), guided by masks"
    expected = by_command(tmp_path / "out.tif", deep, flat, "--masks", masks)
    assert fused.path.name == "visible_fused.tif"
    assert fused.path.read_bytes() == expected.read_bytes()
    assert read_image(fused.path).bits == 16
    plain = visit.fuse(files, weights_for("visible_infrared"), Settings(), None, "")
    assert plain.path.read_bytes() != expected.read_bytes(), "the masks have an effect"


def test_a_caption_is_encoded_as_the_command_does(visit: Visit, tmp_path: Path, pair: list[Path]) -> None:
    own = make_weights(tmp_path / "own.safetensors", "multi_focus", encoder="classical-texts-1")
    weights, words = offered_weights([str(own)])[0], "a bench in front of a wall"
    fused = visit.fuse(visit.take([str(path) for path in pair]), weights, Settings(), None, words)
    arguments = ("--task", "multi_focus", "--weights", own, "--caption", words)
    expected = by_command(tmp_path / "out.png", *pair, *arguments)
    assert fused.path.read_bytes() == expected.read_bytes()
    assert "guided by text" in fused.line


def test_the_task_is_guessed_from_what_the_visitor_knows(visit: Visit, pair: list[Path]) -> None:
    files = visit.take([str(path) for path in pair])
    assert visit.guess(files) == "visible_infrared", "by colour; the folders' names are chance"
    write_image(pair[1], scene(3, 3, 40, 52))
    files = visit.take([str(path) for path in pair])
    with pytest.raises(InputError, match=r"from street\.png and street\.png; choose it under Weights"):
        visit.guess(files)


def test_mistakes_are_one_line_without_folders(visit: Visit, tmp_path: Path, pair: list[Path]) -> None:
    small, torn, wide = tmp_path / "small.png", tmp_path / "torn.png", tmp_path / "wide.png"
    write_image(small, scene(2, 1, 20, 52))
    torn.write_bytes(pair[0].read_bytes()[:200])
    Image.new("L", (300, 200)).save(wide)
    weights = weights_for("visible_infrared")
    cases = {
        "infrared is 20x52": lambda: visit.fuse(
            visit.take([str(pair[0]), str(small)]), weights, Settings(), None, ""
        ),
        "torn.png: cannot be read as an image": lambda: visit.fuse(
            visit.take([str(torn), str(pair[1])]), weights, Settings(), None, ""
        ),
        "wide.png: has 200x300 pixels": lambda: Visit(visit.folder, 50_000).take([str(wide)]),
        "the masks are 20x52, the image 40x52": lambda: visit.fuse(
            visit.take([str(path) for path in pair]), weights, Settings(), visit.take_masks(str(small)), ""
        ),
    }
    for message, work in cases.items():
        with pytest.raises(InputError) as raised:
            work()
        said = visit.said(raised.value)
        assert message in said
        assert str(tmp_path) not in said
        assert "\n" not in said


def test_painted_colours_become_objects(visit: Visit) -> None:
    layer = np.zeros((30, 40, 4), np.uint8)
    for number, code in enumerate(BRUSHES[:3]):
        layer[10 * number : 10 * number + 5, :20] = [*bytes.fromhex(code[1:]), 255]
    path = visit.label_map([layer], (60, 80))
    assert path is not None
    labels = np.asarray(Image.open(path))
    assert labels.shape == (60, 80)
    assert [int((labels == value).sum()) for value in (1, 2, 3)] == [400, 400, 400]
    assert labels[:, 40:].max() == 0
    assert visit.label_map([np.zeros_like(layer)], (60, 80)) is None
    assert visit.label_map([], (60, 80)) is None


def test_weights_say_which_guidance_they_know(tmp_path: Path) -> None:
    known = {weights.name: weights for weights in offered_weights()}
    assert "trained with masks only" in known["visible_infrared"].why_no_caption
    assert known["visible_infrared"].masks
    assert not known["pansharpening"].masks
    assert "trained with no guidance" in known["pansharpening"].why_no_caption
    own = make_weights(tmp_path / "mine.safetensors", "medical", encoder="classical-texts-1")
    offered = offered_weights([str(own)])
    first = offered[0]
    assert first.why_no_caption == ""
    assert first.encoder == "classical-texts-1"
    assert first.label == "medical (mine.safetensors)", "one's own come before the shipped ones"
    write_image(tmp_path / "a.png", scene(1, 1, 20, 20))
    assert suited(offered, [tmp_path / "a.png"], "medical") == first
    assert suited(offered, [tmp_path / "a.png"], "multi_focus").name == "multi_focus"
    with pytest.raises(InputError, match="no such weights file"):
        offered_weights([str(tmp_path / "absent.safetensors")])


@given(height=st.integers(1, 90), width=st.integers(1, 90), suffix=st.sampled_from([".png", ".tif"]))
def test_large_images_are_shown_reduced(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("large") / f"image{suffix}"
    write_image(path, scene(1, 3, max(height, 7), max(width, 7))[:, :height, :width])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_visit, "PREVIEW", 16)
        shown = preview(path)
    pixels = read_image(path).pixels
    block = min(max(1, max(height, width) // 16), height, width)
    rows, columns = height // block, width // block
    cut = pixels[:, : rows * block, : columns * block].reshape(3, rows, block, columns, block)
    assert np.abs(shown.astype(int) - display(cut.mean(axis=(2, 4)))).max() <= 1


def test_metrics_are_those_of_evaluate(
    visit: Visit, pair: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = visit.take([str(path) for path in pair])
    fused = visit.fuse(files, weights_for("visible_infrared"), Settings(), None, "")
    values = metrics_of(fused)
    assert set(values) == {"MI", "VIF", "SF", "Qabf", "Qcb", "Qy", "Qcv"}
    expected = measure(fused.sample, fused.path, Options()).values
    assert values == pytest.approx({name: expected[name] for name in values}, nan_ok=True, rel=0)
    monkeypatch.setattr(app_visit, "MEASURED_PIXELS", 100)
    assert metrics_of(fused) == {}


def test_examples_are_the_embedded_scenes(tmp_path: Path, visit: Visit) -> None:
    examples = draw_examples(tmp_path / "examples")
    offered = offered_weights()
    assert {example.task for example in examples} == {weights.task for weights in offered}
    for example in examples:
        files = visit.take([str(path) for path in example.sources])
        assert visit.guess(files) == example.task
        chosen = suited(offered, files, example.task)
        assert chosen.name.startswith(example.task), "what `fuse` takes for so many bands"
        assert example.caption
    assert examples[0].masks is not None


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(commands, ["app"])
    assert result.exit_code == 2
    assert "pip install 'rwkvfusion[app]'" in result.stderr

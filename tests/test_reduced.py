"""`pipeline degrade`: full-resolution scenes become samples with targets."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline import protocols
from pipeline.cli import app
from pipeline.config import load_pipeline
from pipeline.images import read_image, write_image
from pipeline.manifest import Sample, Source, write_manifest
from pipeline.reduced import windows


def make_scenes(
    bits: int | None, shapes: dict[str, tuple[int, int]], bands: int = 4
) -> dict[str, np.ndarray]:
    """Write full-resolution scenes `full` of random digital numbers; returns the multispectral ones."""
    rng = np.random.default_rng(0)
    samples, scenes = [], {}
    top = 2 ** (bits or 16) - 1
    for name, (h, w) in shapes.items():
        scenes[name] = rng.integers(0, top + 1, (bands, h, w))
        pan = rng.integers(0, top + 1, (1, 4 * h, 4 * w))
        sources = []
        for role, pixels in (("pan", pan), ("ms", scenes[name])):
            path = Path("full") / role / f"{name}.tif"
            write_image(path, (pixels / top).astype(np.float32), bits or 16)
            sources.append(Source(role, path))
        samples.append(Sample(name, "pansharpening", "train", tuple(sources), bits=bits))
    write_manifest(Path("full.csv"), samples, Path("full"))
    Path("params.yaml").write_text(
        yaml.safe_dump({"datasets": {"full": {"manifest": "full.csv", "root": "full", "masks": "none"}}})
    )
    return scenes


def degrade(*options: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["degrade", "--dataset", "full", "--out", "data/small", *options])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("bits", [8, 11, None])
def test_targets_are_the_scenes_own_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int | None
) -> None:
    monkeypatch.chdir(tmp_path)
    scenes = make_scenes(bits, {"a": (65, 100), "b": (24, 40)})
    assert "7 samples" in degrade("--sensor", "qb", "--size", "32", "--name", "small")
    data = load_pipeline().dataset("small")
    assert data.sensor == "qb"
    samples = data.samples()
    assert [sample.id for sample in samples] == [
        *(f"a_{row}_{column}" for row in (0, 32) for column in (0, 32, 64)),
        "b_0_0",
    ]
    top = 2 ** (bits or 16) - 1
    whole = protocols.wald(scenes["a"][:, :64, :100] / top, (0.34, 0.32, 0.30, 0.22), 4)
    for sample in samples:
        name, row, column = sample.id.split("_")
        y, x = int(row), int(column)
        assert sample.target is not None
        target = read_image(sample.target, sample.bits)
        pan, ms = (read_image(source.path, sample.bits) for source in sample.sources)
        h, w = target.size
        assert (pan.size, ms.size) == ((h, w), (h // 4, w // 4))
        np.testing.assert_array_equal(np.rint(target.pixels * top), scenes[name][:, y : y + h, x : x + w])
        if name == "a":
            expected = whole[:, y // 4 : (y + h) // 4, x // 4 : (x + w) // 4]
            np.testing.assert_allclose(ms.pixels, expected, atol=0.51 / top + 1e-6)
    assert samples[-1].target is not None
    assert read_image(samples[-1].target, samples[-1].bits).size == (24, 32)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 40))
def test_windows_lie_inside_side_by_side(height: int, width: int, size: int) -> None:
    seen = np.zeros((height, width), int)
    for row, column, high, wide in windows(height, width, size):
        assert row + high <= height
        assert column + wide <= width
        assert (high, wide) == tuple(min(size or side, side) for side in (height, width))
        seen[row : row + high, column : column + wide] += 1
    assert seen.max() == 1
    assert seen[0, 0] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sensor", "wv3"), "has 8 bands, the image 4"),
        (("--sensor", "nothing"), "unknown sensor"),
        (("--sensor", "qb", "--ratio", "2"), "no ratio of 2"),
        (("--sensor", "qb", "--size", "30"), "divides the size"),
        (("--sensor", "qb", "--name", "my set"), "use letters"),
    ],
)
def test_what_does_not_fit_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_scenes(11, {"a": (32, 32)})
    before = Path("params.yaml").read_text()
    assert message in degrade(*options, code=2)
    assert Path("params.yaml").read_text() == before
    assert not Path("data/small").exists()


@pytest.mark.parametrize(("name", "sensor", "count"), [("worldview2", "wv2", 4), ("worldview3", "wv3", 1)])
def test_real_scenes_of_the_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path, name: str, sensor: str, count: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("datasets: {}\n")
    folder = str(shared_data / "pansharpening" / name)
    runner = CliRunner()
    assert runner.invoke(app, ["manifest", folder, "--dataset", "full"]).exit_code == 0
    degrade("--sensor", sensor, "--size", "160")
    samples = load_pipeline().dataset("full_reduced").samples()
    assert len(samples) == count
    scene = load_pipeline().dataset("full").samples()[0]
    ms = read_image(scene.sources[1].path, 11).pixels
    for sample in samples:
        assert sample.target is not None
        row, column = (int(value) for value in sample.id.split("_")[-2:])
        target = read_image(sample.target, 11)
        h, w = target.size
        np.testing.assert_array_equal(target.pixels, ms[:, row : row + h, column : column + w])
        coarse = read_image(sample.sources[1].path, 11)
        assert coarse.size == (h // 4, w // 4)
        # The reduced image shows the same ground: it follows the target's own block means.
        means = target.pixels.reshape(8, h // 4, 4, w // 4, 4).mean(axis=(2, 4))
        assert np.corrcoef(means.ravel(), coarse.pixels.ravel())[0, 1] > 0.9

"""`pipeline degrade --cubes`: hyperspectral cubes become samples of two sources and a target."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from typer.testing import CliRunner

from model.data import FusionDataset
from pipeline import protocols
from pipeline.cli import app
from pipeline.config import load_pipeline
from pipeline.images import read_image, write_image
from pipeline.sensors import EDGES, GAINS

BANDS = 12


@pytest.fixture
def cubes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Two cubes in different files, beside a label map; the values are those of the files."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("datasets: {}\n")
    random = np.random.default_rng(0)
    scene = random.integers(0, 8192, (BANDS, 70, 50)).astype(np.uint16)
    (tmp_path / "cubes").mkdir()
    scipy.io.savemat(tmp_path / "cubes" / "park.mat", {"data": scene.transpose(1, 2, 0)})
    write_image(Path("cubes/field.tif"), random.random((BANDS, 24, 33), dtype=np.float32), 13)
    write_image(Path("cubes/labels.png"), random.random((1, 70, 50), dtype=np.float32))
    return {"park_data": scene / 8191, "field": read_image(Path("cubes/field.tif"), 13).pixels.astype(float)}


def degrade(*options: str, code: int = 0) -> str:
    words = ["degrade", "--cubes", "cubes", "--out", "data/simulated", "--name", "made", *options]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("ratio", [4, 8])
def test_sources_are_the_cube_blurred_and_seen_through_broad_bands(
    cubes: dict[str, np.ndarray], ratio: int
) -> None:
    said = degrade(
        *("--sensor", "QB", "--wavelengths", "430:910", "--ratio", str(ratio), "--size", "32", "--bits", "13")
    )
    assert "1 images with other numbers of bands left out" in said
    edges = np.array(EDGES["qb"], float)
    narrow = np.linspace(430, 910, BANDS)
    response = np.exp(-4 * np.log(2) * ((narrow - edges.mean(1)[:, None]) / np.diff(edges)) ** 2)
    response /= response.sum(1, keepdims=True)
    data = load_pipeline().dataset("made")
    assert [s.id for s in data.samples() if s.id.startswith("park")] == [
        f"park_data_{row}_0" for row in (0, 32)
    ]
    for sample in data.samples():
        name, row, column = sample.id.rsplit("_", 2)
        cube = cubes[name]
        y, x = int(row), int(column)
        ms, hs = (read_image(source.path, sample.bits) for source in sample.sources)
        assert sample.target is not None
        target = read_image(sample.target, sample.bits)
        high, wide = target.size
        assert sample.roles == ("ms", "hs")
        assert (ms.bands, hs.bands, target.bands) == (4, BANDS, BANDS)
        assert (ms.size, hs.size) == (target.size, (high // ratio, wide // ratio))
        step = 0.51 / 8191 + 1e-6
        part = cube[:, y : y + high, x : x + wide]
        np.testing.assert_allclose(target.pixels, part, atol=1e-6)
        np.testing.assert_allclose(ms.pixels, np.einsum("mc,chw->mhw", response, part), atol=step, rtol=1e-4)
        _, h, w = cube.shape
        whole = protocols.gaussian(cube[:, : h - h % ratio, : w - w % ratio], ratio)
        blurred = whole[:, y // ratio : (y + high) // ratio, x // ratio : (x + wide) // ratio]
        np.testing.assert_allclose(hs.pixels, blurred, atol=step)


def test_a_table_of_weights_and_what_is_made_can_be_trained_on(cubes: dict[str, np.ndarray]) -> None:
    weights = np.random.default_rng(1).random((3, BANDS))
    Path("camera.csv").write_text("\n".join(", ".join(map(str, row)) for row in weights))
    assert "2 images with other" not in degrade("--response", "camera.csv", "--size", "0")
    samples = load_pipeline().dataset("made").samples()
    assert len(samples) == 2
    sample = next(s for s in samples if s.id.startswith("field"))
    ms, target = (read_image(path) for path in (sample.sources[0].path, sample.target) if path)
    expected = np.einsum("mc,chw->mhw", weights / weights.sum(1, keepdims=True), target.pixels)
    np.testing.assert_allclose(ms.pixels, expected, atol=1e-5)
    dataset = FusionDataset(samples, "hyper_multispectral", crop=16)
    assert (dataset.in_channels, dataset.ratios, dataset.out_channels) == ((3, BANDS), (1, 4), BANDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--cubes needs --response FILE"),
        (("--sensor", "other", "--wavelengths", "430:910"), "the name of a --sensor"),
        (("--sensor", "qb", "--wavelengths", "910:430"), "FIRST:LAST"),
        (("--sensor", "wv2", "--wavelengths", "500:600"), "choose a sensor whose bands the cubes cover"),
        (("--response", "missing.csv"), "no table of numbers"),
        (("--response", "words.csv"), "no table of numbers"),
        (("--response", "short.csv"), "3 images have others"),
        (("--response", "black.csv"), "one at least above 0"),
        (("--sensor", "qb", "--wavelengths", "430:910", "--size", "30"), "divides the size"),
        (("--dataset", "full"), "give either --dataset"),
    ],
)
def test_what_does_not_fit_is_said(
    cubes: dict[str, np.ndarray], options: tuple[str, ...], message: str
) -> None:
    Path("words.csv").write_text("blue green\n")
    Path("short.csv").write_text("1 2 3\n")
    Path("black.csv").write_text("0 0 0\n")
    assert message in degrade(*options, code=2)
    assert Path("params.yaml").read_text() == "datasets: {}\n"
    assert not Path("data/simulated").exists()


def test_every_sensor_has_edges_for_its_gains() -> None:
    assert {name: len(edges) for name, edges in EDGES.items()} == {n: len(g) for n, g in GAINS.items()}
    assert all(low < high for edges in EDGES.values() for low, high in edges)

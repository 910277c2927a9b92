from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from tiny_project import make_weights, scene

from model import fusing
from model import large as large_images
from model.inference import BYTES_PER_CHANNEL, Colour, Fuser, fuse, load_weights
from model.jobs import jobs_of_paths
from model.sample import LIBRARIES, Settings
from model.tiling import ALIGN, OVERLAP, plan, strips, weights
from model.whole import SAMPLED
from pipeline.images import luminance, read_image, write_image


@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    pixels=st.integers(1, 4_000_000),
    ratio=st.sampled_from([1, 2, 3, 4]),
)
def test_tiles_of_one_size_cover_the_image(height: int, width: int, pixels: int, ratio: int) -> None:
    size = (height * ratio, width * ratio)
    tiling = plan(size, pixels, ratio)
    for length, side, starts in zip(size, tiling.tile, (tiling.rows, tiling.columns), strict=True):
        assert starts[0] == 0
        assert starts[-1] + side == length
        assert all(start % ratio == 0 for start in starts)
        assert all(start % ALIGN == 0 for start in starts[:-1])
        assert all(a < b and a + side >= b + OVERLAP for a, b in pairwise(starts))
        assert np.allclose(
            np.sum(
                [
                    np.pad(w, (s, length - s - side))
                    for w, s in zip(weights(starts, side), starts, strict=True)
                ],
                axis=0,
            ),
            1,
            atol=1e-6,
        )
    least = 4 * OVERLAP + 2 * ALIGN * ratio
    assert tiling.tile[0] * tiling.tile[1] <= max(4 * pixels, least**2) or len(tiling) == 1


def test_an_image_within_the_budget_is_one_tile() -> None:
    assert len(plan((100, 200), 20000)) == 1
    assert len(plan((3000, 3000), float("inf"))) == 1


@given(data=st.data())
def test_blending_gives_back_what_the_tiles_were_cut_from(data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 300), st.integers(1, 300)))
    tiling = plan(size, data.draw(st.integers(1, 20000)), overlap=8)
    image = np.random.default_rng(0).random((2, *size), dtype=np.float32)
    h, w = tiling.tile

    def cut(top: int, left: int) -> np.ndarray:
        return image[:, top : top + h, left : left + w]

    whole = list(strips(tiling, cut))
    assert np.allclose(np.concatenate([strip.pixels for strip in whole], axis=1), image, atol=1e-6)
    done = data.draw(st.integers(0, len(whole) - 1))
    rest = list(strips(tiling, cut, done, whole[done - 1].carry if done else None))
    for strip, other in zip(whole[done:], rest, strict=True):
        assert strip.index == other.index
        assert strip.top == other.top
        assert np.array_equal(strip.pixels, other.pixels)


@pytest.fixture(scope="module")
def fuser(tmp_path_factory: pytest.TempPathFactory) -> Fuser:
    return load_weights(
        make_weights(tmp_path_factory.mktemp("weights") / "vi.safetensors", "visible_infrared")
    )


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of about 100 pixels, so that the images of these tests may be small."""
    for module in ("model.inference", "model.large"):
        monkeypatch.setattr(f"{module}.plan", partial(plan, overlap=24))


def seam(fuser: Fuser, sources: list[np.ndarray], memory: int, colour: Colour = "auto") -> float:
    """Mean absolute difference of tiles to the whole."""
    whole = fuse(sources, fuser, colour=colour)
    tiled = fuse(sources, fuser, memory=memory, colour=colour)
    assert not np.array_equal(tiled, whole)
    return float(np.abs(tiled - whole).mean())


@pytest.mark.slow
def test_seams_of_a_real_pair_are_less_than_a_grey_level(shared_data: Path) -> None:
    shipped = load_weights("visible_infrared")
    folder = shared_data / "visible_infrared" / "llvip"
    paths = [sorted((folder / role).iterdir())[0] for role in ("visible", "infrared")]
    sources = [luminance(read_image(path).pixels)[None] for path in paths]
    assert seam(shipped, sources, 600**2 * BYTES_PER_CHANNEL * shipped.network.config.width) < 1 / 255


@pytest.mark.usefixtures("small_tiles")
def test_every_forward_of_a_window_has_its_own_means(fuser: Fuser) -> None:
    """Band by band is each band alone, in tiles too."""
    sources = [scene(1, 3, 100, 240), scene(2, 1, 100, 240)]
    fused = fuse(sources, fuser, memory=2**20, colour="rgb")
    for band in range(3):
        alone = fuse([sources[0][band], sources[1]], fuser, memory=2**20)
        assert np.allclose(fused[band], alone[0], atol=1e-6)


@pytest.mark.usefixtures("small_tiles")
def test_tiles_know_of_the_whole_image(fuser: Fuser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights, which look far: without means and decays of the whole the difference is larger."""
    sources = [scene(1, 1, 180, 240), scene(2, 1, 180, 240)]
    sources[0][:, :, 120:] *= 0.3
    told = seam(fuser, sources, 2**22)
    monkeypatch.setattr("model.inference.learn_whole", lambda tiling, fused: None)
    assert told < 0.7 * seam(fuser, sources, 2**22)
    assert all(getattr(module, "stretch", None) is None for module in fuser.network.modules())
    assert all(getattr(module, "mean", None) is None for module in fuser.network.modules())


@pytest.mark.usefixtures("small_tiles")
def test_a_window_of_masks_goes_with_each_tile(fuser: Fuser) -> None:
    sources = [scene(1, 1, 100, 240), scene(2, 1, 100, 240)]
    masks = np.zeros((1, 100, 240), bool)
    masks[0, 60:80, 200:230] = True
    plain, guided = (fuse(sources, fuser, memory=2**20, masks=given_) for given_ in (None, masks))
    changed = np.abs(guided - plain).max(axis=0)
    assert changed[60:80, 200:230].mean() > 10 * changed[:, :80].mean()


def large(folder: Path) -> tuple[list[Path], Path]:
    """Two tiled TIFFs that are beyond the least budget's pieces."""
    paths = [folder / "visible.tif", folder / "infrared.tif"]
    for path, pixels in zip(paths, (scene(1, 3, 220, 170), scene(2, 1, 220, 170)), strict=True):
        write_image(path, pixels)
    return paths, folder / "fused.tif"


def settings(weights: Path) -> Settings:
    """A budget with room for less than the images."""
    return Settings(weights=str(weights), memory=LIBRARIES + 2**20)


@pytest.mark.usefixtures("small_tiles")
def test_pieces_are_the_tiled_image_in_a_tiled_bigtiff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_file = make_weights(tmp_path / "vi.safetensors", "visible_infrared")
    paths, output = large(tmp_path)
    monkeypatch.setattr("model.sample._LEAST", 2**20)
    outcome = fusing.run_jobs(jobs_of_paths(paths, output, "visible_infrared")[0], settings(weights_file))
    assert outcome.fused == 1
    expected = fuse([read_image(path).pixels for path in paths], load_weights(weights_file), memory=2**20)
    found = read_image(output)
    assert found.bits == 8
    assert np.abs(found.pixels - expected).max() <= 0.5 / 255 + 1e-6
    with tifffile.TiffFile(output) as tiff:
        assert tiff.is_bigtiff
        assert tiff.pages[0].is_tiled
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.usefixtures("small_tiles")
def test_pieces_go_on_where_they_were_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights_file = make_weights(tmp_path / "vi.safetensors", "visible_infrared")
    paths, output = large(tmp_path)
    monkeypatch.setattr("model.sample._LEAST", 2**20)
    jobs = jobs_of_paths(paths, output, "visible_infrared")[0]
    fusing.run_jobs(jobs, settings(weights_file))
    expected = output.read_bytes()
    output.unlink()
    tiles = len(plan((220, 170), 2**20 / (BYTES_PER_CHANNEL * 4), overlap=24))

    class Killed(BaseException):
        pass

    real, calls = large_images.fuse_window, []

    def killed_in_the_second_row(*arguments: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 16:
            raise Killed
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(large_images, "fuse_window", killed_in_the_second_row)
    with pytest.raises(Killed):
        fusing.run_jobs(jobs, settings(weights_file))
    assert not output.exists()
    calls[:] = [1] * 100
    fusing.run_jobs(jobs, settings(weights_file))
    assert output.read_bytes() == expected
    assert 0 < len(calls) - 100 < tiles + SAMPLED

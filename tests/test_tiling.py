"""Tiles: they cover the image, give what the whole gives, and go on after a kill."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_project import make_weights, scene

from model import fusing
from model import tiled as tiled_fusion
from model.inference import BYTES_PER_CHANNEL, Fuser, fuse, load_weights, window_of
from model.jobs import jobs_of_paths
from model.sample import LIBRARIES, Settings
from model.segments import Tokens, carry, summarise
from model.tiled import Patches
from model.tiling import plan
from model.whole import shape_of
from pipeline.errors import InputError
from pipeline.images import luminance, read_image, write_image

ROUNDING = 2e-5  # of float32 through a network; a grey level is 4e-3


@given(
    size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    pixels=st.integers(1, 4_000_000),
    align=st.sampled_from([1, 2, 4, 8]),
    reach=st.integers(1, 100),
    least=st.sampled_from([8, 256]),
)
def test_tiles_of_one_size_cover_the_image_in_mirrored_pairs(
    size: tuple[int, int], pixels: int, align: int, reach: int, least: int
) -> None:
    tiling = plan(size, pixels, align, reach, least)
    for length, axis in zip(size, (tiling.rows, tiling.columns), strict=True):
        assert length <= axis.length < length + align
        assert axis.length % align == 0
        starts, side = axis.starts, axis.side
        assert all(start % align == 0 for start in (*starts, side, *axis.cuts))
        assert [axis.length - side - start for start in reversed(starts)] == list(starts)
        assert all(a < b for a, b in pairwise(axis.cuts))
        assert (axis.cuts[0], axis.cuts[-1]) == (0, axis.length)
        for n, start in enumerate(starts):  # a tile knows what is taken from it, up to the image's own border
            assert n == 0 or axis.cuts[n] >= start + reach
            assert n == len(starts) - 1 or axis.cuts[n + 1] <= start + side - reach
    tiles = [tile for pair in tiling.pairs for tile in pair]
    assert len(tiles) == len(set(tiles)) == len(tiling)
    parts = [tiling.own(tile) for tile in tiles]
    areas = [(rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in parts]
    assert min(areas) > 0
    assert sum(areas) == size[0] * size[1]
    floor = max(least, 4 * reach, 2 * reach + 6 * align)
    rounding = 8 * align * sum(tiling.tile)
    assert np.prod(tiling.tile) * min(len(tiling), 2) <= max(pixels, 2 * floor**2) + rounding


def test_an_image_within_the_budget_is_one_tile() -> None:
    assert len(plan((100, 200), 20000, 2, 9)) == 1
    assert len(plan((3000, 3000), float("inf"), 2, 9)) == 1


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    lines=st.integers(1, 4),
    seed=st.integers(0, 99),
    to_the_left=st.booleans(),
)
def test_stretches_carried_over_a_sequence_are_its_sums(
    lengths: list[int], lines: int, seed: int, to_the_left: bool
) -> None:
    """Against F_{t+1} = e^{-r} F_t + e^k v of docs/operator.md, token by token in float64."""
    random, channels = np.random.default_rng(seed), 3
    count = sum(lengths)
    key, value = random.normal(0, 5, (lines, count, channels)), random.normal(0, 1, (lines, count, channels))
    rate = random.uniform(-0.3, 2, channels)
    if to_the_left:
        key, value, lengths = key[::-1, ::-1], value[::-1, ::-1], lengths[::-1]
    bounds = np.cumsum([0, *lengths])
    found = []
    for begin, end in pairwise(bounds):
        first, last = (count - end, count - begin) if to_the_left else (begin, end)
        stretch = [torch.from_numpy(x[::-1, ::-1].copy() if to_the_left else x.copy()) for x in (key, value)]
        found.append([
            x.double().numpy()[:: -1 if to_the_left else 1]
            for x in summarise(*(x[:, first:last] for x in stretch), torch.from_numpy(rate), to_the_left)
        ])  # fmt: skip
    parts = Tokens(*(np.stack([own[kind] for own in found], axis=1) for kind in (0, 1)))
    entering, last = carry(parts, lengths, rate, Tokens.none(channels))
    top, bottom = np.zeros(channels), np.zeros(channels)
    for line in range(lines):
        for place in range(count):
            if place in bounds and bottom.any():
                part = list(bounds).index(place)
                assert np.allclose(entering.key[line, part], np.log(bottom), rtol=1e-4, atol=1e-4)
                assert np.allclose(entering.value[line, part], top / bottom, rtol=1e-4, atol=1e-4)
            top = np.exp(-rate) * top + np.exp(key[line, place]) * value[line, place]
            bottom = np.exp(-rate) * bottom + np.exp(key[line, place])
    assert np.allclose(last.key, np.log(bottom), rtol=1e-4, atol=1e-4)
    assert np.allclose(last.value, top / bottom, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def fuser(tmp_path_factory: pytest.TempPathFactory) -> Fuser:
    return load_weights(
        make_weights(tmp_path_factory.mktemp("weights") / "vi.safetensors", "visible_infrared")
    )


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of a few dozen pixels, so that the images of these tests may be small."""
    for module in ("model.inference", "model.large"):
        monkeypatch.setattr(f"{module}.plan", partial(plan, least=64))


def tiles_of(fuser: Fuser, side: int) -> int:
    """The memory for tiles of about that side."""
    return 2 * side**2 * BYTES_PER_CHANNEL * fuser.network.config.width


@pytest.mark.usefixtures("small_tiles")
@given(
    size=st.tuples(st.integers(65, 140), st.integers(65, 140)),
    side=st.integers(64, 80),
    task=st.sampled_from(["visible_infrared", "medical"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=8)
def test_tiles_of_the_shipped_weights_give_the_whole(
    size: tuple[int, int], side: int, task: str, seed: int
) -> None:
    """No seam: the largest difference anywhere, of unlike images, under text and masks."""
    shipped = load_weights(task)
    random = np.random.default_rng(seed)
    images = [(0.7 * scene(seed + n, 1, *size) + 0.3 * random.random((1, *size))) for n in range(2)]
    images[0][:, :, size[1] // 2 :] *= 0.2
    sources = [image.astype(np.float32).clip(0, 1) for image in images]
    text = random.normal(size=(5, 512)).astype(np.float32)
    masks = random.random((3, *size)) > 0.7
    whole, parts = (
        fuse(sources, shipped, text=text, masks=masks, memory=memory)
        for memory in (None, tiles_of(shipped, side))
    )
    assert np.abs(whole - parts).max() < ROUNDING


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_tiles_of_sharpening_give_the_whole(tmp_path: Path, ratio: int) -> None:
    sharpen = load_weights(make_weights(tmp_path / "ps.safetensors", "pansharpening"))
    small = (100 // ratio, 130 // ratio + 1)
    sources = [scene(1, 1, *(ratio * side for side in small)), scene(2, 5, *small)]
    memory = tiles_of(sharpen, 64)
    whole, parts = (fuse(sources, sharpen, memory=given) for given in (None, memory))
    assert whole.shape == (5, ratio * small[0], ratio * small[1])
    assert np.abs(whole - parts).max() < ROUNDING


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("depths", [((2, 1, 1), (2, 1)), ((1,), ())])
def test_tiles_of_deep_networks_give_the_whole(tmp_path: Path, depths: tuple[tuple[int, ...], ...]) -> None:
    changed: dict[str, object] = {"encoder_depths": depths[0], "decoder_depths": depths[1]}
    other = load_weights(make_weights(tmp_path / "vi.safetensors", "visible_infrared", changed=changed))
    assert shape_of(other.network).align == 2 ** (len(depths[0]) - 1)
    sources = [scene(1, 1, 133, 201), scene(2, 1, 133, 201)]
    whole, parts = (fuse(sources, other, memory=given) for given in (None, tiles_of(other, 120)))
    assert np.abs(whole - parts).max() < ROUNDING


@pytest.mark.slow
def test_a_real_pair_has_no_seams(shared_data: Path) -> None:
    shipped = load_weights("visible_infrared")
    folder = shared_data / "visible_infrared" / "llvip"
    paths = [sorted((folder / role).iterdir())[0] for role in ("visible", "infrared")]
    sources = [luminance(read_image(path).pixels)[None, 200:760, 300:1000] for path in paths]
    whole, parts = (fuse(sources, shipped, memory=given) for given in (None, tiles_of(shipped, 300)))
    assert np.abs(parts - whole).max() < ROUNDING


@pytest.mark.usefixtures("small_tiles")
def test_colour_and_folded_sources_in_tiles(fuser: Fuser) -> None:
    """Several forwards for one window: each has facts of its own."""
    sources = [scene(1, 3, 60, 100), scene(2, 1, 60, 100), scene(3, 3, 60, 100)]
    for colour in ("rgb", "ycbcr"):
        whole, parts = (fuse(sources, fuser, memory=m, colour=colour) for m in (None, tiles_of(fuser, 64)))
        assert np.abs(whole - parts).max() < 10 * ROUNDING  # chrominance is divided by what room there is
    band = fuse([sources[0][1], sources[1]], fuser, memory=tiles_of(fuser, 64))
    every = fuse(sources[:2], fuser, memory=tiles_of(fuser, 64), colour="rgb")
    assert np.allclose(every[1], band[0], atol=1e-6)


@pytest.mark.usefixtures("small_tiles")
def test_the_network_is_left_as_it_was(fuser: Fuser) -> None:
    sources = [scene(1, 1, 100, 140), scene(2, 1, 100, 140)]
    before = fuse(sources, fuser)
    fuse(sources, fuser, memory=tiles_of(fuser, 64))
    assert all(getattr(module, "whole", None) is None for module in fuser.network.modules())
    assert np.array_equal(fuse(sources, fuser), before)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("change", [{"operator": "attention"}, {"scan": 2}, {"operator": "window_bi_wkv"}])
def test_other_operators_are_fused_in_tiles_too(tmp_path: Path, change: dict[str, object]) -> None:
    other = load_weights(make_weights(tmp_path / "vi.safetensors", "visible_infrared", changed=change))
    sources = [scene(1, 1, 400, 40), scene(2, 1, 400, 40)]
    parts = fuse(sources, other, memory=tiles_of(other, 64))
    assert parts.shape == (1, 400, 40)
    assert np.abs(parts - fuse(sources, other)).mean() < 0.05


@given(data=st.data())
@settings(max_examples=30)
def test_a_window_is_enlarged_as_the_whole(data: st.DataObject) -> None:
    ratio = data.draw(st.integers(2, 5))
    small = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    size = (small[0] * ratio, small[1] * ratio)
    image = np.random.default_rng(0).random((2, *small), dtype=np.float32)
    top, left = (data.draw(st.integers(0, side - 1)) for side in size)
    height, width = (
        data.draw(st.integers(1, side - start)) for side, start in zip(size, (top, left), strict=True)
    )
    patches = Patches(size, [window_of(image)], [ratio], [2])
    (found,) = patches.at(top, left, height, width)
    whole = torch.nn.functional.interpolate(torch.from_numpy(image)[None], size, mode="bicubic")[0].numpy()
    assert np.allclose(found, whole[:, top : top + height, left : left + width], atol=1e-5)


def large(folder: Path) -> tuple[list[Path], Path]:
    """Two tiled TIFFs that are beyond the least budget's pieces."""
    paths = [folder / "visible.tif", folder / "infrared.tif"]
    for path, pixels in zip(paths, (scene(1, 3, 120, 150), scene(2, 1, 120, 150)), strict=True):
        write_image(path, pixels)
    return paths, folder / "fused.tif"


def budget(weights: Path) -> Settings:
    """A budget with room for less than the images."""
    return Settings(weights=str(weights), memory=LIBRARIES + 2**20)


@pytest.mark.usefixtures("small_tiles")
def test_threads_may_share_weights(fuser: Fuser) -> None:
    """Images at once and images in tiles, of which the network's modules are told."""
    sizes = [(60, 40), (140, 66), (24, 36), (66, 140)]
    samples = [[scene(n, 3, *size), scene(n + 9, 1, *size)] for n, size in enumerate(sizes)]
    memory = [None, 0, None, 0]
    expected = [fuse(own, fuser, memory=limit) for own, limit in zip(samples, memory, strict=True)]
    fresh = load_weights(fuser.path)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda own, limit: fuse(own, fresh, memory=limit), samples, memory)
            assert [np.array_equal(*both) for both in zip(found, expected, strict=True)] == [True] * 4


@pytest.mark.usefixtures("small_tiles")
def test_pieces_are_the_fused_image_in_a_tiled_bigtiff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_file = make_weights(tmp_path / "vi.safetensors", "visible_infrared")
    paths, output = large(tmp_path)
    monkeypatch.setattr("model.sample._LEAST", 2**20)
    outcome = fusing.run_jobs(jobs_of_paths(paths, output, "visible_infrared")[0], budget(weights_file))
    assert outcome.fused == 1
    expected = fuse([read_image(path).pixels for path in paths], load_weights(weights_file))
    found = read_image(output)
    assert found.bits == 8
    assert np.abs(found.pixels - expected).max() <= 0.5 / 255 + 1e-4
    with tifffile.TiffFile(output) as tiff:
        assert tiff.is_bigtiff
        assert tiff.pages[0].is_tiled
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.usefixtures("small_tiles")
def test_pieces_leave_other_runs_and_the_users_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run would write its own pixels between those of the first."""
    weights_file = make_weights(tmp_path / "vi.safetensors", "visible_infrared")
    paths, output = large(tmp_path)
    monkeypatch.setattr("model.sample._LEAST", 2**20)
    jobs = jobs_of_paths(paths, output, "visible_infrared")[0]
    real, seen = tiled_fusion.combine, []

    def meanwhile(*arguments: object) -> np.ndarray:
        if not seen:
            seen.append(sorted(path.name for path in (tmp_path / "fused.tif.partial").iterdir()))
            with pytest.raises(InputError, match="another run is writing it"):
                fusing.run_jobs(jobs, replace(budget(weights_file), colour="rgb"))
            seen.append(sorted(path.name for path in (tmp_path / "fused.tif.partial").iterdir()))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tiled_fusion, "combine", meanwhile)
    fusing.run_jobs(jobs, budget(weights_file))
    assert seen[0] == seen[1] == ["lock", "picture.tif", "state.json"]
    assert not (tmp_path / "fused.tif.partial").exists()
    output.unlink()
    own = tmp_path / "fused.tif.partial" / "notes.txt"
    own.parent.mkdir()
    own.write_text("mine")
    with pytest.raises(InputError, match="holds files of yours"):
        fusing.run_jobs(jobs, budget(weights_file))
    assert [path.name for path in own.parent.iterdir()] == ["notes.txt"]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("stop", [0.3, 0.9])
def test_pieces_go_on_where_they_were_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: float
) -> None:
    """Killed while the whole is learned, and while tiles are fused."""
    weights_file = make_weights(tmp_path / "vi.safetensors", "visible_infrared")
    paths, output = large(tmp_path)
    monkeypatch.setattr("model.sample._LEAST", 2**20)
    jobs = jobs_of_paths(paths, output, "visible_infrared")[0]
    real, calls = tiled_fusion.combine, []

    class Killed(BaseException):
        pass

    def counting(*arguments: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == last:
            raise Killed
        return real(*arguments)  # type: ignore[arg-type]

    last = -1
    monkeypatch.setattr(tiled_fusion, "combine", counting)
    fusing.run_jobs(jobs, budget(weights_file))
    expected, every = output.read_bytes(), len(calls)
    output.unlink()
    calls.clear()
    last = int(stop * every)
    with pytest.raises(Killed):
        fusing.run_jobs(jobs, budget(weights_file))
    assert not output.exists()
    calls.clear()
    last = -1
    fusing.run_jobs(jobs, budget(weights_file))
    assert output.read_bytes() == expected
    pass_ = every / (shape_of(load_weights(weights_file).network).facts + 1)
    assert every <= len(calls) + int(stop * every) <= every + pass_

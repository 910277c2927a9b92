"""Images in Zarr arrays: round trips, other people's arrays, and files larger than memory."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_project import make_weights, scene

from model import fusing, large, tiled
from model.jobs import jobs_of_paths
from model.sample import LIBRARIES, Settings
from model.tiling import plan
from pipeline.errors import InputError
from pipeline.images import image_facts, read_image, read_window, write_image


@given(
    shape=st.tuples(st.sampled_from([1, 2, 3, 8]), st.integers(1, 40), st.integers(1, 40)),
    bits=st.sampled_from([8, 11, 16, 32]),
    data=st.data(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_what_is_written_is_read_back(
    tmp_path: Path, shape: tuple[int, int, int], bits: int, data: st.DataObject
) -> None:
    path, pixels = tmp_path / "image.zarr", np.random.default_rng(0).random(shape, dtype=np.float32)
    write_image(path, pixels, bits)  # replaces the one before
    found = read_image(path)
    assert found.bits == bits
    assert np.abs(found.pixels - pixels).max() <= (0 if bits == 32 else 0.5 / (2**bits - 1) + 1e-6)
    top, left = (data.draw(st.integers(0, side - 1)) for side in shape[1:])
    height, width = (
        data.draw(st.integers(1, side - start)) for side, start in zip(shape[1:], (top, left), strict=True)
    )
    window = read_window(path, top, left, height, width).pixels
    assert np.array_equal(window, found.pixels[:, top : top + height, left : left + width])
    assert image_facts(path).streams
    assert [file.name for file in tmp_path.iterdir()] == ["image.zarr"]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_arrays_of_others(tmp_path: Path, zarr_format: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 20, 30), np.uint8)
    for name, array in (("chw", values), ("hwc", values.transpose(1, 2, 0)), ("hw", values[0])):
        path = tmp_path / f"{name}.zarr"
        zarr.create_array(path, data=np.ascontiguousarray(array), zarr_format=zarr_format)
        found = read_image(path)
        assert np.array_equal(np.rint(found.pixels * 255), values if name != "hw" else values[:1])
    group = zarr.open_group(tmp_path / "group.zarr", mode="w", zarr_format=zarr_format)
    group.create_array("night", data=values)
    assert read_image(tmp_path / "group.zarr").size == (20, 30)
    group.create_array("day", data=values)
    assert read_image(tmp_path / "group.zarr#day").size == (20, 30)
    with pytest.raises(InputError, match="it holds day, night"):
        read_image(tmp_path / "group.zarr")


def test_mistakes_are_told(tmp_path: Path) -> None:
    for path in ("absent.zarr", "empty.zarr"):
        (tmp_path / "empty.zarr").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=path):
            read_image(tmp_path / path)
    zarr.create_array(tmp_path / "deep.zarr", data=np.zeros((2, 3, 4, 5)))
    with pytest.raises(InputError, match="this one has"):
        read_image(tmp_path / "deep.zarr")
    write_image(tmp_path / "a.zarr", scene(1, 3, 20, 30))
    for chunk in (tmp_path / "a.zarr/c").rglob("0"):
        if chunk.is_file():
            chunk.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"a\.zarr"):
        read_image(tmp_path / "a.zarr")


@pytest.mark.parametrize("killed", [False, True])
def test_larger_than_memory_from_zarr_to_zarr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """The same as a TIFF holds, also when the run is killed between two pairs of tiles."""
    monkeypatch.setattr("model.sample._LEAST", 2**20)
    monkeypatch.setattr(large, "plan", lambda *arguments: plan(*arguments, least=64))
    weights = make_weights(tmp_path / "vi.safetensors", "visible_infrared")
    chosen = Settings(weights=str(weights), memory=LIBRARIES + 2**20)
    for suffix in (".tif", ".zarr"):
        for role, bands in (("visible", 3), ("infrared", 1)):
            write_image(tmp_path / f"{role}{suffix}", scene(bands, bands, 110, 150))

    def run(suffix: str) -> Path:
        paths, output = (
            [tmp_path / f"{role}{suffix}" for role in ("visible", "infrared")],
            tmp_path / f"f{suffix}",
        )
        fusing.run_jobs(jobs_of_paths(paths, output)[0], chosen)
        return output

    if killed:
        real, calls = tiled.TiledFusion.fuse, []

        class Killed(BaseException):
            pass

        def once(self: tiled.TiledFusion, pair: object) -> object:
            calls.append(pair)
            if len(calls) == 4:
                raise Killed
            return real(self, pair)  # type: ignore[arg-type]

        monkeypatch.setattr(tiled.TiledFusion, "fuse", once)
        with pytest.raises(Killed):
            run(".zarr")
        assert not (tmp_path / "f.zarr").exists()
    zarr_file, tiff = run(".zarr"), run(".tif")
    assert np.array_equal(read_image(zarr_file).pixels, read_image(tiff).pixels)
    assert not list(tmp_path.glob("*.partial"))
    same = fusing.run_jobs(
        jobs_of_paths([tmp_path / "visible.zarr", tmp_path / "infrared.zarr"], zarr_file)[0], chosen
    )
    assert same.skipped == 1


def test_an_array_is_never_overwritten_by_what_is_made_of_it(tmp_path: Path) -> None:
    for role, bands in (("visible", 3), ("infrared", 1)):
        write_image(tmp_path / f"{role}.zarr", scene(bands, bands, 20, 30))
    paths = [tmp_path / "visible.zarr", tmp_path / "infrared.zarr"]
    with pytest.raises(InputError, match="is the visible source"):
        fusing.run_jobs(jobs_of_paths(paths, paths[0])[0], Settings(overwrite=True))


def test_only_an_array_is_replaced_by_an_array(tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "vi.safetensors", "visible_infrared")
    for role, bands in (("visible", 3), ("infrared", 1)):
        write_image(tmp_path / f"{role}.png", scene(bands, bands, 20, 30))
    output, store = tmp_path / "fused.zarr", tmp_path / "masks.zarr"
    write_image(output, scene(1, 3, 20, 30))
    zarr.create_group(store)
    (tmp_path / "mine.zarr").mkdir()
    paths = [tmp_path / "visible.png", tmp_path / "infrared.png"]
    chosen = Settings(weights=str(weights), overwrite=True)
    assert fusing.run_jobs(jobs_of_paths(paths, output)[0], chosen).fused == 1
    for other in (store, tmp_path / "mine.zarr"):
        with pytest.raises(InputError, match=f"{other.name}: is a folder with other things in it"):
            fusing.run_jobs(jobs_of_paths(paths, other)[0], chosen)
        assert other.is_dir()

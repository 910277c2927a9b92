"""Readers: each against the library that wrote the file, windows against the whole image."""

import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from PIL import ImageOps
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from rasterio.transform import Affine
from scipy.io import savemat
from spectral.io import envi

from pipeline.errors import InputError
from pipeline.images import GeoReference, image_facts, quantise, read_image, read_window, write_image

Array = np.ndarray


def noise(*shape: int, dtype: str = "uint8", high: int = 255) -> Array:
    return np.random.default_rng(0).integers(0, high, shape, endpoint=True).astype(dtype)


def gtiff(path: Path, bands: Array, **options: object) -> None:
    form = {"driver": "GTiff", "count": bands.shape[0], "dtype": bands.dtype}
    size = {"height": bands.shape[1], "width": bands.shape[2]}
    with rasterio.open(path, "w", **form, **size, **options) as dataset:
        dataset.write(bands)


def save_envi(interleave: str) -> Callable[[Path], Array]:
    def save(path: Path) -> Array:
        cube = noise(37, 53, 11, dtype="uint16", high=65535)
        envi.save_image(str(path), cube, interleave=interleave, ext=".img", byteorder=1)
        return cube.transpose(2, 0, 1)

    return save


def png_16(path: Path) -> Array:
    bands = noise(3, 37, 53, dtype="uint16", high=65535)
    with rasterio.open(path, "w", driver="PNG", width=53, height=37, count=3, dtype="uint16") as dataset:
        dataset.write(bands)
    return bands


def tiled_tiff(path: Path) -> Array:
    bands = noise(4, 300, 530, dtype="uint16", high=65535)
    gtiff(path, bands, tiled=True, blockxsize=128, blockysize=128, compress="lzw", photometric="MINISBLACK")
    return bands


def planar_tiff(path: Path) -> Array:
    bands = noise(5, 37, 53, dtype="uint16", high=65535)
    gtiff(path, bands, interleave="band", compress="zstd", predictor=2)
    return bands


def paged_tiff(path: Path) -> Array:
    bands = noise(6, 37, 53)
    tifffile.imwrite(path, bands, photometric="minisblack")
    return bands


def rows_as_pages(path: Path) -> Array:
    cube = noise(37, 53, 9)
    tifffile.imwrite(path, cube, photometric="minisblack")
    return cube.transpose(2, 0, 1)


def turned_tiff(path: Path) -> Array:
    stored = noise(37, 53)
    tifffile.imwrite(path, stored, extratags=[(274, "H", 1, 6, True)])
    return np.rot90(stored, -1)[None]


def inverted_tiff(path: Path) -> Array:
    stored = noise(37, 53)
    tifffile.imwrite(path, stored, photometric="miniswhite")
    return 255 - stored[None]


def bilevel_tiff(path: Path) -> Array:
    black = noise(37, 53, high=1)
    PillowImage.fromarray(black * 255).convert("1").save(path, compression="group4")
    return black[None]


def palette_tiff(path: Path) -> Array:
    image = PillowImage.fromarray(noise(37, 53, 3)).quantize(200)
    image.save(path)
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def alpha_tiff(path: Path) -> Array:
    pixels = noise(37, 53, 4)
    tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=["unassalpha"])
    return pixels[..., :3].transpose(2, 0, 1)


def overviews_tiff(path: Path) -> Array:
    bands = noise(1, 300, 530)
    gtiff(path, bands, tiled=True, blockxsize=128, blockysize=128)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4])
    return bands


def twelve_bit_tiff(path: Path) -> Array:
    bands = noise(1, 37, 53, dtype="uint16", high=4095)
    gtiff(path, bands, nbits=12)
    return bands


def bitmap(path: Path) -> Array:
    pixels = noise(37, 53, 3)
    PillowImage.fromarray(pixels).save(path)
    return pixels.transpose(2, 0, 1)


def array(path: Path) -> Array:
    cube = noise(37, 53, 5, dtype="uint16", high=65535)
    np.save(path, np.asfortranarray(cube))
    return cube.transpose(2, 0, 1)


def matlab_5(path: Path) -> Array:
    cube = noise(37, 53, 5, dtype="uint16", high=65535)
    savemat(path, {"other": cube[:3], "cube": cube}, do_compression=True)
    return cube.transpose(2, 0, 1)


def matlab_73(path: Path) -> Array:
    """MATLAB keeps its H x W x C arrays columns first, so HDF5 shows them as C x W x H."""
    cube = noise(37, 53, 5, dtype="uint16", high=65535)
    with h5py.File(path, "w", userblock_size=512) as file:
        dataset = file.create_dataset("cube", data=cube.T, chunks=(1, 16, 16), compression="gzip")
        dataset.attrs["MATLAB_class"] = np.bytes_("uint16")
    return cube.transpose(2, 0, 1)


def matlab_73_stack(path: Path) -> Array:
    stack = noise(4, 37, 53, 5, dtype="uint16", high=65535)
    with h5py.File(path, "w", userblock_size=512) as file:
        file["cube"] = stack.T
        file["cube"].attrs["MATLAB_class"] = np.bytes_("uint16")
    return stack[2].transpose(2, 0, 1)


def matlab_5_stack(path: Path) -> Array:
    stack = noise(4, 37, 53, 5, dtype="uint16", high=65535)
    savemat(path, {"cube": stack})
    return stack[2].transpose(2, 0, 1)


def hdf5_stack(path: Path) -> Array:
    """PanCollection's layout: N x C x H x W."""
    stack = noise(4, 5, 37, 53, dtype="uint16", high=65535)
    with h5py.File(path, "w") as file:
        file["group/cube"] = stack
        file["pan"] = stack[:, 0]
    return stack[2]


def hdf5_image(path: Path) -> Array:
    bands = noise(5, 37, 53, dtype="uint16", high=65535)
    with h5py.File(path, "w") as file:
        file["only"] = bands
    return bands


# Name of the image, who writes it and returns its bands, the greatest stored value, whether crops stream.
FILES = [
    ("deep.png", png_16, 65535, True),
    ("tiled.tif", tiled_tiff, 65535, True),
    ("planar.tif", planar_tiff, 65535, True),
    ("paged.tif", paged_tiff, 255, True),
    ("rows.tif", rows_as_pages, 255, False),
    ("turned.tif", turned_tiff, 255, True),
    ("inverted.tif", inverted_tiff, 255, True),
    ("bilevel.tif", bilevel_tiff, 1, True),
    ("palette.tif", palette_tiff, 255, True),
    ("alpha.tif", alpha_tiff, 255, True),
    ("overviews.tif", overviews_tiff, 255, True),
    ("twelve.tif", twelve_bit_tiff, 4095, True),
    ("a.bmp", bitmap, 255, True),
    ("a.npy", array, 65535, True),
    ("a.mat#cube", matlab_5, 65535, False),
    ("b.mat#cube", matlab_73, 65535, True),
    ("c.mat#cube[2]", matlab_5_stack, 65535, False),
    ("d.mat#cube[2]", matlab_73_stack, 65535, True),
    ("a.h5#group/cube[2]", hdf5_stack, 65535, True),
    ("a.h5", hdf5_image, 65535, True),
    ("bil.hdr", save_envi("bil"), 65535, True),
    ("bip.hdr", save_envi("bip"), 65535, True),
    ("bsq.hdr", save_envi("bsq"), 65535, True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "peak", "streams"), FILES, ids=[row[0] for row in FILES])
def test_every_format_gives_the_written_values(
    tmp_path: Path, name: str, write: Callable[[Path], Array], peak: int, streams: bool
) -> None:
    path = tmp_path / name
    expected = write(Path(str(path).partition("#")[0])) / np.float32(peak)
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, expected.astype(np.float32))
    facts = image_facts(path)
    assert (facts.bands, *facts.size) == expected.shape
    assert (facts.bits, facts.streams) == (peak.bit_length(), streams)
    assert image.bits == facts.bits
    height, width = facts.size
    rng = np.random.default_rng(1)
    for _ in range(4):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        h, w = int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1))
        window = read_window(path, top, left, h, w).pixels
        np.testing.assert_array_equal(window, image.pixels[:, top : top + h, left : left + w])
    with pytest.raises(ValueError, match="leaves"):
        read_window(path, 0, 1, height, width)


@given(
    orientation=st.integers(1, 8),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    suffix=st.sampled_from(["png", "tif"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_every_orientation_is_what_pillow_shows(
    tmp_path_factory: pytest.TempPathFactory, orientation: int, size: tuple[int, int], suffix: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("turned") / f"a.{suffix}"
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    PillowImage.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(path, exif=exif)
    with PillowImage.open(path) as opened:
        shown = np.asarray(ImageOps.exif_transpose(opened))
    pixels = quantise(read_image(path).pixels, 8)
    np.testing.assert_array_equal(pixels.transpose(1, 2, 0), shown)
    height, width = image_facts(path).size
    assert (height, width) == shown.shape[:2]
    top, left = int(rng.integers(height)), int(rng.integers(width))
    window = quantise(read_window(path, top, left, height - top, width - left).pixels, 8)
    np.testing.assert_array_equal(window, pixels[:, top:, left:])


def test_facts_are_told_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("a.png", "a.jpg", "a.bmp")
    for name in names:
        bitmap(tmp_path / name)

    def load(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    for name in names:
        facts = image_facts(tmp_path / name)
        assert (facts.size, facts.bands, facts.bits) == ((37, 53), 3, 8)


def test_orientation_may_stand_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    pixels, exif = noise(37, 53), PillowImage.Exif()
    exif[0x0112] = 6
    PillowImage.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    stored = (tmp_path / "a.png").read_bytes()
    start = stored.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(stored[start : start + 4], "big")
    last = stored.index(b"IEND") - 4
    moved = stored[:start] + stored[end:last] + stored[start:end] + stored[last:]
    (tmp_path / "b.png").write_bytes(moved)
    assert image_facts(tmp_path / "b.png").size == (53, 37)
    shown = quantise(read_image(tmp_path / "b.png").pixels, 8)[0]
    np.testing.assert_array_equal(shown, np.rot90(pixels, -1))


PLACED = {
    "transform": {"crs": CRS.from_epsg(32632), "transform": Affine(0.5, 0.01, 5e5, 0.02, -0.5, 5.4e6)},
    "points": {
        "crs": CRS.from_epsg(4326),
        "gcps": [GroundControlPoint(r, c, 10 + c / 9, 50 - r / 9, 7) for r, c in ((0, 0), (0, 50), (30, 0))],
    },
    "rpcs": {
        "rpcs": RPC(
            height_off=1.0, height_scale=500.0, lat_off=50.0, lat_scale=0.1, long_off=10.0, long_scale=0.1,
            line_off=20.0, line_scale=20.0, samp_off=30.0, samp_scale=30.0,
            line_den_coeff=[1.0] + [0.0] * 19, line_num_coeff=[0.0, 0.0, -1.0] + [0.0] * 17,
            samp_den_coeff=[1.0] + [0.0] * 19, samp_num_coeff=[0.0, 1.0] + [0.0] * 18,
            err_bias=None, err_rand=None,
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", PLACED)
def test_the_place_on_earth_goes_from_tiff_to_tiff(tmp_path: Path, kind: str) -> None:
    gtiff(tmp_path / "a.tif", noise(3, 40, 60), **PLACED[kind])
    image = read_image(tmp_path / "a.tif")
    assert image.georeference == image_facts(tmp_path / "a.tif").georeference
    assert hash(image.georeference) == hash(pickle.loads(pickle.dumps(image.georeference)))
    assert image.georeference is not None
    write_image(tmp_path / "b.tif", image.pixels, georeference=image.georeference)
    with rasterio.open(tmp_path / "a.tif") as a, rasterio.open(tmp_path / "b.tif") as b:
        np.testing.assert_array_equal(a.read(), b.read())
        assert (a.crs, a.transform, a.gcps[1]) == (b.crs, b.transform, b.gcps[1])
        assert [p.asdict() | {"id": 0} for p in a.gcps[0]] == [p.asdict() | {"id": 0} for p in b.gcps[0]]
        assert (a.rpcs and a.rpcs.to_dict()) == (b.rpcs and b.rpcs.to_dict())
    window = read_window(tmp_path / "a.tif", 7, 11, 20, 30)
    assert window.georeference == image.georeference.window(7, 11)
    write_image(tmp_path / "c.tif", window.pixels, georeference=window.georeference)
    with rasterio.open(tmp_path / "a.tif") as a, rasterio.open(tmp_path / "c.tif") as c:
        if kind == "transform":
            assert c.xy(3, 4) == pytest.approx(a.xy(10, 15), abs=1e-6)
        if kind == "points":
            assert c.gcps[0][1].col == a.gcps[0][1].col - 11
        if kind == "rpcs":
            assert c.rpcs.line_off == a.rpcs.line_off - 7


def test_an_image_without_a_place_has_none(tmp_path: Path) -> None:
    write_image(tmp_path / "a.tif", np.zeros((3, 9, 9), np.float32))
    assert read_image(tmp_path / "a.tif").georeference is None
    assert GeoReference().window(3, 4) == GeoReference()


def test_deep_colour_png_keeps_its_bits(tmp_path: Path) -> None:
    pixels = noise(3, 20, 30, dtype="uint16", high=65535)
    write_image(tmp_path / "a.png", pixels / np.float32(65535), 16)
    with rasterio.open(tmp_path / "a.png") as dataset:
        np.testing.assert_array_equal(dataset.read(), pixels)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_tiff_of_many_bands_is_one_picture_to_others(tmp_path: Path) -> None:
    pixels = noise(5, 20, 30, dtype="uint16", high=2047)
    write_image(tmp_path / "a.tif", pixels / np.float32(2047), 11)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), pixels)


def test_pages_that_differ_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as writer:
        writer.write(noise(20, 30))
        writer.write(noise(10, 15))
    tifffile.imwrite(tmp_path / "colour.tif", noise(2, 20, 30, 3), photometric="rgb")
    for name in ("sizes.tif", "colour.tif"):
        with pytest.raises(InputError, match="holds 2 pictures"):
            read_image(tmp_path / name)

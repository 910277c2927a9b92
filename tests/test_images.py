"""Images: every type round-trips, every bad file is named, sizes must agree."""

import errno
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from scipy.io import savemat

from pipeline.errors import InputError
from pipeline.images import (
    depth_by_values,
    display,
    enlarge,
    luminance,
    quantise,
    read_image,
    read_sample,
    read_sources,
    write_atomically,
    write_image,
)
from pipeline.manifest import Sample, Source

LOSSLESS = [
    (".png", 1, 8), (".png", 3, 8), (".png", 1, 16), (".bmp", 3, 8),
    (".tif", 1, 16), (".tif", 3, 8), (".tif", 8, 11), (".tif", 2, 32), (".npy", 5, 16), (".npy", 31, 32),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "bands", "bits"), LOSSLESS)
@given(size=st.tuples(st.integers(8, 30), st.integers(8, 30)), seed=st.integers(0, 99))
@settings(max_examples=8)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    bands: int,
    bits: int,
    size: tuple[int, int],
    seed: int,
) -> None:
    pixels = np.random.default_rng(seed).random((bands, *size), dtype=np.float32)
    path = tmp_path_factory.mktemp("image") / f"a{suffix}"
    write_image(path, pixels, bits)
    read = read_image(path, bits if bits == 11 else None)
    assert read.pixels.shape == pixels.shape
    assert read.pixels.dtype == np.float32
    np.testing.assert_array_equal(quantise(read.pixels, bits), quantise(pixels, bits))


def test_jpeg_stays_close(tmp_path: Path) -> None:
    y, x = np.mgrid[:40, :50] / 50
    pixels = np.stack([x, y, (x + y) / 2]).astype(np.float32)
    write_image(tmp_path / "a.jpg", pixels)
    assert np.abs(read_image(tmp_path / "a.jpg").pixels - pixels).mean() < 0.01


@pytest.mark.parametrize(
    ("array", "bits", "first"),
    [
        (np.array([[0, 255]], np.uint8), None, [0, 1]),
        (np.array([[0, 65535]], np.uint16), None, [0, 1]),
        (np.array([[0, 2047]], np.uint16), 11, [0, 1]),
        (np.array([[0, 255]], np.uint8), 11, [0, 1]),
        (np.array([[0.25, 1.0]], np.float64), None, [0.25, 1]),
        (np.array([[0.0, 2047.0]], np.float32), 11, [0, 1]),
        (np.array([[False, True]]), None, [0, 1]),
    ],
)
def test_depth_decides_the_scale(tmp_path: Path, array: np.ndarray, bits: int | None, first: list) -> None:
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_allclose(read_image(tmp_path / "a.npy", bits).pixels[0, 0], first, atol=1e-7)


def test_palette_alpha_and_orientation(tmp_path: Path) -> None:
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[:, 3:] = (10, 200, 30)
    image = PillowImage.fromarray(colours)
    image.quantize(4).save(tmp_path / "palette.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    exif = PillowImage.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.tif.png", exif=exif)
    for name in ("palette.png", "alpha.png"):
        np.testing.assert_array_equal(
            quantise(read_image(tmp_path / name).pixels, 8).transpose(1, 2, 0), colours
        )
    turned = read_image(tmp_path / "turned.tif.png").pixels
    np.testing.assert_array_equal(quantise(turned, 8).transpose(1, 2, 0), np.rot90(colours, -1))


def test_a_matlab_variable_is_chosen_by_key(tmp_path: Path) -> None:
    pan, ms = np.full((8, 8), 2047, np.uint16), np.zeros((2, 2, 4), np.uint16)
    savemat(tmp_path / "a.mat", {"I_PAN": pan, "I_MS": ms})
    assert read_image(tmp_path / "a.mat#I_PAN", 11).pixels.max() == 1
    assert read_image(tmp_path / "a.mat#I_MS", 11).pixels.shape == (4, 2, 2)
    with pytest.raises(InputError, match="it holds I_PAN, I_MS"):
        read_image(tmp_path / "a.mat#PAN", 11)


def bad_files(folder: Path) -> dict[str, str]:
    """File name -> what its message must say."""
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    PillowImage.fromarray(np.zeros((64, 64), np.uint8)).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:60])
    (folder / "broken.tif").write_bytes(b"II*\0garbage")
    np.save(folder / "nan.npy", np.array([[np.nan]]))
    np.save(folder / "large.npy", np.array([[500.0]]))
    np.save(folder / "negative.npy", np.array([[-3]], np.int16))
    np.save(folder / "four.npy", np.zeros((2, 2, 2, 2)))
    np.save(folder / "complex.npy", np.zeros((2, 2), complex))
    np.save(folder / "object.npy", np.array([{}], object), allow_pickle=True)
    (folder / "a.gif").write_bytes(b"GIF89a")
    return {
        "empty.png": "cannot be read", "text.jpg": "cannot be read", "cut.png": "cannot be read",
        "broken.tif": "no picture", "nan.npy": "NaN", "large.npy": "set `bits`", "negative.npy": "do not fit",
        "four.npy": "shape", "complex.npy": "not supported", "object.npy": "cannot be read",
        "a.gif": "not a supported", "absent.png": "no such image",
    }  # fmt: skip


def test_bad_files_are_named_in_one_line(tmp_path: Path) -> None:
    for name, words in bad_files(tmp_path).items():
        with pytest.raises(InputError) as error:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(error.value), name
        assert words in str(error.value), name
        assert "\n" not in str(error.value), name


def pair(folder: Path, task: str, first: tuple[int, ...], second: tuple[int, ...]) -> Sample:
    roles = {"pansharpening": ("pan", "ms")}.get(task, ("visible", "infrared"))
    for role, shape in zip(roles, (first, second), strict=True):
        np.save(folder / f"{role}.npy", np.zeros(shape, np.float32))
    return Sample("a", task, "test", tuple(Source(role, folder / f"{role}.npy") for role in roles))


def test_unequal_sizes_are_refused_by_sample(tmp_path: Path) -> None:
    sample = pair(tmp_path, "visible_infrared", (20, 30), (20, 31))
    with pytest.raises(InputError, match=r"sample 'a': visible is 20x30 but infrared is 20x31.*register"):
        read_sources(sample)


def test_too_many_bands_are_refused_by_sample(tmp_path: Path) -> None:
    sample = pair(tmp_path, "visible_infrared", (20, 30), (20, 30, 4))
    with pytest.raises(InputError, match=r"sample 'a': the infrared image has 4 bands .*takes grey or RGB"):
        read_sources(sample)


def test_sharpening_takes_one_whole_ratio(tmp_path: Path) -> None:
    sample = pair(tmp_path, "pansharpening", (32, 48), (8, 12, 4))
    assert [image.size for image in read_sources(sample)] == [(32, 48), (8, 12)]
    assert [image.pixels.shape for image in read_sample(sample).images] == [(1, 32, 48), (4, 32, 48)]
    for wrong in ((8, 16, 4), (7, 12, 4), (64, 96, 4)):
        with pytest.raises(InputError, match="whole ratio"):
            read_sources(pair(tmp_path, "pansharpening", (32, 48), wrong))


def test_enlarging_keeps_a_ramp_and_the_range() -> None:
    ramp = np.linspace(0, 1, 16, dtype=np.float32)[None, :].repeat(16, 0)[None]
    large = enlarge(ramp, (64, 64))
    assert large.shape == (1, 64, 64)
    assert 0 <= large.min() <= large.max() <= 1
    assert np.all(np.diff(large[0, 32]) >= -1e-6)


def test_luminance_is_bt601_for_colour_and_the_mean_otherwise() -> None:
    pixels = np.array([1.0, 0.5, 0.25], np.float32)[:, None, None]
    np.testing.assert_allclose(luminance(pixels), 0.299 + 0.587 / 2 + 0.114 / 4, rtol=1e-6)
    np.testing.assert_allclose(luminance(pixels[:2]), 0.75)


@pytest.mark.parametrize(("bands", "red", "blue"), [(4, 2, 0), (8, 4, 1)])
def test_satellite_bands_are_shown_in_their_colours(bands: int, red: int, blue: int) -> None:
    """QuickBird's bands are B, G, R, near infrared; WorldView's red is the fifth, its blue the second."""
    pixels = np.zeros((bands, 10, 10), np.float32)
    pixels[red, :5], pixels[blue, 5:] = 1, 1
    shown = display(pixels)
    assert shown[0, 0].tolist() == [255, 0, 0]
    assert shown[9, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 8, 31, 102])
def test_anything_can_be_displayed(bands: int) -> None:
    shown = display(np.random.default_rng(0).random((bands, 9, 7), dtype=np.float32))
    assert shown.shape == (9, 7, 3)
    assert shown.dtype == np.uint8


@pytest.mark.parametrize(("name", "bands", "bits"), [("a.png", 4, 8), ("a.jpg", 2, 8), ("a.png", 1, 32)])
def test_what_a_type_cannot_hold_is_refused(tmp_path: Path, name: str, bands: int, bits: int) -> None:
    with pytest.raises(InputError, match=r"write a \.tif or \.npy"):
        write_image(tmp_path / name, np.zeros((bands, 4, 4), np.float32), bits)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")

    def fill_the_disk(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary))

    with pytest.raises(OSError, match=r"No space.*a\.png'$"):
        write_atomically(path, fill_the_disk)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert path.read_text() == "old"


def test_a_planar_tiff_is_read_bands_first(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).integers(0, 65535, (5, 20, 30), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", cube, planarconfig="separate", photometric="minisblack")
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").pixels, cube / 65535, rtol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "bits"),
    [
        ([np.full((4, 5), 2047, np.uint16)], 11),
        ([np.full((4, 5), 2048, np.uint16)], 12),
        ([np.full((4, 5), 1023, np.uint16), np.full((4, 5, 3), 255, np.uint8)], 10),
        ([np.full((4, 5), 300, np.uint16), np.full((2, 2, 8), 16000, np.int32)], 14),
        ([np.full((4, 5), 255, np.int32)], 8),
        ([np.full((4, 5), 255, np.uint16)], 10),
        ([np.full((4, 5), 70000, np.uint32)], 24),
        ([np.full((4, 5), 2**16 - 1, np.uint16)], None),
        ([np.full((4, 5), 255, np.uint8)], None),
        ([np.full((4, 5), 9, np.uint16), np.zeros((4, 5), np.float32)], None),
        ([np.full((4, 5), -1, np.int16)], None),
    ],
)
def test_depth_told_by_the_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrays: list[np.ndarray], bits: int | None
) -> None:
    paths = [tmp_path / f"{number}.npy" for number in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        array[1:] = 0  # the greatest values stand in the first piece alone
        np.save(path, array)
    monkeypatch.setattr("pipeline.images._PIECE", 10)
    assert depth_by_values(paths) == bits

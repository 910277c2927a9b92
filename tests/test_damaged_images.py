"""Files that are damaged or not what they are said to be: one line names each, and nothing else is said."""

import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image as PillowImage
from scipy.io import savemat
from test_rasters import array, matlab_5, matlab_73, noise, save_envi, tiled_tiff, turned_tiff

from model.masks import open_masks
from pipeline.errors import InputError
from pipeline.folders import list_images
from pipeline.images import image_facts, read_image

ROOT = Path(__file__).resolve().parents[1]


def bad_containers(folder: Path) -> dict[str, str]:
    """Path -> what its message must say."""
    with h5py.File(folder / "a.h5", "w") as file:
        file["gt"] = noise(2, 4, 8, 8)
        file["one"] = noise(8, 8)
    (folder / "text.h5").write_text("no")
    (folder / "text.mat").write_text("no MATLAB file, though long enough to look at its header" * 9)
    savemat(folder / "a.mat", {"name": "text", "cube": noise(4, 4, 3)})
    savemat(folder / "phases.mat", {"cube": noise(8, 8) * 1j})
    (folder / "lonely.hdr").write_text("ENVI\n")
    (folder / "b.hdr").write_text("no header\n")
    (folder / "b.img").write_bytes(b"0")
    return {
        "a.h5": "say which variable",
        "a.h5#x": "has no array of numbers 'x'; it holds gt, one",
        "a.h5#gt": "name one sample of the stack, as in 'a.h5#gt[0]'",
        "a.h5#gt[2]": "holds samples 0 to 1",
        "a.h5#one[0]": "this one has (8, 8)",
        "a.h5#gt[x]": "not NAME or NAME[NUMBER]",
        "text.h5": "no HDF5 file",
        "text.mat#cube": "Unknown mat file type",
        "a.mat#name": "no array of numbers 'name'; it holds cube",
        "a.mat#cube[7]": "holds samples 0 to 3",
        "lonely.hdr": "data file of this ENVI cube is missing",
        "b.img": "not an ENVI header",
    }


def test_bad_containers_are_named_in_one_line(tmp_path: Path) -> None:
    for name, words in bad_containers(tmp_path).items():
        for read in (read_image, image_facts):
            with pytest.raises(InputError) as error:
                read(tmp_path / name)
            assert str(tmp_path / name) in str(error.value), name
            assert words in str(error.value), (name, str(error.value))
            assert "\n" not in str(error.value), name
    with pytest.raises(InputError, match="its numbers are complex"):
        read_image(tmp_path / "phases.mat")


def stack(path: Path) -> None:
    with h5py.File(path, "w") as file:
        pixels = noise(3, 1, 16, 16, dtype="uint16", high=65535)
        file.create_dataset("pan", data=pixels, chunks=(1, 1, 8, 8), compression="gzip")


@pytest.mark.parametrize(
    ("name", "key", "save"),
    [
        ("a.h5", "#pan[1]", stack),
        ("a.mat", "#cube", matlab_5),
        ("b.mat", "#cube", matlab_73),
        ("a.npy", "", array),
        ("a.tif", "", tiled_tiff),
        ("b.tif", "", turned_tiff),
    ],
)
def test_whatever_is_damaged_it_stays_one_line(
    tmp_path: Path, name: str, key: str, save: Callable[[Path], object]
) -> None:
    """Bytes are lost or changed, most of them in the first 400, where the descriptions are."""
    save(tmp_path / name)
    whole, random = (tmp_path / name).read_bytes(), np.random.default_rng(1)
    for _ in range(40):
        content = bytearray(whole)
        for place in random.integers(0, random.choice([400, len(whole)]), random.integers(1, 8)):
            content[place % len(content)] = random.choice([0, 1, 255, random.integers(256)])
        del content[random.choice([len(whole), random.integers(len(whole))]) :]
        (tmp_path / name).write_bytes(content)
        for read in (read_image, image_facts):
            with suppress(InputError):
                read(tmp_path / f"{name}{key}")
        with suppress(InputError):
            list_images(tmp_path)


def test_an_array_whose_header_does_not_end(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(4, 4))
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole.replace(b"}", b"("))
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_image(tmp_path / "a.npy")


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_float32_are_refused_in_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((4, 4), 1e300))
    with pytest.raises(InputError, match="infinite"):
        read_image(tmp_path / "a.npy")


def test_an_archive_is_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", noise(4, 4))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_image(tmp_path / "a.npy")


def test_a_complex_matlab_variable_is_refused(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"field": np.full((4, 4), 0.5 + 0.5j)})
    with pytest.raises(InputError, match="complex"):
        read_image(tmp_path / "a.mat#field")


def test_libraries_keep_quiet_about_files(tmp_path: Path) -> None:
    """What tifffile logs and what spectral and Pillow warn of would stand around the one line."""
    PillowImage.new("1", (10_000, 9_000)).save(tmp_path / "large.png")
    tifffile.imwrite(tmp_path / "a.tif", noise(20, 30))
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[content.index(b"\x11\x01\x04\x00")] = 0x12  # StripOffsets under another number
    (tmp_path / "a.tif").write_bytes(content)
    save_envi("bil")(tmp_path / "a.hdr")
    header = (tmp_path / "a.hdr").read_text().replace("description", "Description")
    (tmp_path / "a.hdr").write_text(header)
    code = f"""
from contextlib import suppress
from pathlib import Path
from pipeline.images import image_facts, read_image
image_facts(Path("{tmp_path / "large.png"}"))
read_image(Path("{tmp_path / "a.hdr"}"))
with suppress(ValueError):
    read_image(Path("{tmp_path / "a.tif"}"))
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout + said.stderr == ""


def test_masks_of_another_size_are_never_decoded(tmp_path: Path) -> None:
    tags = [(256, 10**6), (257, 10**6), (258, 8), (259, 1), (262, 1), (273, 8), (278, 10**6), (279, 9)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    (tmp_path / "bomb.tif").write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(99))
    (tmp_path / "cut.tif").write_bytes((tmp_path / "bomb.tif").read_bytes()[:40])
    with pytest.raises(InputError, match=r"the masks are 1000000x1000000, the image 24x32"):
        open_masks(tmp_path / "bomb.tif", (24, 32))
    with pytest.raises(InputError, match="cannot be read as a label map"):
        open_masks(tmp_path / "cut.tif", (24, 32))

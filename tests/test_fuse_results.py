"""Results of `rwkvfusion fuse`: which there are, under which names, and that what is not asked for stays."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from test_fuse_cli import fuse
from tiny_project import scene

from pipeline.images import quantise, read_image

pytestmark = pytest.mark.usefixtures("unguided_project")


def test_a_result_is_found_again_under_the_name_that_it_got() -> None:
    """Its type follows the sources: here PNG, once their values have told that 8 bits are enough."""
    for role in ("visible", "infrared"):
        savemat(f"{role}.mat", {"scene": quantise(scene(1, 1, 24, 32), 8)[0].astype(np.int32)})
    arguments = ("visible.mat#scene", "infrared.mat#scene", "-o", "deep", "--task", "visible_infrared")
    assert "deep/visible.png: visible_infrared" in fuse(*arguments)[1]
    assert "deep/visible.png: exists, skipped" in fuse(*arguments)[1]
    np.save("data/visible/own.npy", scene(1, 1, 24, 32)[0])
    arguments = ("data/visible/own.npy", "data/infrared/vi0.png", "-o", "array")
    assert "array/own.npy: visible_infrared" in fuse(*arguments)[1]
    assert "array/own.npy: exists, skipped" in fuse(*arguments)[1]


def test_masks_are_never_overwritten() -> None:
    sources = ("data/visible/vi0.png", "data/infrared/vi0.png")
    Path("objects").mkdir()
    mask = Path("objects/vi0.png")
    Image.fromarray(np.ones((24, 32), np.uint8)).save(mask)
    before = mask.read_bytes()
    for given in ("objects", "objects/vi0.png"):
        for output in ("objects/vi0.png", "objects"):
            code, said = fuse(*sources, "-o", output, "--masks", given, "--overwrite")
            assert (code, "is the file of masks objects/vi0.png" in said) == (2, True), said
    Path("t.csv").write_text("visible,infrared,masks\n" + ",".join((*sources, "objects/vi0.png")))
    code, said = fuse("t.csv", "-o", "objects", "--overwrite")
    assert (code, "is the file of masks" in said) == (2, True), said
    assert mask.read_bytes() == before


def test_a_small_budget_is_for_files_that_are_written_in_pieces() -> None:
    """PNG is not: an image that is small by itself is fused whatever --memory says."""
    sources = ("data/visible/vi0.png", "data/infrared/vi0.png")
    assert fuse(*sources, "-o", "a.png") == (0, "a.png: visible_infrared (visible+infrared), unguided\n")
    code, said = fuse(*sources, "-o", "b.png", "--memory", "64MiB")
    assert code == 0, said
    assert Path("b.png").read_bytes() == Path("a.png").read_bytes()


def test_variables_in_groups_and_what_macos_leaves_in_folders() -> None:
    for role in ("visible", "infrared"):
        pixels = read_image(Path(f"data/{role}/vi0.png")).pixels
        with h5py.File(f"{role}.h5", "w") as file:
            file["scenes/vi0"] = file["scenes/vi1"] = quantise(pixels, 8)[0]
        (Path("data") / role / "._vi0.png").write_bytes(b"a resource fork")
    names = [f"{role}.h5#scenes/vi0" for role in ("visible", "infrared")]
    code, said = fuse(*names, "-o", "grey.png", "--task", "visible_infrared")
    assert code == 0, said
    code, said = fuse("data/visible", "data/infrared", "-o", "out")
    assert code == 0, said

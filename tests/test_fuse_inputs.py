"""What `rwkvfusion fuse` accepts, what it makes of it, and what it refuses."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.transform import from_origin
from test_fuse_cli import fuse
from tiny_project import make_project, make_weights, scene

from model.caption import encode
from model.inference import fuse as fuse_arrays
from model.inference import load_weights
from model.masks import open_masks
from pipeline.images import image_facts, read_image, write_image

pytestmark = pytest.mark.usefixtures("unguided_project")


def outputs(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_folder_patterns_files_and_tables_give_the_same_files() -> None:
    assert fuse("data/visible", "data/infrared", "-o", "folders")[0] == 0
    expected = outputs("folders")
    assert fuse("data/visible/*.png", "data/infrared/vi*", "-o", "patterns")[0] == 0
    files = [*sorted(Path("data/visible").iterdir()), *sorted(Path("data/infrared").iterdir())]
    assert fuse(*files, "-o", "files")[0] == 0
    rows = [f"data/infrared/vi{n}.png,data/visible/vi{n}.png" for n in range(8)]
    Path("named.csv").write_text("\n".join(["infrared,visible", *rows]))
    Path("plain.csv").write_text("\n".join(rows))
    assert fuse("named.csv", "-o", "named")[0] == 0
    assert fuse("plain.csv", "-o", "plain")[0] == 0
    for folder in ("patterns", "files", "named", "plain"):
        assert outputs(folder) == expected


def test_a_manifest_is_a_table_too() -> None:
    rows = "sample,task,split,visible,infrared\nmine,visible_infrared,test,visible/vi0.png,infrared/vi0.png\n"
    Path("data/mine.csv").write_text(rows)
    code, said = fuse("data/mine.csv", "-o", "out")
    assert code == 0, said
    assert list(outputs("out")) == ["mine.png"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("visible,infrared\nx.png,y.png\n", "row 2: x.png: no such file"),
        ("visible,infrared\n", "lists no samples"),
        ("sample,visible,infrared\n../up,{v},{i}\n", "cannot be the name of a file"),
        ("sample,visible,infrared\na,{v},{i}\na,{v},{i}\n", "would be the result of two samples"),
        ("task,visible,infrared\nfocus,{v},{i}\n", "unknown task 'focus'"),
        ("{v}\n", "row 1: names 1 source"),
        ("", "lists no samples"),
    ],
)
def test_mistakes_in_a_table_name_its_row(table: str, message: str) -> None:
    Path("t.csv").write_text(table.format(v="data/visible/vi0.png", i="data/infrared/vi0.png"))
    code, said = fuse("t.csv", "-o", "out")
    assert code == 2
    assert message in said
    assert not Path("out").exists()


def test_type_depth_and_place_follow_the_sources() -> None:
    place = {"crs": "EPSG:32633", "transform": from_origin(500000, 4600000, 0.5, 0.5)}
    for role, bands in (("visible", 3), ("infrared", 1)):
        Path(f"geo/{role}").mkdir(parents=True)
        pixels = scene(7, bands, 20, 30)
        with rasterio.open(
            f"geo/{role}/a.tif",
            "w",
            driver="GTiff",
            height=20,
            width=30,
            count=bands,
            dtype="uint16",
            **place,
        ) as file:
            file.write(np.rint(pixels * 65535).astype(np.uint16))
        np.save(f"geo/{role}/b.npy", pixels.transpose(1, 2, 0))
        write_image(Path(f"geo/{role}/c.png"), pixels, 16)
        write_image(Path(f"geo/{role}/d.jpg"), pixels)
    code, said = fuse("geo/visible", "geo/infrared", "-o", "out")
    assert code == 0, said
    facts = {path.name: image_facts(path) for path in Path("out").iterdir()}
    assert {name: found.bits for name, found in facts.items()} == {
        "a.tif": 16, "b.npy": 32, "c.png": 16, "d.png": 8,
    }  # fmt: skip
    assert all(found.size == (20, 30) and found.bands == 3 for found in facts.values())
    with rasterio.open("out/a.tif") as file:
        assert file.crs.to_epsg() == 32633
        assert file.transform == place["transform"]
    code, said = fuse("geo/visible/a.tif", "geo/infrared/a.tif", "-o", "a.png")
    assert code == 0
    assert "without the georeference" in said


def test_a_caption_is_what_the_weights_understand() -> None:
    weights = make_weights(Path("known.safetensors"), "visible_infrared", encoder="classical-texts-1")
    record = json.loads(weights.with_suffix(".json").read_text())
    arguments = ("data/visible/vi0.png", "data/infrared/vi0.png", "--weights", weights, "--overwrite")
    fuser = load_weights(weights)
    code, said = fuse(*arguments, "-o", "told.png", "--caption", "two people behind smoke")
    assert code == 0, said
    assert "guided by text" in said
    features = encode("two people behind smoke", fuser)
    expected = fuse_arrays(arguments[:2], fuser, text=features)
    assert np.abs(read_image(Path("told.png")).pixels - expected).max() <= 0.5 / 255 + 1e-6
    weights.with_suffix(".json").write_text(json.dumps(record | {"text_encoder": "t5-x"}))
    code, said = fuse(*arguments, "-o", "other.png", "--caption", "two people")
    assert code == 2
    assert "t5-x" in said or "t5" in said
    assert fuse(*arguments, "-o", "other.png", "--caption", " ")[0] == 2
    assert not Path("other.png").exists()


def test_masks_from_label_maps_one_by_one_and_by_folder() -> None:
    labels = np.zeros((24, 32), np.uint8)
    labels[2:10, 3:9], labels[12:20, 10:30] = 7, 200
    Path("masks").mkdir()
    Image.fromarray(labels).save("masks/vi0.png")
    sources = ("data/visible/vi0.png", "data/infrared/vi0.png")
    code, said = fuse(*sources, "-o", "a.png", "--masks", "masks/vi0.png")
    assert code == 0, said
    assert "guided by masks" in said
    masks = np.stack([labels == 200, labels == 7])
    expected = fuse_arrays(sources, load_weights("visible_infrared"), masks=masks)
    assert np.abs(read_image(Path("a.png")).pixels - expected).max() <= 0.5 / 255 + 1e-6
    code, said = fuse("data/visible", "data/infrared", "-o", "out", "--masks", "masks")
    assert code == 0
    assert "out/vi0.png: visible_infrared (visible+infrared), guided by masks" in said
    assert "out/vi1.png: visible_infrared (visible+infrared), unguided (no masks of that name)" in said
    assert Path("out/vi0.png").read_bytes() == Path("a.png").read_bytes()
    Image.fromarray(labels[:20]).save("masks/small.png")
    code, said = fuse(*sources, "-o", "b.png", "--masks", "masks/small.png")
    assert code == 2
    assert "the masks are 20x32, the image 24x32" in said


@given(count=st.integers(0, 30), stacked=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
def test_mask_files_hold_every_object_once(tmp_path: Path, count: int, stacked: bool) -> None:
    labels = np.arange(8 * 9).reshape(8, 9) % (count + 1)
    stack = np.array([labels == value for value in range(1, count + 1)], bool).reshape(-1, 8, 9)
    np.save(tmp_path / "m.npy", stack if stacked else labels)
    window = open_masks(tmp_path / "m.npy", (8, 9))
    masks = window(0, 0, 8, 9)
    assert len(masks) == min(count, 20)
    assert np.array_equal(masks.sum(axis=0), (labels > 0).astype(int))
    assert np.array_equal(window(2, 3, 4, 5), masks[:, 2:6, 3:8])


def test_guidance_of_a_store_finds_samples_given_as_files(tmp_path: Path) -> None:
    make_project(tmp_path)
    code, said = fuse(
        "data/visible/vi6.png", "data/infrared/vi6.png", "-o", "a.png", "--guidance", "guidance/tiny"
    )
    assert code == 0, said
    assert "guided by text and masks" in said
    fuse("--dataset", "tiny", "--split", "test", "--task", "visible_infrared", "-o", "out")
    assert Path("a.png").read_bytes() == Path("out/vi6.png").read_bytes()
    assert fuse("data/visible", "data/infrared", "-o", "x", "--guidance", "nowhere")[0] == 2


def test_links_to_inputs_and_inputs_of_other_samples_are_never_overwritten() -> None:
    os.link("data/visible/vi3.png", "hard.png")
    before = Path("data/visible/vi3.png").read_bytes()
    sources = ("data/visible/vi3.png", "data/infrared/vi3.png")
    for output in ("hard.png", "data/visible/../visible/vi3.png"):
        code, said = fuse(*sources, "-o", output, "--overwrite")
        assert code == 2
        assert "is the visible source" in said
    assert fuse("data/visible", "data/infrared", "-o", "data/infrared", "--overwrite")[0] == 2
    assert Path("data/visible/vi3.png").read_bytes() == Path("hard.png").read_bytes() == before
    Path("soft.png").symlink_to("elsewhere.png")
    assert fuse(*sources, "-o", "soft.png", "--overwrite")[0] == 0
    assert not Path("elsewhere.png").exists()
    Path("in.png").symlink_to(Path("data/visible/vi3.png").resolve())
    assert fuse("in.png", sources[1], "-o", "c.png", "--task", "visible_infrared")[0] == 0
    assert Path("c.png").read_bytes() == Path("soft.png").read_bytes()


def hostile(folder: Path) -> dict[str, Path]:
    """Files that an uncautious reader falls for."""
    good = Path("data/visible/vi0.png").read_bytes()
    contents = {
        "truncated.png": good[: len(good) // 2],
        "zero.png": b"",
        "wrong.tif": good,
        "text.png": b"just text\n" * 100,
        "cut.tif": b"II*\0\x08\0\0\0\xff\xff",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    np.save(folder / "nan.npy", np.full((24, 32), np.nan, np.float32))
    np.save(folder / "inf.npy", np.full((24, 32), np.inf, np.float32))
    np.save(folder / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    frames = [Image.new("L", (32, 24), grey) for grey in (0, 200)]
    frames[0].save(folder / "moving.png", "GIF", save_all=True, append_images=frames[1:])
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "gone.png").symlink_to(folder / "never.png")
    header = bytearray(good[:33])
    header[16:24] = (200_000).to_bytes(4, "big") * 2
    (folder / "bomb.png").write_bytes(bytes(header) + good[33:])
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    "name",
    [
        *("truncated.png", "zero.png", "text.png", "cut.tif", "nan.npy", "inf.npy", "object.npy"),
        *("moving.png", "loop.png", "gone.png", "bomb.png"),
    ],
)
def test_hostile_files_give_one_line_and_no_output(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    path = hostile(folder)[name]
    code, said = fuse("data/infrared/vi0.png", path, "-o", "out.png", "--task", "visible_infrared")
    assert code == 2
    assert [line.startswith("error: ") for line in said.splitlines()] == [True]
    assert name in said
    assert not Path("out.png").exists()
    assert not list(Path().glob("*.tmp"))


def test_names_with_line_breaks_and_dots_stay_names() -> None:
    Path("v").mkdir(), Path("i").mkdir()
    for name in ("a\nb.png", "...png", "-rf.png", "sp ace ü.png"):
        write_image(Path("v") / name, scene(1, 3, 9, 9))
        write_image(Path("i") / name, scene(2, 1, 9, 9))
    code, said = fuse("v", "i", "-o", "out", "--task", "visible_infrared")
    assert code == 0, said
    assert sorted(outputs("out")) == ["-rf.png", "...png", "a\nb.png", "sp ace ü.png"]
    assert "out/a\\nb.png: visible_infrared" in said
    assert len(said.splitlines()) == 5


def test_colour_models_and_integers_of_every_kind() -> None:
    Image.new("CMYK", (32, 24), (10, 80, 120, 0)).save("cmyk.jpg")
    Image.new("1", (32, 24), 1).save("bits.png")
    Image.new("PA", (32, 24)).convert("RGBA").save("alpha.png")
    for number, name in enumerate(("cmyk.jpg", "bits.png", "alpha.png")):
        code, said = fuse("data/infrared/vi0.png", name, "-o", f"{number}.png", "--task", "visible_infrared")
        assert code == 0, said
        assert read_image(Path(f"{number}.png")).size == (24, 32)
    tifffile.imwrite("int.tif", np.full((24, 32), -5, np.int32))
    code, said = fuse("data/infrared/vi0.png", "int.tif", "-o", "x.png", "--task", "visible_infrared")
    assert code == 2
    assert "do not fit 32 bits" in said


@pytest.mark.parametrize("bands", [4, 7, 8, 10])
def test_shipped_weights_are_chosen_by_bands(bands: int) -> None:
    eight: dict[str, object] = {"in_channels": (1, 8), "out_channels": 8}
    make_weights(Path("shipped/pansharpening.safetensors"), "pansharpening")
    make_weights(Path("shipped/pansharpening_8.safetensors"), "pansharpening", changed=eight)
    name = "pansharpening_8" if bands >= 8 else "pansharpening"
    write_image(Path("pan.tif"), scene(0, 1, 32, 32), 16)
    write_image(Path("ms.tif"), scene(1, bands, 8, 8), 16)
    code, said = fuse("pan.tif", "ms.tif", "-o", "out.tif", "--task", "pansharpening")
    assert code == 0, said
    assert ("weights pansharpening_8" in said) == (bands >= 8)
    expected = np.rint(fuse_arrays(["pan.tif", "ms.tif"], name).astype(np.float64) * 65535)
    np.testing.assert_array_equal(tifffile.imread("out.tif").transpose(2, 0, 1), expected)
    code, said = fuse(
        "pan.tif", "ms.tif", "-o", "b.tif", "--weights", "pansharpening", "--task", "pansharpening"
    )
    assert code == 0, said
    assert "pansharpening_8" not in said


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_values_that_do_not_fill_their_type(dtype: str) -> None:
    """Twelve bits in a deeper type: fused as twelve, written in the same numbers, and said so."""
    visible, infrared = scene(1, 1, 24, 32)[0], scene(2, 1, 24, 32)[0]
    visible[0, 0] = 1
    for name, plane in (("v", visible), ("i", infrared)):
        tifffile.imwrite(f"{name}.tif", np.rint(plane * 4095).astype(dtype))
    for number, options in enumerate(((), ("--bits", "12"))):
        arguments = ("v.tif", "i.tif", "-o", f"{number}.tif", "--task", "visible_infrared", *options)
        code, said = fuse(*arguments)
        assert code == 0, said
        assert ("12 bits by the values" in said) == (not options)
    told, given = tifffile.imread("0.tif"), tifffile.imread("1.tif")
    np.testing.assert_array_equal(told, given)
    assert told.dtype == np.uint16
    expected = fuse_arrays([np.rint(p[None] * 4095).astype(np.float32) / 4095 for p in (visible, infrared)],
                          Path("runs/demo/visible_infrared/weights.safetensors"))  # fmt: skip
    np.testing.assert_array_equal(told, np.rint(expected[0].astype(np.float64) * 4095))


@pytest.mark.parametrize("size", [(1, 1), (1, 10000), (10000, 1), (2, 3)])
def test_thin_images(size: tuple[int, int]) -> None:
    write_image(Path("v.png"), np.random.default_rng(0).random((3, *size), np.float32))
    write_image(Path("i.png"), np.random.default_rng(1).random((1, *size), np.float32))
    code, said = fuse("v.png", "i.png", "-o", "out.png", "--task", "visible_infrared")
    assert code == 0, said
    assert read_image(Path("out.png")).size == size


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    bands=st.sampled_from([1, 3]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
def test_size_depth_and_bands_come_back(size: tuple[int, int], dtype: str, bands: int) -> None:
    random = np.random.default_rng(0)
    for role, count in (("v", bands), ("i", 1)):
        values = random.random((*size, count) if count > 1 else size)
        peak = 1 if dtype == "float32" else np.iinfo(dtype).max
        tifffile.imwrite(
            f"{role}.tif",
            (values * peak).astype(dtype),
            photometric="rgb" if count == 3 else "minisblack",
        )
    code, said = fuse("v.tif", "i.tif", "-o", "out.tif", "--task", "visible_infrared", "--overwrite")
    assert code == 0, said
    fused = tifffile.imread("out.tif")
    assert fused.dtype == dtype
    assert fused.shape == ((*size, 3) if bands == 3 else size)


def test_unexpected_errors_are_one_line_without_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug\nof two lines")

    monkeypatch.setattr("model.fusing.fuse_prepared", broken)
    arguments = ("data/visible/vi0.png", "data/infrared/vi0.png", "-o", "out.png")
    code, said = fuse(*arguments)
    assert code == 2
    assert said.startswith("error: unexpected ZeroDivisionError: a bug; ")
    assert len(said.splitlines()) == 1
    with pytest.raises(ZeroDivisionError):
        fuse(*arguments, "--debug")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--memory", "lots"), "not an amount of memory"),
        (("--device", "tpu9"), "cannot be used here"),
        (("--masks", "nowhere.png"), "no such file of masks"),
        (("--guidance", "nowhere"), "no such folder of guidance stores"),
    ],
)
def test_mistakes_in_options(arguments: tuple[str, ...], message: str) -> None:
    code, said = fuse("data/visible/vi0.png", "data/infrared/vi0.png", "-o", "out.png", *arguments)
    assert code == 2
    assert message in said


def test_bfloat16_is_close() -> None:
    sources = ("data/visible/vi0.png", "data/infrared/vi0.png")
    assert fuse(*sources, "-o", "a.png")[0] == 0
    assert fuse(*sources, "-o", "b.png", "--dtype", "bfloat16")[0] == 0
    a, b = (read_image(Path(name)).pixels for name in ("a.png", "b.png"))
    assert 0 < np.abs(a - b).max() < 0.1

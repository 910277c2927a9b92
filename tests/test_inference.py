"""Fusing arrays with trained weights: any size, colour, guidance, and what does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_project import make_weights, masks_of, scene, text_of

from model.colour import rgb_to_ycbcr
from model.describe import describe_weights
from model.inference import Fuser, find_weights, fuse, load_model, load_weights
from model.record import read_record
from pipeline.errors import InputError
from pipeline.images import luminance, write_image


@pytest.fixture(scope="module")
def fuser(tmp_path_factory: pytest.TempPathFactory) -> Fuser:
    return load_weights(
        make_weights(tmp_path_factory.mktemp("weights") / "vi.safetensors", "visible_infrared")
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task", None, "'task' is None"),
        ("roles", 3, "'roles' is 3"),
        ("model", "x", "'model' is 'x'"),
        ("train", [], "'train' is \\[\\]"),
        ("facts", None, "'facts' is None"),
        ("sha256", ..., "'sha256' is missing"),
        ("model", ..., "'model' is missing"),
    ],
)
def test_a_damaged_record_says_what_is_wrong_with_it(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    path = make_weights(tmp_path / "vi.safetensors", "visible_infrared")
    record = json.loads(path.with_suffix(".json").read_text())
    record[key] = value
    path.with_suffix(".json").write_text(json.dumps({k: v for k, v in record.items() if v is not ...}))
    for read in (load_weights, describe_weights):
        with pytest.raises(InputError, match=message):
            read(str(path))


def test_what_is_no_record_or_has_no_history(tmp_path: Path) -> None:
    path = make_weights(tmp_path / "vi.safetensors", "visible_infrared")
    with pytest.raises(InputError, match=r"vi.json: does not tell 'train'"):
        describe_weights(str(path))
    path.with_suffix(".json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"vi.json: cannot be read"):
        load_weights(path)
    with pytest.raises(InputError, match="is a folder"):
        read_record(Path())


@pytest.fixture(scope="module")
def sharpener(tmp_path_factory: pytest.TempPathFactory) -> Fuser:
    return load_weights(make_weights(tmp_path_factory.mktemp("weights") / "ps.safetensors", "pansharpening"))


@given(height=st.integers(1, 50), width=st.integers(1, 50), bands=st.sampled_from([(1, 1), (3, 1), (3, 3)]))
def test_any_size_comes_back_as_it_was(fuser: Fuser, height: int, width: int, bands: tuple[int, int]) -> None:
    random = np.random.default_rng(height * 100 + width)
    sources = [random.random((count, height, width), dtype=np.float32) for count in bands]
    fused = fuse(sources, fuser)
    assert fused.shape == (max(bands), height, width)
    assert fused.dtype == np.float32
    assert fused.min() >= 0
    assert fused.max() <= 1


def test_colour_of_the_visible_source_is_kept(fuser: Fuser) -> None:
    visible = 0.3 + 0.4 * scene(1, 3, 32, 40)
    infrared = scene(2, 1, 32, 40)
    fused = fuse([visible, infrared], fuser)
    grey = fuse([visible, infrared], fuser, colour="gray")
    assert grey.shape == (1, 32, 40)
    assert np.allclose(luminance(fused), grey[0], atol=1e-5)
    inside = (fused > 0.001).all(axis=0) & (fused < 0.999).all(
        axis=0
    )  # elsewhere chrominance had to give way
    assert inside.mean() > 0.5
    difference = rgb_to_ycbcr(fused)[1:] - rgb_to_ycbcr(visible)[1:]
    assert np.abs(difference[:, inside]).max() < 1e-5


def test_rgb_fuses_each_band_alone(fuser: Fuser) -> None:
    visible, infrared = scene(1, 3, 32, 40), scene(2, 1, 32, 40)
    fused = fuse([visible, infrared], fuser, colour="rgb")
    for band in range(3):
        assert np.array_equal(fused[band], fuse([visible[band], infrared], fuser)[0])


def test_two_sources_without_colour_give_one_band(fuser: Fuser) -> None:
    assert fuse([scene(1, 1, 16, 16), scene(2, 1, 16, 16)], fuser).shape == (1, 16, 16)


def test_more_sources_are_folded_in_one_after_the_other(fuser: Fuser) -> None:
    planes = [scene(number, 1, 24, 24) for number in range(3)]
    expected = fuse([fuse(planes[:2], fuser), planes[2]], fuser)
    assert np.array_equal(fuse(planes, fuser), expected)


def test_arrays_paths_and_layouts_mean_the_same(fuser: Fuser, tmp_path: Path) -> None:
    visible = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    infrared = np.random.default_rng(1).integers(0, 256, (20, 30), dtype=np.uint8)
    as_float = [visible.transpose(2, 0, 1).astype(np.float32) / 255, infrared[None].astype(np.float32) / 255]
    write_image(tmp_path / "visible.png", as_float[0])
    write_image(tmp_path / "infrared.png", as_float[1])
    expected = fuse(as_float, fuser)
    assert np.array_equal(fuse([visible, infrared], fuser), expected)
    assert np.array_equal(fuse([tmp_path / "visible.png", str(tmp_path / "infrared.png")], fuser), expected)


def test_guidance_changes_the_result_and_repeats_exactly(fuser: Fuser) -> None:
    sources = [scene(1, 3, 24, 32), scene(2, 1, 24, 32)]
    text, masks = text_of(1), masks_of(1, (24, 32))
    plain = fuse(sources, fuser)
    guided = fuse(sources, fuser, text=text, masks=masks)
    assert np.array_equal(fuse(sources, fuser, text=text, masks=masks), guided)
    assert np.array_equal(fuse(sources, fuser), plain)
    for only in (fuse(sources, fuser, text=text), fuse(sources, fuser, masks=masks)):
        assert not np.array_equal(only, plain)
        assert not np.array_equal(only, guided)


def test_sharpening_takes_all_bands(sharpener: Fuser) -> None:
    target = scene(3, 4, 32, 32)
    pan, small = target.mean(axis=0, keepdims=True), target.reshape(4, 8, 4, 8, 4).mean(axis=(2, 4))
    assert fuse([pan, small], sharpener, text=text_of(0)).shape == (4, 32, 32)
    with pytest.raises(InputError, match=r"trained for pansharpening of \(1, 4\) bands.*\(4, 1\)"):
        fuse([small, pan], sharpener)


def test_more_bands_than_trained_for_are_sharpened_in_groups(sharpener: Fuser) -> None:
    pan, small = scene(1, 1, 32, 32), scene(2, 6, 8, 8)
    fused = fuse([pan, small], sharpener)
    assert np.array_equal(fused[:2], fuse([pan, small[:4]], sharpener)[:2])
    assert np.array_equal(fused[2:], fuse([pan, small[2:]], sharpener))
    with pytest.raises(InputError, match="bands"):
        fuse([pan, small[:3]], sharpener)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([np.zeros((8, 8))], "fuses 2 sources, got 1"),
        ([np.zeros((8, 8)), np.zeros((5, 8, 8))], "source 2 has 5 bands; visible_infrared takes grey or RGB"),
        ([np.zeros((8, 8)), np.zeros((8, 9))], "source 2 is 8x9, the first is 8x8"),
        ([np.zeros((8, 8)), np.full((8, 8), 3.0)], r"outside \[0, 1\]"),
        ([np.zeros((8, 8)), np.full((8, 8), np.nan)], "NaN"),
        ([np.zeros((8, 8)), np.zeros(8)], "shape"),
    ],
)
def test_sources_that_cannot_be_fused(fuser: Fuser, sources: list[np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fuse(sources, fuser)


def test_guidance_that_does_not_fit(fuser: Fuser) -> None:
    sources = [np.zeros((8, 8)), np.zeros((8, 8))]
    with pytest.raises(InputError, match="T x 512"):
        fuse(sources, fuser, text=np.zeros((3, 64)))
    with pytest.raises(InputError, match="c x 8 x 8"):
        fuse(sources, fuser, masks=np.zeros((2, 9, 8), dtype=bool))


def test_weights_are_found_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained = make_weights(tmp_path / "runs/demo/multi_focus/weights.safetensors", "multi_focus")
    monkeypatch.setattr("model.inference.SHIPPED", tmp_path / "shipped")
    assert find_weights("multi_focus") == trained.relative_to(tmp_path)
    shipped = make_weights(tmp_path / "shipped/multi_focus.safetensors", "multi_focus")
    assert find_weights("multi_focus") == shipped
    assert load_model("demo", "multi_focus").task == "multi_focus"
    with pytest.raises(InputError, match="no weights for 'medical' yet; run `make demo`"):
        find_weights("medical")
    with pytest.raises(InputError, match="Did you mean 'multi_focus'"):
        find_weights("multifocus")
    with pytest.raises(InputError, match="no such weights file"):
        find_weights("absent.safetensors")
    with pytest.raises(InputError, match="not trained yet; run `python -m model train --task medical"):
        load_model("demo", "medical")


@pytest.mark.parametrize("damage", ["bytes", "record missing", "record of another file", "other network"])
def test_damaged_weights_are_refused(tmp_path: Path, damage: str) -> None:
    path = make_weights(tmp_path / "w.safetensors", "medical")
    record = path.with_suffix(".json")
    if damage == "bytes":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "record missing":
        record.unlink()
    elif damage == "record of another file":
        record.write_text("[1, 2]")
    else:
        facts = json.loads(record.read_text())
        facts["model"]["width"] = 8
        record.write_text(json.dumps(facts))
    with pytest.raises(InputError, match=str(tmp_path / "w")):
        load_weights(path)

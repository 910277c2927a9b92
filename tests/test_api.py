"""Fusion from Python: whatever goes in comes out in its type, layout and depth."""

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_project import make_weights, masks_of, scene

import model
from model import api
from model.inference import Fuser
from model.inference import fuse as fuse_arrays
from pipeline.errors import InputError
from pipeline.images import quantise, read_image, write_image


@pytest.fixture(scope="module")
def fuser(tmp_path_factory: pytest.TempPathFactory) -> Fuser:
    folder = tmp_path_factory.mktemp("weights")
    return model.load_weights(make_weights(folder / "vi.safetensors", "visible_infrared"))


VISIBLE, INFRARED = scene(1, 3, 20, 30), scene(2, 1, 20, 30)


def test_examples_in_the_documentation() -> None:
    assert doctest.testmod(api).failed == 0
    assert doctest.testmod(api).attempted > 5


@given(
    dtype=st.sampled_from([np.uint8, np.uint16, np.int32, np.float16, np.float32, np.float64]),
    layout=st.sampled_from(["HWC", "CHW"]),
    size=st.tuples(st.integers(5, 30), st.integers(5, 30)),
)
def test_arrays_come_back_in_type_and_layout(
    fuser: Fuser, dtype: type, layout: str, size: tuple[int, int]
) -> None:
    random = np.random.default_rng(0)
    peak = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    visible = (random.random((*size, 3)) * peak).astype(dtype)
    infrared = (random.random(size) * peak).astype(dtype)
    given_ = visible if layout == "HWC" else visible.transpose(2, 0, 1)
    fused = model.fuse([given_, infrared], fuser)
    assert fused.dtype == dtype
    assert fused.shape == given_.shape
    plane = [image.astype(np.float32) / np.float32(peak) for image in (visible.transpose(2, 0, 1), infrared)]
    expected = fuse_arrays(plane, fuser)
    found = (fused if layout == "CHW" else fused.transpose(2, 0, 1)).astype(np.float64) / peak
    assert np.abs(found - expected).max() <= max(0.5 / peak if peak > 1 else 0, 1e-3)
    grey = model.fuse([infrared, infrared], fuser)
    assert grey.shape == size


def test_tensors_and_batches(fuser: Fuser) -> None:
    visible, infrared = torch.from_numpy(VISIBLE), torch.from_numpy(INFRARED)
    one = model.fuse([visible, infrared], fuser)
    assert one.shape == visible.shape
    assert one.dtype == torch.float32
    assert np.array_equal(one.numpy(), fuse_arrays([VISIBLE, INFRARED], fuser))
    other = visible.flip(2)
    batch = model.fuse([torch.stack([visible, other]), torch.stack([infrared, infrared])], fuser)
    assert torch.equal(batch[0], one)
    assert torch.equal(batch[1], model.fuse([other, infrared], fuser))
    whole = (visible * 255).round().to(torch.uint8)
    assert model.fuse([whole, (infrared * 255).to(torch.uint8)], fuser).dtype == torch.uint8
    assert model.fuse([infrared[0], infrared[0]], fuser).shape == (20, 30)


def test_a_thin_tensor_has_its_channels_first(fuser: Fuser) -> None:
    assert model.fuse([torch.rand(3, 40, 4), torch.rand(1, 40, 4)], fuser).shape == (3, 40, 4)


def test_pillow_images(fuser: Fuser) -> None:
    visible = Image.fromarray(quantise(VISIBLE, 8).transpose(1, 2, 0).copy())
    infrared = Image.fromarray(quantise(INFRARED, 8)[0])
    fused = model.fuse([visible, infrared], fuser)
    assert fused.mode == "RGB"
    assert fused.size == (30, 20)
    expected = model.fuse([np.asarray(visible), np.asarray(infrared)], fuser)
    assert np.array_equal(np.asarray(fused), expected)
    assert model.fuse([visible.convert("CMYK"), infrared.convert("LA")], fuser).size == (30, 20)
    deep = Image.fromarray(quantise(INFRARED, 16)[0])
    assert np.asarray(model.fuse([deep, deep], fuser)).dtype == np.uint16
    wide = Image.fromarray(np.asarray(deep).astype(np.int32))
    assert wide.mode == "I"
    assert np.array_equal(model.fuse([wide, wide], fuser), model.fuse([deep, deep], fuser))
    premultiplied = infrared.convert("LA").convert("La")
    assert np.array_equal(model.fuse([visible, premultiplied], fuser), fused)
    both = model.fuse([[visible, visible], [infrared, infrared]], fuser)
    assert [np.array_equal(np.asarray(image), np.asarray(fused)) for image in both] == [True, True]


def test_paths(fuser: Fuser, tmp_path: Path) -> None:
    write_image(tmp_path / "v.tif", VISIBLE, 16)
    write_image(tmp_path / "i.png", INFRARED)
    sources = [tmp_path / "v.tif", str(tmp_path / "i.png")]
    written = model.fuse(sources, fuser, out=tmp_path / "f.tif")
    assert written == tmp_path / "f.tif"
    image = read_image(written)
    assert image.bits == 16
    expected = fuse_arrays([read_image(Path(path)).pixels for path in sources], fuser)
    assert np.abs(image.pixels - expected).max() <= 0.5 / 65535 + 1e-6
    Image.fromarray(masks_of(1, (20, 30))[0].astype(np.uint8)).save(tmp_path / "m.png")
    guided = model.fuse(sources, fuser, out=tmp_path / "g.tif", masks=str(tmp_path / "m.png"))
    assert guided.read_bytes() != written.read_bytes()
    with pytest.raises(InputError, match="name a file of masks"):
        model.fuse(sources, fuser, out=tmp_path / "h.tif", masks=masks_of(1, (20, 30)))
    with pytest.raises(InputError, match="out="):
        model.fuse(sources, fuser)
    with pytest.raises(InputError, match="is the visible source"):
        model.fuse(sources, fuser, out=tmp_path / "v.tif")


def test_more_than_two_sources_and_masks(fuser: Fuser) -> None:
    three = model.fuse([VISIBLE, INFRARED, INFRARED[:, ::-1]], fuser)
    assert three.shape == VISIBLE.shape
    assert not np.array_equal(three, model.fuse([VISIBLE, INFRARED], fuser))
    masks = masks_of(1, (20, 30))
    guided = model.fuse([VISIBLE, INFRARED], fuser, masks=masks)
    assert np.array_equal(guided, fuse_arrays([VISIBLE, INFRARED], fuser, masks=masks))

    loud = model.fuse([VISIBLE, INFRARED], fuser, masks=masks.astype(np.uint8) * 255)
    assert np.array_equal(loud, guided)


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ([VISIBLE], {}, "1 source given"),
        ([VISIBLE, INFRARED[:, :9]], {}, "register and resize"),
        ([VISIBLE, np.full((1, 20, 30), np.nan)], {}, "NaN"),
        ([VISIBLE, INFRARED], {"out": "x.png"}, "save this result yourself"),
        ([VISIBLE, INFRARED], {"colour": "pink"}, "unknown colour"),
        ([VISIBLE[None], INFRARED[None].repeat(2, 0)], {}, "as many of each"),
        ([VISIBLE[None][:0], INFRARED[None][:0]], {}, "one or more"),
        ([np.full((20, 30), 255), INFRARED], {}, "int64, which no image has"),
        ([torch.full((20, 30), 255), torch.from_numpy(INFRARED)], {}, "int64, which no image has"),
        ([VISIBLE > 0.5, INFRARED], {}, "bool, which no image has"),
        ([torch.ones(20, 30, dtype=torch.bool), torch.from_numpy(INFRARED)], {}, "bool, which no image has"),
        ([VISIBLE + 0j, INFRARED], {}, "complex64, which no image has"),
        ([Image.fromarray(np.full((20, 30), 70000, np.int32)), INFRARED], {}, "holds 16 bits"),
        ([VISIBLE, "infrared.png"], {}, "some sources are paths"),
        (["visible.png", INFRARED], {"out": "x.png"}, "some sources are paths"),
        ([["visible.png"], ["infrared.png"]], {}, "one sample at a time"),
        ([VISIBLE, INFRARED], {"masks": "masks.png"}, "masks have shape"),
        ([VISIBLE, INFRARED], {"caption": ""}, "caption|without text"),
    ],
)
def test_mistakes(fuser: Fuser, sources: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.fuse(sources, fuser, **options)


@pytest.mark.parametrize("size", [(9, 15), (10, 16), (10, 10), (20, 15)])
def test_sharpening_takes_whole_ratios(tmp_path: Path, size: tuple[int, int]) -> None:
    sharpen = model.load_weights(make_weights(tmp_path / "p.safetensors", "pansharpening"))
    pan, bands = scene(1, 1, 20, 30), sharpen.network.config.in_channels[1]
    assert model.fuse([pan, scene(2, bands, 10, 15)], sharpen).shape == (bands, 20, 30)
    with pytest.raises(InputError, match="smaller by a whole ratio"):
        model.fuse([pan, scene(2, bands, *size)], sharpen)


def test_a_record_of_weights_that_names_no_source_is_refused(tmp_path: Path) -> None:
    path = make_weights(tmp_path / "p.safetensors", "pansharpening")
    record = json.loads(path.with_suffix(".json").read_text())
    record["model"]["base"] = 2
    path.with_suffix(".json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="base must be the number of a source"):
        model.load_weights(path)

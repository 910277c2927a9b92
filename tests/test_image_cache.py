"""What the cache of decoded images gives back is what decoding gives, and it notices changed files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_project import make_project, scene

from model.data import Batches, FusionDataset
from model.guidance import open_guidance
from model.image_cache import cache_path, cached_window, fill_cache, open_cache
from model.planes import Planes, decode
from pipeline import shards
from pipeline.errors import InputError
from pipeline.images import write_image
from pipeline.manifest import Sample, Source
from pipeline.store import Store


def make(root: Path, name: str, task: str, files: dict[str, np.ndarray], bits: int | None = None) -> Sample:
    """Write files (name with suffix -> float (C, H, W)); the one called target is the target."""
    written, target = [], None
    for file, pixels in files.items():
        path = root / name / file
        write_image(path, pixels, 32 if file.endswith(".npy") else bits or 8)
        if file.startswith("target"):
            target = path
        else:
            written.append(Source(file.partition(".")[0], path))
    return Sample(name, task, "train", tuple(written), target, bits=bits)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Sample], Store]]:
    """Data sets of every kind: growing sizes, grey and colour, 8 to 16 bits, floating point, ratios."""
    root = tmp_path_factory.mktemp("images")
    plain = [
        make(
            root,
            f"p{n}",
            "visible_infrared",
            {"visible.png": scene(n, bands, h, w), "infrared.png": scene(9, 1, h, w)},
        )
        for n, (bands, h, w) in enumerate([(3, 40, 50), (1, 40, 50), (3, 150, 300), (3, 20, 500)])
    ]
    deep = [
        make(root, "d0", "medical", {"ct.tif": scene(1, 1, 60, 70), "mri.tif": scene(2, 1, 60, 70)}, 8),
        make(root, "d1", "medical", {"ct.tif": scene(3, 1, 60, 70), "mri.tif": scene(4, 1, 60, 70)}, 12),
        make(root, "d2", "medical", {"ct.npy": scene(5, 1, 60, 70), "mri.npy": scene(6, 1, 60, 70)}),
    ]
    ratio = []
    for n, side in enumerate((64, 160)):
        sharp = scene(20 + n, 4, side, side)
        small = sharp.reshape(4, side // 4, 4, side // 4, 4).mean(axis=(2, 4))
        files = {"pan.tif": sharp.mean(axis=0, keepdims=True), "ms.tif": small, "target.tif": sharp}
        ratio.append(make(root, f"r{n}", "pansharpening", files, 11))
    return {
        samples[0].task: (samples, fill_cache(root / "images" / f"{n}.zarr", samples, samples[0].task))
        for n, samples in enumerate((plain, deep, ratio))
    }


def same(first: Planes, second: Planes) -> bool:
    pairs = zip(first.sources, second.sources, strict=True)
    targets = (first.target is None) == (second.target is None) and (
        first.target is None or np.array_equal(first.target, second.target)
    )
    return targets and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


@given(data=st.data())
@pytest.mark.parametrize("task", ["visible_infrared", "medical", "pansharpening"])
def test_windows_are_those_of_decoded_images_bit_for_bit(
    cached: dict[str, tuple[list[Sample], Store]], task: str, data: st.DataObject
) -> None:
    samples, store = cached[task]
    sample = data.draw(st.sampled_from(samples))
    planes = decode(sample, task)
    height, width = planes.sources[0].shape[1:]
    step = max(planes.ratios)
    y, x = (
        step * data.draw(st.integers(0, height // step - 1)),
        step * data.draw(st.integers(0, width // step - 1)),
    )
    h, w = (
        step * data.draw(st.integers(1, (height - y) // step)),
        step * data.draw(st.integers(1, (width - x) // step)),
    )
    assert same(cached_window(store, sample.id, y, x, h, w), planes.window(y, x, h, w))


def test_a_crop_reads_only_the_chunks_it_touches(
    cached: dict[str, tuple[list[Sample], Store]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = cached["visible_infrared"]
    read = shards._chunk
    count = []
    monkeypatch.setattr(shards, "_chunk", lambda *arguments: count.append(1) or read(*arguments))
    for (y, x, h, w), expected in {(10, 10, 64, 64): 1, (10, 100, 64, 64): 2, (100, 100, 50, 64): 4}.items():
        count.clear()
        cached_window(store, "p2", y, x, h, w)
        assert len(count) == expected


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


def of(samples: list[Sample], task: str) -> list[Sample]:
    return [sample for sample in samples if sample.task == task]


@pytest.mark.parametrize("task", ["visible_infrared", "pansharpening"])
@pytest.mark.parametrize("train", [True, False])
def test_a_data_set_is_the_same_from_cache_and_from_files(
    project: list[Sample], task: str, train: bool
) -> None:
    samples = of(project, task)
    store = fill_cache(cache_path("tiny", task), samples, task)
    guidance = open_guidance("tiny")
    cached = FusionDataset(samples, task, guidance, 16, train, images=store)
    plain = FusionDataset(samples, task, guidance, 16, train)
    assert (cached.in_channels, cached.ratios, cached.out_channels) == (
        plain.in_channels,
        plain.ratios,
        plain.out_channels,
    )
    for index in range(len(samples)):
        for epoch in range(3):
            first, second = cached.item(index, epoch), plain.item(index, epoch)
            assert all(torch.equal(a, b) for a, b in zip(first.sources, second.sources, strict=True))
            for name in ("target", "text", "masks"):
                a, b = getattr(first, name), getattr(second, name)
                assert (a is None) == (b is None)
                assert a is None or torch.equal(a, b)


def test_filling_goes_on_where_it_stopped_and_renews_what_changed(
    project: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = of(project, "visible_infrared")
    path = cache_path("tiny", "visible_infrared")
    fill_cache(path, samples[:4], "visible_infrared")
    assert open_cache(path, samples, target=False) is None
    decoded = []
    import model.image_cache as module

    read = module.read_images
    monkeypatch.setattr(module, "read_images", lambda *a: decoded.append(a[0].id) or read(*a))
    write_image(samples[1].sources[0].path, scene(55, 3, 24, 32))
    store = fill_cache(path, samples, "visible_infrared")
    assert sorted(decoded[1:]) == ["vi1", *(sample.id for sample in samples[4:])]  # the first tells the form
    assert same(cached_window(store, "vi1", 0, 0, 24, 32), decode(samples[1], "visible_infrared"))
    assert open_cache(path, samples, target=False) is not None
    assert open_cache(path, samples, target=True) is None


def test_a_changed_file_is_noticed_when_its_sample_is_used(project: list[Sample]) -> None:
    samples = of(project, "visible_infrared")
    store = fill_cache(cache_path("tiny", "visible_infrared"), samples, "visible_infrared")
    path = samples[2].sources[1].path
    path.write_bytes(path.read_bytes())  # another time, the same content
    FusionDataset(samples, "visible_infrared", images=store).item(2)
    write_image(path, scene(77, 1, 24, 32))
    dataset = FusionDataset(samples, "visible_infrared", images=store)
    dataset.item(1)
    with pytest.raises(InputError, match=r"'vi2' has changed since .* train with --verify"):
        dataset.item(2)
    content = open_guidance("tiny").contents()
    with pytest.raises(InputError, match=r"'vi2' has changed since"):
        FusionDataset(samples, "visible_infrared", content=content).item(2)
    fault = Batches([dataset])[[(0, 0, 1), (0, 0, 2)]]
    assert isinstance(fault, InputError)


def test_samples_of_another_make_up_are_named(project: list[Sample]) -> None:
    first, second = of(project, "pansharpening")[:2]
    write_image(second.sources[1].path, np.full((3, 8, 8), 0.5, np.float32), 16)
    assert second.target is not None
    write_image(second.target, np.full((3, 32, 32), 0.5, np.float32), 16)
    with pytest.raises(InputError, match=r"ps1.*separate data sets"):
        fill_cache(cache_path("tiny", "pansharpening"), [first, second], "pansharpening")
    third = dataclasses.replace(first, target=None, id="ps9")
    with pytest.raises(InputError, match=r"ps9.*has no target"):
        fill_cache(cache_path("tiny", "pansharpening"), [first, third], "pansharpening")

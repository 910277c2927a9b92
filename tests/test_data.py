"""Training data: crops with their guidance, order, mixing, photometric changes, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_project import make_project, masks_of, text_of

from model.batches import collate
from model.data import FusionDataset
from model.guidance import Guidance, open_guidance
from model.masks import by_source, mask_channels
from model.order import EndlessBatches, shares
from pipeline.errors import InputError
from pipeline.images import luminance, read_image, write_image
from pipeline.manifest import Sample, Source, content_hash
from pipeline.store import MergedMasks, create_store


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


def of(samples: list[Sample], task: str) -> list[Sample]:
    return [sample for sample in samples if sample.task == task]


def test_whole_images_with_their_guidance(samples: list[Sample]) -> None:
    dataset = FusionDataset(
        of(samples, "visible_infrared"), "visible_infrared", open_guidance("tiny"), train=False
    )
    item = dataset[3]
    visible = read_image(samples[3].sources[0].path).pixels
    assert np.array_equal(item.sources[0][0], luminance(visible))
    assert item.text is not None
    assert item.masks is not None
    assert np.allclose(item.text, text_of(3).astype(np.float32))
    assert item.masks.shape == (20, 24, 32)
    assert np.array_equal(item.masks[:2], masks_of(3, (24, 32)))
    assert not item.masks[2:].any()
    assert dataset.in_channels == (1, 1)
    assert dataset.out_channels == 1


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_crops_are_cut_and_turned_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_bytes: int
) -> None:
    """Both sources hold their pixel's number, and the mask says which numbers are even."""
    monkeypatch.chdir(tmp_path)
    from pipeline.store import MergedMasks, create_store

    number = np.arange(40 * 48, dtype=np.float32).reshape(1, 40, 48)
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.tif", number / 65535, 16)
    sample = Sample(
        "x", "medical", "train", (Source("ct", tmp_path / "a.tif"), Source("mri", tmp_path / "b.tif"))
    )
    store = create_store(tmp_path / "merged.zarr", "merged", ["x"], {}, "1", H=40, W=48)
    store.write(
        {"x": MergedMasks(number % 2 == 0, ("even",), np.ones(1, np.float32), np.ones(1, np.float32))}
    )
    dataset = FusionDataset([sample], "medical", Guidance(masks=store), crop=16, cache_bytes=cache_bytes)
    seen = set()
    for epoch in range(12):
        item = dataset[epoch, 0]
        values = np.rint(item.sources[0].numpy() * 65535)
        assert values.shape == (1, 16, 16)
        assert np.array_equal(item.sources[0], item.sources[1])
        assert item.masks is not None
        assert np.array_equal(item.masks[0].numpy(), values[0] % 2 == 0)
        seen.add(values.tobytes())
    assert len(seen) == 12
    assert np.array_equal(dataset[5, 0].sources[0], dataset[5, 0].sources[0])


def test_low_resolution_source_is_cut_where_the_first_is(samples: list[Sample]) -> None:
    """pan is the mean of the target's bands and ms its 4 x 4 means, in every crop."""
    dataset = FusionDataset(of(samples, "pansharpening"), "pansharpening", crop=18, seed=3)
    assert dataset.in_channels == (1, 4)
    assert dataset.out_channels == 4
    assert dataset.crop == 16  # whole ms pixels only
    for epoch in range(6):
        item = dataset[epoch, 2]
        assert item.target is not None
        assert torch.allclose(item.sources[0][0], item.target.mean(dim=0), atol=2e-5)
        means = item.target.reshape(4, 4, 4, 4, 4).mean(dim=(2, 4))
        assert torch.allclose(item.sources[1], means, atol=3e-5)


def test_images_smaller_than_the_crop_are_reflected(samples: list[Sample]) -> None:
    dataset = FusionDataset(
        of(samples, "visible_infrared"), "visible_infrared", open_guidance("tiny"), crop=64
    )
    item = dataset[1, 0]
    assert item.sources[0].shape == (1, 64, 64)
    assert item.masks is not None
    assert item.masks.shape == (20, 64, 64)


def test_collate_pads_text_and_fills_missing_masks(samples: list[Sample]) -> None:
    chosen = of(samples, "visible_infrared")
    guided = FusionDataset(chosen, "visible_infrared", open_guidance("tiny"), train=False)
    plain = FusionDataset(chosen, "visible_infrared", train=False)
    batch = collate([guided[0], plain[1], guided[3]])
    assert batch.text is not None
    assert batch.text_length is not None
    assert batch.masks is not None
    assert batch.text_length.tolist() == [3, 0, 6]
    assert batch.text.shape == (3, 6, 512)
    assert not batch.text[0, 3:].any()
    assert not batch.masks[1].any()
    assert collate([plain[0]]).text is None
    assert batch.without(text=True, masks=False).text is None


@given(length=st.integers(1, 9), batch=st.integers(1, 7), seed=st.integers(0, 99), split=st.integers(0, 12))
def test_order_goes_on_where_it_stopped_and_every_epoch_is_complete(
    length: int, batch: int, seed: int, split: int
) -> None:
    whole = list(EndlessBatches([length], batch, seed, 0, 12))
    assert whole[split:] == list(EndlessBatches([length], batch, seed, split, 12))
    keys = [key for keys in whole for key in keys]
    for epoch in range(len(keys) // length):
        assert sorted(index for _, e, index in keys if e == epoch) == list(range(length))


@given(lengths=st.lists(st.integers(1, 30), min_size=2, max_size=4), split=st.integers(0, 12), data=st.data())
def test_mixed_data_sets_keep_their_shares(lengths: list[int], split: int, data: st.DataObject) -> None:
    weights = [data.draw(st.floats(0.1, 8)) for _ in lengths]
    whole = list(EndlessBatches(lengths, 3, 5, 0, 12, weights))
    assert whole[split:] == list(EndlessBatches(lengths, 3, 5, split, 12, weights))
    expected = shares(lengths, weights)
    epoch = sum(expected)
    steps = -(-3 * epoch // 3)
    keys = [key for keys in EndlessBatches(lengths, 3, 5, 0, steps, weights) for key in keys]
    for start in range(0, len(keys) - epoch + 1, epoch):
        counts = np.bincount(
            [dataset for dataset, _, _ in keys[start : start + epoch]], minlength=len(lengths)
        )
        assert counts.tolist() == expected
        for share, weight in zip(expected, weights, strict=True):
            assert abs(share - max(1, sum(lengths) * weight / sum(weights))) <= 0.5 + 1e-9
    for dataset, length in enumerate(lengths):  # each goes through its own epochs, complete and in order
        own = [key[1:] for key in keys if key[0] == dataset]
        for number in range(len(own) // length):
            part = own[number * length : (number + 1) * length]
            assert {index for _, index in part} <= set(range(length))
    together = [key for keys in whole for key in keys]
    shared = [EndlessBatches(lengths, 6, 5, 0, 6, weights, slice(part, part + 3)) for part in (0, 3)]
    halves = [list(half) for half in shared]
    assert [key for a, b in zip(*halves, strict=True) for key in (*a, *b)] == together


def test_a_sharpening_sample_needs_a_target(samples: list[Sample]) -> None:
    import dataclasses

    sample = dataclasses.replace(of(samples, "pansharpening")[0], target=None)
    with pytest.raises(InputError, match=r"ps0.*target"):
        FusionDataset([sample], "pansharpening")


def test_a_task_without_targets_can_be_trained_against_one(samples: list[Sample], tmp_path: Path) -> None:
    sample = of(samples, "visible_infrared")[0]
    colour = read_image(sample.sources[0].path).pixels[::-1]
    write_image(tmp_path / "target.png", np.broadcast_to(colour, (3, *colour.shape[1:])))
    target = dataclasses.replace(sample, target=tmp_path / "target.png")
    item = FusionDataset([target], sample.task, train=False, supervised=True)[0]
    assert item.target is not None
    assert np.allclose(item.target[0], luminance(read_image(tmp_path / "target.png").pixels))
    assert FusionDataset([target], sample.task, train=False)[0].target is None
    with pytest.raises(InputError, match="has no target"):
        FusionDataset([sample], sample.task, supervised=True)


def test_samples_of_other_make_up_are_named(samples: list[Sample]) -> None:
    import dataclasses

    first, second = of(samples, "pansharpening")[:2]
    write_image(second.sources[1].path, np.full((3, 8, 8), 0.5, np.float32), 16)
    assert second.target is not None
    write_image(second.target, np.full((3, 32, 32), 0.5, np.float32), 16)
    dataset = FusionDataset([first, dataclasses.replace(second)], "pansharpening")
    with pytest.raises(InputError, match=r"ps1.*separate data sets"):
        dataset[0, 1]


def test_a_target_has_the_bands_that_are_sharpened(samples: list[Sample]) -> None:
    sample = of(samples, "pansharpening")[0]
    write_image(sample.sources[1].path, np.full((3, 8, 8), 0.5, np.float32), 16)
    with pytest.raises(InputError, match=r"ps0.*the target has 4 bands but ms, which is to be sharpened, 3"):
        FusionDataset([sample], "pansharpening")


def test_stores_of_something_else_are_refused(samples: list[Sample]) -> None:
    folder = Path("guidance/tiny")
    content = {samples[0].id: content_hash(samples[0])}
    merged = create_store(folder / "merged.zarr", "merged", list(content), {}, "merged-2", H=64, W=64)
    one = np.ones(1, np.float32)
    merged.write({samples[0].id: MergedMasks(np.ones((1, 40, 48), bool), ("car",), one, one)}, content)
    dataset = FusionDataset(samples[:1], samples[0].task, open_guidance("tiny"))
    with pytest.raises(InputError, match=r"merged.zarr: masks of sample 'vi0' are 40x48, its images 24x32"):
        dataset[0]
    create_store(folder / "texts.zarr", "texts", list(content), {}, "texts-2", T=8, D=64)
    with pytest.raises(InputError, match=r"texts.zarr: holds texts of 64 features, not 512"):
        open_guidance("tiny")
    create_store(folder / "texts.zarr", "merged", list(content), {}, "merged-2", H=32, W=32)
    with pytest.raises(InputError, match=r"texts.zarr: holds merged; delete it"):
        open_guidance("tiny")


def test_no_samples() -> None:
    with pytest.raises(InputError, match="no samples of task 'medical'"):
        FusionDataset([], "medical")


def test_unmerged_masks_stand_by_source() -> None:
    mask = np.random.default_rng(0).random((3, 5, 6)) > 0.5
    laid = by_source(mask, np.array([2, 1, 2], np.uint32), 2, "a")
    expected = np.zeros((40, 5, 6), dtype=bool)
    expected[0], expected[20], expected[21] = mask[1], mask[0], mask[2]
    assert np.array_equal(laid, expected)
    assert mask_channels(laid, 2).shape == (40, 5, 6)


@pytest.mark.parametrize("sources", [None, np.array([1, 3], np.uint32), np.array([1, 0], np.uint32)])
def test_merged_masks_are_no_unmerged_ones(sources: np.ndarray | None) -> None:
    with pytest.raises(InputError, match=r"sample 'a': its masks are merged.*merge\.mode: unmerged"):
        by_source(np.ones((2, 4, 4), dtype=bool), sources, 2, "a")


@pytest.mark.parametrize("train", [False, True])
def test_dataset_gives_every_source_its_own_masks(samples: list[Sample], tmp_path: Path, train: bool) -> None:
    from pipeline.store import MergedMasks, create_store

    mask = np.ones((2, 24, 32), dtype=bool)
    mask[1, :, ::2] = False
    store = create_store(tmp_path / "unmerged.zarr", "merged", ["vi0"], {}, "1", H=24, W=32)
    ones = np.ones(2, np.float32)
    record = MergedMasks(mask, ("car", "person"), ones, ones, sources=np.array([1, 2], np.uint32))
    store.write({"vi0": record})
    guidance = Guidance(masks=store)
    for cache_bytes in (0, 2**30):
        dataset = FusionDataset(
            samples[:1], "visible_infrared", guidance, 16, train, cache_bytes=cache_bytes, unmerged=True
        )
        batch = collate([dataset[0]])
        assert batch.masks is not None
        assert batch.masks.shape[1] == 40
        covered = batch.masks.float().mean(dim=(0, 2, 3))
        assert (covered[0], covered[20], covered.sum()) == (1.0, 0.5, 1.5)
    merged = FusionDataset(samples[1:2], "visible_infrared", open_guidance("tiny", "unmerged"), unmerged=True)
    with pytest.raises(InputError, match="its masks are merged"):
        merged[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(samples: list[Sample], workers: int) -> None:
    from torch.utils.data import DataLoader

    from model.data import Batches

    def batches(workers: int) -> list[bytes]:
        dataset = FusionDataset(
            of(samples, "visible_infrared"), "visible_infrared", open_guidance("tiny"), 16, photometric=0.3
        )
        order = EndlessBatches([len(dataset)], 3, 1, 2, 8)
        loader = DataLoader(Batches([dataset]), batch_size=None, sampler=order, num_workers=workers)
        return [
            b"".join(
                t.numpy().tobytes() for t in (*batch.sources, batch.text, batch.text_length, batch.masks)
            )
            for batch in loader
        ]

    assert len(set(batches(0))) == 6
    assert batches(workers) == batches(0)


@pytest.mark.parametrize("task", ["visible_infrared", "pansharpening"])
def test_photometric_changes_keep_what_ties_the_images_together(samples: list[Sample], task: str) -> None:
    chosen = of(samples, task)
    plain = FusionDataset(chosen, task, crop=16)
    changed = FusionDataset(chosen, task, crop=16, photometric=0.5)
    laws = set()
    for epoch in range(8):
        before, after = plain.item(0, epoch), changed.item(0, epoch)
        assert all(0 <= source.min() <= source.max() <= 1 for source in after.sources)
        if task == "pansharpening":
            assert before.target is not None
            assert after.target is not None
            gain = float(after.target.sum() / before.target.sum())
            assert 0.6 < gain <= 1
            for old, new in zip(
                (*before.sources, before.target), (*after.sources, after.target), strict=True
            ):
                assert torch.allclose(new, gain * old, atol=1e-6)
            laws.add(round(gain, 4))
            continue
        for old, new in zip(before.sources, after.sources, strict=True):  # log new = log g + γ log old
            x, y = old.flatten().double().log().numpy(), new.flatten().double().log().numpy()
            gamma, gain = np.polyfit(x, y, 1)
            assert np.allclose(y, gamma * x + gain, atol=1e-4)
            laws.add((round(float(gamma), 4), round(float(gain), 4)))
    assert len(laws) == (8 if task == "pansharpening" else 16)


def test_images_of_one_camera_change_together() -> None:
    from model.augmentation import photometric
    from model.planes import Planes

    near, far = np.random.default_rng(0).random((2, 1, 8, 8)).astype(np.float32)
    for task, together in {"multi_focus": True, "multi_exposure": True, "medical": False}.items():
        changed = photometric(Planes((near, near.copy()), far), task, 0.4, np.random.default_rng(1))
        assert np.array_equal(changed.sources[0], changed.sources[1]) == together

"""The embedded data set: the same every time, whole or absent, and true to what it says it shows."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import ndimage

from pipeline import demo
from pipeline.demo import CHECKSUMS, PARTS, generate, is_current, listing
from pipeline.demo_canvas import Canvas, capsule, clouds, ellipse, polygon, rectangle
from pipeline.demo_remote import RATIO
from pipeline.errors import InputError
from pipeline.images import read_image, read_sources
from pipeline.manifest import Sample, write_manifest
from pipeline.protocols import gaussian, wald

MANIFEST = Path(__file__).parents[1] / "data_manifests" / "demo.csv"
SIZES = {
    "visible_infrared": [(3, 192, 256), (1, 192, 256)],
    "multi_exposure": [(3, 144, 192), (3, 144, 192)],
    "multi_focus": [(3, 144, 192), (3, 144, 192)],
    "pansharpening": [(1, 128, 128), (4, 32, 32)],
    "hyper_multispectral": [(4, 128, 128), (16, 32, 32)],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole data set, generated once."""
    folder = tmp_path_factory.mktemp("data") / "demo"
    generate(folder)
    return folder


@pytest.fixture
def one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample of each task."""
    monkeypatch.setattr(
        demo, "PARTS", {task: replace(part, counts=(1, 0, 0)) for task, part in PARTS.items()}
    )


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four quickly drawn samples, for tests of the writing that generate several times."""
    parts = {task: replace(part, counts=(0, 0, 0)) for task, part in PARTS.items()}
    monkeypatch.setattr(demo, "PARTS", parts | {"medical": replace(PARTS["medical"], counts=(2, 0, 2))})


def of_task(root: Path, task: str) -> list[Sample]:
    return [sample for sample in listing(root) if sample.task == task]


def pixels(sample: Sample) -> list[np.ndarray]:
    return [image.pixels.astype(float) for image in read_sources(sample)]


def target(sample: Sample) -> np.ndarray:
    assert sample.target is not None
    return read_image(sample.target, sample.bits).pixels.astype(float)


def truth(root: Path, sample: Sample) -> tuple[list[str], np.ndarray]:
    with np.load(root / "truth" / "masks" / f"{sample.id}.npz", allow_pickle=False) as file:
        return [str(label) for label in file["label"]], file["mask"]


def checksums(root: Path) -> dict[str, str]:
    return json.loads((root / CHECKSUMS).read_text())["files"]


def test_committed_manifest_is_what_the_generator_makes(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    write_manifest(tmp_path / "demo.csv", listing(root), root)
    assert (tmp_path / "demo.csv").read_text() == MANIFEST.read_text(), (
        "write data_manifests/demo.csv anew from pipeline.demo.listing"
    )


def test_every_task_and_split_is_there(root: Path) -> None:
    counts = Counter((sample.task, sample.split) for sample in listing(root))
    for task in PARTS:
        expected = (24, 4, 8) if task == "visible_infrared" else (8, 2, 4)
        assert tuple(counts[task, split] for split in ("train", "validation", "test")) == expected
    captions = json.loads((root / "truth" / "captions.json").read_text())
    assert list(captions) == [sample.id for sample in listing(root)]
    assert all(text.endswith(".") and len(text) > 20 for text in captions.values())


def test_sources_read_with_the_right_sizes_and_are_not_flat(root: Path) -> None:
    for sample in listing(root):
        sources = pixels(sample)
        if sample.task == "medical":
            bands = 3 if sample.roles[0] == "pet" else 1
            assert [image.shape for image in sources] == [(bands, 160, 160), (1, 160, 160)]
        else:
            assert [image.shape for image in sources] == SIZES[sample.task]
        assert all(image.std() > 0.02 for image in sources), sample.id
    assert {sample.roles for sample in of_task(root, "medical")} == {("ct", "mri"), ("pet", "mri")}
    assert {sample.bits for sample in of_task(root, "pansharpening")} == {11}


@pytest.mark.usefixtures("one_each")
def test_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    generate(tmp_path / "a")
    generate(tmp_path / "b")
    generate(tmp_path / "c", seed=1)
    first, again, other = (checksums(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() - {name for name in first if first[name] == other.get(name)} == first.keys()


@pytest.mark.usefixtures("one_each")
def test_samples_do_not_depend_on_each_other(root: Path, tmp_path: Path) -> None:
    generate(tmp_path / "few")
    whole, part = checksums(root), checksums(tmp_path / "few")
    alone = {name: digest for name, digest in part.items() if not name.endswith((".h5", "captions.json"))}
    assert len(alone) > 8
    assert all(whole[name] == digest for name, digest in alone.items())
    for task in ("pansharpening", "hyper_multispectral"):  # one file holds all samples of a split
        for few, many in zip(
            pixels(of_task(tmp_path / "few", task)[0]), pixels(of_task(root, task)[0]), strict=True
        ):
            np.testing.assert_array_equal(few, many)


@pytest.mark.usefixtures("few")
def test_complete_data_set_is_left_alone_and_a_damaged_one_repaired(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    samples = generate(root)
    victim = samples[0].sources[0].path
    original, inode = victim.read_bytes(), victim.stat().st_ino
    assert generate(root) == samples
    assert victim.stat().st_ino == inode
    victim.write_bytes(b"damaged")
    assert not is_current(root)
    generate(root)
    assert victim.read_bytes() == original
    inode = victim.stat().st_ino
    generate(root, force=True)
    assert victim.stat().st_ino != inode
    assert is_current(root)
    assert not is_current(root, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_run_leaves_nothing_or_the_old_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    root = tmp_path / "demo"
    write, calls = demo.write_image, []

    def failing(path: Path, image: np.ndarray, bits: int) -> None:
        calls.append(path)
        if len(calls) == 7:
            raise failure
        write(path, image, bits)

    monkeypatch.setattr(demo, "write_image", failing)
    with pytest.raises(type(failure)):
        generate(root)
    assert list(tmp_path.iterdir()) == []
    generate(root)
    before = checksums(root)
    calls.clear()
    with pytest.raises(type(failure)):
        generate(root, seed=3)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert checksums(root) == before
    assert is_current(root)


@pytest.mark.usefixtures("few")
def test_killed_run_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "demo.tmp").mkdir()
    (tmp_path / "demo.tmp" / "half.png").write_bytes(b"half")
    generate(tmp_path / "demo")
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_files_of_others_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match="move them away"):
        generate(tmp_path)
    assert (tmp_path / "holiday.jpg").read_bytes() == b"mine"


def test_people_are_warmer_than_what_surrounds_them(root: Path) -> None:
    for sample in of_task(root, "visible_infrared"):
        _, infrared = pixels(sample)
        labels, masks = truth(root, sample)
        assert labels.count("person") >= 2
        warm = [mask for label, mask in zip(labels, masks, strict=True) if label in ("person", "lamp", "car")]
        for label, mask in zip(labels, masks, strict=True):
            if label == "person":
                ring = ndimage.binary_dilation(mask, iterations=6) & ~ndimage.binary_dilation(
                    np.any(warm, axis=0), iterations=2
                )
                assert np.median(infrared[0][mask]) > np.median(infrared[0][ring]) + 0.2, sample.id


def test_masks_are_disjoint_and_named(root: Path) -> None:
    seen: set[str] = set()
    for sample in of_task(root, "visible_infrared"):
        labels, masks = truth(root, sample)
        assert masks.shape == (len(labels), 192, 256)
        assert masks.sum(axis=0).max() <= 1
        assert masks.sum(axis=(1, 2)).min() >= 40
        seen |= set(labels)
    assert seen == {"person", "car", "lamp", "tree", "building"}


def test_smoke_hides_people_from_the_visible_camera_only(root: Path) -> None:
    captions = json.loads((root / "truth" / "captions.json").read_text())

    def contrast(image: np.ndarray, mask: np.ndarray) -> float:
        ring = ndimage.binary_dilation(mask, iterations=5) & ~ndimage.binary_dilation(mask, iterations=1)
        return float(np.abs(image[:, mask].mean(axis=1) - image[:, ring].mean(axis=1)).mean())

    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for sample in of_task(root, "visible_infrared"):
        if "smoke" in captions[sample.id] or "by day" in captions[sample.id]:
            visible, infrared = pixels(sample)
            labels, masks = truth(root, sample)
            people = [mask for label, mask in zip(labels, masks, strict=True) if label == "person"]
            found["smoke" in captions[sample.id]] += [
                (contrast(visible, mask), contrast(infrared, mask)) for mask in people
            ]
    smoke, day = np.mean(found[True], axis=0), np.mean(found[False], axis=0)
    assert smoke[0] < 0.6 * day[0]
    assert smoke[1] > 0.8 * day[1]


def test_exposures_clip_at_opposite_ends(root: Path) -> None:
    for sample in of_task(root, "multi_exposure"):
        under, over = pixels(sample)
        assert under.mean() + 0.15 < over.mean()
        assert (under.min(axis=0) > 0.99).mean() < 0.05 < (over.min(axis=0) > 0.99).mean(), sample.id
        shadows = under.mean(axis=0) < np.median(under)
        assert over.mean(axis=0)[shadows].std() > 1.2 * under.mean(axis=0)[shadows].std(), sample.id


def test_all_in_focus_target_is_the_sharper_of_both_everywhere(root: Path) -> None:
    def sharpness(image: np.ndarray) -> float:
        smooth = ndimage.gaussian_filter(image, (0, 0.7, 0.7))  # below the sensor's noise
        return float(np.mean([np.hypot(*np.gradient(band)).mean() for band in smooth]))

    for sample in of_task(root, "multi_focus"):
        near, far = pixels(sample)
        sharp = target(sample)
        assert sharpness(sharp) > 1.08 * max(sharpness(near), sharpness(far)), sample.id
        off = np.minimum(np.abs(near - sharp).mean(axis=0), np.abs(far - sharp).mean(axis=0))
        assert off.mean() < 0.02
        assert min(np.abs(near - sharp).mean(), np.abs(far - sharp).mean()) > 1.5 * off.mean()


@pytest.mark.parametrize("task", ["pansharpening", "hyper_multispectral"])
def test_degraded_target_is_the_coarse_source(root: Path, task: str) -> None:
    for sample in of_task(root, task):
        fine, coarse = pixels(sample)
        ideal = target(sample)
        assert ideal.shape[1:] == fine.shape[1:]
        if task == "pansharpening":
            expected = wald(ideal, (0.34, 0.32, 0.30, 0.22), RATIO)  # QuickBird
        else:
            expected = gaussian(ideal, RATIO)
        assert np.sqrt(np.mean((expected - coarse) ** 2)) < 0.002
        # The fine source is a mix of the ideal bands, up to its noise.
        bands = ideal.reshape(len(ideal), -1).T
        for band in fine.reshape(len(fine), -1):
            mix, *_ = np.linalg.lstsq(bands, band, rcond=None)
            assert np.sqrt(np.mean((bands @ mix - band) ** 2)) < 0.006, sample.id


def test_sharpening_files_have_the_published_layouts(root: Path) -> None:
    """PanCollection's and Chikusei's, so that the demo goes through the readers of real data."""
    with h5py.File(root / "pansharpening" / "train_qb.h5") as file:
        assert {name: file[name].shape for name in file} == {
            "gt": (8, 4, 128, 128),
            "lms": (8, 4, 128, 128),
            "ms": (8, 4, 32, 32),
            "pan": (8, 1, 128, 128),
        }
        assert file["gt"][:].max() <= 2047
        np.testing.assert_allclose(file["lms"][3, :, 2::4, 2::4], file["ms"][3], atol=1)
    with h5py.File(root / "hyper_multispectral" / "test_land.h5") as file:
        assert {name: file[name].shape for name in file} == {
            "GT": (4, 16, 128, 128),
            "LRHSI": (4, 16, 32, 32),
            "RGB": (4, 4, 128, 128),
        }


def test_skull_shows_in_ct_and_not_in_mri(root: Path) -> None:
    for sample in of_task(root, "medical"):
        first, mri = pixels(sample)
        if sample.roles[0] == "ct":
            skull = ndimage.binary_erosion(first[0] > 0.85)
            assert np.count_nonzero(skull) > 300
            assert mri[0][skull].mean() < 0.3
        else:
            assert np.ptp(first, axis=0).max() > 0.8  # pseudo-colours
            assert np.ptp(first, axis=0)[first.max(axis=0) < 0.05].max(initial=0) < 0.1


def test_shapes_cover_their_area() -> None:
    size = (64, 80)
    assert ellipse(size, 40.3, 30.2, 17, 11).cover.sum() == pytest.approx(np.pi * 17 * 11, rel=0.01)
    assert rectangle(size, 10.25, 8.5, 50.75, 40.0).cover.sum() == pytest.approx(40.5 * 31.5)
    assert polygon(size, [(10, 10), (60, 12), (35, 50)]).cover.sum() == pytest.approx(975, rel=0.01)
    stick = capsule(size, (20, 20), (60, 40), 3, 3).cover.sum()
    assert stick == pytest.approx(6 * np.hypot(40, 20) + 9 * np.pi, rel=0.02)
    for outside in (ellipse(size, -90, 20, 5, 5), polygon(size, [(200, 1), (210, 1), (205, 9)])):
        Canvas(size).paint(outside, (1, 1, 1), 1, 1)
        assert outside.cover.size == 0 or outside.cover.sum() == 0


def test_later_objects_take_pixels_from_earlier_ones() -> None:
    canvas = Canvas((40, 40))
    far, near = canvas.add("tree"), canvas.add("person")
    canvas.paint(rectangle((40, 40), 4.5, 4.5, 29.5, 29.5), (0, 1, 0), 0.2, 20, owner=far)
    canvas.paint(rectangle((40, 40), 9.5, 9.5, 19.5, 39.5), (1, 0, 0), 0.9, 5, owner=near)
    labels, masks = canvas.masks(["tree", "person"], least=1)
    assert labels == ["tree", "person"]
    assert masks[1].sum() == 10 * 30
    assert masks[0].sum() == 25 * 25 - 10 * 20
    assert canvas.depth[15, 15] == 5


def test_noise_is_normalised_and_periodic() -> None:
    noise = clouds(np.random.default_rng(0), (64, 64), 1.8)
    assert noise.mean() == pytest.approx(0, abs=1e-9)
    assert noise.std() == pytest.approx(1)
    wrap = np.abs(noise[:, 0] - noise[:, -1]).mean()
    assert wrap < 3 * np.abs(np.diff(noise, axis=1)).mean()

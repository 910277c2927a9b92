"""COCO JSON of guidance masks: what pycocotools makes of it, and what comes back."""

import json
from pathlib import Path

import fake_backends
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO

from pipeline.coco import MERGED, CocoFile, export_coco, read_coco
from pipeline.config import PipelineConfig
from pipeline.errors import InputError
from pipeline.manifest import Sample
from pipeline.store import Instances, MergedMasks, SampleInstances, create_store

SIZES = ((24, 32), (17, 9), (20, 20))


def blobs(rng: np.random.Generator, count: int, size: tuple[int, int]) -> Instances:
    """Random objects with fractional boxes and scores."""
    mask = rng.random((count, *size)) < 0.3
    mask[:, 0, 0] = True
    corner = rng.random((count, 2)) * 5
    box = np.concatenate([corner, corner + 1 + rng.random((count, 2)) * 4], axis=1).astype(np.float32)
    score, iou = rng.random((2, count)).astype(np.float32)
    labels = tuple(str(label) for label in rng.choice(["person", "car", "Straßenlampe"], count))
    return Instances(box, score, labels, iou, mask)


def fill(samples: list[Sample], done: int) -> dict[str, tuple[SampleInstances, MergedMasks]]:
    """Stores of `mini` with random instances in its first ``done`` samples."""
    rng = np.random.default_rng(1)
    records = {}
    for sample, (h, w) in list(zip(samples, SIZES, strict=True))[:done]:
        sources = tuple(blobs(rng, count, (h, w)) for count in (3, 1))
        united = blobs(rng, 2, (h, w))
        assert united.mask is not None
        assert united.iou is not None
        seen = np.array([3, 2], np.uint32)
        merged = MergedMasks(united.mask, united.label, united.score, united.iou, sources=seen)
        records[sample.id] = (SampleInstances(h, w, sources), merged)
    folder = Path("guidance/mini")
    folder.mkdir(parents=True)
    ids = [sample.id for sample in samples]
    found = create_store(folder / "masks.zarr", "masks", ids, {}, "f", S=2, H=24, W=32)
    found.write({name: pair[0] for name, pair in records.items()})
    merged_store = create_store(folder / "merged.zarr", "merged", ids, {}, "f", H=24, W=32)
    merged_store.write({name: pair[1] for name, pair in records.items()})
    return records


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PipelineConfig:
    monkeypatch.chdir(tmp_path)
    return fake_backends.config()


def test_pycocotools_reads_what_the_stores_hold(project: PipelineConfig) -> None:
    samples = fake_backends.make_dataset(Path(), SIZES)
    records = fill(samples, done=3)
    done = export_coco(project, "mini", Path("out/mini.json"))
    assert (done.images, done.annotations, done.missing) == (9, 18, ())
    coco = COCO("out/mini.json")
    assert {category["name"] for category in coco.loadCats(coco.getCatIds())} <= {
        "person",
        "car",
        "Straßenlampe",
    }
    images = {(image["sample"], image["role"]): image for image in coco.loadImgs(coco.getImgIds())}
    for sample in samples:
        found, merged = records[sample.id]
        views = {
            source.role: instances for source, instances in zip(sample.sources, found.sources, strict=True)
        }
        for role, of in {**views, MERGED: merged}.items():
            image = images[sample.id, role]
            file = (
                sample.sources[0].path
                if role == MERGED
                else dict((source.role, source.path) for source in sample.sources)[role]
            )
            assert Path("images") / image["file_name"] == file
            assert (image["height"], image["width"]) == (found.height, found.width)
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
            assert len(annotations) == len(of.label)
            for index, annotation in enumerate(annotations):
                mask = coco.annToMask(annotation)
                np.testing.assert_array_equal(mask, of.mask[index])
                assert annotation["area"] == of.mask[index].sum()
                assert coco.cats[annotation["category_id"]]["name"] == of.label[index]
                assert np.float32(annotation["score"]) == of.score[index]
                assert np.float32(annotation["predicted_iou"]) == of.iou[index]
                assert annotation["source"] == role
                if role != MERGED:
                    x, y, w, h = annotation["bbox"]
                    np.testing.assert_array_equal(
                        np.array([x, y, x + w, y + h], np.float32), views[role].box[index]
                    )
        seen = [a["sources"] for a in coco.loadAnns(coco.getAnnIds(imgIds=[images[sample.id, MERGED]["id"]]))]
        assert seen == [["visible", "infrared"], ["infrared"]]


def test_coming_back_gives_the_same_instances(project: PipelineConfig) -> None:
    records = fill(fake_backends.make_dataset(Path(), SIZES), done=3)
    export_coco(project, "mini", Path("mini.json"))
    coco = read_coco(Path("mini.json"))
    for image in coco.images:
        found, merged = records[image["sample"]]
        expected = {"visible": found.sources[0], "infrared": found.sources[1], MERGED: merged}[image["role"]]
        back = coco.instances(image)
        assert back.label == expected.label
        np.testing.assert_array_equal(back.mask, expected.mask)
        np.testing.assert_array_equal(back.score, expected.score)
        np.testing.assert_array_equal(back.iou, expected.iou)
        if isinstance(expected, Instances):
            np.testing.assert_array_equal(back.box, expected.box)


def test_the_same_stores_give_the_same_bytes(project: PipelineConfig) -> None:
    fill(fake_backends.make_dataset(Path(), SIZES), done=3)
    for name in ("a.json", "b.json"):
        export_coco(project, "mini", Path(name))
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()


def test_samples_without_guidance_are_named(project: PipelineConfig) -> None:
    samples = fake_backends.make_dataset(Path(), SIZES)
    fill(samples, done=1)
    done = export_coco(project, "mini", Path("mini.json"))
    assert done.images == 3
    assert done.missing == (samples[1].id, samples[2].id)


def test_without_any_guidance_the_command_is_named(project: PipelineConfig) -> None:
    fill(fake_backends.make_dataset(Path(), SIZES), done=0)
    with pytest.raises(InputError, match=r"python -m pipeline guidance --dataset mini"):
        export_coco(project, "mini", Path("mini.json"))
    assert not Path("mini.json").exists()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from(["plain", "rle"]))
def test_any_mask_survives_either_form(height: int, width: int, seed: int, form: str) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    mask[0, 0] = True
    column_major = mask.ravel(order="F")
    runs, current = [0], False  # COCO's uncompressed form: run lengths down the columns, zeros first
    for value in column_major:
        if value == current:
            runs[-1] += 1
        else:
            runs.append(1)
            current = bool(value)
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    shape = (
        {"size": [height, width], "counts": runs}
        if form == "plain"
        else {"size": [height, width], "counts": encoded["counts"].decode()}
    )
    assert_one(shape, height, width, mask)


def assert_one(shape: object, height: int, width: int, mask: np.ndarray) -> None:
    image = {"id": 7, "file_name": "a.png", "height": height, "width": width}
    annotation = {"id": 1, "image_id": 7, "category_id": 1, "segmentation": shape, "label": "car"}
    found = CocoFile(Path("x.json"), (image,), {7: [annotation]}).instances(image)
    assert found.mask is not None
    np.testing.assert_array_equal(found.mask[0], mask)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert found.box[0].tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert found.score.tolist() == [1]
    assert found.iou is not None
    assert found.iou.tolist() == [1]


def test_polygons_are_filled() -> None:
    mask = np.zeros((10, 12), bool)
    mask[2:6, 3:9] = True
    assert_one([[3, 2, 9, 2, 9, 6, 3, 6]], 10, 12, mask)


GOOD = {
    "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}],
    "categories": [{"id": 1, "name": "car"}],
    "annotations": [{"id": 5, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 2, 0, 2, 2]]}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": None}, "not a COCO instance file"),
        ({"images": [{"id": 1, "file_name": "a.png", "height": 4}]}, "image 1: has no 'width'"),
        ({"annotations": [{"id": 5, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]}, "segmentation"),
        ({"annotations": [{**GOOD["annotations"][0], "image_id": 9}]}, "annotation 5: names an image"),
        ({"categories": []}, "annotation 5: names an image or a category"),
        ({"categories": [{"id": 1}]}, "not a COCO instance file"),
        ({"images": [{**GOOD["images"][0], "height": "four"}]}, "image 1: its height is no number"),
        ({"annotations": [{**GOOD["annotations"][0], "bbox": [1, 2]}]}, "annotation 5: its bbox is not x, y"),
        ({"annotations": [{**GOOD["annotations"][0], "bbox": [0, 0, "a", 1]}]}, "its bbox is no number"),
        ({"annotations": [{**GOOD["annotations"][0], "score": "high"}]}, "annotation 5: its score is no"),
        ({"annotations": [{**GOOD["annotations"][0], "predicted_iou": float("nan")}]}, "its predicted_iou"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(InputError, match=message) as error:
        read_coco(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert read_coco(path).images[0]["file_name"] == "a.png"


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '{"images": []}'])
def test_what_is_no_coco_file_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match="not a"):
        read_coco(path)


@pytest.mark.parametrize("counts", ["0oo0", 5, [3, 500]])
def test_a_broken_mask_names_its_annotation(tmp_path: Path, counts: object) -> None:
    path = tmp_path / "x.json"
    annotation = GOOD["annotations"][0] | {"segmentation": {"size": [4, 4], "counts": counts}}
    path.write_text(json.dumps(GOOD | {"annotations": [annotation]}))
    coco = read_coco(path)
    with pytest.raises(InputError, match="annotation 5"):
        coco.instances(coco.images[0])

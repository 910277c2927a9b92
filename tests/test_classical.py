"""The download-free backends: what they find in generated scenes with known objects, and in real ones."""

import re
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import demo
from pipeline.classical_captions import ClassicalCaptioner
from pipeline.classical_masks import ClassicalSegmenter, segment
from pipeline.classical_objects import ClassicalDetector
from pipeline.classical_texts import ClassicalTextEncoder
from pipeline.config import TEXT_WIDTH, MergeConfig
from pipeline.images import Image, SampleImages, read_sample
from pipeline.layouts import scan_folder
from pipeline.manifest import TASKS, Sample, Source
from pipeline.merging import merge
from pipeline.records import Instances

PROMPT = ("person", "car", "lamp", "structure", "lesion")
SCENES = 8  # generated scenes looked at
Scene = tuple[SampleImages, NDArray[np.bool_], tuple[str, ...]]


def sample_of(task: str, images: Mapping[str, NDArray[np.floating]]) -> SampleImages:
    """A sample made of arrays (H, W) or (C, H, W) by role."""
    sources = tuple(Source(role, Path(f"{role}.png")) for role in images)
    decoded = []
    for array in images.values():
        pixels = np.asarray(array, dtype=np.float32)
        decoded.append(Image(pixels[None] if pixels.ndim == 2 else pixels, 8, Path("none.png")))
    return SampleImages(Sample("s", task, "test", sources), tuple(decoded))


def street(people: int = 2, seed: int = 0) -> tuple[SampleImages, list[NDArray[np.bool_]]]:
    """A cool noisy street with warm upright ellipses; the visible image is dark."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:120, :160] + 0.5
    infrared = 0.15 + 0.1 * (rows > 60) + 0.01 * random.standard_normal((120, 160))
    masks = []
    for number in range(people):
        mask = ((rows - 70) / 20) ** 2 + ((columns - 30 - 45 * number) / 8) ** 2 <= 1
        infrared[mask] = 0.8
        masks.append(mask)
    visible = 0.08 + 0.01 * random.standard_normal((3, 120, 160))
    return sample_of(
        "visible_infrared", {"visible": visible.clip(0, 1), "infrared": infrared.clip(0, 1)}
    ), masks


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def objects(sample: SampleImages, prompt: tuple[str, ...] = PROMPT) -> tuple[Instances, ...]:
    return ClassicalSegmenter()([sample], ClassicalDetector()([sample], prompt))[0]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Generated visible and infrared scenes with their true masks and labels."""
    part = demo.PARTS["visible_infrared"]
    found = []
    for index in range(SCENES):
        views = part.build(np.random.default_rng([0, 0, index]), index)
        assert views.masks is not None
        images = {
            role: np.moveaxis(view, -1, 0) if view.ndim == 3 else view for role, view in views.images.items()
        }
        found.append((sample_of("visible_infrared", images), views.masks, tuple(views.labels)))
    return found


def test_warm_people_are_found_and_hugged() -> None:
    sample, masks = street()
    _, infrared = objects(sample, ("people",))
    assert infrared.label == ("person", "person")
    assert infrared.mask is not None
    for mask in masks:
        assert max(overlap(mask, found) for found in infrared.mask) > 0.9


def test_most_people_of_generated_scenes_are_found(
    scenes: list[Scene],
) -> None:
    found, total = 0, 0
    for sample, masks, labels in scenes:
        merged = merge(objects(sample), PROMPT, MergeConfig())
        for mask, label in zip(masks, labels, strict=True):
            if label == "person":
                total += 1
                found += any(
                    name == "person" and overlap(mask, other) >= 0.5
                    for name, other in zip(merged.label, merged.mask, strict=True)
                )
    assert total >= SCENES
    assert found / total >= 0.7, f"{found} of {total} people at IoU >= 0.5"


def test_a_flat_or_noisy_image_has_no_objects() -> None:
    random = np.random.default_rng(1)
    for noise in (0.0, 0.005):
        flat = 0.4 + noise * random.standard_normal((96, 128))
        for instances in objects(sample_of("visible_infrared", {"visible": flat, "infrared": flat})):
            assert len(instances) == 0


def test_boxes_keep_the_contract(
    scenes: list[Scene],
) -> None:
    sample = scenes[0][0]
    height, width = sample.size
    everything = ClassicalDetector(threshold=0.0, max_boxes=5)([sample], ())[0]
    for instances in (*everything, *objects(sample)):
        assert instances.box.dtype == np.float32
        assert instances.box.shape == (len(instances), 4)
        assert ((instances.box >= 0) & (instances.box <= [width, height, width, height])).all()
        assert (instances.box[:, 2:] > instances.box[:, :2]).all()
        assert ((instances.score >= 0) & (instances.score <= 1)).all()
    assert all(len(instances) <= 5 for instances in everything)
    for instances in objects(sample, ("Cars",)):
        assert set(instances.label) <= {"car"}
        assert instances.mask is not None
        assert instances.mask.shape == (len(instances), height, width)
        assert instances.iou is not None
        assert ((instances.iou >= 0) & (instances.iou <= 1)).all()


def test_results_do_not_depend_on_the_batch(
    scenes: list[Scene],
) -> None:
    samples = [scene[0] for scene in scenes[:2]]
    together = ClassicalDetector()(samples, PROMPT)
    for sample, sources in zip(samples, together, strict=True):
        for alone, batched in zip(ClassicalDetector()([sample], PROMPT)[0], sources, strict=True):
            np.testing.assert_array_equal(alone.box, batched.box)
            assert alone.label == batched.label
    captions = ClassicalCaptioner()(samples)
    assert captions == [ClassicalCaptioner()([sample])[0] for sample in samples]


@given(st.floats(3.0, 14.0), st.floats(3.0, 14.0), st.floats(0.05, 0.3))
def test_a_mask_follows_an_ellipse(tall: float, wide: float, contrast: float) -> None:
    rows, columns = np.mgrid[:64, :64] + 0.5
    truth = ((rows - 31) / tall) ** 2 + ((columns - 33) / wide) ** 2 <= 1
    grey = np.where(truth, 0.4 + contrast, 0.4) + 0.004 * np.random.default_rng(0).standard_normal((64, 64))
    box = np.array([33 - wide - 1, 31 - tall - 1, 33 + wide + 1, 31 + tall + 1], dtype=np.float32)
    window, mask, quality = segment(grey[None].astype(np.float32), box)
    found = np.zeros_like(truth)
    found[window] = mask
    assert overlap(truth, found) > 0.75
    assert quality > 0.6


def test_any_box_inside_the_image_is_allowed() -> None:
    gradient = np.tile(np.linspace(0.2, 0.8, 50, dtype=np.float32), (40, 1))[None]
    for box in ([10, 10, 30, 30], [0, 0, 50, 40], [0, 0, 1, 1], [49, 39, 50, 40]):
        window, mask, quality = segment(gradient, np.array(box, dtype=np.float32))
        assert mask.shape == gradient[0][window].shape
        assert 0 <= quality <= 1


def test_captions_differ_with_content_and_task() -> None:
    empty, one, two = (ClassicalCaptioner()([street(people)[0]])[0] for people in (0, 1, 3))
    assert "night" in empty
    assert "person" not in empty
    assert "a person" in one
    assert "people" in two or two.count("a person") == 3
    grey = street()[0].images[1].pixels[0]
    captions = [
        ClassicalCaptioner()([sample_of(task, {role: grey for role in roles})])[0]
        for task, pairs in TASKS.items()
        for roles in pairs
    ]
    assert len(set(captions)) == len(captions)
    for caption in [empty, one, two, *captions]:
        assert re.fullmatch(r"([A-Z][^.]*\. )*[A-Z][^.]*\.", caption), caption
        assert "  " not in caption


def test_text_features_are_deterministic_normalised_and_tell_words_apart() -> None:
    encode = ClassicalTextEncoder(max_tokens=12)
    plain, near, far, empty = encode(
        ["a person on the left", "a person on the right", "MRI of a head with a lesion", ""]
    )
    assert plain.shape == (6, TEXT_WIDTH)
    assert plain.dtype == np.float32
    assert empty.shape == (1, TEXT_WIDTH)
    for features in (plain, near, far, empty):
        np.testing.assert_allclose((features**2).mean(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(plain, ClassicalTextEncoder(12)(["a person on the left"])[0])

    def likeness(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
        x, y = a.mean(axis=0), b.mean(axis=0)
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    assert likeness(plain, near) > likeness(plain, far) + 0.2
    # The features must not change between processes and versions: stores are compared by content.
    np.testing.assert_allclose(plain[1, :4], [0.234, 0.150, 0.844, 0.189], atol=1e-3)
    long = encode(["word " * 50])[0]
    assert len(long) == 12


@given(st.text(max_size=200), st.integers(1, 64))
def test_any_text_can_be_encoded(text: str, most: int) -> None:
    features = ClassicalTextEncoder(most)([text])[0]
    assert 1 <= len(features) <= most
    assert np.isfinite(features).all()


def test_lesions_without_a_counterpart_are_found() -> None:
    rows, columns = np.mgrid[:128, :128] + 0.5
    head = ((rows - 64) / 55) ** 2 + ((columns - 64) / 42) ** 2 <= 1
    mri = np.where(head, 0.35, 0.0) + 0.004 * np.random.default_rng(0).standard_normal((128, 128))
    pair = [((rows - 60) / 9) ** 2 + ((columns - x) / 5) ** 2 <= 1 for x in (48, 80)]
    lesion = ((rows - 85) / 7) ** 2 + ((columns - 86) / 8) ** 2 <= 1
    for mask in (*pair, lesion):
        mri[mask] = 0.8
    sample = sample_of("medical", {"ct": mri.clip(0, 1), "mri": mri.clip(0, 1)})
    for instances in objects(sample, ("lesion", "structure")):
        assert instances.mask is not None
        best = max(range(len(instances)), key=lambda i: overlap(instances.mask[i], lesion))  # type: ignore[index]
        assert overlap(instances.mask[best], lesion) > 0.7
        assert instances.label[best] == "lesion"
        assert instances.label.count("lesion") == 1


def test_every_real_sample_gets_objects_and_a_caption(shared_data: Path) -> None:
    samples = scan_folder(shared_data).samples
    by_folder = {sample.sources[0].path.parent: sample for sample in samples}
    captions = []
    for sample in by_folder.values():
        images = read_sample(sample)
        merged = merge(objects(images, ()), (), MergeConfig())
        assert merged.mask.shape[1:] == images.size
        captions += ClassicalCaptioner()([images])
    assert len(set(captions)) == len(captions)


def test_people_at_night_are_found_in_real_images(shared_data: Path) -> None:
    """MSRS 00758N: three people and a cyclist stand out in the infrared image."""
    found = scan_folder(shared_data / "visible_infrared" / "msrs").samples
    [sample] = [s for s in found if s.id == "00758N"]
    _, infrared = objects(read_sample(sample), ("person",))
    middle = (infrared.box[:, :2] + infrared.box[:, 2:]) / 2
    for x, y in ((255, 240), (313, 240), (500, 240)):
        assert any(abs(cx - x) < 20 and abs(cy - y) < 45 for cx, cy in middle), f"nobody at {x}, {y}"


def test_a_sample_takes_little_time(
    scenes: list[Scene],
) -> None:
    """Processor time for 192 x 256; about 0.1 s is usual, and the limit is loose because machines differ."""
    start = time.process_time()
    for sample, _, _ in scenes[:4]:
        objects(sample)
    assert (time.process_time() - start) / 4 < 0.6

"""The mask merging algorithm: what design promises of it, on random and on hand-made objects."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.config import MergeConfig
from pipeline.labels import canonical_label
from pipeline.merging import REST, clean, merge
from pipeline.records import Instances, MergedMasks

HEIGHT, WIDTH = 28, 36
CONFIG = MergeConfig()
PROMPT = ("person", "car")
Mask = NDArray[np.bool_]


def rectangle(y0: int, y1: int, x0: int, x1: int) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def instances(
    masks: Sequence[Mask],
    labels: Sequence[str] | str = "person",
    iou: Sequence[float] | float = 0.9,
    score: Sequence[float] | float = 0.8,
) -> Instances:
    count = len(masks)
    boxes = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0] * 4)
    return Instances(
        box=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        score=np.broadcast_to(np.array(score, dtype=np.float32), count),
        label=(labels,) * count if isinstance(labels, str) else tuple(labels),
        iou=np.broadcast_to(np.array(iou, dtype=np.float32), count),
        mask=np.array(masks, dtype=bool).reshape(-1, HEIGHT, WIDTH),
    )


NOTHING = instances([])


def take(source: Instances, order: Sequence[int]) -> Instances:
    index = np.array(order, dtype=int)
    assert source.iou is not None
    assert source.mask is not None
    return Instances(
        source.box[index],
        source.score[index],
        tuple(source.label[i] for i in index),
        source.iou[index],
        source.mask[index],
    )


@st.composite
def shapes(draw: st.DrawFn) -> Mask:
    """A rectangle, an ellipse or a rectangle with a bite, from too small to keep to nearly all."""
    y0, x0 = draw(st.integers(0, HEIGHT - 3)), draw(st.integers(0, WIDTH - 3))
    y1, x1 = draw(st.integers(y0 + 2, HEIGHT)), draw(st.integers(x0 + 2, WIDTH))
    mask = rectangle(y0, y1, x0, x1)
    kind = draw(st.sampled_from(["rectangle", "ellipse", "bite"]))
    if kind == "ellipse":
        rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        mask = (2 * (rows - (y0 + y1) / 2) / (y1 - y0)) ** 2 + (
            2 * (columns - (x0 + x1) / 2) / (x1 - x0)
        ) ** 2 <= 1
    elif kind == "bite":
        mask[y0 : (y0 + y1) // 2, x0 : (x0 + x1) // 2] = False
    return mask


@st.composite
def sources(draw: st.DrawFn, most: int = 7) -> Instances:
    """Few distinct values, so that ties, duplicates, groups and twins are common."""
    count = draw(st.integers(0, most))
    masks: list[Mask] = []
    for _ in range(count):
        if masks and draw(st.integers(0, 2)) == 0:
            other = masks[draw(st.integers(0, len(masks) - 1))]
            masks.append(np.roll(other, draw(st.integers(-2, 2)), axis=draw(st.integers(0, 1))))
        else:
            masks.append(draw(shapes()))
    values = st.sampled_from([0.5, 0.6, 0.85, 0.9, 0.900001, 1.0])
    return instances(
        masks,
        [draw(st.sampled_from(["person", "People", "car", "automobiles"])) for _ in range(count)],
        [draw(values) for _ in range(count)],
        [draw(st.sampled_from([0.1, 0.3, 0.7, 0.9])) for _ in range(count)],
    )


def overlap(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def assert_same(a: MergedMasks, b: MergedMasks) -> None:
    np.testing.assert_array_equal(a.mask, b.mask)
    assert a.label == b.label
    np.testing.assert_array_equal(a.score, b.score)
    np.testing.assert_array_equal(a.iou, b.iou)
    assert a.overflow == b.overflow


@given(st.lists(sources(), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_order_inside_a_source_does_not_matter(given_sources: list[Instances], random: object) -> None:
    shuffled = []
    for source in given_sources:
        order = list(range(len(source)))
        random.shuffle(order)  # type: ignore[attr-defined]
        shuffled.append(take(source, order))
    a, b = merge(given_sources, PROMPT, CONFIG), merge(shuffled, PROMPT, CONFIG)
    assert_same(a, b)
    assert a.dropped == b.dropped
    np.testing.assert_array_equal(a.sources, b.sources)


@given(sources(), sources(), st.permutations(range(14)))
def test_order_of_sources_matters_only_to_break_exact_ties(
    a: Instances, b: Instances, ranks: list[int]
) -> None:
    """The source index stands in the total order behind predicted IoU, score and area: make IoUs distinct."""
    quality = np.array([0.62 + 0.02 * rank for rank in ranks], dtype=np.float32)
    a, b = replace(a, iou=quality[: len(a)]), replace(b, iou=quality[len(a) : len(a) + len(b)])
    assert_same(merge([a, b], PROMPT, CONFIG), merge([b, a], PROMPT, CONFIG))


@given(sources())
def test_a_source_with_itself_or_with_nothing_is_the_cleaned_source(source: Instances) -> None:
    alone = clean(source, PROMPT, CONFIG)
    assert_same(merge([source, NOTHING], PROMPT, CONFIG), alone)
    assert_same(merge([NOTHING, source], PROMPT, CONFIG), alone)
    assert_same(merge([source, source], PROMPT, CONFIG), alone)
    assert_same(merge([source, source, source], PROMPT, CONFIG), alone)


@given(sources())
def test_cleaning_twice_is_cleaning_once(source: Instances) -> None:
    once = clean(source, PROMPT, CONFIG)
    boxes = instances(list(once.mask)).box
    again = Instances(boxes, once.score, once.label, once.iou, once.mask)
    assert_same(clean(again, PROMPT, CONFIG), once)


@given(st.lists(sources(), min_size=1, max_size=3))
@settings(max_examples=60)
def test_no_object_is_lost(given_sources: list[Instances]) -> None:
    """Whatever passes the thresholds is at least half covered by what is kept, if no channel is shared."""
    merged = merge(given_sources, PROMPT, CONFIG)
    kept = merged.mask.any(axis=0)
    for source in given_sources:
        assert source.mask is not None
        assert source.iou is not None
        proposals: dict[tuple[object, ...], list[int]] = {}
        for i in range(len(source)):
            is_good = source.score[i] >= np.float32(0.3) and source.iou[i] >= np.float32(0.6)
            if is_good and source.mask[i].sum() >= CONFIG.min_area:
                key = (*source.box[i].tolist(), canonical_label(source.label[i]))
                proposals.setdefault(key, []).append(i)
        for same_box in proposals.values():
            covered = [(source.mask[i] & kept).sum() / source.mask[i].sum() for i in same_box]
            assert max(covered) >= CONFIG.match_iou


@given(st.lists(sources(most=14), min_size=1, max_size=3), st.integers(1, 20))
@settings(max_examples=60)
def test_no_object_comes_twice_and_channels_are_limited(given_sources: list[Instances], limit: int) -> None:
    config = replace(CONFIG, max_channels=limit)
    merged = merge(given_sources, PROMPT, config)
    assert len(merged.mask) == len(merged.label) == len(merged.score) == len(merged.iou) <= limit
    assert merged.mask.shape[1:] == (HEIGHT, WIDTH)
    for i in range(len(merged.mask)):
        for j in range(i):
            if merged.label[i] == merged.label[j]:
                assert overlap(merged.mask[i], merged.mask[j]) < config.duplicate_iou
    every = merge(given_sources, PROMPT, CONFIG)
    if every.overflow == 0:
        assert merged.overflow == max(0, len(every.mask) - limit)
        np.testing.assert_array_equal(merged.mask.any(axis=0), every.mask.any(axis=0))


@given(st.lists(sources(), min_size=1, max_size=3))
def test_channels_follow_the_prompt(given_sources: list[Instances]) -> None:
    labels = merge(given_sources, ("cars", "person"), CONFIG).label
    assert list(labels) == sorted(labels, key=lambda label: label != "car")


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("mode", ["merged", "unmerged", "label_map", "binary"])
def test_nothing_gives_zero_channels_of_the_right_size(count: int, mode: str) -> None:
    config = MergeConfig(mode=mode)  # type: ignore[arg-type]
    merged = merge([NOTHING] * count, PROMPT, config)
    assert merged.mask.shape == (0, HEIGHT, WIDTH)
    assert merged.mask.dtype == bool
    assert merged.label == ()
    assert merged.dropped == merged.overflow == 0


def test_what_fails_a_threshold_is_dropped_and_counted() -> None:
    masks = [rectangle(2 + 5 * i, 6 + 5 * i, 2, 6 + 4 * (i > 0)) for i in range(4)]
    source = instances(
        [*masks, rectangle(0, 3, 30, 35)], iou=[0.6, 0.59, 0.9, 0.9, 0.9], score=[0.3, 0.9, 0.29, 0.9, 0.9]
    )
    merged = merge([source], PROMPT, CONFIG)
    assert merged.dropped == 3  # predicted IoU, score, area 15 px
    np.testing.assert_array_equal(merged.mask, np.array([masks[3], masks[0]]))


def test_the_best_of_three_proposals_for_a_box_stays() -> None:
    whole, part, dot = rectangle(2, 22, 4, 14), rectangle(2, 12, 4, 14), rectangle(2, 8, 4, 10)
    source = instances([whole, part, dot], iou=[0.8, 0.95, 0.7])
    source = replace(source, box=np.repeat(source.box[:1], 3, axis=0))
    merged = merge([source], PROMPT, CONFIG)
    np.testing.assert_array_equal(merged.mask, part[None])
    assert merged.dropped == 2


def test_one_object_seen_twice_takes_the_better_mask_and_of_equal_ones_the_union() -> None:
    a, b = rectangle(4, 20, 6, 16), rectangle(6, 22, 6, 16)
    better = merge([instances([a], iou=0.9), instances([b], iou=0.95)], PROMPT, CONFIG)
    np.testing.assert_array_equal(better.mask, b[None])
    assert better.iou[0] == np.float32(0.95)
    assert better.sources is not None
    assert better.sources.tolist() == [0b11]
    equal = merge([instances([a]), instances([b])], PROMPT, CONFIG)
    np.testing.assert_array_equal(equal.mask, (a | b)[None])


def test_three_sources_decide_by_majority_of_predicted_iou() -> None:
    a, b, c = rectangle(4, 20, 6, 16), rectangle(5, 20, 6, 16), rectangle(6, 21, 6, 16)
    merged = merge([instances([m], iou=0.9) for m in (a, b, c)], PROMPT, CONFIG)
    np.testing.assert_array_equal(merged.mask, rectangle(5, 20, 6, 16)[None])


@pytest.mark.parametrize(("group_iou", "parts_win"), [(0.9, True), (0.94, False)])
@pytest.mark.parametrize("is_one_source", [True, False])
def test_a_group_against_its_members(group_iou: float, parts_win: bool, is_one_source: bool) -> None:
    members = [rectangle(4, 24, 5, 13), rectangle(4, 24, 15, 23)]
    group = rectangle(4, 24, 5, 23)
    if is_one_source:
        merged = clean(instances([*members, group], iou=[0.9, 0.86, group_iou]), PROMPT, CONFIG)
    else:
        found = [instances(members, iou=[0.9, 0.86]), instances([group], "people", group_iou)]
        merged = merge(found, PROMPT, CONFIG)
    expected = np.array(members) if parts_win else group[None]
    np.testing.assert_array_equal(merged.mask, expected)


def test_a_left_over_inside_an_object_of_its_label_goes_and_elsewhere_stays() -> None:
    body, leg, hand = rectangle(2, 24, 4, 14), rectangle(14, 24, 5, 9), rectangle(4, 12, 24, 30)
    merged = merge([instances([body]), instances([leg, hand], iou=0.95)], PROMPT, CONFIG)
    np.testing.assert_array_equal(merged.mask, np.array([hand, body]))
    other = merge([instances([body]), instances([leg], "car")], PROMPT, CONFIG)
    assert other.label == ("person", "car")


def test_two_labels_for_one_object_become_one() -> None:
    mask = rectangle(4, 20, 6, 26)
    merged = merge([instances([mask], "truck", 0.95), instances([mask], "car", 0.9)], PROMPT, CONFIG)
    assert merged.label == ("truck",)


def test_beyond_the_limit_the_rest_shares_the_last_channel() -> None:
    masks = [rectangle(4 * y, 4 * y + 4, 4 * x, 4 * x + 4) for y in range(7) for x in range(0, 8, 2)][:23]
    merged = merge([instances(masks, iou=np.linspace(0.99, 0.7, 23).tolist())], PROMPT, CONFIG)
    assert merged.mask.shape[0] == 20
    assert merged.overflow == 3
    assert merged.label[-1] == REST
    np.testing.assert_array_equal(merged.mask[:19], np.array(masks[:19]))
    np.testing.assert_array_equal(merged.mask[19], np.any(masks[19:], axis=0))


@pytest.mark.parametrize("counts", [(23,), (15, 15), (3, 22), (9, 0, 14), (8, 8, 8, 8), (1,) * 25])
def test_unmerged_sources_never_share_a_channel(counts: tuple[int, ...]) -> None:
    masks = [rectangle(4 * y, 4 * y + 4, 4 * x, 4 * x + 4) for y in range(7) for x in range(0, 8, 2)]
    found = [instances(masks[:count]) for count in counts]
    merged = merge(found, PROMPT, MergeConfig(mode="unmerged"))
    assert merged.sources is not None
    assert len(merged.mask) == min(20, sum(counts))
    assert merged.overflow == max(0, sum(counts) - 20)
    for index, source in enumerate(found):
        assert source.mask is not None
        own = merged.mask[merged.sources >> index & 1 == 1]
        if len(counts) <= 20:
            apart = merged.mask[merged.sources == 1 << index]
            np.testing.assert_array_equal(apart.any(axis=0), source.mask.any(axis=0))
            assert len(apart) >= min(len(source), 20 // len(counts))
        assert (own.any(axis=0) >= source.mask.any(axis=0)).all()


def test_modes() -> None:
    people = [rectangle(2, 10, 2, 8), rectangle(2, 10, 20, 26)]
    car = rectangle(14, 24, 6, 26)
    found = [instances([*people, car], ["person", "person", "car"]), instances(people)]
    counts = {}
    for mode in ("merged", "unmerged", "label_map", "binary"):
        merged = merge(found, PROMPT, MergeConfig(mode=mode))
        counts[mode] = len(merged.mask)
        np.testing.assert_array_equal(merged.mask.any(axis=0), people[0] | people[1] | car)
    assert counts == {"merged": 3, "unmerged": 5, "label_map": 2, "binary": 1}


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one source"):
        merge([], PROMPT, CONFIG)
    with pytest.raises(ValueError, match="no masks"):
        merge([replace(NOTHING, mask=None)], PROMPT, CONFIG)
    smaller = replace(NOTHING, mask=np.zeros((0, 5, 5), dtype=bool))
    with pytest.raises(ValueError, match="different size"):
        merge([NOTHING, smaller], PROMPT, CONFIG)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("People", "person"),
        ("the pedestrians.", "person"),
        ("cars", "car"),
        ("Buses", "bus"),
        ("bus", "bus"),
        ("street lights", "lamp"),
        ("traffic_cones", "traffic cone"),
        ("glass", "glass"),
        ("boxes", "box"),
        ("cities", "city"),
        ("motorbike", "motorcycle"),
        ("  ", "object"),
    ],
)
def test_labels_become_canonical(label: str, expected: str) -> None:
    assert canonical_label(label) == expected


@given(st.text(st.sampled_from("abceinosuxyz _.'"), max_size=12))
def test_canonical_labels_stay_as_they_are(label: str) -> None:
    once = canonical_label(label)
    assert canonical_label(once) == once
    assert once != REST

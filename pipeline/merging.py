"""Merge the object masks of all sources into one set of channels (docs/merging.md; paper sect. 3.7).

The paper's Algorithms I and II stand in a supplement that is not public, so this one is ours. It keeps the
paper's aims: the true number and shapes of the objects, no object twice, none lost, the predicted IoU
decides. No models and no I/O here. Areas, IoU and containment are computed on run-length codes (pycocotools).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from pipeline.config import MergeConfig
from pipeline.labels import canonical_label
from pipeline.records import Instances, MergedMasks

Code = dict[str, Any]
FloatArray = NDArray[np.float64]

REST = "others"
"""Label of the last channel when it holds several objects; a plural, which no canonical label is."""


@dataclass(frozen=True, eq=False)
class _Object:
    """One object: its mask as a run-length code, and what is known of it.

    Codes describe the transposed mask: a C-ordered (k, H, W) array is, transposed, the Fortran-ordered (W, H,
    k) array that pycocotools reads without a copy. Areas and overlaps do not depend on that.
    """

    code: Code
    label: str
    score: float
    iou: float
    sources: frozenset[int]
    aliases: frozenset[str] = frozenset()

    @cached_property
    def names(self) -> frozenset[str]:
        return self.aliases | {self.label}

    @cached_property
    def area(self) -> int:
        return int(coco.area(self.code))

    @cached_property
    def order(self) -> tuple[Any, ...]:
        """The total order wherever a choice is needed, best first. Only equal masks can tie."""
        y0, x0, height, width = (float(value) for value in coco.toBbox(self.code))
        corners = (y0, x0, y0 + height, x0 + width)
        quality = (-round(self.iou * 1e6), -self.score, -self.area, min(self.sources))
        return (*quality, *corners, self.label, self.code["counts"])


def merge(sources: Sequence[Instances], prompt: Sequence[str], config: MergeConfig) -> MergedMasks:
    """Merge the masks of all sources of one sample; design.md sect. 8.

    ``sources``: one Instances per source, masks bool (k, H, W), predicted IoU (k,), k = 0 allowed (the mask's
    shape still gives H and W). ``prompt``: words whose objects come first, in that order. Returns at most
    ``config.max_channels`` channels; ``dropped`` counts instances that fail the thresholds or are a lesser
    proposal for the same box, ``overflow`` the objects united into the last channel beyond the limit. The
    result does not depend on the order of instances inside a source. Raises ValueError for no sources, masks
    of different size, or instances without mask or predicted IoU.
    """
    height, width = _size(sources)
    passed = [_admit(source, index, config) for index, source in enumerate(sources)]
    dropped = sum(len(source) for source in sources) - sum(len(objects) for objects in passed)
    cleaned = [_clean(objects, config) for objects in passed]
    if config.mode == "unmerged":
        objects = _within(cleaned, prompt, config.max_channels)
    else:
        objects = _across(cleaned, config)
        objects = _rescue(objects, [obj for source in passed for obj in source], config)
    if config.mode == "label_map":
        objects = [_unite(group, group[0].label) for group in _by_label(objects)]
    elif config.mode == "binary" and objects:
        objects = [_unite(sorted(objects, key=_order), "object")]
    channels, overflow = _scatter(objects, prompt, config.max_channels)
    if config.mode == "unmerged":
        overflow = sum(len(source) for source in cleaned) - len(channels)
    return _record(channels, (height, width), dropped, overflow)


def clean(source: Instances, prompt: Sequence[str], config: MergeConfig) -> MergedMasks:
    """Merge one source alone: thresholds, one object per duplicate, groups against parts."""
    return merge([source], prompt, config)


def _size(sources: Sequence[Instances]) -> tuple[int, int]:
    if not sources:
        raise ValueError("merge needs at least one source")
    for index, source in enumerate(sources):
        if source.mask is None or source.iou is None:
            raise ValueError(
                f"source {index}: instances have no masks or predicted IoU; run the masks stage first"
            )
        if source.mask.ndim != 3 or len(source.mask) != len(source.label):
            raise ValueError(f"source {index}: masks are {source.mask.shape}, not ({len(source)}, H, W)")
    sizes = {source.mask.shape[1:] for source in sources if source.mask is not None}
    if len(sizes) > 1:
        raise ValueError(f"masks of different size: {sorted(sizes)}")
    height, width = sizes.pop()
    return int(height), int(width)


def _admit(source: Instances, index: int, config: MergeConfig) -> list[_Object]:
    """Instances that pass the thresholds; of several proposals for one box and label the best."""
    if source.mask is None or source.iou is None or not len(source):
        return []
    smallest = max(config.min_area, config.min_area_share * source.mask[0].size)
    codes = coco.encode(np.ascontiguousarray(source.mask, dtype=np.uint8).T)
    best: dict[tuple[Any, ...], _Object] = {}
    for code, box, label, score, iou in zip(
        codes, source.box, source.label, source.score.tolist(), source.iou.tolist(), strict=True
    ):
        score, iou = round(score, 6), round(iou, 6)  # float32 0.7 is a hair below 0.7
        obj = _Object(code, canonical_label(label), score, iou, frozenset({index}))
        if obj.area == 0 or obj.area < smallest or score < config.min_score or iou < config.min_predicted_iou:
            continue
        key = (*box.tolist(), obj.label)
        if key not in best or obj.order < best[key].order:
            best[key] = obj
    return sorted(best.values(), key=_order)


def _order(obj: _Object) -> tuple[Any, ...]:
    return obj.order


def _clean(objects: list[_Object], config: MergeConfig) -> list[_Object]:
    """One source: fold duplicates, settle groups against their parts, bring back what that would lose."""
    kept = _settle_groups(_fold(objects, config), config, same_source=True)
    return _rescue(kept, objects, config)


def _across(cleaned: list[list[_Object]], config: MergeConfig) -> list[_Object]:
    """All sources: groups against parts, matching and vote, duplicates, contained left-overs."""
    pool = [obj for source in cleaned for obj in source]
    pool = _settle_groups(pool, config, same_source=False)
    matched = [_vote(cluster) for cluster in _match(pool, config)]
    kept = _fold(matched, config)
    return _drop_contained(kept, config)


def _overlap(objects: Sequence[_Object], others: Sequence[_Object], of_first: bool = False) -> FloatArray:
    """IoU of every pair, (n, m); with ``of_first`` the share of each object that lies in each other one."""
    if not objects or not others:
        return np.zeros((len(objects), len(others)))
    crowd = [int(of_first)] * len(others)
    codes = [obj.code for obj in objects], [obj.code for obj in others]
    return np.asarray(coco.iou(*codes, crowd), dtype=np.float64).reshape(len(objects), len(others))


def _fold(objects: Iterable[_Object], config: MergeConfig) -> list[_Object]:
    """Keep the best of every set of duplicates; a duplicate of another label leaves its label as an alias."""
    ordered = sorted(objects, key=_order)
    overlap = _overlap(ordered, ordered)
    kept: dict[int, _Object] = {}
    for i, obj in enumerate(ordered):
        twin = next((j for j in kept if _same_object(kept[j], obj, overlap[j, i], config)), None)
        if twin is None:
            kept[i] = obj
        else:
            kept[twin] = _absorb(kept[twin], obj)
    return list(kept.values())


def _same_object(a: _Object, b: _Object, iou: float, config: MergeConfig) -> bool:
    return iou >= (config.duplicate_iou if a.label == b.label else config.alias_iou)


def _absorb(obj: _Object, other: _Object) -> _Object:
    aliases = (obj.names | other.names) - {obj.label}
    return replace(obj, aliases=aliases, sources=obj.sources | other.sources)


def _settle_groups(objects: list[_Object], config: MergeConfig, same_source: bool) -> list[_Object]:
    """Decide between a group and its parts of the same label: in one source, or parts from another one.

    Smaller groups first, so that a group of groups is judged on what is left of it.
    """
    inside = _overlap(objects, objects, of_first=True)
    overlap = _overlap(objects, objects)
    alive = [True] * len(objects)
    number = range(len(objects))
    origins = sorted({min(obj.sources) for obj in objects})
    for g in sorted(number, key=lambda i: (objects[i].area, objects[i].order)):
        group = objects[g]
        for origin in origins:
            if (origin in group.sources) != same_source or not alive[g]:
                continue
            parts = [
                p
                for p in number
                if p != g
                and alive[p]
                and origin in objects[p].sources
                and objects[p].label == group.label
                and inside[p, g] >= config.part_containment
                and overlap[p, g] < config.duplicate_iou
            ]
            if len(parts) < 2 or _covered(group, [objects[p] for p in parts]) < config.parts_cover:
                continue
            # Rounded as in the total order: 0.85 against 0.90 - 0.05 must not hang on the last bit.
            parts_win = round(_mean_iou(objects[p] for p in parts) - group.iou + config.parts_margin, 6) >= 0
            for loser in [g] if parts_win else parts:
                alive[loser] = False
    return [obj for obj, is_alive in zip(objects, alive, strict=True) if is_alive]


def _mean_iou(objects: Iterable[_Object]) -> float:
    return float(np.mean([obj.iou for obj in objects]))


def _covered(obj: _Object, by: Sequence[_Object]) -> float:
    """Share of an object's pixels that lie in the union of others."""
    if not by:
        return 0.0
    union = coco.merge([other.code for other in by], intersect=False)
    return float(coco.iou([obj.code], [union], [1])[0, 0])


def _match(objects: list[_Object], config: MergeConfig) -> list[list[_Object]]:
    """Cluster objects of different sources by falling IoU: one per source, every pair must match."""
    ordered = sorted(objects, key=_order)
    overlap = _overlap(ordered, ordered)

    def fits(i: int, j: int) -> bool:
        a, b = ordered[i], ordered[j]
        least = config.match_iou if a.names & b.names else config.match_iou_other_label
        return not a.sources & b.sources and bool(overlap[i, j] >= least)

    pairs = [(i, j) for i in range(len(ordered)) for j in range(i + 1, len(ordered)) if fits(i, j)]
    cluster_of = [[i] for i in range(len(ordered))]
    for i, j in sorted(pairs, key=lambda pair: (-overlap[pair], *pair)):
        a, b = cluster_of[i], cluster_of[j]
        if a is not b and all(fits(p, q) for p in a for q in b):
            a += b
            for member in b:
                cluster_of[member] = a
    return [sorted((ordered[i] for i in c), key=_order) for n, c in enumerate(cluster_of) if min(c) == n]


def _vote(cluster: list[_Object]) -> _Object:
    """One object of a cluster: a pixel is kept when masks with at least half of the predicted IoU hold it."""
    best = cluster[0]
    for other in cluster[1:]:
        best = _absorb(best, other)
    if len(cluster) == 1:
        return best
    weights = np.array([round(obj.iou * 1e6) for obj in cluster])
    if 2 * weights.max() > weights.sum():  # one mask outweighs all others together
        code = cluster[int(weights.argmax())].code
    elif len(cluster) == 2:
        code = coco.merge([obj.code for obj in cluster], intersect=False)
    else:
        masks = coco.decode([obj.code for obj in cluster])
        kept = (2 * (masks @ weights) >= weights.sum()) & masks.any(axis=2)
        code = coco.encode(np.asfortranarray(kept, dtype=np.uint8))
    return replace(best, code=code, score=max(obj.score for obj in cluster))


def _drop_contained(objects: list[_Object], config: MergeConfig) -> list[_Object]:
    """Drop what only one source saw when an object of its label, seen by others, contains it."""
    inside = _overlap(objects, objects, of_first=True)
    alive = [True] * len(objects)
    for i in sorted(range(len(objects)), key=lambda i: (-objects[i].area, objects[i].order)):
        left_over = objects[i]
        alive[i] = len(left_over.sources) > 1 or not any(
            alive[k]
            and k != i
            and left_over.label in other.names
            and not left_over.sources & other.sources
            and inside[i, k] >= config.part_containment
            for k, other in enumerate(objects)
        )
    return [obj for obj, is_alive in zip(objects, alive, strict=True) if is_alive]


def _rescue(kept: list[_Object], seen: list[_Object], config: MergeConfig) -> list[_Object]:
    """Bring back every seen object of which kept objects of its label cover less than ``config.match_iou``.

    Each step above replaces an object by one that covers at least half of it, but steps can follow one
    another; this makes "no omission" hold for the whole.
    """
    result = list(kept)
    for obj in sorted(seen, key=_order):
        if _covered(obj, [other for other in result if obj.label in other.names]) >= config.match_iou:
            continue
        overlap = _overlap([obj], result)[0]
        twin = next(
            (k for k, other in enumerate(result) if _same_object(other, obj, overlap[k], config)), None
        )
        if twin is None:
            result.append(obj)
        else:
            result[twin] = _absorb(result[twin], obj)
    return result


def _by_label(objects: list[_Object]) -> list[list[_Object]]:
    groups: dict[str, list[_Object]] = {}
    for obj in sorted(objects, key=_order):
        groups.setdefault(obj.label, []).append(obj)
    return list(groups.values())


def _unite(objects: list[_Object], label: str) -> _Object:
    """One object with the pixels of all; the score and predicted IoU are the highest."""
    return _Object(
        code=coco.merge([obj.code for obj in objects], intersect=False),
        label=label,
        score=max(obj.score for obj in objects),
        iou=max(obj.iou for obj in objects),
        sources=frozenset().union(*(obj.sources for obj in objects)),
    )


def _within(sources: list[list[_Object]], prompt: Sequence[str], limit: int) -> list[_Object]:
    """The objects of all sources, no two sources in one channel: when there are more than the limit, every
    source gets a fair share of the channels, and its rest is united in its own last one."""
    if sum(bool(source) for source in sources) > limit:
        return [obj for source in sources for obj in source]  # `_scatter` unites the rest, of all sources
    rooms = [0 for _ in sources]
    for _ in range(limit):
        wanting = [index for index, source in enumerate(sources) if rooms[index] < len(source)]
        if wanting:
            rooms[min(wanting, key=lambda index: rooms[index])] += 1
    shares = zip(sources, rooms, strict=True)
    return [obj for source, room in shares if room for obj in _scatter(source, prompt, room)[0]]


def _scatter(objects: list[_Object], prompt: Sequence[str], limit: int) -> tuple[list[_Object], int]:
    """Order objects by prompt, then by the total order; what is beyond the limit joins the last channel."""
    words = [canonical_label(word) for word in prompt]
    rank = {word: index for index, word in reversed(list(enumerate(words)))}

    def key(obj: _Object) -> tuple[Any, ...]:
        return (rank.get(obj.label, len(words)), *obj.order)

    ordered = sorted(objects, key=key)
    overflow = max(0, len(ordered) - limit)
    if overflow:
        ordered[limit - 1 :] = [_unite(ordered[limit - 1 :], REST)]
    return ordered, overflow


def _record(channels: list[_Object], size: tuple[int, int], dropped: int, overflow: int) -> MergedMasks:
    mask = np.zeros((len(channels), *size), dtype=bool)
    if channels:
        mask[:] = coco.decode([obj.code for obj in channels]).T
    return MergedMasks(
        mask=mask,
        label=tuple(obj.label for obj in channels),
        score=np.array([obj.score for obj in channels], dtype=np.float32),
        iou=np.array([obj.iou for obj in channels], dtype=np.float32),
        dropped=dropped,
        overflow=overflow,
        sources=np.array([sum(1 << s for s in obj.sources) for obj in channels], dtype=np.uint32),
    )

"""Everything the report shows of one sample: its sources, the fused images, differences, guidance, values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.measure import read_fused
from model.pictures import MAP_SIDE, PALETTE, Figure, coloured, common_peak, difference, figure, overlay
from model.results import LABELS, Case, Evaluation, number
from pipeline.config import guidance_dir
from pipeline.errors import InputError
from pipeline.images import FloatArray, Image, display, enlarge, luminance, read_image, read_sources
from pipeline.manifest import SHARPENING_TASKS, Sample
from pipeline.store import Caption, MergedMasks, Record, open_store


@dataclass(frozen=True)
class Group:
    """Pictures that belong together; ``scale``: what the brightest colour of maps stands for."""

    title: str
    figures: list[Figure]
    scale: str = ""


@dataclass(frozen=True)
class Card:
    """One sample of the page; ``tags`` are (best or worst, text), ``scores`` rows of (method, values)."""

    sample: str
    anchor: str
    tags: list[tuple[str, str]]
    groups: list[Group]
    caption: str
    objects: list[tuple[str, list[str]]]  # label, colours of its objects in the overlay
    scores: list[tuple[str, list[str]]]


def make_card(
    task: str,
    sample: str,
    anchor: str,
    evaluation: Evaluation,
    methods: Sequence[str],
    metrics: Sequence[str],
    tags: Sequence[tuple[str, str]],
) -> Card:
    """The card of one sample, methods in the given order. Raises InputError when an image is gone."""
    cases = [case for method in methods for case in evaluation.cases if _is(case, method, sample)]
    facts = cases[0].sample
    images = read_sources(facts)
    fused = {LABELS.get(case.method, case.method): _read(case, evaluation.dataset) for case in cases}
    target = None if facts.target is None else read_image(facts.target, facts.bits).pixels
    shown = [
        figure("source", role, f"{role} source of {sample}", display(image.pixels))
        for role, image in zip(facts.roles, images, strict=True)
    ]
    objects: dict[str, list[str]] = {}
    merged = _record(evaluation.dataset, "merged", sample)
    if isinstance(merged, MergedMasks) and len(merged.label):
        for label, colour in zip(merged.label, PALETTE, strict=False):
            objects.setdefault(label, []).append(colour)
        picture = overlay(luminance(images[0].pixels), merged.mask)
        shown.append(figure("masks", "merged masks", f"objects in {sample}: {', '.join(objects)}", picture))
    if target is not None:
        shown.append(figure("target", "target", f"ground truth of {sample}", display(target)))
    pictures = [
        figure("fused", label, f"{label}, fused image of {sample}", display(pixels))
        for label, pixels in fused.items()
    ]
    values = {row.method: row.values for row in evaluation.of_task(task) if row.sample == sample}
    caption = _record(evaluation.dataset, "captions", sample)
    return Card(
        sample,
        anchor,
        list(tags),
        [
            Group("Sources" if target is None else "Sources and target", shown),
            Group("Fused", pictures),
            *_maps(facts, images, target, fused),
        ],
        caption.text if isinstance(caption, Caption) else "",
        list(objects.items()),
        [
            (LABELS.get(method, method), [number(metric, values[method].get(metric)) for metric in metrics])
            for method in methods
            if method in values
        ],
    )


def _is(case: Case, method: str, sample: str) -> bool:
    return case.method == method and case.sample.id == sample


def _read(case: Case, dataset: str | None) -> FloatArray:
    if not case.fused.is_file() and "#" not in case.fused.name:
        again = f"run `python -m model evaluate --dataset {dataset}`" if dataset else "evaluate the folders"
        raise InputError(
            f"{case.fused}: the fused image of sample '{case.sample.id}' is missing; {again} again"
        )
    return read_fused(case.fused, case.sample.bits)


def _maps(
    sample: Sample, images: Sequence[Image], target: FloatArray | None, fused: dict[str, FloatArray]
) -> list[Group]:
    """Error maps to the target as in Fig. 9, else difference maps to every source, on one scale per group."""
    if target is not None:
        against = {"Error: difference to the target": target}
    elif sample.task in SHARPENING_TASKS:
        roles = zip(sample.roles, images, strict=True)
        size = images[0].size
        against = {
            f"Difference to {role}": enlarge(image.pixels, size)
            for role, image in roles
            if image.pixels.shape[0] == next(iter(fused.values())).shape[0]
        }
    else:
        roles = zip(sample.roles, images, strict=True)
        against = {f"Difference to {role}": luminance(image.pixels)[None] for role, image in roles}
    groups = []
    for title, other in against.items():
        grey = other.shape[0] == 1
        planes = {
            label: difference(luminance(pixels)[None] if grey else pixels, other)
            for label, pixels in fused.items()
        }
        peak = common_peak(list(planes.values()))
        figures = [
            figure(
                "map",
                label,
                f"{title.lower()} of {label}, {sample.id}",
                coloured(plane, peak),
                MAP_SIDE,
            )
            for label, plane in planes.items()
        ]
        groups.append(Group(title, figures, f"{255 * peak:.0f} of 255"))
    return groups


def _record(dataset: str | None, stage: str, sample: str) -> Record | None:
    """A sample's guidance, None where it has none."""
    if dataset is None:
        return None
    path = guidance_dir(dataset) / f"{stage}.zarr"
    if not path.exists():
        return None
    store = open_store(path)
    return store.get(sample) if sample in store.ids and store.is_done(sample) else None

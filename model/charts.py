"""Charts of an evaluation as inline SVG: how values spread over samples, methods over metrics (Fig. 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from model.results import arrow, direction, number

WIDTH, LEFT, RIGHT, ROW = 420, 128, 14, 24
TOP, BOTTOM = 8, 24
RADIUS, CENTRE_X, CENTRE_Y, RADAR_WIDTH, RADAR_HEIGHT = 140, 260, 190, 520, 384
INNER = 0.2  # where the worst mean of a metric lies on the radar's axes
COLOURS = 8  # classes series0 … of the page


def spread(metric: str, methods: Mapping[str, Mapping[str, float]]) -> Markup:
    """Values of a metric, method -> sample -> value: every sample a dot, quartiles a box, the median a line.

    Whiskers reach to the last values within 1.5 interquartile ranges (Tukey). Values that are not finite are
    left out.
    """
    rows = {name: {s: v for s, v in values.items() if math.isfinite(v)} for name, values in methods.items()}
    known = [value for values in rows.values() for value in values.values()]
    if not known:
        return Markup("")
    low, high = min(known), max(known)
    pad = 0.04 * (high - low) or max(abs(high), 1.0) * 0.05
    low, high = low - pad, high + pad

    def px(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    height = TOP + ROW * len(rows) + BOTTOM
    parts = []
    for tick in ticks(low, high):
        parts.append(
            f'<line class="rule" x1="{px(tick):.1f}" x2="{px(tick):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
            f'<text x="{px(tick):.1f}" y="{height - 8}" text-anchor="middle">{tick:.6g}</text>'
        )
    for index, (name, values) in enumerate(rows.items()):
        y = TOP + ROW * (index + 0.5)
        parts.append(
            Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                LEFT - 8, y + 3.5, name if len(name) <= 20 else name[:19] + "…"
            )
        )
        if values:
            parts.append(f'<g class="series{index % COLOURS}">{_box(list(values.values()), y, px)}')
            for place, (sample, value) in enumerate(values.items()):
                shift = (place % 5 - 2) * 1.8
                parts.append(
                    Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.3"><title>{}: {}</title></circle>').format(
                        px(value), y + shift, sample, number(metric, value)
                    )
                )
            parts.append("</g>")
    medians = [
        f"{name} {number(metric, float(np.median(list(v.values()))))}" for name, v in rows.items() if v
    ]
    label = f"{metric} {arrow(metric)} over samples; medians: {', '.join(medians)}"
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, label, Markup("".join(parts))
    )


def _box(values: Sequence[float], y: float, px: object) -> str:
    assert callable(px)
    first, median, third = np.quantile(values, [0.25, 0.5, 0.75])
    reach = 1.5 * (third - first)
    inside = [value for value in values if first - reach <= value <= third + reach]
    left, right = px(first), px(third)
    return (
        f'<line class="whisker" x1="{px(min(inside)):.1f}" x2="{px(max(inside)):.1f}" y1="{y}" y2="{y}"/>'
        f'<rect x="{left:.1f}" y="{y - 7}" width="{max(right - left, 1):.1f}" height="14" rx="2"/>'
        f'<line class="median" x1="{px(median):.1f}" x2="{px(median):.1f}" y1="{y - 7}" y2="{y + 7}"/>'
    )


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) that lie within [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def radar(means: Mapping[str, Mapping[str, float]], metrics: Sequence[str]) -> Markup:
    """Method -> metric -> mean as one polygon per method: outside is the best mean, the inner ring the worst.

    Every axis has its own scale; where lower is better it is turned around. Metrics that some method lacks or
    that have infinite means are left out; fewer than three axes make no chart.
    """
    axes = [
        metric for metric in metrics if all(math.isfinite(m.get(metric, math.nan)) for m in means.values())
    ]
    if len(axes) < 3 or len(means) < 2:
        return Markup("")
    points = [2 * math.pi * index / len(axes) - math.pi / 2 for index in range(len(axes))]

    def at(angle: float, share: float) -> str:
        x, y = CENTRE_X + RADIUS * share * math.cos(angle), CENTRE_Y + RADIUS * share * math.sin(angle)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<polygon class="rule" points="{" ".join(at(angle, ring) for angle in points)}"/>'
        for ring in (INNER, (1 + INNER) / 2, 1.0)
    ]
    for angle, metric in zip(points, axes, strict=True):
        x, _, y = at(angle, 1.14).partition(",")
        side = math.cos(angle)
        anchor = "middle" if abs(side) < 0.3 else "start" if side > 0 else "end"
        values = [mean[metric] for mean in means.values()]
        best = max(values) if direction(metric).better == "higher" else min(values)
        centre, _, middle = at(angle, 1).partition(",")
        parts.append(f'<line class="rule" x1="{CENTRE_X}" y1="{CENTRE_Y}" x2="{centre}" y2="{middle}"/>')
        parts.append(
            Markup(
                '<text x="{}" y="{}" text-anchor="{}">{} {}<tspan class="value"> {}</tspan></text>'
            ).format(x, float(y) + 4, anchor, metric, arrow(metric), number(metric, best))
        )
    for index, (name, mean) in enumerate(means.items()):
        shape = [at(angle, _share(metric, mean, means)) for angle, metric in zip(points, axes, strict=True)]
        parts.append(
            Markup('<polygon class="series{}" points="{}"><title>{}</title></polygon>').format(
                index % COLOURS, " ".join(shape), name
            )
        )
    label = f"Means of {', '.join(means)} over {', '.join(axes)}, each axis from its worst to its best mean"
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="radar">{}</svg>').format(
        RADAR_WIDTH, RADAR_HEIGHT, label, Markup("".join(parts))
    )


def _share(metric: str, mean: Mapping[str, float], means: Mapping[str, Mapping[str, float]]) -> float:
    values = [other[metric] for other in means.values()]
    low, high = min(values), max(values)
    if high == low:
        return 1.0
    share = (mean[metric] - low) / (high - low)
    share = share if direction(metric).better == "higher" else 1 - share
    return INNER + (1 - INNER) * share

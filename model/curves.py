"""Training curves as inline SVG, from the tables that DVCLive writes."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from model.charts import ticks

Series = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 28


def read_curves(folder: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Read every `<group>/<name>.tsv` under a DVCLive metrics folder as chart -> line -> [(step, value)].

    Tables of one name in different groups (train/loss, validation/loss) become lines of one chart. Values
    that are not finite are left out.
    """
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for path in sorted(folder.rglob("*.tsv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                (float(row["step"]), float(row[path.stem]))
                for row in csv.DictReader(file, delimiter="\t")
                if row.get("step") and row.get(path.stem)  # a kill may have cut the last line short
            ]
        group = path.parent.relative_to(folder).as_posix()
        line = path.stem if group == "." else group
        charts.setdefault(path.stem, {})[line] = [(x, y) for x, y in rows if math.isfinite(y)]
    return charts


def chart(name: str, lines: Mapping[str, Series]) -> Markup:
    """One line chart as an SVG element whose colours come from the page (classes line0, line1, …)."""
    points = [point for series in lines.values() for point in series]
    if not points:
        return Markup("")
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    right = right if right > left else left + 1
    pad = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    low, high = low - pad, high + pad

    def px(x: float) -> float:
        return LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks(low, high):
        y = py(tick)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:.6g}</text>')
    for tick in ticks(left, right):
        parts.append(f'<text x="{px(tick):.1f}" y="{HEIGHT - 9}" text-anchor="middle">{tick:.6g}</text>')
    for index, series in enumerate(lines.values()):
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in series)
        parts.append(f'<polyline class="line{index % 4}" points="{path}"/>')
        x, y = series[-1] if series else (left, low)
        parts.append(f'<circle class="line{index % 4}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.6"/>')
    last = ", ".join(f"{line} ends at {series[-1][1]:.4g}" for line, series in lines.items() if series)
    label = Markup("{} over training steps: {}").format(name, last)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{{}}">{"".join(parts)}</svg>'
    ).format(label)

"""Ranks and intervals against the public table of means and ranks, scipy's bootstrap, and by hand."""

from __future__ import annotations

import csv
import math
import re
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import bootstrap

from model.ranking import rank
from model.results import Evaluation, Row
from model.tables import latex, markdown, summary


def rows_of(values: dict[str, list[float]], metric: str = "Qabf") -> list[Row]:
    return [
        Row("medical", str(sample), method, {metric: value})
        for method, column in values.items()
        for sample, value in enumerate(column)
    ]


@pytest.mark.parametrize("name", ["msrs", "tno"])
def test_means_and_ranks_of_published_methods(shared_data: Path, name: str) -> None:
    folder = shared_data.parent / "peers"
    used = ("MI", "VIF", "Qcb", "Qabf", "Qy", "Qcv", "SSIM")
    with (folder / f"{name}.csv").open(newline="") as file:
        rows = [
            Row("visible_infrared", cells["sample"], cells["method"], {m: float(cells[m]) for m in used})
            for cells in csv.DictReader(file)
        ]
    ranking = rank(rows)
    lines = [line.split() for line in (folder / f"{name}.txt").read_text().splitlines()]
    head = next(line for line in lines if line[0] == "method")
    table = {
        line[0]: dict(zip(head[1:], map(float, line[1:]), strict=True))
        for line in lines
        if line[0] in ranking.methods
    }
    assert set(table) == set(ranking.methods)
    for method, expected in table.items():
        assert ranking.mean_rank[method] == pytest.approx(expected["meanrank"], abs=0.006)
        for metric in used:
            assert ranking.statistics[method][metric].mean == pytest.approx(
                expected[metric], rel=1e-5, abs=6e-4
            )


def test_lower_is_better_where_the_metric_says_so_and_equal_means_share_a_rank() -> None:
    ranking = rank(rows_of({"a": [3.0, 5.0], "b": [4.0, 4.0], "c": [1.0, 1.0]}, "Qcv"))
    assert ranking.methods[0] == "c"
    assert [ranking.statistics[m]["Qcv"].rank for m in "abc"] == [2, 2, 1]


def test_intervals_are_those_of_the_percentile_bootstrap() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.normal(0.6, 0.1, 25), generator.normal(0.5, 0.1, 25)
    ranking = rank(rows_of({"a": list(first), "b": list(second)}))
    figure = ranking.statistics["b"]["Qabf"]

    def interval(values: np.ndarray) -> tuple[float, float]:
        found = bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, random_state=1)
        return found.confidence_interval.low, found.confidence_interval.high

    assert (figure.low, figure.high) == pytest.approx(interval(second), abs=3e-3)
    expected = interval(second - first)
    assert (figure.difference_low, figure.difference_high) == pytest.approx(expected, abs=3e-3)
    assert figure.deviation == pytest.approx(second.std(ddof=1))


def test_pairing_sees_what_separate_intervals_hide() -> None:
    hard = np.linspace(0.1, 0.9, 20)  # samples differ much more than the methods do
    figure = rank(rows_of({"a": list(hard), "b": list(hard - 0.01)})).statistics["b"]["Qabf"]
    assert figure.differs
    assert figure.high - figure.low > 0.2


def test_values_that_are_missing_or_infinite() -> None:
    nan, inf = math.nan, math.inf
    ranking = rank(rows_of({"a": [1.0, nan, 3.0], "b": [nan, nan, nan], "c": [inf, 1.0, 1.0]}))
    a, b, c = (ranking.statistics[method]["Qabf"] for method in "abc")
    assert (a.mean, a.rank, c.mean, c.rank) == (2, 2, inf, 1)
    assert all(math.isnan(value) for value in (b.mean, b.rank, c.low))
    assert all(math.isnan(value) for value in ranking.mean_rank.values()), "no metric that all have"
    text = markdown("medical", ranking, "reference") + latex("medical", ranking, "reference")
    assert not re.search(r"\bnan\b|[ +]inf\b", text)


def test_tables_mark_the_best_and_the_second() -> None:
    ranking = rank(rows_of({"my_method": [0.5, 0.7], "other": [0.4, 0.5]}))
    assert r"my\_method & \textbf{0.600} $\pm$ 0.141 & 1.00 \\" in latex("medical", ranking, "reference")
    assert r"other & \underline{0.450}" in latex("medical", ranking, "reference")
    page = markdown("medical", ranking, "reference")
    assert "| my_method | 2 | **0.600 ± 0.141** (1) | 1.00 |" in page
    assert "| other | -0.150 [-0.200, -0.100]* |" in page


def test_names_in_square_brackets_are_shown_as_they_are() -> None:
    rows = rows_of({"[mine]": [0.5], "[/theirs]": [0.4]})
    terminal = StringIO()
    Console(file=terminal, width=100).print(summary("medical", Evaluation([], rows), rank(rows)))
    assert "[mine]" in terminal.getvalue()
    assert "[/theirs]" in terminal.getvalue()

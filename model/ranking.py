"""Statistics of an evaluation: mean, spread, rank and paired bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.results import Row, direction, metrics_of

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0


@dataclass(frozen=True)
class Statistic:
    """One method's figure in one metric, over the samples that have a value.

    ``deviation`` is the sample standard deviation (n - 1), NaN for one sample. ``rank`` is 1 for the best
    mean; equal means share a rank; NaN without a value. ``low`` and ``high`` bound the mean. ``difference``
    is the mean of this method minus the leader's, over the samples both have, with its bounds.
    """

    mean: float
    deviation: float
    rank: float
    low: float
    high: float
    difference: float = math.nan
    difference_low: float = math.nan
    difference_high: float = math.nan

    @property
    def differs(self) -> bool:
        """Whether the interval of the difference to the leader leaves out 0."""
        return self.difference_low > 0 or self.difference_high < 0


@dataclass(frozen=True)
class Ranking:
    """One task's methods, best mean rank first; ``statistics``: method -> metric -> figure.

    ``mean_rank`` is over the metrics in which every method has a value. The first method is the leader.
    """

    methods: list[str]
    metrics: list[str]
    samples: dict[str, int]
    statistics: dict[str, dict[str, Statistic]]
    mean_rank: dict[str, float]

    @property
    def leader(self) -> str:
        return self.methods[0]

    def means(self) -> dict[str, dict[str, float]]:
        """Method -> metric -> mean."""
        return {
            method: {metric: figure.mean for metric, figure in figures.items()}
            for method, figures in self.statistics.items()
        }

    def as_json(self) -> dict[str, Any]:
        """For statistics.json: values that are not finite as None."""

        def known(value: float) -> float | None:
            return float(f"{value:.9g}") if math.isfinite(value) else None

        return {
            method: {
                "samples": self.samples[method],
                "mean_rank": known(self.mean_rank[method]),
                "metrics": {
                    metric: {
                        "mean": known(figure.mean),
                        "deviation": known(figure.deviation),
                        "rank": known(figure.rank),
                        "interval": [known(figure.low), known(figure.high)],
                        "difference_to_leader": known(figure.difference),
                        "difference_interval": [known(figure.difference_low), known(figure.difference_high)],
                    }
                    for metric, figure in self.statistics[method].items()
                },
            }
            for method in self.methods
        }


def rank(rows: Sequence[Row]) -> Ranking:
    """Rank the methods of one task. Infinite values (PSNR of equal images) make an infinite mean.

    Intervals: percentile bootstrap over samples (Efron 1979), 10,000 resamples of fixed seed, 95 %. A
    resample takes the same samples for every method, so that differences between methods are paired.
    """
    methods = list(dict.fromkeys(row.method for row in rows))
    samples = list(dict.fromkeys(row.sample for row in rows))
    metrics = metrics_of(rows)
    cube = np.full((len(methods), len(samples), len(metrics)), np.nan)
    place = {sample: index for index, sample in enumerate(samples)}
    for row in rows:
        for index, metric in enumerate(metrics):
            cube[methods.index(row.method), place[row.sample], index] = row.values.get(metric, math.nan)
    ranks = np.full((len(methods), len(metrics)), np.nan)
    for index, metric in enumerate(metrics):
        ranks[:, index] = _ranks(cube[..., index], metric)
    complete = ~np.isnan(ranks).any(axis=0)
    mean_rank = {
        method: float(ranks[index, complete].mean()) if complete.any() else math.nan
        for index, method in enumerate(methods)
    }
    order = sorted(methods, key=lambda method: (math.isnan(mean_rank[method]), mean_rank[method]))
    chosen = np.random.default_rng(SEED).integers(len(samples), size=(RESAMPLES, len(samples)))
    counts = np.stack([np.bincount(row, minlength=len(samples)) for row in chosen]).astype(np.float64)
    first = cube[methods.index(order[0])]
    statistics = {
        method: {
            metric: _statistic(cube[row, :, column], first[:, column], ranks[row, column], counts)
            for column, metric in enumerate(metrics)
        }
        for row, method in sorted(enumerate(methods), key=lambda entry: order.index(entry[1]))
    }
    measured = {method: sum(row.method == method for row in rows) for method in methods}
    return Ranking(order, metrics, measured, statistics, mean_rank)


def _ranks(values: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    """Rank of each method by its mean over samples; methods x samples to methods."""
    means = np.array([_mean(row) for row in values])
    signed = -means if direction(metric).better == "higher" else means
    ranks = np.array([1.0 + np.sum(signed < value) for value in signed])
    return np.where(np.isnan(means), np.nan, ranks)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return math.fsum(known) / len(known) if len(known) else math.nan


def _statistic(
    values: NDArray[np.float64],
    leader: NDArray[np.float64],
    place: np.floating,
    counts: NDArray[np.float64],
) -> Statistic:
    known = values[~np.isnan(values)]
    deviation = float(known.std(ddof=1)) if len(known) > 1 and np.isfinite(known).all() else math.nan
    with np.errstate(invalid="ignore"):
        difference = values - leader
    return Statistic(
        _mean(values),
        deviation,
        float(place),
        *_interval(values, counts),
        _mean(difference),
        *_interval(difference, counts),
    )


def _interval(values: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile interval of the mean; NaN where fewer than two finite values are left."""
    known = np.isfinite(values)
    if known.sum() < 2 or (~known & ~np.isnan(values)).any():
        return math.nan, math.nan
    drawn = counts[:, known].sum(axis=1)
    enough = drawn > 0
    means = (counts[:, known] @ values[known])[enough] / drawn[enough]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def extremes(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Method -> the samples of one task on which it does best and worst.

    By the mean over metrics of the signed z-score among all methods' values.
    """
    metrics = metrics_of(rows)
    scores: dict[str, dict[str, list[float]]] = {}
    for metric in metrics:
        known = np.array([v for row in rows if math.isfinite(v := row.values.get(metric, math.nan))])
        if len(known) == 0 or known.std() == 0:
            continue
        sign = 1.0 if direction(metric).better == "higher" else -1.0
        for row in rows:
            value = row.values.get(metric, math.nan)
            if math.isfinite(value):
                score = sign * float((value - known.mean()) / known.std())
                scores.setdefault(row.method, {}).setdefault(row.sample, []).append(score)
    means = {
        method: {s: math.fsum(found) / len(found) for s, found in samples.items()}
        for method, samples in scores.items()
    }
    return {
        method: (max(found, key=lambda s: found[s]), min(found, key=lambda s: found[s]))
        for method, found in means.items()
    }

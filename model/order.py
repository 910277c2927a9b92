"""In which order samples are trained on: a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int, int]
"""Data set, epoch of it, and index in it."""


class EndlessBatches(Sampler[list[Key]]):
    """Batches of keys from step ``start`` to ``stop``: shuffled epochs laid end to end.

    Batch t depends on (seed, t) only, so training continues after a break with the very next batch. With
    several data sets an epoch has as many samples as all of them together, and each gives its weight's share
    of them, from its own endless row of shuffled epochs. ``share``: the part of every batch to yield.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch: int,
        seed: int,
        start: int,
        stop: int,
        weights: Sequence[float] | None = None,
        share: slice = slice(None),
    ) -> None:
        self.lengths, self.batch, self.seed, self.start, self.stop = lengths, batch, seed, start, stop
        self.shares = shares(lengths, weights or lengths)
        self.share = share
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        mixed, whole = -1, []
        for step in range(self.start, self.stop):
            keys: list[Key] = []
            for position in range(step * self.batch, (step + 1) * self.batch):
                epoch, place = divmod(position, sum(self.shares))
                if epoch != mixed:
                    mixed, whole = epoch, self._epoch(epoch)
                keys.append(whole[place])
            yield keys[self.share]

    def _epoch(self, epoch: int) -> list[Key]:
        keys: list[Key] = []
        for dataset, (length, share) in enumerate(zip(self.lengths, self.shares, strict=True)):
            for position in range(epoch * share, (epoch + 1) * share):
                own, place = divmod(position, length)
                keys.append((dataset, own, int(self._order(dataset, own)[place])))
        if len(self.lengths) > 1:
            random = np.random.default_rng((self.seed, epoch, len(self.lengths), 2))
            keys = [keys[place] for place in random.permutation(len(keys))]
        return keys

    def _order(self, dataset: int, epoch: int) -> np.ndarray:
        """Order of a data set in one of its epochs; the last one of each data set is kept."""
        if (dataset, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != dataset}
            random = np.random.default_rng((self.seed, epoch, 0, dataset))
            self._orders[dataset, epoch] = random.permutation(self.lengths[dataset])
        return self._orders[dataset, epoch]


def shares(lengths: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Samples of each data set in an epoch: its weight's share of the sum of lengths, at least one."""
    total = sum(lengths)
    return [max(1, round(total * weight / sum(weights))) for weight in weights]

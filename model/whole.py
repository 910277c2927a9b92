"""What a tile has to know of the whole image, so that the tiles' fused images agree.

Two things in the network look at all pixels. The gate of multi-modal fusion (eq. 15) takes a mean over the
image: tiles are given the mean over tiles that are spread over all of it. And bi-WKV's decay is divided by
the number of tokens: one row of a tile of h rows decays as H/h rows of an image of H would, so tiles decay by
h/H of it along rows and by w/W along columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import sqrt

from torch import Tensor, nn

from model.blocks import MultiModalFusion
from model.network import RWKVFusion
from model.operators import BiWKV
from model.tiling import Tiling

SAMPLED = 9  # tiles that the means are taken from


class Whole:
    """Means over the image, learned from some tiles and then given to all.

    Fusing one window may take several forwards (one per band, say): `window` begins one, and the n-th
    forward of every window has its own means.
    """

    def __init__(self, tiling: Tiling) -> None:
        (height, width), (h, w) = tiling.size, tiling.tile
        down, across = h / height, w / width
        self._stretch = {"rows": down, "columns": across}
        self._other = sqrt(down * across)  # diagonals
        self._means: list[dict[nn.Module, Tensor]] = []
        self._call = 0
        self._learned = 0

    def window(self) -> None:
        """Begin a window."""
        self._call = 0

    def finish(self) -> None:
        """End learning: from now on the means are given."""
        for means in self._means:
            for module in means:
                means[module] = means[module] / self._learned

    @contextmanager
    def learning(self) -> Iterator[None]:
        """One window from which means are learned."""
        self._learned += 1
        self.window()
        self._learn = True
        try:
            yield
        finally:
            self._learn = False
            self.window()

    _learn = False

    @contextmanager
    def forward(self, network: RWKVFusion) -> Iterator[None]:
        """Surround one forward of the network."""
        gates = [module for module in network.modules() if isinstance(module, MultiModalFusion)]
        scans = [module for module in network.modules() if isinstance(module, BiWKV) and not module.window]
        if len(self._means) <= self._call:
            self._means.append({})
        means = self._means[self._call]
        self._call += 1
        with ExitStack() as stack:
            for scan in scans:
                scan.stretch = tuple(self._stretch.get(path, self._other) for path in scan.paths)
                stack.callback(setattr, scan, "stretch", None)
            for gate in gates:
                if self._learn:
                    for norm in (gate.feature_norm, gate.source_norm):
                        handle = norm.register_forward_hook(partial(_add_mean, means, gate))
                        stack.callback(handle.remove)
                else:
                    gate.mean = means[gate]
                    stack.callback(setattr, gate, "mean", None)
            yield


def _add_mean(
    means: dict[nn.Module, Tensor], gate: nn.Module, norm: nn.Module, inputs: object, output: Tensor
) -> None:
    """The gate's input is the sum of what its two norms give, and so is its mean."""
    mean = output.mean(dim=(1, 2), keepdim=True)
    means[gate] = means[gate] + mean if gate in means else mean


def spread(tiling: Tiling) -> list[tuple[int, int]]:
    """Up to about `SAMPLED` tiles (top, left), evenly spread over the image."""
    side = int(sqrt(SAMPLED))

    def some(starts: tuple[int, ...]) -> list[int]:
        count = min(len(starts), side)
        return [starts[round(n * (len(starts) - 1) / max(count - 1, 1))] for n in range(count)]

    return [(top, left) for top in some(tiling.rows) for left in some(tiling.columns)]

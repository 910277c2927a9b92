"""Scans: every pixel once, in the order that the paper's strategies say, and back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.scan import paths, scan, scan_ratio, unscan

SIZES = {"height": st.integers(1, 12), "width": st.integers(1, 12)}


@given(strategy=st.sampled_from([1, 2, 3]), block=st.integers(0, 3), channels=st.integers(1, 3), **SIZES)
def test_unscan_brings_every_pixel_back(
    strategy: int, block: int, channels: int, height: int, width: int
) -> None:
    x = torch.randn(2, height, width, channels)
    along = paths(strategy, block)
    sequence = scan(x, along)
    ratio = scan_ratio(strategy)
    assert sequence.shape == (2, height * width, ratio * channels)
    assert torch.equal(unscan(sequence, along, height, width), x.repeat(1, 1, 1, ratio))
    for part in sequence[0].split(channels, dim=-1):  # each scan visits every pixel once
        assert sorted(part[:, 0].tolist()) == sorted(x[0, ..., 0].flatten().tolist())


def test_number_of_scans_and_alternation() -> None:
    assert [scan_ratio(strategy) for strategy in (1, 2, 3)] == [2, 4, 8]
    assert paths(1, 0) == ("rows",)
    assert paths(1, 1) == ("columns",)
    assert paths(1, 2) == ("rows",)
    with pytest.raises(ValueError, match="choose 1, 2 or 3"):
        paths(4, 0)


@given(**SIZES)
def test_order_of_the_scans(height: int, width: int) -> None:
    image = np.arange(height * width).reshape(height, width)
    sequence = scan(torch.from_numpy(image)[None, :, :, None], paths(3, 0))[0].numpy()
    rows, columns = image.flatten(), image.T.flatten()
    diagonals = [
        i * width + j
        for line in range(height + width - 1)
        for i in range(height)
        if 0 <= (j := line - i) < width
    ]
    mirrored = [i * width + (width - 1 - p % width) for p in diagonals for i in [p // width]]
    expected = [order for path in (rows, columns, diagonals, mirrored) for order in (path, path[::-1])]
    assert np.array_equal(sequence, np.stack(expected, axis=1))

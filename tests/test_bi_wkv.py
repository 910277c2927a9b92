"""The operator against eq. 7 itself, written as a double sum in float64."""

import sys
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter
from torch import Tensor

from model import bi_wkv as module
from model.bi_wkv import bi_wkv

KERNELS = ["cpu", "reference"]
BARS = {"y": 1e-5, "dw": 1e-4, "du": 1e-4, "dk": 1e-5, "dv": 1e-5}  # of float32, relative to the RMS
LENGTHS = [1, 2, 63, 64, 65, 1000, 4097]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RWKVFUSION_KERNEL", request.param)
    return str(request.param)


def double_sum(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Eq. 7 term by term, one batch item and channel at a time, through the largest exponent of each row."""
    w, u, k, v = (x.double() for x in (w, u, k, v))
    batch, length, channels = k.shape
    place = torch.arange(length, dtype=torch.float64)
    steps = ((place[:, None] - place).abs() - 1) / length
    items = []
    for b in range(batch):
        columns = []
        for c in range(channels):
            exponent = k[b, :, c] - steps * w[c]
            exponent = torch.where(torch.eye(length, dtype=torch.bool), u[c] + k[b, :, c], exponent)
            columns.append(torch.softmax(exponent, dim=1) @ v[b, :, c])
        items.append(torch.stack(columns, dim=1))
    return torch.stack(items)


def float64_scan(w: Tensor, u: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    """y, dw, du, dk, dv of one batch item by the recurrences, in float64, with scipy's filter as the scan."""

    def left(x: np.ndarray, factor: float) -> np.ndarray:
        return np.asarray(lfilter([0, 1], [1, -factor], x))

    columns = []
    for c in range(k.shape[2]):
        factor = np.exp(-float(w[c]) / k.shape[1])
        values, slope = v[0, :, c].double().numpy(), grad[0, :, c].double().numpy()
        weight = np.exp(k[0, :, c].double().numpy() - float(k[0, :, c].max()))
        bonus = np.exp(float(u[c]))
        from_left = [left(x, factor) for x in (weight * values, weight)]
        from_right = [left(x[::-1], factor)[::-1] for x in (weight * values, weight)]
        numerator, denominator = (
            a + b + bonus * x
            for a, b, x in zip(from_left, from_right, (weight * values, weight), strict=True)
        )
        y = numerator / denominator
        pq = slope / denominator, -y * slope / denominator
        gone = [left(x, factor) for x in pq]
        coming = [left(x[::-1], factor)[::-1] for x in pq]
        spread = [a + b + bonus * x for a, b, x in zip(gone, coming, pq, strict=True)]
        met = sum((a * b).sum() for a, b in zip(coming + gone, from_left + from_right, strict=True))
        columns.append(
            (
                y,
                -factor / k.shape[1] * met,
                (bonus * weight * (pq[0] * values + pq[1])).sum(),
                weight * (values * spread[0] + spread[1]),
                weight * spread[0],
            )
        )
    return [torch.from_numpy(np.stack(x, axis=-1)) for x in zip(*columns, strict=True)]


def draw(batch: int, length: int, channels: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    return [
        uniform(-20, 30, channels),
        uniform(-5, 5, channels),
        uniform(-80, 80, batch, length, channels),
        torch.randn(batch, length, channels, generator=generator),
    ]


def with_gradients(function: object, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = function(*leaves)  # type: ignore[operator]
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


def error(got: Tensor, true: Tensor) -> float:
    """Root mean square of the error over that of the true values."""
    return float((got.double() - true).square().mean().sqrt() / true.square().mean().sqrt().clamp(min=1e-12))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("keys", [80.0, 3.0])
def test_float32_agrees_with_the_double_sum(kernel: str, length: int, keys: float) -> None:
    w, u, k, v = draw(2 if length < 4000 else 1, length, 6 if length < 4000 else 2)
    inputs = [w, u, k * keys / 80, v]
    grad = torch.randn(k.shape, generator=torch.Generator().manual_seed(1))
    true = with_gradients(double_sum, inputs, grad)
    got = with_gradients(bi_wkv, inputs, grad)
    for (name, bar), left, right in zip(BARS.items(), got, true, strict=True):
        assert error(left, right) <= bar, name
        # The worst single element too: a wrong border between chunks would hide in a mean.
        scale = right.abs().max().clamp(min=1e-12)
        assert (left.double() - right).abs().max() <= bar * max(scale, 1e-6), name


def test_a_long_sequence_agrees_with_a_float64_scan(kernel: str) -> None:
    inputs = draw(1, 307200, 2)
    grad = torch.randn(inputs[2].shape, generator=torch.Generator().manual_seed(1))
    got = with_gradients(bi_wkv, inputs, grad)
    for (name, bar), left, right in zip(BARS.items(), got, float64_scan(*inputs, grad), strict=True):
        assert error(left, right) <= bar, name


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 150),
    channels=st.integers(1, 19),
    seed=st.integers(0, 1000),
)
def test_kernels_agree_on_any_shape(batch: int, length: int, channels: int, seed: int) -> None:
    inputs = draw(batch, length, channels, seed)
    grad = torch.randn(inputs[2].shape, generator=torch.Generator().manual_seed(seed))
    results = []
    for name in KERNELS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RWKVFUSION_KERNEL", name)
            results.append(with_gradients(bi_wkv, inputs, grad))
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(
            left, right, rtol=1e-3, atol=1e-4 * float(right.abs().max().clamp(min=1e-3))
        )


@pytest.mark.parametrize("decay", [-200.0, 200.0])
@pytest.mark.parametrize("length", [5, 700])
def test_extreme_decays_stay_exact(kernel: str, decay: float, length: int) -> None:
    _, u, k, v = draw(1, length, 3)
    inputs = [torch.full((3,), decay), u, k, v]
    grad = torch.ones_like(k)
    true = with_gradients(double_sum, inputs, grad)
    for left, right in zip(with_gradients(bi_wkv, inputs, grad), true, strict=True):
        assert torch.isfinite(left).all()
        torch.testing.assert_close(left.double(), right.double(), rtol=1e-5, atol=1e-5)


def test_gradcheck(kernel: str) -> None:
    inputs = [x.double().requires_grad_() for x in draw(2, 37, 3)]
    inputs[2] = (inputs[2].detach() / 20).requires_grad_()
    assert torch.autograd.gradcheck(bi_wkv, inputs)
    each = [inputs[0].detach().expand(2, -1).clone().requires_grad_(), *inputs[1:]]
    assert torch.autograd.gradcheck(bi_wkv, each)  # a decay per batch item


@pytest.mark.parametrize(("dtype", "bar"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_half_precisions(kernel: str, dtype: torch.dtype, bar: float) -> None:
    w, u, k, v = draw(2, 300, 8)
    inputs = [w, u, (k / 20).to(dtype), v.to(dtype)]
    y = bi_wkv(*inputs)
    assert y.dtype == dtype
    assert error(y, double_sum(*inputs)) <= bar


def test_inputs_need_not_be_contiguous(kernel: str) -> None:
    w, u, k, v = draw(2, 40, 6)
    k_view, v_view = k.transpose(1, 2).contiguous().transpose(1, 2), v.repeat(1, 2, 1)[:, ::2]
    grad = torch.randn(6, 40, 2).permute(2, 1, 0)
    views = with_gradients(bi_wkv, [w, u, k_view, v_view], grad)
    copies = with_gradients(bi_wkv, [w, u, k, v_view.contiguous()], grad.contiguous())
    for left, right in zip(views, copies, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130, 6000])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch, length: int, threads: int) -> None:
    import numpy as np

    from model import bi_wkv_cpu

    torch_empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **kw: torch_empty(*a, **kw).fill_(float("nan")))
    monkeypatch.setattr(bi_wkv_cpu.torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(np, "empty", lambda shape, dtype: np.full(shape, np.nan, dtype))
    w, u, k, v = draw(2, length, 5)
    w, u = w.expand(2, -1), u.expand(2, -1)
    y, carries, top = bi_wkv_cpu.forward(w, u, k, v)
    for result in (y, *bi_wkv_cpu.backward(torch.ones_like(k), w, u, k, v, carries, top)):
        assert torch.isfinite(result).all()


def test_absent_tokens_have_no_influence(kernel: str) -> None:
    w, u, k, v = draw(1, 70, 4)
    absent = torch.full((1, 50, 4), -float("inf"))
    longer = bi_wkv(w * 120 / 70, u, torch.cat([k, absent], 1), torch.cat([v, torch.randn(1, 50, 4)], 1))
    torch.testing.assert_close(longer[:, :70], bi_wkv(w, u, k, v), rtol=1e-4, atol=1e-4)


def test_reversal_commutes_and_nan_shows(kernel: str) -> None:
    w, u, k, v = draw(1, 90, 4)
    torch.testing.assert_close(
        bi_wkv(w, u, k.flip(1), v.flip(1)).flip(1), bi_wkv(w, u, k, v), atol=1e-4, rtol=1e-4
    )
    v[0, 40, 2] = float("nan")
    y = bi_wkv(w, u, k, v)
    assert torch.isnan(y[0, :, 2]).all()
    assert torch.isfinite(y[0, :, [0, 1, 3]]).all()


def test_empty_batch(kernel: str) -> None:
    w, u, _, _ = draw(1, 1, 4)
    assert bi_wkv(w, u, torch.zeros(0, 9, 4), torch.zeros(0, 9, 4)).shape == (0, 9, 4)


def test_the_custom_operator_is_registered_correctly() -> None:
    w, u, k, v = draw(2, 40, 4)
    inputs = tuple(x.requires_grad_() for x in (w.expand(2, -1).clone(), u.expand(2, -1).clone(), k, v))
    torch.library.opcheck(torch.ops.rwkvfusion.bi_wkv, inputs)


def test_unknown_kernel_names_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKVFUSION_KERNEL", "fast")
    with pytest.raises(ValueError, match="auto, cuda, cpu, reference"):
        bi_wkv(*draw(1, 4, 2))


def test_falls_back_with_one_warning_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKVFUSION_KERNEL", "auto")
    monkeypatch.delitem(sys.modules, "model.bi_wkv_cpu", raising=False)
    monkeypatch.delattr("model.bi_wkv_cpu", raising=False)
    monkeypatch.delitem(sys.modules, "model.bi_wkv_loops", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    module._why_no_numba.cache_clear()
    try:
        inputs = draw(1, 30, 2)
        with pytest.warns(UserWarning, match="numba"):
            first = bi_wkv(*inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(bi_wkv(*inputs), first)
        monkeypatch.setenv("RWKVFUSION_KERNEL", "cpu")
        with pytest.raises(ValueError, match="install numba"):
            bi_wkv(*inputs)
    finally:
        module._why_no_numba.cache_clear()


@pytest.mark.parametrize(
    ("w", "u", "k", "v"),
    [
        ((3,), (4,), (1, 5, 4), (1, 5, 4)),
        ((4,), (4,), (1, 5, 4), (1, 6, 4)),
        ((4,), (4,), (5, 4), (5, 4)),
        ((2, 4), (4,), (1, 5, 4), (1, 5, 4)),
    ],
)
def test_shapes_that_do_not_fit_are_named(w: tuple, u: tuple, k: tuple, v: tuple) -> None:
    with pytest.raises(ValueError, match="bi_wkv:"):
        bi_wkv(torch.zeros(w), torch.zeros(u), torch.zeros(k), torch.zeros(v))


def test_tensors_on_two_devices_are_named() -> None:
    w, u, k, v = draw(1, 5, 4)
    with pytest.raises(ValueError, match="cpu, meta, cpu, cpu"):
        bi_wkv(w, u.to("meta"), k, v)

"""The CUDA kernels on a real device; skipped where there is none. The oracles are those of test_bi_wkv."""

import pytest
import torch
from test_bi_wkv import BARS, LENGTHS, double_sum, draw, error, float64_scan, with_gradients
from torch import Tensor

from model.bi_wkv import bi_wkv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKVFUSION_KERNEL", "cuda")


def on_gpu(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return bi_wkv(*(x.cuda() for x in (w, u, k, v))).cpu()


def poison() -> None:
    """Fill what the caching allocator will hand out next with NaN."""
    torch.full((1 << 26,), float("nan"), device="cuda")


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("keys", [80.0, 3.0])
def test_float32_agrees_with_the_double_sum(length: int, keys: float) -> None:
    w, u, k, v = draw(2 if length < 4000 else 1, length, 6 if length < 4000 else 2)
    inputs = [w, u, k * keys / 80, v]
    grad = torch.randn(k.shape, generator=torch.Generator().manual_seed(1))
    poison()
    got = with_gradients(on_gpu, inputs, grad)
    for (name, bar), left, right in zip(
        BARS.items(), got, with_gradients(double_sum, inputs, grad), strict=True
    ):
        assert error(left, right) <= bar, name
        assert (left.double() - right).abs().max() <= bar * right.abs().max().clamp(min=1e-6), name


def test_a_long_sequence_agrees_with_a_float64_scan() -> None:
    inputs = draw(1, 307200, 4)
    grad = torch.randn(inputs[2].shape, generator=torch.Generator().manual_seed(1))
    poison()
    got = with_gradients(on_gpu, inputs, grad)
    for (name, bar), left, right in zip(BARS.items(), got, float64_scan(*inputs, grad), strict=True):
        assert error(left, right) <= bar, name


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 77, 19), (70000, 9, 3), (2, 300, 40), (1, 129, 1000)], ids=str
)
def test_any_shape_in_float64(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [x.double() for x in draw(*shape)]
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    poison()
    got = with_gradients(on_gpu, inputs, grad)
    monkeypatch.setenv("RWKVFUSION_KERNEL", "reference")
    for left, right in zip(got, with_gradients(bi_wkv, inputs, grad), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9 * float(right.abs().max().clamp(min=1)))


@pytest.mark.parametrize(("dtype", "bar"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_half_precisions(dtype: torch.dtype, bar: float) -> None:
    w, u, k, v = draw(2, 300, 8)
    inputs = [w, u, (k / 20).to(dtype), v.to(dtype)]
    grad = torch.randn(k.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    true = with_gradients(double_sum, inputs, grad)
    for left, right in zip(with_gradients(on_gpu, inputs, grad), true, strict=True):
        assert error(left, right) <= bar


@pytest.mark.parametrize("decay", [-200.0, 200.0])
@pytest.mark.parametrize("length", [5, 700])
def test_extreme_decays_stay_exact(decay: float, length: int) -> None:
    _, u, k, v = draw(1, length, 3)
    inputs = [torch.full((3,), decay), u, k, v]
    true = with_gradients(double_sum, inputs, torch.ones_like(k))
    for left, right in zip(with_gradients(on_gpu, inputs, torch.ones_like(k)), true, strict=True):
        torch.testing.assert_close(left.double(), right.double(), rtol=1e-5, atol=1e-5)


def test_two_runs_give_the_same_bits() -> None:
    inputs = [x.cuda() for x in draw(2, 20000, 40)]
    first, second = (with_gradients(bi_wkv, inputs, torch.ones_like(inputs[2])) for _ in range(2))
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


def test_runs_on_the_current_stream_without_waiting() -> None:
    inputs = [x.cuda() for x in draw(1, 50000, 32)]
    expected = bi_wkv(*inputs)
    torch.cuda.synchronize()
    stream, late = torch.cuda.Stream(), torch.zeros_like(inputs[2])
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(inputs[2])
        y = bi_wkv(inputs[0], inputs[1], late, inputs[3])
        assert not stream.query(), "bi_wkv waited for the device"
    stream.synchronize()
    torch.testing.assert_close(y, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device only")
def test_runs_on_the_tensors_device() -> None:
    inputs = draw(1, 500, 8)
    y = bi_wkv(*(x.to("cuda:1") for x in inputs))
    assert y.device == torch.device("cuda:1")
    torch.testing.assert_close(y.cpu(), on_gpu(*inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_inputs_and_outputs_and_a_tenth(dtype: torch.dtype) -> None:
    inputs = [x.cuda() for x in draw(1, 307200, 64)]
    w, u, k, v = (*inputs[:2], *(x.to(dtype) for x in inputs[2:]))
    del inputs
    bi_wkv(w, u, k[:, :256], v[:, :256])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    y = bi_wkv(w, u, k, v)
    assert torch.cuda.max_memory_allocated() <= 1.1 * 3 * y.nbytes
    leaves = [x.requires_grad_() for x in (w, u, k, v)]
    y, grad = bi_wkv(*leaves), torch.ones_like(k)
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.grad(y, leaves, grad)
    assert torch.cuda.max_memory_allocated() <= 1.1 * 6 * y.nbytes  # y itself is still held


def test_compiles_and_exports_as_on_the_cpu() -> None:
    inputs = [x.cuda() for x in draw(2, 400, 16)]
    compiled = torch.compile(bi_wkv, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), bi_wkv(*inputs))
    leaves = [x.expand(2, -1).clone() for x in inputs[:2]] + inputs[2:]
    torch.library.opcheck(torch.ops.rwkvfusion.bi_wkv, tuple(x.requires_grad_() for x in leaves))

"""The operator inside PyTorch's own machinery: compile, export, autocast, vmap."""

import shutil

import pytest
import torch
from test_bi_wkv import draw, with_gradients
from torch import Tensor

from model.bi_wkv import bi_wkv


@pytest.fixture(params=["cpu", "reference"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RWKVFUSION_KERNEL", request.param)
    return str(request.param)


def within(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The operator between other operations."""
    return bi_wkv(w, u, 0.1 * k, v.tanh()) + 1


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler"),
            ],
        ),
    ],
)
@pytest.mark.parametrize("decay", [1.0, 200.0])
def test_compiles_as_one_graph(backend: str, decay: float) -> None:
    torch.compiler.reset()
    inputs = draw(2, 40, 4)
    inputs[0] = torch.full((4,), decay)
    grad = torch.ones_like(inputs[2])
    compiled = torch.compile(within, backend=backend, fullgraph=True)
    for left, right in zip(
        with_gradients(compiled, inputs, grad), with_gradients(within, inputs, grad), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_exports_with_any_length(kernel: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return bi_wkv(w, u, k, v)

    dynamic = {1: torch.export.Dim("length", min=65)} if kernel == "cpu" else None
    shapes = (None, None, dynamic, dynamic)
    exported = torch.export.export(Module(), tuple(draw(2, 100, 4)), dynamic_shapes=shapes).module()
    inputs = draw(2, 333 if dynamic else 100, 4, seed=1)
    torch.testing.assert_close(exported(*inputs), bi_wkv(*inputs))


def test_autocast_keeps_sums_in_float32() -> None:
    w, u, k, v = draw(2, 300, 8)
    layer = torch.nn.Linear(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        keys, values = layer(k / 80), layer(v)
        y = bi_wkv(w, u, keys, values)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, bi_wkv(w, u, keys.float(), values.float()).bfloat16())


def test_vmap_is_a_loop() -> None:
    _, u, k, v = draw(3, 50, 4)
    w = torch.linspace(-3, 3, 12).reshape(3, 4)
    keys = torch.stack([k, 0.5 * k, -k], dim=1)  # (batch, mapped, L, C)
    mapped = torch.func.vmap(bi_wkv, in_dims=(0, None, 1, None))(w, u, keys, v)
    for index in range(3):
        torch.testing.assert_close(mapped[index], bi_wkv(w[index], u, keys[:, index], v))


def test_gradient_transforms_work_or_say_why(kernel: str) -> None:
    w, u, k, v = draw(1, 20, 3)
    gradient = torch.func.grad(lambda x: bi_wkv(w, u, x, v).square().sum())
    if kernel == "cpu":  # PyTorch has not taught its custom operators to torch.func.grad
        with pytest.raises(RuntimeError, match="functorch transforms"):
            gradient(k)
    else:
        leaf = k.clone().requires_grad_()
        (expected,) = torch.autograd.grad(bi_wkv(w, u, leaf, v).square().sum(), leaf)
        torch.testing.assert_close(gradient(k), expected)


def test_forward_mode_derivatives_are_finite_differences() -> None:
    w, u, k, v = (x.double() for x in draw(1, 20, 3))
    _, tangent = torch.func.jvp(lambda x: bi_wkv(w, u, x, v), (k,), (v,))
    step = 1e-6
    expected = (bi_wkv(w, u, k + step * v, v) - bi_wkv(w, u, k - step * v, v)) / (2 * step)
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-8)


def test_second_derivatives_are_right_or_refused(kernel: str) -> None:
    w, u, k, v = (x.double() for x in draw(1, 6, 2))
    k.requires_grad_()
    if kernel == "reference":
        assert torch.autograd.gradgradcheck(lambda x: bi_wkv(w, u, x, v), (k,))
        return
    (slope,) = torch.autograd.grad(bi_wkv(w, u, k, v).square().sum(), k, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"no second derivatives.*RWKVFUSION_KERNEL=reference"):
        slope.square().sum().backward()

"""The network compiled, and in half precision, makes the image that it makes as it is."""

import shutil

import pytest
import torch
from test_network import D, inputs

from model.config import ModelConfig
from model.network import RWKVFusion

GREY_LEVELS = 2 / 255


@pytest.fixture(scope="module")
def trained() -> RWKVFusion:
    """A few steps away from its first state, so that the layers matter to the image."""
    sources, text, masks = inputs()
    torch.manual_seed(0)
    net = RWKVFusion(ModelConfig(width=8, text_width=D))
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(30):
        loss = (net(sources, text, None, masks) - torch.maximum(*sources)).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


def difference(image: torch.Tensor, other: torch.Tensor) -> float:
    return float((image - other).abs().max())


def test_training_moved_the_image(trained: RWKVFusion) -> None:
    """The comparisons below are about something."""
    sources, text, masks = inputs()
    with torch.inference_mode():
        assert (
            difference(trained(sources, text, None, masks), torch.stack(sources).mean(0)) > 10 * GREY_LEVELS
        )


def test_bfloat16_autocast_makes_the_same_image(trained: RWKVFusion) -> None:
    sources, text, masks = inputs(height=24, width=32)
    with torch.inference_mode():
        image = trained(sources, text, torch.tensor([7, 3]), masks)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = trained(sources, text, torch.tensor([7, 3]), masks)
    assert 0 < difference(image, half.float()) < GREY_LEVELS


def compare(trained: RWKVFusion, backend: str) -> None:
    torch.compiler.reset()
    sources, text, masks = inputs()
    compiled = torch.compile(trained, backend=backend)
    with torch.no_grad():
        expected = trained(sources, text, torch.tensor([7, 3]), masks)
        assert difference(compiled(sources, text, torch.tensor([7, 3]), masks), expected) < GREY_LEVELS


def test_traced_network_makes_the_same_image(trained: RWKVFusion) -> None:
    compare(trained, "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiled_network_makes_the_same_image(trained: RWKVFusion) -> None:
    compare(trained, "inductor")


def test_gradients_through_the_traced_network(trained: RWKVFusion) -> None:
    torch.compiler.reset()
    sources, text, masks = inputs()

    def gradients(net: torch.nn.Module) -> list[torch.Tensor]:
        loss = net(sources, text, torch.tensor([7, 3]), masks).square().mean()
        return list(torch.autograd.grad(loss, list(trained.parameters())))

    for own, traced in zip(
        gradients(trained), gradients(torch.compile(trained, backend="aot_eager")), strict=True
    ):
        torch.testing.assert_close(traced, own, rtol=1e-3, atol=1e-6)

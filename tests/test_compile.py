"""The network compiled, and in half precision, makes the image that it makes as it is."""

import shutil
from functools import cache

import pytest
import torch
from test_network import D, inputs

from model.config import ModelConfig
from model.network import RWKVFusion

GREY_LEVELS = 2 / 255


@cache
def trained(levels: int = 3) -> RWKVFusion:
    """A few steps away from its first state, so that the layers matter to the image."""
    sources, text, masks = inputs()
    torch.manual_seed(0)
    net = RWKVFusion(
        ModelConfig(width=8, text_width=D, encoder_depths=(1,) * levels, decoder_depths=(1,) * (levels - 1))
    )
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(30):
        loss = (net(sources, text, None, masks) - torch.maximum(*sources)).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


def difference(image: torch.Tensor, other: torch.Tensor) -> float:
    return float((image - other).abs().max())


def test_training_moved_the_image() -> None:
    """The comparisons below are about something."""
    sources, text, masks = inputs()
    net = trained()
    with torch.inference_mode():
        image = net(sources, text, None, masks)
    assert difference(image, torch.stack(sources).mean(0)) > 10 * GREY_LEVELS


def test_bfloat16_autocast_makes_the_same_image() -> None:
    sources, text, masks = inputs(height=24, width=32)
    net = trained()
    with torch.inference_mode():
        image = net(sources, text, torch.tensor([7, 3]), masks)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = net(sources, text, torch.tensor([7, 3]), masks)
    assert 0 < difference(image, half.float()) < GREY_LEVELS


def compare(net: RWKVFusion, backend: str) -> None:
    torch.compiler.reset()
    sources, text, masks = inputs()
    compiled = torch.compile(net, backend=backend)
    with torch.no_grad():
        expected = net(sources, text, torch.tensor([7, 3]), masks)
        assert difference(compiled(sources, text, torch.tensor([7, 3]), masks), expected) < GREY_LEVELS


def test_traced_network_makes_the_same_image() -> None:
    compare(trained(), "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiled_network_makes_the_same_image() -> None:
    compare(trained(levels=2), "inductor")


@pytest.mark.slow
def test_gradients_through_the_traced_network() -> None:
    torch.compiler.reset()
    sources, text, masks = inputs()
    net = trained(levels=2)

    def gradients(network: torch.nn.Module) -> list[torch.Tensor]:
        loss = network(sources, text, torch.tensor([7, 3]), masks).square().mean()
        return list(torch.autograd.grad(loss, list(net.parameters())))

    compiled = torch.compile(net, backend="aot_eager")
    for own, traced in zip(gradients(net), gradients(compiled), strict=True):
        torch.testing.assert_close(traced, own, rtol=1e-3, atol=1e-6)

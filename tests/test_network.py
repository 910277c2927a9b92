"""What users of the network rely on: any size, any guidance, no influence of padding, gradients to all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.blocks import ChannelMix
from model.config import ModelConfig
from model.network import RWKVFusion
from model.operators import BiWKV
from model.spatial_mix import Text

T, D, MASKS = 7, 12, 20


def network(seed: int = 0, **values: object) -> RWKVFusion:
    """A small network with random weights everywhere, also in the head that starts at zero."""
    torch.manual_seed(seed)
    depths = {"encoder_depths": (2, 1, 1), "decoder_depths": (1, 1)}
    values = {"width": 4, "text_width": D, **depths, **values}
    net = RWKVFusion(ModelConfig(**values))  # type: ignore[arg-type]
    nn.init.normal_(net.head.weight, std=0.2)
    return net.eval()


def inputs(batch: int = 2, height: int = 16, width: int = 20) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sources = [torch.rand(batch, 1, height, width, generator=generator) for _ in range(2)]
    text = torch.randn(batch, T, D, generator=generator)
    masks = torch.rand(batch, MASKS, height, width, generator=generator) > 0.7
    return sources, text, masks


@settings(max_examples=12)
@given(height=st.integers(1, 37), width=st.integers(1, 37), guided=st.booleans())
def test_any_size(height: int, width: int, guided: bool) -> None:
    sources, text, masks = inputs(1, height, width)
    with torch.inference_mode():
        fused = network()(sources, text if guided else None, None, masks if guided else None)
    assert fused.shape == (1, 1, height, width)
    assert torch.isfinite(fused).all()


def test_untrained_network_returns_the_mean_or_the_upsampled_base() -> None:
    sources, text, masks = inputs()
    net = RWKVFusion(ModelConfig(width=4, text_width=D))
    assert torch.equal(net(sources, text, None, masks), torch.stack(sources).mean(0))
    net = RWKVFusion(ModelConfig(width=4, in_channels=(1, 4), out_channels=4, base=1, guidance="none"))
    ms = torch.rand(2, 4, 4, 5)
    upsampled = nn.functional.interpolate(ms, (16, 20), mode="bicubic", align_corners=False)
    assert torch.equal(net([sources[0], ms]), upsampled)


@pytest.mark.parametrize("guidance", ["both", "text", "masks", "none"])
@pytest.mark.parametrize("scan", [1, 2, 3])
def test_guidance_is_used_exactly_where_the_config_says(guidance: str, scan: int) -> None:
    sources, text, masks = inputs()
    net = network(guidance=guidance, scan=scan)
    with torch.inference_mode():
        plain = net(sources)
        assert torch.allclose(net(sources, text), plain) == (guidance in ("masks", "none"))
        assert torch.allclose(net(sources, masks=masks), plain) == (guidance in ("text", "none"))


def test_absent_guidance_equals_empty_guidance() -> None:
    sources, text, masks = inputs()
    net = network()
    with torch.inference_mode():
        plain = net(sources)
        torch.testing.assert_close(net(sources, text, torch.zeros(2, dtype=torch.long)), plain)
        torch.testing.assert_close(net(sources, masks=torch.zeros_like(masks)), plain)


@pytest.mark.parametrize("scan", [1, 3])
def test_padding_tokens_have_no_influence(scan: int) -> None:
    sources, text, masks = inputs(batch=3)
    net = network(scan=scan)
    length = torch.tensor([T, 3, 0])
    poisoned = text.clone()
    for item, count in enumerate(length.tolist()):
        poisoned[item, count:] = float("nan")
    poisoned = torch.cat([poisoned, torch.full((3, 9, D), 1e30)], dim=1)
    with torch.inference_mode():
        batch = net(sources, poisoned, length, masks)
        for item, count in enumerate(length.tolist()):
            one = slice(item, item + 1)
            alone = net([s[one] for s in sources], text[one, :count] if count else None, None, masks[one])
            torch.testing.assert_close(batch[one], alone, rtol=1e-4, atol=1e-5)


def test_padding_gets_no_gradient() -> None:
    sources, text, masks = inputs()
    text.requires_grad_()
    network()(sources, text, torch.tensor([T, 2]), masks).square().sum().backward()
    assert text.grad is not None
    assert torch.equal(text.grad[1, 2:], torch.zeros(T - 2, D))
    assert text.grad[1, :2].abs().min() > 0


def test_text_order_in_spatial_mix() -> None:
    """Even layers put the text before the image, odd ones after: eq. 18."""
    torch.manual_seed(0)
    image, tokens = torch.randn(1, 3, 4, 4), torch.randn(1, 5, 4)
    text = Text(tokens, torch.tensor([5]))
    first = BiWKV(4, 1, 0, text_first=True)
    last = BiWKV(4, 1, 0, text_first=False)
    last.load_state_dict(first.state_dict())
    a, b = first(image, text)[0], last(image, text)[0]
    assert not torch.allclose(a, b)
    # The same layer on the sequence written out by hand.
    sequence = first.norm(torch.cat([tokens, image.flatten(1, 2)], dim=1))
    flipped = first.norm(torch.cat([tokens, image.flatten(1, 2).flip(1)], dim=1))
    r, k, v = first.receptance_key_value(torch.cat([sequence, flipped], dim=-1)).chunk(3, dim=-1)
    place = torch.arange(17.0)
    steps = ((place[:, None] - place).abs() - 1) / 17
    exponent = k[:, None] - steps[None, :, :, None] * first.decay
    exponent = torch.where(torch.eye(17, dtype=torch.bool)[..., None], first.bonus + k[:, None], exponent)
    mixed = torch.sigmoid(r) * torch.einsum("btic,bic->btc", exponent.softmax(2), v)
    forward, backward = mixed[:, 5:].chunk(2, dim=-1)
    expected = first.output(torch.cat([forward, backward.flip(1)], dim=-1)).view(1, 3, 4, 4)
    torch.testing.assert_close(a, expected, rtol=1e-4, atol=1e-5)


def test_channel_mix_is_eq_9_to_11() -> None:
    mix = ChannelMix(6, 2.0)
    x = torch.randn(2, 5, 6)
    normal = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    key = normal @ mix.key.weight.T
    value = key.clamp(min=0) ** 2 @ mix.value.weight.T
    gate = 1 / (1 + torch.exp(-(normal @ mix.receptance.weight.T)))
    torch.testing.assert_close(mix(x), (gate * value) @ mix.output.weight.T)


@pytest.mark.parametrize("guidance", ["both", "none"])
def test_every_parameter_learns(guidance: str) -> None:
    sources, text, masks = inputs()
    net = network(guidance=guidance, scan=2).train()
    net(sources, text, torch.tensor([T, 3]), masks).square().mean().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The text leaving the last layer goes nowhere, yet its mixers serve the image too: nothing may be idle.
    assert idle == []


def test_kernels_give_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    sources, text, masks = inputs()
    net = network()
    images = []
    for kernel in ("cpu", "reference"):
        monkeypatch.setenv("RWKVFUSION_KERNEL", kernel)
        with torch.inference_mode():
            images.append(net(sources, text, torch.tensor([4, 6]), masks))
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-5)


def test_a_few_steps_lower_the_loss() -> None:
    sources, text, masks = inputs()
    torch.manual_seed(0)
    net = RWKVFusion(ModelConfig(width=8, text_width=D))
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = (net(sources, text, None, masks) - torch.maximum(*sources)).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": [torch.rand(1, 1, 8, 8)]}, "sources of"),
        ({"sources": [torch.rand(1, 1, 8, 8), torch.rand(2, 1, 8, 8)]}, "batch size"),
        ({"text": torch.rand(1, 3, D + 1)}, "text must be"),
        ({"text": torch.rand(1, 3, D), "text_length": torch.tensor([3, 3])}, "text_length"),
        ({"masks": torch.rand(1, 3, 8, 8)}, "masks must be"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network()(**({"sources": [torch.rand(1, 1, 8, 8)] * 2} | change))

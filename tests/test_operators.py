"""Each attention operator against its formula written out, in any size, with and without text."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_network import D, T, inputs, network
from torch import Tensor

from model.config import ModelConfig
from model.fusion_variants import CrossAttention, MLPFusion
from model.network import RWKVFusion
from model.operators import OPERATORS, WINDOW, spatial_mix
from model.scan import paths, rescan, unscan
from model.selective_scan import selective_scan
from model.spatial_mix import SpatialMix, Text
from model.windows import merge, partition

VARIANTS = [{"operator": name} for name in OPERATORS if name != "bi_wkv"]
VARIANTS += [
    {"fusion": "mlp"},
    {"fusion": "cross_attention"},
    {"backbone": "plain"},
    {"guidance": "unmerged"},
]


def mix(operator: str, channels: int = 6, text_first: bool = True) -> SpatialMix:
    torch.manual_seed(0)
    return spatial_mix(operator, channels, 1, 0, text_first).double()


def projections(layer: SpatialMix, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """R, K, V (L, 2 C) of one image (C, H, W last) scanned by rows, by hand."""
    rows = image.reshape(-1, image.shape[-1])
    normal = rows / (rows.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    stacked = torch.cat([normal, normal.flip(0)], dim=-1)
    return (stacked @ layer.receptance_key_value.weight.T).chunk(3, dim=-1)


def unstacked(layer: SpatialMix, mixed: Tensor, height: int, width: int) -> Tensor:
    forward, backward = mixed.chunk(2, dim=-1)
    joined = torch.cat([forward, backward.flip(0)], dim=-1)
    return (joined @ layer.output.weight.T).reshape(height, width, -1)


def test_default_network_is_the_one_weights_were_trained_with() -> None:
    """Names, shapes, order and untrained values: a change here would make trained weights unusable."""
    torch.manual_seed(0)
    digest = hashlib.sha256()
    config = ModelConfig(width=16, encoder_depths=(1, 1, 1), decoder_depths=(1, 1), channel_ratio=2.0)
    for name, value in RWKVFusion(config).state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}".encode())
        if value.ndim > 1:  # drawn at random, by torch's generator
            digest.update((value * 2**20).round().to(torch.int32).numpy().tobytes())
    assert digest.hexdigest()[:16] == "a0bb632cac4a8069"


def test_attention_is_softmax_of_products() -> None:
    layer, image = mix("attention"), torch.randn(3, 5, 6, dtype=torch.float64)
    query, key, value = projections(layer, image)
    weights = (query @ key.T / 12**0.5).softmax(dim=-1)  # one head of 12 channels
    expected = unstacked(layer, weights @ value, 3, 5)
    torch.testing.assert_close(layer(image[None])[0][0], expected)


def test_attention_divides_channels_into_heads() -> None:
    assert [mix("attention", channels).heads for channels in (4, 32, 33, 64)] == [1, 2, 2, 4]


def test_flatten_attention_is_its_quadratic_form() -> None:
    """The same with every pair of tokens written out, which is what the linear form must equal."""
    layer, image = mix("flatten_attention"), torch.randn(4, 5, 6, dtype=torch.float64)
    query, key, value = projections(layer, image)

    def focus(x: Tensor) -> Tensor:
        x = x.clamp(min=0) + 1e-6
        return x**3 * ((x**2).sum(-1, keepdim=True) / (x**6).sum(-1, keepdim=True)).sqrt()

    similarity = focus(query) @ focus(key).T
    attention = similarity / similarity.sum(dim=-1, keepdim=True) @ value
    forward, backward = value.chunk(2, dim=-1)
    values = torch.cat([forward, backward.flip(0)], dim=-1).reshape(4, 5, 12)
    padded = torch.nn.functional.pad(values, (0, 0, 2, 2, 2, 2))
    kernel = layer.depthwise.weight[:, 0]
    local = layer.depthwise.bias + sum(
        padded[i : i + 4, j : j + 5] * kernel[:, i, j] for i in range(5) for j in range(5)
    )
    expected = unstacked(layer, attention, 4, 5) + local @ layer.output.weight.T
    torch.testing.assert_close(layer(image[None])[0][0], expected)


@pytest.mark.parametrize("length", [1, 2, 9, 10, 101])
def test_selective_scan_is_the_recurrence(length: int) -> None:
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, step, rate = draw(2, length, 3), 5 * draw(2, length, 3).exp(), 4 * draw(3, 4).exp()
    enter, leave = draw(2, length, 4), draw(2, length, 4)
    state, expected = torch.zeros(2, 3, 4, dtype=torch.float64), []
    for t in range(length):
        decay = (-step[:, t, :, None] * rate).exp()
        state = decay * state + step[:, t, :, None] * enter[:, t, None] * x[:, t, :, None]
        expected.append((state * leave[:, t, None]).sum(-1))
    torch.testing.assert_close(selective_scan(x, step, rate, enter, leave), torch.stack(expected, 1))
    single = selective_scan(*(value.float() for value in (x, step, rate, enter, leave)))
    torch.testing.assert_close(single.double(), torch.stack(expected, 1), rtol=1e-4, atol=1e-3)


def test_vmamba_gates_the_scan() -> None:
    layer, image = mix("vmamba"), torch.randn(2, 3, 6, dtype=torch.float64)
    receptance, key, value = projections(layer, image)
    silu = torch.nn.functional.silu
    value, step = silu(value), (1 + (key + layer.step_bias).exp()).log()
    enter, leave = (value @ layer.state_in_out.weight.T).chunk(2, dim=-1)
    state, rows = torch.zeros(12, 16, dtype=torch.float64), []
    for t in range(6):
        decay = (-step[t, :, None] * torch.arange(1, 17)).exp()
        state = decay * state + step[t, :, None] * enter[t] * value[t, :, None]
        rows.append((state * leave[t]).sum(-1) + value[t])
    expected = unstacked(layer, torch.stack(rows) * silu(receptance), 2, 3)
    torch.testing.assert_close(layer(image[None])[0][0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operator", ["bi_wkv", "attention"])
def test_windows_are_images_of_their_own(operator: str) -> None:
    windowed, whole = mix(f"window_{operator}"), mix(operator)
    whole.load_state_dict(windowed.state_dict())
    image = torch.randn(2, 2 * WINDOW, 3 * WINDOW, 6, dtype=torch.float64)
    mixed = windowed(image)[0]
    for y in range(0, 2 * WINDOW, WINDOW):
        for x in range(0, 3 * WINDOW, WINDOW):
            place = (slice(None), slice(y, y + WINDOW), slice(x, x + WINDOW))
            torch.testing.assert_close(mixed[place], whole(image[place])[0])
    # Every window reads the text; what they make of it is averaged.
    text = Text(torch.randn(2, 5, 6, dtype=torch.float64), torch.tensor([5, 2]))
    mixed, words = windowed(image, text)
    parts = [
        whole(image[:, y : y + WINDOW, x : x + WINDOW], text)
        for y in range(0, 2 * WINDOW, WINDOW)
        for x in range(0, 3 * WINDOW, WINDOW)
    ]
    torch.testing.assert_close(mixed[:, WINDOW:, 2 * WINDOW :], parts[-1][0])
    torch.testing.assert_close(words, torch.stack([part[1] for part in parts]).mean(0))


@given(height=st.integers(1, 20), width=st.integers(1, 20), size=st.integers(1, 9))
def test_windows_are_merged_where_they_came_from(height: int, width: int, size: int) -> None:
    image = torch.rand(2, height, width, 3)
    windows = partition(image, size)
    assert windows.shape == (2 * -(-height // size) * -(-width // size), size, size, 3)
    assert torch.equal(merge(windows, height, width), image)


@pytest.mark.parametrize("strategy", [1, 2, 3])
def test_rescan_undoes_unscan(strategy: int) -> None:
    along = paths(strategy, 1)
    sequence = torch.rand(2, 35, 2 * len(along) * 3)
    assert torch.equal(rescan(unscan(sequence, along, 5, 7), along), sequence)


@settings(max_examples=4)
@given(height=st.integers(1, 21), width=st.integers(1, 21))
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_variants_take_any_size(variant: dict[str, str], height: int, width: int) -> None:
    sources, text, masks = inputs(1, height, width)
    net = network(**variant)
    masks = masks.repeat(1, net.config.mask_inputs // 20, 1, 1)
    with torch.inference_mode():
        fused = net(sources, text, torch.tensor([3]), masks)
    assert fused.shape == (1, 1, height, width)
    assert torch.isfinite(fused).all()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_guidance_of_variants(variant: dict[str, str]) -> None:
    """Text and masks are used; padding has no influence; absent guidance equals empty guidance."""
    sources, text, masks = inputs()
    net = network(**variant)
    masks = masks.repeat(1, net.config.mask_inputs // 20, 1, 1)
    poisoned = torch.cat([text, torch.full((2, 9, D), float("nan"))], dim=1)
    with torch.inference_mode():
        plain = net(sources)
        assert not torch.allclose(net(sources, text), plain)
        assert not torch.allclose(net(sources, masks=masks), plain)
        torch.testing.assert_close(net(sources, text, torch.zeros(2, dtype=torch.long)), plain)
        torch.testing.assert_close(net(sources, masks=torch.zeros_like(masks)), plain)
        batch = net(sources, poisoned, torch.tensor([T, 3]), masks)
        alone = net([source[1:] for source in sources], text[1:, :3], None, masks[1:])
        torch.testing.assert_close(batch[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_parameter_of_a_variant_learns(variant: dict[str, str]) -> None:
    sources, text, masks = inputs()
    # Depths at which the last text stands before the image: the causal scan sees it nowhere else.
    net = network(encoder_depths=(1, 1, 1), **variant).train()
    masks = masks.repeat(1, net.config.mask_inputs // 20, 1, 1)
    net(sources, text, torch.tensor([T, 3]), masks).square().mean().backward()
    idle = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    if variant.get("fusion") == "cross_attention":  # what the last text reads from the image goes nowhere
        assert idle == {"encoder.2.0.fusion.text_mix.text_output.weight"}
    else:
        assert idle == set()


def test_unmerged_masks_are_one_set_per_source() -> None:
    net = network(guidance="unmerged")
    assert net.config.mask_inputs == 40
    sources, _, masks = inputs()
    with pytest.raises(ValueError, match=r"masks must be \(2, 40, 16, 20\)"):
        net(sources, masks=masks)


def test_mlp_fusion_by_hand() -> None:
    torch.manual_seed(0)
    layer = MLPFusion(4, 2, 3, use_text=True)
    x, sources, masks = torch.randn(1, 2, 2, 4), torch.randn(1, 2, 2, 2), torch.ones(1, 2, 2, 3)
    text = Text(torch.randn(1, 3, 4), torch.tensor([2]))

    def perceptron(layers: torch.nn.Sequential, value: Tensor) -> Tensor:
        for linear in layers[::3]:
            value = value @ linear.weight.T + linear.bias
            value = (value / (value.square().mean(-1, keepdim=True) + 1e-6).sqrt()).clamp(min=0)
        return value

    words = perceptron(layer.words, text.tokens)
    image = perceptron(layer.image, torch.cat([x, sources, masks], dim=-1))
    joined = torch.cat([image, words[:, :2].mean(1)[:, None, None].expand(1, 2, 2, 4)], dim=-1)
    fused, passed = layer(x, sources, masks, text)
    torch.testing.assert_close(fused, x + joined @ layer.join.weight.T + layer.join.bias)
    torch.testing.assert_close(passed.tokens, text.tokens + words)


def test_cross_attention_by_hand() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(4)
    x, text = torch.randn(1, 2, 3, 4), Text(torch.randn(1, 3, 4), torch.tensor([2]))

    def normal(value: Tensor) -> Tensor:
        return value / (value.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    pixels, tokens = x.view(6, 4), text.tokens[0, :2]
    q, k, v = (normal(pixels) @ layer.image_query_key_value.weight.T).chunk(3, dim=-1)
    query, key, value = (normal(tokens) @ layer.text_query_key_value.weight.T).chunk(3, dim=-1)
    nothing = torch.zeros(1, 4)
    scores = normal(q) @ torch.cat([nothing, normal(key)]).T / 2
    seen = scores.softmax(-1) @ torch.cat([nothing, value]) @ layer.image_output.weight.T
    read = (normal(query) @ normal(k).T / 2).softmax(-1) @ v @ layer.text_output.weight.T
    image, words = layer(x, text)
    torch.testing.assert_close(image, seen.view(1, 2, 3, 4))
    torch.testing.assert_close(words[0, :2], read)


def test_plain_backbone_keeps_the_size() -> None:
    net = network(backbone="plain", encoder_depths=(2, 1, 1), decoder_depths=(1, 2))
    assert [len(level) for level in net.encoder] == [4]
    assert [len(level) for level in net.decoder] == [3]
    sizes = set()
    for module in net.modules():
        if isinstance(module, SpatialMix):
            module.register_forward_pre_hook(lambda module, args: sizes.add(tuple(args[0].shape[1:3])))
    with torch.inference_mode():
        net(inputs(1, 9, 7)[0])
    assert sizes == {(9, 7)}

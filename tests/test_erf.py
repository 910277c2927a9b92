"""The receptive fields of fig. 10: bi-WKV reaches every pixel, windows and convolutions do not."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from test_network import network
from typer.testing import CliRunner

from model.cli import app
from model.erf import receptive_field

SIZE = 64


def reach(operator: str, **values: object) -> float:
    net = network(fusion="mlp", guidance="none", operator=operator, **values)
    return float((receptive_field(net, SIZE, samples=1) > 0).double().mean())


def test_bi_wkv_covers_the_image() -> None:
    assert reach("bi_wkv") == 1.0


def test_attention_covers_the_image() -> None:
    assert reach("attention") == 1.0


@pytest.mark.parametrize("operator", ["window_bi_wkv", "window_attention"])
def test_windows_do_not(operator: str) -> None:
    assert 0.0 < reach(operator, encoder_depths=(1, 1), decoder_depths=(1,)) < 0.5


def test_field_of_one_window_is_that_window() -> None:
    """A network whose only neighbourhood is an 8 x 8 window, up to the stem's 3 x 3 convolution."""
    net = network(encoder_depths=(1,), decoder_depths=(), operator="window_attention", fusion="mlp")
    field = receptive_field(net, 32, samples=1)
    rows, columns = torch.nonzero(field, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (15, 24, 15, 24)


def test_field_is_the_gradient_by_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network without guidance, its input moved pixel by pixel, in one pixel's features."""
    monkeypatch.setenv("RWKVFUSION_KERNEL", "reference")
    net = network(encoder_depths=(1,), decoder_depths=(), operator="bi_wkv", guidance="none")
    features = []
    net.head.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    field = receptive_field(net, 4, samples=1)
    net.double()
    generator = torch.Generator().manual_seed(0)
    sources = [torch.rand(1, 1, 4, 4, generator=generator).double() for _ in range(2)]

    def centre(sources: list[torch.Tensor]) -> float:
        with torch.no_grad():
            net(sources)
        return float(features[-1][0, 2, 2].sum())

    expected = torch.zeros(4, 4, dtype=torch.float64)
    for source in sources:
        for y in range(4):
            for x in range(4):
                source[0, 0, y, x] += 1e-5
                above = centre(sources)
                source[0, 0, y, x] -= 2e-5
                expected[y, x] += abs(above - centre(sources)) / 2e-5
                source[0, 0, y, x] += 1e-5
    torch.testing.assert_close(field, expected, rtol=1e-3, atol=1e-4)


def test_command_draws_every_operator(tmp_path: Path) -> None:
    out = tmp_path / "erf.png"
    result = CliRunner().invoke(app, ["erf", "--preset", "visible_infrared", "--size", "24", "-o", str(out)])
    assert result.exit_code == 0, result.output
    lines = dict(line.split(": reaches ") for line in result.output.splitlines())
    assert lines["bi_wkv"] == "100.0 % of the pixels"
    assert list(lines)[:2] == ["convolution", "bi_wkv"]
    assert len(lines) == 7
    with Image.open(out) as image:
        assert image.width > 3 * image.height


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "medcal", "-o", "erf.png"], "unknown preset 'medcal'"),
        (["--size", "4", "-o", "erf.png"], "--size 4 is too small"),
        (["--size", "16", "-o", "erf.jpg"], "ends in .png"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["erf", *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert not list(tmp_path.iterdir())

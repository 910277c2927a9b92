"""LPIPS on weights from a file: its formula on random weights, and what is said when there are none."""

import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from rich.console import Console
from torch.nn.functional import conv2d, relu
from torchvision.models import vgg16

from model.folders import evaluate_folders
from model.measure import Options
from model.metrics import fusion_metrics
from model.metrics.lpips import backbone_file, perceptual_distance
from model.results import Evaluation
from pipeline.errors import InputError
from pipeline.images import luminance, quantise, write_image


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "vgg.pth"
    with torch.device("meta"):
        network = vgg16().features
    state = {}
    for key, value in network.state_dict().items():
        fan = value[0].numel() if value.ndim == 4 else 1
        state[f"features.{key}"] = torch.randn(value.shape) * (2 / fan) ** 0.5 * (value.ndim == 4)
    torch.save(state, file)
    return file


def test_distance_follows_the_formula(backbone: Path) -> None:
    a, b, f = np.random.default_rng(1).integers(0, 256, (3, 3, 20, 24)).astype(float)
    weights = torch.load(backbone, weights_only=True)
    bundled = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/vgg.pth"
    heads = torch.load(bundled, map_location="cpu", weights_only=True)
    mean, spread = (torch.tensor(v)[:, None, None] for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))

    def features(image: np.ndarray) -> list[torch.Tensor]:
        x = ((2 * torch.from_numpy(image).float() / 255 - 1) - mean) / spread
        kept, layer = [], 0
        for count in (2, 2, 3, 3, 3):
            if kept:
                x = torch.nn.functional.max_pool2d(x, 2)
                layer += 1
            for _ in range(count):
                key = f"features.{layer}"
                x = relu(conv2d(x[None], weights[f"{key}.weight"], weights[f"{key}.bias"], padding=1)[0])
                layer += 2
            kept.append(x / (x.square().sum(0) + 1e-8).sqrt())
        return kept

    expected = sum(
        float((heads[f"lin{i}.model.1.weight"][0] * (x - y).square()).sum(0).mean())
        for source in (a, b)
        for i, (x, y) in enumerate(zip(features(source), features(f), strict=True))
    )
    assert perceptual_distance(a, b, f, weights=backbone) == pytest.approx(expected, rel=1e-4)
    assert perceptual_distance(a, a, a, weights=backbone) == 0
    batch = perceptual_distance(
        *(torch.from_numpy(np.stack([i, i[::-1]])) for i in (a, b, f)), weights=backbone
    )
    assert float(batch[0]) == pytest.approx(expected, rel=1e-4)
    assert np.isnan(perceptual_distance(a, b, f * np.nan, weights=backbone))
    grey = fusion_metrics([a[0], b[0]], f[0], weights=backbone)["LPIPS"]
    repeated = [np.stack([image[0]] * 3) for image in (a, b, f)]
    assert grey == pytest.approx(perceptual_distance(*repeated, weights=backbone), rel=1e-5)


def test_missing_and_wrong_weights_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"no VGG16 weights in torch's cache .*vgg16-397923af\.pth") as told:
        backbone_file()
    assert str(tmp_path) not in str(told.value)
    with pytest.raises(InputError, match=r"no VGG16 weights at absent\.pth"):
        backbone_file("absent.pth")
    plane = np.zeros((20, 20))
    assert "LPIPS" not in fusion_metrics([plane, plane], plane)
    with pytest.raises(InputError, match=r"nothing\.pth"):
        perceptual_distance(plane[None], plane[None], plane[None], weights=tmp_path / "nothing.pth")
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    with pytest.raises(InputError, match="holds no VGG16"):
        perceptual_distance(plane[None], plane[None], plane[None], weights=other)
    other.write_bytes(b"no weights")
    with pytest.raises(InputError, match="no file of weights"):
        perceptual_distance(plane[None] + 1, plane[None], plane[None], weights=other)


def test_an_evaluation_has_the_column_where_weights_are_at_hand(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    images = np.random.default_rng(2).random((3, 3, 20, 24), dtype=np.float32)
    folders = [tmp_path / name for name in ("visible", "infrared", "fused")]
    for folder, image in zip(folders, images, strict=True):
        write_image(folder / "one.png", image)

    def run(**chosen: Any) -> Evaluation:
        options = Options(workers=0, **chosen)
        console = Console(file=StringIO())
        return evaluate_folders({"m": folders[2]}, folders[:2], None, None, console, options=options)

    levels = [quantise(image, 8).astype(float) for image in images]
    grey = [np.rint(quantise(luminance(image), 8))[None].astype(float) for image in (i / 255 for i in levels)]
    values = run(lpips=str(backbone)).rows[0].values
    assert values["LPIPS"] == pytest.approx(perceptual_distance(*grey, weights=backbone), rel=1e-3)
    colour = run(lpips=str(backbone), profile="rwkvfusion", metrics=("rwkvfusion_LPIPS",)).rows[0].values
    assert colour == {
        "rwkvfusion_LPIPS": pytest.approx(perceptual_distance(*levels, weights=backbone), rel=1e-5)
    }
    without = run()
    assert "LPIPS" not in without.rows[0].values
    assert [w for w in without.warnings if "LPIPS is missing" in w and "--lpips" in w] == without.warnings
    assert [w.count("LPIPS") for w in without.warnings] == [1]
    assert run(metrics=("MI",)).warnings == []
    with pytest.raises(InputError, match="no VGG16 weights"):
        run(metrics=("LPIPS",))
    cached = tmp_path / "torch" / "hub" / "checkpoints" / "vgg16-397923af.pth"
    cached.parent.mkdir(parents=True)
    shutil.copy(backbone, cached)
    assert run(metrics=("LPIPS",)).rows[0].values["LPIPS"] == pytest.approx(values["LPIPS"], rel=1e-6)

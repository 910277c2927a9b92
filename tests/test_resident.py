"""Where models run, that they are loaded once, what they see, and that half precision goes through them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoints import make_samples

from pipeline import florence2, groundingdino_boxes, resident, sam_masks, transformers_boxes
from pipeline.boxes import backend as detector
from pipeline.captions import backend as captioner
from pipeline.config import BoxesConfig, CaptionsConfig, MasksConfig
from pipeline.errors import InputError
from pipeline.images import Image
from pipeline.masks import backend as segmenter
from pipeline.model_input import as_rgb8
from pipeline.records import Instances


@pytest.mark.parametrize(("name", "message"), [("gpu", "no such"), ("cuda:99", "there are .* CUDA devices")])
def test_a_device_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.setenv("RWKVFUSION_DEVICE", name)
    with pytest.raises(InputError, match=f"--device '{name}': {message}.*choose auto"):
        resident.chosen_device()


def test_a_model_is_loaded_once_per_process_and_folder(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def load(folder: Path) -> torch.nn.Module:
        calls.append(folder)
        time.sleep(0.05)
        return torch.nn.Dropout()

    found: list[torch.nn.Module] = []

    def work() -> None:
        found.append(resident.resident(load, "t5-small"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [tiny_weights / "t5-small"]
    assert len({id(model) for model in found}) == 1
    assert not found[0].training
    other = tmp_path / "t5-small"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"")
    monkeypatch.setenv("RWKVFUSION_WEIGHTS", str(tmp_path))
    resident.resident(load, "t5-small")
    assert calls[1:] == [other]


def image(pixels: np.ndarray) -> Image:
    return Image(pixels.astype(np.float32), 8, Path("x"))


def test_colour_is_seen_as_it_is_and_one_band_stretched() -> None:
    random = np.random.default_rng(0)
    levels = random.integers(0, 256, (3, 20, 30))
    assert (as_rgb8(image(levels / 255)) == levels.transpose(1, 2, 0)).all()
    dull = 0.4 + 0.1 * random.random((1, 20, 30))
    seen = as_rgb8(image(dull))
    assert seen.shape == (20, 30, 3)
    assert (seen == seen[..., :1]).all()
    low, high = np.percentile(dull.astype(np.float32), (1, 99))
    expected = np.rint(255 * np.clip((dull[0] - low) / (high - low), 0, 1))
    assert np.abs(seen[..., 0] - expected).max() <= 1
    assert (seen.min(), seen.max()) == (0, 255)
    assert (as_rgb8(image(np.full((1, 4, 4), 0.5))) == 128).all()  # nothing to stretch
    assert as_rgb8(image(random.random((8, 6, 7)))).shape == (6, 7, 3)


@contextmanager
def bfloat16(device: torch.device, *, full: bool = False) -> Iterator[None]:
    """What `inference` does on a GPU, on the CPU."""
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=not full):
        yield


def test_models_run_in_half_precision(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types must fit everywhere; the values stay near those of full precision."""
    samples = make_samples(1, (48, 64))
    boxes = [Instances(np.array([[5, 5, 40, 40]], np.float32), np.ones(1, np.float32), ("x",))] * 2
    detectors = [
        detector(BoxesConfig(backend=name, threshold=0.0, text_threshold=0.0, max_boxes=20))  # type: ignore[arg-type]
        for name in ("groundingdino", "transformers")
    ]

    def compute() -> tuple[list[np.ndarray], list[str]]:
        masks = segmenter(MasksConfig(backend="sam"))(samples, [tuple(boxes)])
        found = [one(samples, ("person", "car")) for one in detectors]
        texts = captioner(CaptionsConfig(backend="florence2", max_new_tokens=4))(samples)
        numbers = [source.iou for source in masks[0]]
        numbers += [source.score for [sources] in found for source in sources]
        return [np.asarray(values, np.float64) for values in numbers], texts

    full, _ = compute()
    for module in (sam_masks, groundingdino_boxes, transformers_boxes, florence2):
        monkeypatch.setattr(module, "inference", bfloat16)
    half, texts = compute()
    assert texts[0].startswith("visible: ")
    assert any((a != b).any() for a, b in zip(full, half, strict=True)), "nothing was computed in bfloat16"
    for a, b in zip(full[:2], half[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=0.05)
    assert all(np.isfinite(values).all() for values in half)

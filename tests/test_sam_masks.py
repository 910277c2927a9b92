"""Segment Anything with a tiny random checkpoint, against its own predictor, image by image, box by box."""

from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.build_sam import _build_sam
from tiny_checkpoints import make_samples

from pipeline import sam_masks
from pipeline.config import MasksConfig
from pipeline.errors import InputError
from pipeline.model_input import as_rgb8
from pipeline.records import Instances
from pipeline.sam_masks import SamSegmenter, build

NAME = "sam_vit_b_01ec64.pth"


def instances(boxes: list[list[float]]) -> Instances:
    count = len(boxes)
    return Instances(
        np.array(boxes, np.float32).reshape(-1, 4), np.full(count, 0.9, np.float32), ("person",) * count
    )


def test_batches_equal_the_predictor_box_by_box(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam_masks, "AT_ONCE", {"cpu": 2})
    sample, empty = make_samples(2, (45, 70))
    boxes = [[3, 4, 30, 40], [10.5, 2.25, 69, 44], [0, 0, 70, 45]], [[20, 10, 50, 33.5]]
    found = SamSegmenter(MasksConfig(backend="sam"))(
        [empty, sample], [(instances([]), instances([])), tuple(instances(b) for b in boxes)]
    )
    for nothing in found[0]:
        assert (nothing.mask.shape, nothing.iou.shape) == ((0, 45, 70), (0,))  # type: ignore[union-attr]
    sam = _build_sam(32, 2, 2, [1])
    sam.load_state_dict(torch.load(tiny_weights / "sam-vit-b" / NAME, weights_only=True))
    predictor = SamPredictor(sam)
    shares = []
    for image, result in zip(sample.images, found[1], strict=True):
        predictor.set_image(as_rgb8(image))
        assert result.mask is not None
        assert result.iou is not None
        for box, mask, iou in zip(result.box, result.mask, result.iou, strict=True):
            logits, quality, _ = predictor.predict(box=box, return_logits=True)
            best = quality.argmax()
            assert iou == pytest.approx(np.clip(quality[best], 0, 1), abs=1e-5)
            sure = np.abs(logits[best]) > 1e-4  # the order of sums differs between batches
            assert sure.mean() > 0.99
            assert (mask == (logits[best] > 0))[sure].all()
            shares.append(mask.mean())
    assert 0 < min(shares) < max(shares) < 1, "masks of everything or nothing would prove nothing"


def test_the_size_is_read_from_the_parameters() -> None:
    sam = build(_build_sam(48, 3, 3, [0, 2]).state_dict())
    windows = [block.window_size for block in sam.image_encoder.blocks]
    assert windows == [0, 14, 0]
    assert {block.attn.num_heads for block in sam.image_encoder.blocks} == {3}


@pytest.mark.parametrize("kind", ["vit_b", "vit_l", "vit_h"])
def test_published_sizes_are_recognised(kind: str) -> None:
    """Without memory for the parameters: their shapes say everything."""
    with torch.device("meta"):
        published = sam_model_registry[kind]()
        ours = build(published.state_dict())
    for one, other in zip(published.image_encoder.blocks, ours.image_encoder.blocks, strict=True):
        assert one.window_size == other.window_size
        assert one.attn.num_heads == other.attn.num_heads


@pytest.mark.parametrize(
    "content", ["parameters of another model", "code", "half of the file", "one lacks", "a list"]
)
def test_what_is_no_sam_is_refused(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    folder = tmp_path / "weights" / "sam-vit-b"
    folder.mkdir(parents=True)
    good = tiny_weights / "sam-vit-b" / NAME
    if content == "half of the file":
        (folder / NAME).write_bytes(good.read_bytes()[:50_000])
    elif content == "one lacks":
        state = torch.load(good, weights_only=True)
        del state["mask_decoder.iou_token.weight"]
        torch.save(state, folder / NAME)
    else:
        others = {"code": {"a": Path("x")}, "a list": [torch.zeros(1)]}
        torch.save(others.get(content, {"a": torch.zeros(1)}), folder / NAME)
    monkeypatch.setenv("RWKVFUSION_WEIGHTS", str(folder.parent))
    (sample,) = make_samples(1, (24, 24))
    boxes = [tuple(instances([[1, 1, 9, 9]]) for _ in sample.images)]
    with pytest.raises(InputError, match=r"cannot be loaded as sam-vit-b .*weights verify sam-vit-b"):
        SamSegmenter(MasksConfig(backend="sam"))([sample], boxes)

"""Detection, segmentation and depth on fused images, by tiny checkpoints made here."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from model.downstream import Network, depth_of, load_network, overlap, read_coco, run_downstream
from pipeline.errors import InputError
from pipeline.images import display, read_image, write_image

CLASSES = {0: "N/A", 1: "person", 2: "car"}
SIZE = {"height": 48, "width": 64}


def quiet() -> Console:
    return Console(file=StringIO(), width=200)


def save(folder: Path, model: transformers.PreTrainedModel, processor: object) -> str:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Untrained networks of the three kinds, a few thousand parameters each."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("checkpoints")
    yolos = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[48, 64],
        num_detection_tokens=12, id2label=CLASSES,
    )  # fmt: skip
    segformer = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[4, 2], hidden_sizes=[8, 16], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16,
        id2label=CLASSES,
    )  # fmt: skip
    backbone = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14,
        out_features=["stage1", "stage2"], reshape_hidden_states=False,
    )  # fmt: skip
    depth = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, patch_size=14, reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 16], fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip
    return {
        "detection": save(
            root / "yolos",
            transformers.YolosForObjectDetection(yolos),
            transformers.YolosImageProcessor(size=SIZE, do_pad=False),
        ),
        "segmentation": save(
            root / "segformer",
            transformers.SegformerForSemanticSegmentation(segformer),
            transformers.SegformerImageProcessor(size=SIZE),
        ),
        "depth": save(
            root / "depth",
            transformers.DepthAnythingForDepthEstimation(depth),
            transformers.DPTImageProcessor(size={"height": 42, "width": 56}, ensure_multiple_of=14),
        ),
    }


@pytest.fixture
def fused(tmp_path: Path) -> dict[str, Path]:
    random = np.random.default_rng(0)
    for method, bands in (("grey", 1), ("colour", 3)):
        for name in ("s1", "s2"):
            write_image(tmp_path / method / f"{name}.png", random.random((bands, 48, 64), dtype=np.float32))
    return {"grey": tmp_path / "grey", "colour": tmp_path / "colour"}


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """COCO labels of two images; `people` is COCO's person under the name that data sets use."""
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 5, "bbox": [10, 8, 30, 30], "area": 900, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 6, "bbox": [30, 20, 20, 20], "area": 400, "iscrowd": 0},
        {"id": 3, "image_id": 9, "category_id": 5, "bbox": [5, 5, 50, 40], "area": 2000, "iscrowd": 0},
    ]
    content = {
        "images": [
            {"id": 7, "file_name": "visible/s1.png", "height": 48, "width": 64},
            {"id": 9, "file_name": "s2.jpg", "height": 48, "width": 64},
        ],
        "categories": [{"id": 5, "name": "People"}, {"id": 6, "name": "car"}],
        "annotations": annotations,
    }
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def test_precision_is_that_of_the_coco_evaluation(
    checkpoints: dict[str, str], fused: dict[str, Path], boxes: Path, tmp_path: Path
) -> None:
    network = load_network("detection", checkpoints["detection"], "cpu")
    _, truth = read_coco(boxes)
    assert truth["s1"] == ([[10, 8, 40, 38], [30, 20, 50, 40]], [5, 6])
    out = tmp_path / "out"
    measured = run_downstream("detection", fused, network, boxes, out, quiet())

    detections = []
    for image, name in ((7, "s1"), (9, "s2")):
        outputs, size = network(display(read_image(fused["colour"] / f"{name}.png").pixels))
        found = network.processor.post_process_object_detection(outputs, threshold=0, target_sizes=[size])[0]
        for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
            if int(label) in (1, 2):
                x0, y0, x1, y1 = box.tolist()
                entry = {"image_id": image, "category_id": int(label) + 4, "score": float(score)}
                detections.append(entry | {"bbox": [x0, y0, x1 - x0, y1 - y0]})
    coco = COCO(str(boxes))
    evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert measured["colour"]["mAP"] == pytest.approx(evaluation.stats[0], abs=1e-5)
    assert measured["colour"]["mAP50"] == pytest.approx(evaluation.stats[1], abs=1e-5)
    assert list(measured["colour"]) == ["mAP50", "mAP", "AP50 People", "AP50 car"]
    assert (
        json.loads((out / "detection.json").read_text())["methods"]["grey"].keys() == measured["grey"].keys()
    )


class Oracle:
    """A detector that finds just what is there."""

    def __init__(self, truth: dict[str, tuple[list[list[float]], list[int]]]) -> None:
        self.answers = iter(truth.values())
        self.config = transformers.PretrainedConfig(id2label=CLASSES)

    def post_process_object_detection(self, *_: object, **__: object) -> list[dict[str, torch.Tensor]]:
        found, numbers = next(self.answers)
        labels = torch.tensor([number - 4 for number in numbers])
        return [{"boxes": torch.tensor(found), "scores": torch.ones(len(numbers)), "labels": labels}]


def test_perfect_detections_score_one(fused: dict[str, Path], boxes: Path) -> None:
    oracle = Oracle(read_coco(boxes)[1])
    network = type("Still", (Network,), {"__call__": lambda self, picture: (None, picture.shape[:2])})
    measured = run_downstream(
        "detection",
        {"grey": fused["grey"]},
        network("oracle", oracle, oracle, torch.device("cpu")),
        boxes,
        None,
        quiet(),
    )
    assert measured["grey"] == {"mAP50": 1, "mAP": 1, "AP50 People": 1, "AP50 car": 1}


def test_overlap_by_hand() -> None:
    confusion = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    values = overlap(confusion, CLASSES)
    assert values == pytest.approx(
        {"mIoU": (6 / 9 + 3 / 6) / 2, "mAcc": (6 / 8 + 3 / 4) / 2, "IoU N/A": 6 / 9, "IoU person": 3 / 6}
    )


def test_segmentation_counts_all_pixels_but_the_ignored(
    checkpoints: dict[str, str], fused: dict[str, Path], tmp_path: Path
) -> None:
    network = load_network("segmentation", checkpoints["segmentation"], "cpu")
    labels = tmp_path / "labels"
    labels.mkdir()
    for name in ("s1", "s2"):  # the network's own answer is the truth where it counts
        outputs, size = network(display(read_image(fused["grey"] / f"{name}.png").pixels))
        answer = network.processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]
        truth = answer.numpy().astype(np.uint8)
        truth[:10] = 255
        Image.fromarray(truth).save(labels / f"{name}.png")
    measured = run_downstream("segmentation", fused, network, labels, tmp_path / "out", quiet())
    assert measured["grey"]["mIoU"] == measured["grey"]["mAcc"] == 1
    assert 0 <= measured["colour"]["mIoU"] < 1
    assert "| grey | 1.000 |" in (tmp_path / "out" / "segmentation.md").read_text()
    Image.fromarray(np.full((48, 64), 7, np.uint8)).save(labels / "s2.png")
    with pytest.raises(InputError, match="has class 7"):
        run_downstream("segmentation", fused, network, labels, None, quiet())


def test_depth_leaves_pictures(checkpoints: dict[str, str], fused: dict[str, Path], tmp_path: Path) -> None:
    network = load_network("depth", checkpoints["depth"], "cpu")
    assert run_downstream("depth", fused, network, None, tmp_path / "out", quiet()) == {}
    folder = tmp_path / "out" / "depth"
    written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert written == ["colour/s1.png", "colour/s2.png", "grey/s1.png", "grey/s2.png"]
    depth = depth_of(network, display(read_image(fused["grey"] / "s1.png").pixels))
    assert depth.shape == (1, 48, 64)
    assert (depth.min(), depth.max()) == (0, 1)


def test_mistakes_are_named(checkpoints: dict[str, str], fused: dict[str, Path], boxes: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded for detection"):
        load_network("detection", str(boxes.parent / "absent"))
    network = load_network("detection", checkpoints["detection"], "cpu")
    with pytest.raises(InputError, match="add --labels"):
        run_downstream("detection", fused, network, None, None, quiet())
    boxes.write_text(boxes.read_text().replace("car", "tram"))
    with pytest.raises(InputError, match="does not detect tram"):
        run_downstream("detection", fused, network, boxes, None, quiet())
    (fused["colour"] / "s2.png").unlink()
    boxes.write_text(boxes.read_text().replace("tram", "car"))
    with pytest.raises(InputError, match=r"colour: no image for 1 labelled samples \(s2\)"):
        run_downstream("detection", fused, network, boxes, None, quiet())
    boxes.write_text("{}")
    with pytest.raises(InputError, match="not boxes in COCO's JSON format"):
        run_downstream("detection", fused, network, boxes, None, quiet())

"""How well fused images serve what comes after fusion (sect. 6.3): detection, segmentation, depth.

A pretrained network of transformers, named or in a folder, looks at every method's images. Detection gives
mean average precision (COCO, by torchmetrics and pycocotools), segmentation the mean intersection over union,
depth pictures only: there is no ground truth for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from model.matching import list_folder, pair
from model.results import write_json
from pipeline.errors import InputError, first_line
from pipeline.images import display, read_image, write_atomically, write_image

Kind = Literal["detection", "segmentation", "depth"]
IGNORED = 255  # label of pixels that do not count
ALIASES = {"people": "person", "pedestrian": "person", "motorbike": "motorcycle", "lorry": "truck"}


@dataclass(frozen=True)
class Network:
    """A pretrained network with the preprocessing that belongs to it."""

    name: str
    processor: Any
    model: Any
    device: torch.device

    @torch.inference_mode()
    def __call__(self, picture: NDArray[np.uint8]) -> tuple[Any, tuple[int, int]]:
        """Outputs for one uint8 (H, W, 3) picture, and its (H, W)."""
        inputs = self.processor(images=PillowImage.fromarray(picture), return_tensors="pt").to(self.device)
        return self.model(**inputs), (picture.shape[0], picture.shape[1])


def load_network(kind: Kind, name: str, device: str | None = None) -> Network:
    """Load a checkpoint by its name on the hub or its folder; weights as safetensors, no code of theirs.

    Raises InputError when transformers is missing or the checkpoint cannot be loaded.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError("--downstream needs the package transformers; install it") from error
    automatic = {
        "detection": transformers.AutoModelForObjectDetection,
        "segmentation": transformers.AutoModelForSemanticSegmentation,
        "depth": transformers.AutoModelForDepthEstimation,
    }[kind]
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name)
        model = automatic.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{name}: cannot be loaded for {kind} ({first_line(error)}); give a folder or a name"
        ) from error
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Network(name, processor, model.to(chosen).eval(), chosen)


def run_downstream(
    kind: Kind,
    fused: Mapping[str, Path],
    network: Network,
    labels: Path | None,
    out: Path | None,
    console: Console | None = None,
) -> dict[str, dict[str, float]]:
    """Method -> metric -> value; written to ``out``/<kind>.json and .md, depth maps to ``out``/depth/.

    ``labels``: detection, a COCO JSON file whose images match by name; segmentation, a folder of label maps
    with the network's class numbers (255: left out). Raises InputError for missing labels and images.
    """
    console = console or Console()
    if kind == "depth":
        if out is None:
            raise InputError("depth has pictures for a result; add --out DIR")
        for method, folder in fused.items():
            for stem, path in track(list_folder(folder).items(), method, console=console, transient=True):
                write_image(out / "depth" / method / f"{stem}.png", depth_of(network, _picture(path)))
        return {}
    if labels is None:
        raise InputError(f"{kind} is measured against labels; add --labels")
    measured: dict[str, dict[str, float]] = {}
    for method, folder in fused.items():
        if kind == "detection":
            measured[method] = detection(network, folder, labels, console)
        else:
            measured[method] = segmentation(network, folder, labels, console)
    console.print(_table(kind, network.name, measured))
    if out is not None:
        finite = {m: {k: v if math.isfinite(v) else None for k, v in d.items()} for m, d in measured.items()}
        write_json(out / f"{kind}.json", {"network": network.name, "methods": finite})
        page = markdown(measured)
        write_atomically(out / f"{kind}.md", lambda path: path.write_text(page, encoding="utf-8"))
    return measured


def _picture(path: Path) -> NDArray[np.uint8]:
    return display(read_image(path).pixels)


def _matched(folder: Path, stems: Sequence[str], console: Console) -> Iterator[tuple[str, Path]]:
    found = pair(list(stems), list_folder(folder), (folder.name,))
    missing = [stem for stem in stems if stem not in found]
    if missing:
        raise InputError(f"{folder}: no image for {len(missing)} labelled samples ({', '.join(missing[:5])})")
    yield from track(list(found.items()), folder.name, console=console, transient=True)


def detection(network: Network, folder: Path, labels: Path, console: Console) -> dict[str, float]:
    """mAP50, mAP (0.5:0.95) and AP50 of every labelled class.

    Classes match by name; what the network knows beyond the labelled classes is left out. Raises InputError
    for labels that are not COCO's and classes that the network does not know.
    """
    from torchmetrics.detection import MeanAveragePrecision

    names, truth = read_coco(labels)
    known = {_plain(name): number for number, name in network.model.config.id2label.items()}
    absent = [name for name in names.values() if _plain(name) not in known]
    if absent:
        raise InputError(
            f"{network.name}: does not detect {', '.join(absent)}; choose another network or other labels"
        )
    classes = {known[_plain(name)]: number for number, name in names.items()}
    metric = MeanAveragePrecision(box_format="xyxy", class_metrics=True, backend="pycocotools")
    each = MeanAveragePrecision(
        box_format="xyxy", class_metrics=True, iou_thresholds=[0.5], backend="pycocotools"
    )
    for stem, path in _matched(folder, list(truth), console):
        outputs, size = network(_picture(path))
        finish = network.processor.post_process_object_detection
        found = finish(outputs, threshold=0.0, target_sizes=[size])[0]
        numbers = torch.tensor([classes.get(int(label), -1) for label in found["labels"]])
        kept = numbers >= 0
        prediction = {
            "boxes": found["boxes"].cpu()[kept],
            "scores": found["scores"].cpu()[kept],
            "labels": numbers[kept],
        }
        boxes, labels_of = truth[stem]
        target = {
            "boxes": torch.tensor(boxes).reshape(-1, 4),
            "labels": torch.tensor(labels_of, dtype=torch.int64),
        }
        for one in (metric, each):
            one.update([prediction], [target])
    overall, single = metric.compute(), each.compute()
    values = {"mAP50": float(overall["map_50"]), "mAP": float(overall["map"])}
    for number, value in zip(single["classes"].reshape(-1), single["map_per_class"].reshape(-1), strict=True):
        values[f"AP50 {names[int(number)]}"] = float(value)
    return {name: value if value >= 0 else math.nan for name, value in values.items()}


def _plain(name: str) -> str:
    folded = name.casefold().replace("_", " ").strip()
    return ALIASES.get(folded, folded)


def read_coco(path: Path) -> tuple[dict[int, str], dict[str, tuple[list[list[float]], list[int]]]]:
    """Class number -> name; stem -> (boxes xyxy in pixels, class numbers). InputError when not COCO."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
        stems = {entry["id"]: Path(entry["file_name"]).stem for entry in content["images"]}
        truth: dict[str, tuple[list[list[float]], list[int]]] = {stem: ([], []) for stem in stems.values()}
        for entry in content["annotations"]:
            x, y, width, height = map(float, entry["bbox"])
            boxes, numbers = truth[stems[entry["image_id"]]]
            boxes.append([x, y, x + width, y + height])
            numbers.append(int(entry["category_id"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not boxes in COCO's JSON format ({error!r})") from error
    return names, truth


def segmentation(network: Network, folder: Path, labels: Path, console: Console) -> dict[str, float]:
    """mIoU, mAcc and the IoU of every class that is labelled somewhere.

    Raises InputError for label maps of another size or with numbers that the network does not know.
    """
    maps = list_folder(labels)
    count = len(network.model.config.id2label)
    confusion = np.zeros((count, count), np.int64)
    for stem, path in _matched(folder, list(maps), console):
        with PillowImage.open(maps[stem]) as opened:
            truth = np.asarray(opened)
        outputs, size = network(_picture(path))
        found = network.processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]
        if truth.shape != size:
            raise InputError(f"{maps[stem]}: has shape {truth.shape}, the image {size}; label maps are H x W")
        counted = truth != IGNORED
        if counted.any() and truth[counted].max() >= count:
            raise InputError(
                f"{maps[stem]}: has class {truth[counted].max()}, {network.name} knows 0 to {count - 1}"
            )
        pairs = count * truth[counted].astype(np.int64) + found.cpu().numpy()[counted]
        confusion += np.bincount(pairs, minlength=count**2).reshape(count, count)
    return overlap(confusion, network.model.config.id2label)


def overlap(confusion: NDArray[np.int64], names: Mapping[int, str]) -> dict[str, float]:
    """mIoU, mAcc and IoU per labelled class from pixel counts [true class, found class]."""
    right, true, found = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    labelled = np.flatnonzero(true)
    if len(labelled) == 0:
        return {"mIoU": math.nan, "mAcc": math.nan}
    shares = right[labelled] / (true + found - right)[labelled]
    values = {"mIoU": float(shares.mean()), "mAcc": float((right[labelled] / true[labelled]).mean())}
    return values | {f"IoU {names[int(n)]}": float(v) for n, v in zip(labelled, shares, strict=True)}


def depth_of(network: Network, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Relative inverse depth (1, H, W) stretched to 0..1 for viewing: near is bright."""
    outputs, size = network(picture)
    found = network.processor.post_process_depth_estimation(outputs, target_sizes=[size])[0]
    depth = found["predicted_depth"].float().cpu().numpy()
    depth = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-12)
    return depth.reshape(1, *size).astype(np.float32)


def _table(kind: str, name: str, measured: Mapping[str, Mapping[str, float]]) -> Table:
    columns = list(dict.fromkeys(metric for values in measured.values() for metric in values))
    table = Table(title=escape(f"{kind} by {name}"), title_justify="left")
    for column in ("method", *columns):
        table.add_column(escape(column), justify="left" if column == "method" else "right")
    for method, values in measured.items():
        table.add_row(escape(method), *[f"{values.get(column, math.nan):.3f}" for column in columns])
    return table


def markdown(measured: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table: methods down, metrics across."""
    columns = list(dict.fromkeys(metric for values in measured.values() for metric in values))
    lines = [["method", *columns], ["---", *["---:"] * len(columns)]]
    lines += [
        [method, *[f"{values.get(column, math.nan):.3f}" for column in columns]]
        for method, values in measured.items()
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

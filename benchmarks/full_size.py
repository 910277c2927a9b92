"""Models of full size with random parameters: how much of the time of the pipeline is spent inside them.

Beside it, by the same models in memory, the loop over single images that one writes first from the examples
of the four libraries. `benchmarks/guidance.py` runs both.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage

from pipeline import florence2, groundingdino_boxes, sam_masks, t5_texts
from pipeline.config import PipelineConfig
from pipeline.grounding import as_caption
from pipeline.guidance import run_guidance
from pipeline.manifest import Sample
from pipeline.resident import chosen_device, resident
from pipeline.weights import checkpoint_identity

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

FLORENCE, T5, DINO, SAM = "florence2-base", "t5-small", "groundingdino-swint", "sam-vit-b"
TOKENS = 16  # of an answer: random parameters seldom end one
OBJECTS = 8  # per image
STAGES = ("captions", "texts", "boxes", "masks")


def make_checkpoints(folder: Path) -> None:
    """All four below `folder`, unless they are there."""
    if not (folder / "complete").is_file():
        from tiny_checkpoints import make_four

        make_four(folder, full=True)
        (folder / "complete").touch()


def foundation(config: PipelineConfig) -> PipelineConfig:
    """The same data sets by the four models; as many objects as may be, since random scores mean nothing."""
    sections = {
        "captions": {"backend": "florence2", "beams": 1, "max_new_tokens": TOKENS},
        "texts": {"backend": "t5"},
        "boxes": {"backend": "groundingdino", "threshold": 0, "text_threshold": 0, "max_boxes": OBJECTS},
        "masks": {"backend": "sam"},
        "merge": {"min_score": 0, "min_predicted_iou": 0},
    }
    return PipelineConfig(datasets=config.datasets, **sections)  # type: ignore[arg-type]


@contextmanager
def inside_models() -> Iterator[Counter[str]]:
    """Seconds that each backend spends between entering and leaving its model."""
    seconds: Counter[str] = Counter()
    modules = (florence2, t5_texts, groundingdino_boxes, sam_masks)
    originals = [module.inference for module in modules]

    def timed(stage: str, inference: Callable) -> Callable:
        @contextmanager
        def measured(*arguments: object, **options: object) -> Iterator[None]:
            started = time.perf_counter()
            with inference(*arguments, **options):
                yield
                synchronise()
            seconds[stage] += time.perf_counter() - started

        return measured

    for module, original, stage in zip(modules, originals, STAGES, strict=True):
        module.inference = timed(stage, original)
    yield seconds
    for module, original in zip(modules, originals, strict=True):
        module.inference = original


def synchronise() -> None:
    if chosen_device().type == "cuda":
        torch.cuda.synchronize()


def load() -> None:
    """All four into memory, as the first batch of a long run does."""
    resident(florence2.load, FLORENCE)
    resident(t5_texts._load, T5)
    resident(groundingdino_boxes._load, DINO)
    resident(sam_masks._load, SAM)
    for name in (FLORENCE, T5, DINO, SAM):
        checkpoint_identity(name)  # reads all of its bytes once per process


def staged(config: PipelineConfig, dataset: str) -> dict[str, object]:
    """The pipeline: share of its time inside models, and images per second that each stage computed."""
    load()
    with inside_models() as seconds:
        started = time.perf_counter()
        summaries = run_guidance(foundation(config), dataset, workers=None)
        whole = time.perf_counter() - started
    assert all(summary.computed == summary.samples for summary in summaries)
    busy = {summary.stage: summary.busy for summary in summaries if summary.stage in STAGES}
    samples = config.dataset(dataset).samples()
    return {
        "share": sum(seconds.values()) / whole,
        "seconds": whole,
        "inside": dict(seconds),
        "images_per_s": rates(samples, busy),
    }


def rates(samples: Sequence[Sample], seconds: dict[str, float]) -> dict[str, float]:
    """Images per second of every stage; texts: captions."""
    images = sum(len(sample.sources) for sample in samples)
    return {
        stage: round((len(samples) if stage == "texts" else images) / value, 3)
        for stage, value in seconds.items()
    }


def one_by_one(config: PipelineConfig, dataset: str) -> dict[str, object]:
    """The loop: every source alone through each library's own example."""
    from groundingdino.util.inference import predict
    from segment_anything import SamPredictor

    load()
    florence, t5 = resident(florence2.load, FLORENCE), resident(t5_texts._load, T5)
    dino, predictor = resident(groundingdino_boxes._load, DINO), SamPredictor(resident(sam_masks._load, SAM))
    device, words = chosen_device(), as_caption(config.dataset(dataset).prompt)
    seconds: Counter[str] = Counter()

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        started = time.perf_counter()
        with torch.no_grad():
            yield
        synchronise()
        seconds[name] += time.perf_counter() - started

    samples = config.dataset(dataset).samples()
    started = time.perf_counter()
    for sample in samples:
        captions = []
        for source in sample.sources:
            picture = np.asarray(PillowImage.open(source.path).convert("RGB"))
            with stage("captions"):
                inputs = florence.processor(text="<DETAILED_CAPTION>", images=picture, return_tensors="pt")
                tokens = florence.model.generate(**inputs.to(device), num_beams=1, max_new_tokens=TOKENS)
                captions += florence.processor.batch_decode(tokens, skip_special_tokens=True)
            with stage("boxes"):
                prepared = groundingdino_boxes.prepare(picture)
                boxes, scores, _ = predict(dino, prepared, words, 0.0, 0.0, device=str(device))
                best = boxes[scores.argsort(descending=True)[:OBJECTS]]
            with stage("masks"):
                predictor.set_image(picture)
                height, width = picture.shape[:2]
                corners = torch.cat([best[:, :2] - best[:, 2:] / 2, best[:, :2] + best[:, 2:] / 2], dim=1)
                corners = corners * torch.tensor([width, height, width, height])
                for box in corners.numpy():
                    predictor.predict(box=box, multimask_output=True)
        with stage("texts"):
            tokens = t5.processor(" ".join(captions), return_tensors="pt").to(device)
            t5.model(**tokens).last_hidden_state.cpu()
    return {"seconds": time.perf_counter() - started, "images_per_s": rates(samples, dict(seconds))}

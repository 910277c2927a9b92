"""Both Grounding DINOs with tiny random checkpoints, against what their own libraries return."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from tiny_checkpoints import bert_vocabulary, make_samples, tiny_bert
from transformers import BertTokenizer, GroundingDinoForObjectDetection, GroundingDinoProcessor

from pipeline import grounding, groundingdino_boxes
from pipeline.config import BoxesConfig
from pipeline.errors import InputError
from pipeline.grounding import AutomaticPrompt, as_caption, phrase_of_tokens, to_instances
from pipeline.groundingdino_boxes import ARCHITECTURE, WEIGHTS, GroundingDinoDetector, architecture, prepare
from pipeline.images import SampleImages
from pipeline.model_input import as_rgb8
from pipeline.records import Instances
from pipeline.transformers_boxes import TransformersDetector

PROMPT = ("people", "traffic light", "Red Cars")
DETECTORS = {"groundingdino": GroundingDinoDetector, "transformers": TransformersDetector}


def config(backend: str, threshold: float = 0.0, **more: object) -> BoxesConfig:
    return BoxesConfig(**{"backend": backend, "threshold": threshold, "text_threshold": 0.0, **more})  # type: ignore[arg-type]


def xyxy(boxes: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    x, y, w, h = (boxes * torch.tensor([size[1], size[0]] * 2)).unbind(-1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1).numpy()
    return corners.clip(0, [size[1], size[0]] * 2)


def test_captions_are_phrases_with_full_stops() -> None:
    assert as_caption(PROMPT) == "people . traffic light . red cars ."
    assert as_caption(["what? a dog."]) == "what  a dog ."
    tokenizer = BertTokenizer(vocab=bert_vocabulary())
    ids = tokenizer(as_caption(PROMPT))["input_ids"]
    phrases = phrase_of_tokens(ids, bert_vocabulary()["."], tokenizer.all_special_ids, 3)
    said = [[i for i, p in zip(ids, phrases.tolist(), strict=True) if p == n] for n in range(3)]
    assert [tokenizer.decode(tokens) for tokens in said] == ["people", "traffic light", "red cars"]
    assert phrases[0] == phrases[-1] == -1
    with pytest.raises(InputError, match="reads 256"):
        phrase_of_tokens([9] * 257, 5, (), 1)


def test_the_adapter_is_bert() -> None:
    """Padding masks and block masks give what transformers' own BertModel gives with the same parameters."""
    bert, adapter = tiny_bert()
    tokens = torch.randint(7, 40, (2, 9))
    padding = torch.ones(2, 9, dtype=torch.long)
    padding[1, 6:] = 0
    with torch.no_grad():
        expected = bert(input_ids=tokens, attention_mask=padding).last_hidden_state
        found = adapter(input_ids=tokens, attention_mask=padding)["last_hidden_state"]
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[1, :6], expected[1, :6], atol=1e-5, rtol=1e-5)
        # Phrases that do not see each other, with places counted anew in each: as if they stood alone.
        blocks = torch.block_diag(torch.ones(4, 4), torch.ones(5, 5))[None].expand(2, 9, 9)
        places = torch.tensor([[*range(4), *range(5)]]).expand(2, 9)
        kinds = torch.zeros_like(tokens)
        found = adapter(input_ids=tokens, attention_mask=blocks, position_ids=places, token_type_ids=kinds)
        for part in (slice(0, 4), slice(4, 9)):
            alone = bert(input_ids=tokens[:, part]).last_hidden_state
            torch.testing.assert_close(found["last_hidden_state"][:, part], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", DETECTORS)
def test_batches_equal_single_images(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    samples = make_samples(2, (48, 64))
    detector = DETECTORS[backend](config(backend, max_boxes=20))
    monkeypatch.setattr(grounding, "AT_ONCE", 3)
    together = [found for sources in detector(samples, PROMPT) for found in sources]
    monkeypatch.setattr(grounding, "AT_ONCE", 1)
    single = [found for sources in detector(samples, PROMPT) for found in sources]
    assert len(together) == 4
    for one, other in zip(together, single, strict=True):
        assert one.label == other.label
        np.testing.assert_allclose(one.box, other.box, atol=1e-3)
        np.testing.assert_allclose(one.score, other.score, atol=1e-4)


def test_groundingdino_finds_what_the_library_finds(tiny_weights: Path) -> None:
    """Its own `predict` with our loaded network: same boxes and scores, and our label is in its phrase."""
    from groundingdino.util.inference import predict

    (sample,) = make_samples(1, (48, 64))
    detector = GroundingDinoDetector(config("groundingdino", 0.3, max_boxes=20))
    (found, _) = detector([sample], PROMPT)[0]
    model = groundingdino_boxes.resident(groundingdino_boxes._load, "groundingdino-swint")
    picture = as_rgb8(sample.images[0])
    with pytest.warns():
        boxes, scores, _ = predict(model, prepare(picture), as_caption(PROMPT), 0.3, 0.0, device="cpu")
    same_boxes(found, xyxy(boxes, (48, 64)), scores.numpy())
    assert set(found.label) <= {"person", "traffic light", "red car"}


def same_boxes(found: Instances, boxes: np.ndarray, scores: np.ndarray) -> None:
    """Every found box is one of the expected, in falling order, and most have its score, none a better one.

    A full stop's token may score best for the library; it names nothing, so here another token decides.
    """
    assert 0 < len(found) <= len(boxes)
    equal = 0
    for box, score in zip(found.box, found.score, strict=True):
        distance = np.abs(boxes - box).max(1)
        assert distance.min() < 1e-3
        expected = scores[distance.argmin()]
        assert score <= expected + 1e-5
        equal += score >= expected - 1e-5
    assert equal > len(found) / 2
    assert (np.diff(found.score) <= 0).all()


def test_pictures_are_prepared_as_the_library_does(tiny_weights: Path) -> None:
    import groundingdino.datasets.transforms as T

    picture = as_rgb8(make_samples(1, (48, 64))[0].images[0])
    normalise = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    steps = [T.RandomResize([64], max_size=1333), T.ToTensor(), normalise]
    expected, _ = T.Compose(steps)(PillowImage.fromarray(picture), None)
    torch.testing.assert_close(prepare(picture), expected)


def test_transformers_finds_what_its_own_steps_find(tiny_weights: Path) -> None:
    (sample,) = make_samples(1, (48, 64))
    threshold = 0.5
    (found, _) = TransformersDetector(config("transformers", threshold, max_boxes=20))([sample], PROMPT)[0]
    folder = tiny_weights / "groundingdino-tiny"
    processor = GroundingDinoProcessor.from_pretrained(folder)
    model = GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    inputs = processor(images=as_rgb8(sample.images[0]), text=as_caption(PROMPT), return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    (expected,) = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=threshold, text_threshold=threshold, target_sizes=[(48, 64)]
    )
    boxes = expected["boxes"].numpy().clip(0, [64, 48, 64, 48])
    same_boxes(found, boxes, expected["scores"].numpy())


def test_thresholds_labels_and_places() -> None:
    """By hand: three queries, the phrases `people` (two tokens) and `car`."""
    phrases = torch.tensor([-1, 0, 0, -1, 1, -1])
    logits = torch.logit(
        torch.tensor(
            [
                [0.99, 0.10, 0.70, 0.99, 0.60, 0.1],  # people, by its second token
                [0.01, 0.10, 0.20, 0.01, 0.90, 0.1],  # car
                [0.01, 0.30, 0.10, 0.01, 0.20, 0.1],  # too low
            ]
        )
    )
    logits = torch.nn.functional.pad(logits, (0, 250), value=float("-inf"))
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 0.5, 0.4, 1.2], [0.5, 0.5, 0.1, 0.1]])
    arguments = (logits, boxes, phrases, ("people", "car"), (40, 80))
    found = to_instances(*arguments, config("transformers", 0.35))
    assert found.label == ("car", "person")
    np.testing.assert_allclose(found.score, [0.9, 0.7], atol=1e-6)
    np.testing.assert_allclose(found.box, [[0, 0, 16, 40], [20, 10, 60, 30]], atol=1e-4)
    assert to_instances(*arguments, config("transformers", 0.35, max_boxes=1)).label == ("car",)
    assert to_instances(*arguments, config("transformers", 0.35, text_threshold=0.8)).label == ("car",)
    assert len(to_instances(*arguments, config("transformers", 0.95))) == 0


@pytest.mark.parametrize("backend", DETECTORS)
def test_without_words_nothing_is_found(backend: str) -> None:
    (sample,) = make_samples(1, (48, 64))
    (found,) = DETECTORS[backend](config(backend))([sample], ())
    assert [len(source) for source in found] == [0, 0]


class _Recorder:
    identity = "recorder"

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], tuple[str, ...]]] = []

    def __call__(self, samples: Sequence[SampleImages], prompt: Sequence[str]) -> list[tuple[Instances, ...]]:
        self.calls.append(([sample.sample.id for sample in samples], tuple(prompt)))
        found = []
        for sample in samples:
            box = np.array([[0, 0, 1 + int(sample.sample.id[1:]), 1]], np.float32)
            found.append(tuple(Instances(box, np.ones(1, np.float32), ("x",)) for _ in sample.images))
        return found


class _Words:
    identity = "words"

    def __call__(self, samples: Sequence[SampleImages]) -> list[tuple[str, ...]]:
        return [("car",) if int(sample.sample.id[1:]) % 2 else ("person", "car") for sample in samples]


def test_automatic_prompts_are_those_of_every_sample() -> None:
    recorder = _Recorder()
    detector = AutomaticPrompt(recorder, _Words())
    samples = make_samples(5, (12, 12))
    found = detector(samples, ())
    assert recorder.calls == [(["s0", "s2", "s4"], ("person", "car")), (["s1", "s3"], ("car",))]
    assert [sources[0].box[0, 2] for sources in found] == [1, 2, 3, 4, 5]
    assert detector.identity == "recorder; words"


def test_the_architecture_is_read_not_run(tmp_path: Path) -> None:
    lines = ["import os", "os.mkdir('/nowhere/at/all')", "hidden_dim = 256", "use_checkpoint = True"]
    (tmp_path / ARCHITECTURE).write_text("\n".join(lines))
    values = architecture(tmp_path)
    assert (values.hidden_dim, values.use_checkpoint, values.text_encoder_type) == (256, False, str(tmp_path))
    assert not hasattr(values, "os")
    shipped = architecture(tmp_path / "elsewhere")
    assert (shipped.backbone, shipped.num_queries, shipped.enc_layers) == ("swin_T_224_1k", 900, 6)


def test_foreign_parameters_are_refused(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "groundingdino-swint"
    folder.mkdir()
    for file in (tiny_weights / "groundingdino-swint").iterdir():
        if file.name != WEIGHTS:
            (folder / file.name).write_bytes(file.read_bytes())
    content = torch.load(tiny_weights / "groundingdino-swint" / WEIGHTS, weights_only=True)
    del content["model"]["module.feat_map.bias"]
    torch.save(content, folder / WEIGHTS)
    monkeypatch.setenv("RWKVFUSION_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=r"1 parameters do not fit the architecture, such as feat_map.bias"):
        GroundingDinoDetector(config("groundingdino"))(make_samples(1, (48, 64)), PROMPT)

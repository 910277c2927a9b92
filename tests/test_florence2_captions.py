"""Florence-2 with a tiny random checkpoint: batches against single calls of transformers, sources, words."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import make_samples
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from pipeline import florence2, florence2_words
from pipeline.config import CaptionsConfig
from pipeline.florence2 import TASKS
from pipeline.florence2_captions import Florence2Captioner
from pipeline.florence2_words import Florence2Words, _words
from pipeline.manifest import Source
from pipeline.model_input import as_rgb8

pytestmark = pytest.mark.usefixtures("tiny_weights")
CONFIG = CaptionsConfig(backend="florence2", max_new_tokens=8)


def alone(folder: Path, picture: object, task: str, beams: int, most: int, raw: bool = False) -> str:
    """One image through transformers, without any of our code."""
    model = Florence2ForConditionalGeneration.from_pretrained(folder / "florence2-base").eval()
    processor = Florence2Processor.from_pretrained(folder / "florence2-base")
    inputs = processor(text=task, images=picture, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(
            **inputs, num_beams=beams, do_sample=False, early_stopping=beams > 1, max_new_tokens=most
        )
    return processor.batch_decode(tokens, skip_special_tokens=not raw)[0]


@pytest.mark.parametrize(
    ("beams", "task"), [(1, "caption"), (3, "detailed_caption"), (2, "more_detailed_caption")]
)
def test_a_batch_says_what_single_images_say(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, beams: int, task: str
) -> None:
    monkeypatch.setattr(florence2, "AT_ONCE", 4)  # six images: a whole batch and a part of one
    samples = make_samples(3, (40, 56))
    captions = Florence2Captioner(dataclasses.replace(CONFIG, beams=beams, task=task))(samples)
    assert len(set(captions)) == 3, "answers that do not depend on the image would prove nothing"
    for sample, caption in zip(samples, captions, strict=True):
        parts = [alone(tiny_weights, as_rgb8(image), TASKS[task], beams, 8) for image in sample.images]
        visible, infrared = (" ".join(part.split()) for part in parts)
        assert caption == f"visible: {visible} infrared: {infrared}"


def test_chosen_sources_alone_are_described(tiny_weights: Path) -> None:
    (sample,) = make_samples(1, (40, 56))
    only = Florence2Captioner(dataclasses.replace(CONFIG, beams=1, sources=("infrared",)))([sample])
    expected = alone(tiny_weights, as_rgb8(sample.images[1]), "<DETAILED_CAPTION>", 1, 8)
    assert only == [" ".join(expected.split())]
    both = Florence2Captioner(dataclasses.replace(CONFIG, beams=1))([sample])
    assert Florence2Captioner(dataclasses.replace(CONFIG, beams=1, sources=("ct",)))([sample]) == both
    numbered = tuple(Source(role, Path("x")) for role in ("exposure_1", "exposure_2"))
    numbered_sample = dataclasses.replace(sample, sample=dataclasses.replace(sample.sample, sources=numbered))
    captioner = Florence2Captioner(dataclasses.replace(CONFIG, beams=1, sources=("exposure",)))
    assert captioner([numbered_sample])[0].startswith("exposure_1: ")


def no_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random parameters write no list of objects."""
    monkeypatch.setattr(florence2_words, "_words", lambda raw, no_objects: tuple(raw))


def test_words_are_those_of_every_source(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(florence2_words, "OBJECT_TOKENS", 12)
    no_parsing(monkeypatch)
    (sample,) = make_samples(1, (40, 56))
    expected = [alone(tiny_weights, as_rgb8(image), "<OD>", 3, 12, raw=True) for image in sample.images]
    assert Florence2Words("florence2-base")([sample]) == [tuple(expected)]


def test_phrases_are_those_of_its_own_descriptions(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Descriptions of different length, which are padded in a batch, get the answers that they get alone."""
    monkeypatch.setattr(florence2_words, "OBJECT_TOKENS", 12)
    monkeypatch.setattr(florence2_words, "DESCRIPTION_TOKENS", 9)
    no_parsing(monkeypatch)
    samples = make_samples(2, (40, 56))
    found = Florence2Words("florence2-base", "phrases")(samples)
    lengths = set()
    for sample, words in zip(samples, found, strict=True):
        for image, answer in zip(sample.images, words, strict=True):
            description = " ".join(alone(tiny_weights, as_rgb8(image), "<DETAILED_CAPTION>", 3, 9).split())
            task = f"<CAPTION_TO_PHRASE_GROUNDING>{description}"
            expected = alone(tiny_weights, as_rgb8(image), task, 3, 12, raw=True)
            assert answer.replace("<pad>", "") == expected.replace("<pad>", "")
            lengths.add(len(description))
    assert len(lengths) > 1, "descriptions of one length would prove nothing about padding"


def test_words_of_phrases_are_the_labels_that_transformers_reads(tiny_weights: Path) -> None:
    places = "<loc_1><loc_22><loc_333><loc_999>"
    answer = f"</s><s>A man{places}{places}it{places} the road{places}two cars{places}</s><pad>"
    processor = Florence2Processor.from_pretrained(tiny_weights / "florence2-base")
    task = "<CAPTION_TO_PHRASE_GROUNDING>"
    parsed = processor.post_process_generation(answer, task=task, image_size=(56, 40))[task]
    assert list(dict.fromkeys(parsed["labels"])) == ["A man", "the road", "two cars"]
    banned = processor.post_processor.banned_grounding_tokens
    assert _words([answer], banned) == ("person", "road", "car")


def test_words_of_an_answer_are_the_labels_that_transformers_reads(tiny_weights: Path) -> None:
    places = "<loc_1><loc_22><loc_333><loc_999>"
    answer = f"</s><s>cars{places}traffic light{places}{places}people{places}</s>"
    processor = Florence2Processor.from_pretrained(tiny_weights / "florence2-base")
    parsed = processor.post_process_generation(answer, task="<OD>", image_size=(56, 40))["<OD>"]
    assert list(dict.fromkeys(parsed["labels"])) == ["cars", "traffic light", "people"]
    assert _words([f"{answer}<pad>", f"person{places}truck<loc_1>"]) == ("car", "traffic light", "person")
    assert _words(["</s><s></s>"]) == ()

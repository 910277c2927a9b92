"""T5 with a tiny random checkpoint: padding has no influence, lengths are kept, storage errs as stated."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoTokenizer, T5Config, T5EncoderModel, T5ForConditionalGeneration

from pipeline.config import TextsConfig
from pipeline.errors import InputError
from pipeline.store import Text, create_store
from pipeline.t5_texts import T5TextEncoder

WORDS = st.sampled_from(["person", "car", "dog", "red", "a", "zebra", "."])
SENTENCES = st.lists(st.lists(WORDS, max_size=12).map(" ".join), min_size=1, max_size=5)


@pytest.mark.usefixtures("tiny_weights")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(captions=SENTENCES)
def test_every_caption_is_encoded_as_if_alone(tiny_weights: Path, captions: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_weights / "t5-small")
    model = T5EncoderModel.from_pretrained(tiny_weights / "t5-small").eval()
    features = T5TextEncoder(TextsConfig(backend="t5"))(captions)
    assert len(features) == len(captions)
    for caption, found in zip(captions, features, strict=True):
        tokens = tokenizer(caption, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = model(input_ids=tokens).last_hidden_state[0].numpy()
        assert found.dtype == np.float32
        assert found.shape == expected.shape == (tokens.shape[1], 512)
        np.testing.assert_allclose(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.usefixtures("tiny_weights")
def test_long_captions_are_cut_and_end_with_the_end_token() -> None:
    long = " ".join(["person", "car"] * 20)
    (cut,) = T5TextEncoder(TextsConfig(backend="t5", max_tokens=7))([long])
    (same,) = T5TextEncoder(TextsConfig(backend="t5"))([" ".join(long.split()[:6])])
    assert cut.shape == (7, 512)
    np.testing.assert_allclose(cut, same, atol=2e-5)


@pytest.mark.usefixtures("tiny_weights")
def test_float16_of_the_store_costs_half_a_unit_in_the_last_place(tmp_path: Path) -> None:
    (features,) = T5TextEncoder(TextsConfig(backend="t5"))(["a person and a red car in the image ."])
    store = create_store(tmp_path / "texts.zarr", "texts", ["s"], {}, "mark", T=64, D=512)
    store.write({"s": Text(features)}, {"s": "content"})
    record = store.get("s")
    assert isinstance(record, Text)
    read = record.features.astype(np.float64)
    assert read.shape == features.shape
    # 11 bits of mantissa; below 2^-14 the spacing stays at 2^-24.
    assert (np.abs(read - features) <= np.maximum(2.0**-11 * np.abs(features), 2.0**-25)).all()


def test_a_checkpoint_of_another_width_is_refused(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "t5-small"
    AutoTokenizer.from_pretrained(tiny_weights / "t5-small").save_pretrained(folder)
    narrow = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=8, num_layers=1, num_heads=2)
    T5EncoderModel(narrow).save_pretrained(folder)
    monkeypatch.setenv("RWKVFUSION_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=r"cannot be loaded as t5-small .features are 16 wide, not 512"):
        T5TextEncoder(TextsConfig(backend="t5"))(["a"])


def test_parameters_that_are_missing_are_not_drawn_at_random(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "t5-small"
    shutil.copytree(tiny_weights / "t5-small", folder)
    save_file({"a.weight": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    monkeypatch.setenv("RWKVFUSION_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=r"as t5-small \(\d+ parameters are missing, such as"):
        T5TextEncoder(TextsConfig(backend="t5"))(["a"])
    assert capfd.readouterr() == ("", "")


def test_a_whole_t5_serves_as_its_encoder(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published file holds the decoder too, and one copy of what both share."""
    folder = tmp_path / "t5-small"
    shutil.copytree(tiny_weights / "t5-small", folder)
    whole = T5ForConditionalGeneration(T5Config.from_pretrained(folder))
    whole.save_pretrained(folder)
    monkeypatch.setenv("RWKVFUSION_WEIGHTS", str(tmp_path))
    (features,) = T5TextEncoder(TextsConfig(backend="t5"))(["a red car"])
    tokens = AutoTokenizer.from_pretrained(folder)("a red car", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = whole.eval().get_encoder()(input_ids=tokens).last_hidden_state[0].numpy()
    np.testing.assert_allclose(features, expected, atol=2e-5, rtol=2e-5)

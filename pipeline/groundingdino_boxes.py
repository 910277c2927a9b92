"""Boxes by groundingdino-py, with a text encoder that works with today's transformers."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import nn

from pipeline.grounding import GroundingDino, as_caption, phrase_of_tokens, to_instances
from pipeline.records import Instances
from pipeline.resident import chosen_device, inference, resident

CHECKPOINT = "groundingdino-swint"
WEIGHTS = "groundingdino_swint_ogc.pth"
ARCHITECTURE = "GroundingDINO_SwinT_OGC.py"
SHORT_SIDE, LONG_SIDE = 800, 1333
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNUSED = {"label_enc.weight", "bert.embeddings.position_ids"}  # of training, and of older versions


class TextEncoder(nn.Module):
    """BERT without the parts of transformers that groundingdino-py expects and version 5 no longer has.

    Its parameters bear the names of groundingdino-py's BertModelWarper.
    """

    def __init__(self, bert_model: Any) -> None:
        super().__init__()
        self.config = bert_model.config
        self.embeddings = bert_model.embeddings
        self.encoder = bert_model.encoder
        self.pooler = bert_model.pooler

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Hidden states B L C for tokens B L; mask B L or B L L, true (or 1) where a token may look."""
        allowed = attention_mask.bool()
        allowed = allowed[:, None, :, :] if allowed.ndim == 3 else allowed[:, None, None, :]
        embedded = self.embeddings(
            input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids
        )
        added = torch.zeros(allowed.shape, dtype=embedded.dtype, device=embedded.device)
        added = added.masked_fill(~allowed, torch.finfo(embedded.dtype).min)
        added = added.expand(-1, 1, input_ids.shape[1], -1)
        return {"last_hidden_state": self.encoder(embedded, attention_mask=added).last_hidden_state}


def _load(folder: Path) -> nn.Module:
    model = build(folder)
    content = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    state = {name.removeprefix("module."): value for name, value in content["model"].items()}
    found = model.load_state_dict(state, strict=False)
    wrong = {*found.missing_keys, *found.unexpected_keys} - UNUSED
    if wrong:
        raise ValueError(f"{len(wrong)} parameters do not fit the architecture, such as {min(wrong)}")
    return model


def build(folder: Path) -> nn.Module:
    """The network that a checkpoint's folder describes, with random parameters."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    with _old_habits():
        from groundingdino.models.GroundingDINO import groundingdino as library

        # The library asks a registry for a whole BERT, whose weights its own checkpoint then replaces.
        library.BertModelWarper = TextEncoder
        library.get_tokenlizer = SimpleNamespace(
            get_tokenlizer=lambda place: AutoTokenizer.from_pretrained(place, local_files_only=True),
            get_pretrained_language_model=lambda place: BertModel(BertConfig.from_pretrained(place)),
        )
        network: nn.Module = library.build_groundingdino(architecture(folder))
    return network


@contextmanager
def _old_habits() -> Iterator[None]:
    """Leave out torch's warnings of calls that the library makes as one did in 2023; they do no harm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def architecture(folder: Path) -> SimpleNamespace:
    """The model's configuration: plain assignments, read and not run.

    From ``folder`` if the file is there, else the one that the package ships for this checkpoint.
    """
    import groundingdino

    file = folder / ARCHITECTURE
    if not file.is_file():
        file = Path(str(groundingdino.__file__)).parent / "config" / ARCHITECTURE
    values = {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    # Recomputing activations saves memory in training only.
    values |= {"text_encoder_type": str(folder), "use_checkpoint": False, "use_transformer_ckpt": False}
    return SimpleNamespace(**values)


class GroundingDinoDetector(GroundingDino):
    """The one of groundingdino-py."""

    checkpoint = CHECKPOINT

    def detect(self, pictures: Sequence[np.ndarray], words: Sequence[str]) -> Iterator[Instances]:
        model, device = resident(_load, CHECKPOINT), chosen_device()
        caption = as_caption(words)
        tokenizer: Any = model.tokenizer
        phrases = phrase_of_tokens(
            tokenizer(caption)["input_ids"],
            tokenizer.convert_tokens_to_ids("."),
            tokenizer.all_special_ids,
            len(words),
        )
        images = torch.stack([prepare(picture) for picture in pictures]).to(device)
        with inference(device), _old_habits():
            outputs = model(images, captions=[caption] * len(pictures))
        for picture, logits, boxes in zip(
            pictures, outputs["pred_logits"], outputs["pred_boxes"], strict=True
        ):
            yield to_instances(logits, boxes, phrases, words, picture.shape[:2], self.config)


def prepare(picture: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) -> float32 (3, h, w): short side 800 unless the long one passes 1333, normalised."""
    from groundingdino.datasets.transforms import resize

    resized, _ = resize(PillowImage.fromarray(picture), None, SHORT_SIDE, LONG_SIDE)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]

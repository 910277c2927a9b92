"""Tiny random checkpoints of every real architecture, each saved in its own library's format.

`python tiny_checkpoints.py FOLDER` makes all of them; they take 60 MB, because Swin-T has one size. With
`full` they have the sizes of the published ones, whose words they still do not know.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from segment_anything.build_sam import _build_sam
from transformers import (
    BartConfig,
    BartTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    SwinConfig,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

from pipeline.groundingdino_boxes import ARCHITECTURE, WEIGHTS, TextEncoder, build
from pipeline.images import Image, SampleImages, enlarge
from pipeline.manifest import Sample, Source

WORDS = ["person", "car", "bus", "lamp", "truck", "dog", "red", "traffic", "light", "a", "of", "in", "is"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PLACES = [f"<loc_{place}>" for place in range(8)]


def make_t5(folder: Path, full: bool = False) -> None:
    """An encoder of two layers, 512 wide as the real one, which is the default of transformers."""
    torch.manual_seed(0)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS] + [(letter, -8.0) for letter in f"▁{LETTERS}:."]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    tokenizer.save_pretrained(folder)
    tiny = {"vocab_size": len(tokenizer), "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    T5EncoderModel(T5Config(d_model=512, **({} if full else tiny))).save_pretrained(folder)


def make_florence2(folder: Path, full: bool = False) -> None:
    """DaViT of four small stages and BART of one layer, with places and the image token; or as the base."""
    torch.manual_seed(0)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    characters = [*LETTERS, *LETTERS.upper(), "Ġ", ".", ",", "?", "-"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*special, *characters]))}
    tokenizer = BartTokenizer(vocab=vocabulary, merges=[], extra_special_tokens={"image_token": "<image>"})
    tokenizer.add_tokens(PLACES)
    side = 768 if full else 64
    size = {"height": side, "width": side}
    images = CLIPImageProcessor(size=size, do_center_crop=False, do_resize=True, crop_size=size)
    images.image_seq_length = (side // 32) ** 2 + 1  # patches, and their mean
    no_objects = {"banned_grounding_tokens": ["it", "the image"]}
    tasks = {"pure_text": {}, "description_with_bboxes": {}, "phrase_grounding": no_objects}
    processor = Florence2Processor(image_processor=images, tokenizer=tokenizer, post_processor_config=tasks)
    processor.save_pretrained(folder)
    tiny = {"depths": (1, 1, 1, 1), "embed_dim": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)}
    tiny |= {"num_groups": (1, 1, 2, 2), "window_size": 4}
    width = 768 if full else 16
    vision = Florence2VisionConfig(projection_dim=width, **({} if full else tiny))
    ids = {f"{name}_token_id": vocabulary[token] for name, token in (("bos", "<s>"), ("pad", "<pad>"))}
    text = BartConfig(
        vocab_size=51289 if full else len(tokenizer),
        d_model=width,
        **{f"{part}_layers": 6 if full else 1 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 12 if full else 2 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 4 * width if full else 32 for part in ("encoder", "decoder")},
        max_position_embeddings=4096 if full else 1100,
        eos_token_id=vocabulary["</s>"],
        decoder_start_token_id=vocabulary["</s>"],
        init_std=1.0,  # or every answer would be the same
        **ids,
    )
    config = Florence2Config(
        vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_id=tokenizer.image_token_id
    )
    model = Florence2ForConditionalGeneration(config)
    model.generation_config.update(
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, no_repeat_ngram_size=3
    )
    model.save_pretrained(folder)


def bert_vocabulary() -> dict[str, int]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?"]
    pieces = [*special, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


def bert_config() -> BertConfig:
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertConfig(vocab_size=len(bert_vocabulary()), max_position_embeddings=256, **tiny)


def make_transformers_dino(folder: Path) -> None:
    """Grounding DINO of one and two layers, with a Swin of four small stages."""
    torch.manual_seed(0)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    tokenizer = BertTokenizer(vocab=bert_vocabulary())
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    swin = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=bert_config(),
        num_queries=20,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=32,
        encoder_n_points=2,
        decoder_n_points=2,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)


TINY_DINO = """\
modelname = "groundingdino"
backbone = "swin_T_224_1k"
position_embedding = "sine"
pe_temperatureH = 20
pe_temperatureW = 20
return_interm_indices = [1, 2, 3]
backbone_freeze_keywords = None
enc_layers = 1
dec_layers = 1
pre_norm = False
dim_feedforward = 32
hidden_dim = 256
dropout = 0.0
nheads = 2
num_queries = 20
query_dim = 4
num_patterns = 0
num_feature_levels = 4
enc_n_points = 2
dec_n_points = 2
two_stage_type = "standard"
two_stage_bbox_embed_share = False
two_stage_class_embed_share = False
transformer_activation = "relu"
dec_pred_bbox_embed_share = True
dn_box_noise_scale = 1.0
dn_label_noise_ratio = 0.5
embed_init_tgt = True
dn_labelbook_size = 2000
max_text_len = 256
text_encoder_type = "bert-base-uncased"
use_text_enhancer = True
use_fusion_layer = True
use_checkpoint = True
use_transformer_ckpt = True
use_text_cross_attention = True
text_dropout = 0.0
fusion_dropout = 0.0
fusion_droppath = 0.1
sub_sentence_present = True
"""


def make_groundingdino(folder: Path, full: bool = False) -> None:
    """groundingdino-py's own file: a dictionary with `model`, names as if it had been trained in parallel.

    The full size is that of the configuration which the package ships, and of BERT's default.
    """
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    BertTokenizer(vocab=bert_vocabulary()).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in bert_vocabulary()))
    (BertConfig() if full else bert_config()).save_pretrained(folder)
    if not full:
        (folder / ARCHITECTURE).write_text(TINY_DINO)
    state = {f"module.{name}": value.half() for name, value in build(folder).state_dict().items()}
    state["module.label_enc.weight"] = torch.zeros(3, 4)  # the published file has it too
    torch.save({"model": state}, folder / WEIGHTS)


def make_sam(folder: Path, name: str = "sam_vit_b_01ec64.pth", full: bool = False) -> None:
    """Two blocks, one of them over the whole image, or ViT-B; masks that cover about half of it."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    sam = _build_sam(768, 12, 12, [2, 5, 8, 11]) if full else _build_sam(32, 2, 2, [1])
    torch.nn.init.normal_(sam.image_encoder.pos_embed)
    torch.save(sam.state_dict(), folder / name)


def make_all(folder: Path) -> Path:
    """Every checkpoint that params.yaml can ask for by default."""
    make_four(folder)
    make_transformers_dino(folder / "groundingdino-tiny")
    return folder


def make_four(folder: Path, full: bool = False) -> None:
    """One checkpoint for every stage with a model."""
    make_florence2(folder / "florence2-base", full)
    make_t5(folder / "t5-small", full)
    make_groundingdino(folder / "groundingdino-swint", full)
    make_sam(folder / "sam-vit-b", full=full)


def make_samples(count: int, size: tuple[int, int], roles: tuple[str, ...] = ("visible", "infrared")) -> list:
    """Samples of smooth random pictures: the first source has three bands, the others one."""
    random = np.random.default_rng(count)
    sources = tuple(Source(role, Path(f"{role}.png")) for role in roles)
    samples = []
    for number in range(count):
        images = []
        for index, source in enumerate(sources):
            small = random.random((3 if index == 0 else 1, 5, 6), dtype=np.float32)
            images.append(Image(enlarge(small, size), 8, source.path))
        samples.append(SampleImages(Sample(f"s{number}", "visible_infrared", "test", sources), tuple(images)))
    return samples


def tiny_bert() -> tuple[BertModel, TextEncoder]:
    """A BERT of transformers, and the adapter around the same parameters."""
    torch.manual_seed(0)
    bert = BertModel(bert_config()).eval()
    return bert, TextEncoder(bert).eval()


if __name__ == "__main__":
    make_all(Path(sys.argv[1]))

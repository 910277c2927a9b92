"""The foundation checkpoints: where each is published, at which revision, with which checksums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import InputError
from pipeline.manifest import nearest


@dataclass(frozen=True)
class Part:
    """Files of one repository of the model hub at one revision.

    ``pinned``: path there -> SHA-256. ``others``: small files, fetched where the repository has them. A file
    lies under its last name in the checkpoint's folder.
    """

    repo: str
    revision: str
    pinned: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """One pretrained model: where it is from, its size in bytes, licence and use."""

    name: str
    parts: tuple[Part, ...]
    size: int
    licence: str
    use: str

    @property
    def pinned(self) -> dict[str, str]:
        """File name -> SHA-256 of the files without which nothing works."""
        return {Path(p).name: sha for part in self.parts for p, sha in part.pinned.items()}

    @property
    def names(self) -> list[str]:
        """Every file that may be in the folder."""
        return sorted({*self.pinned, *(name for part in self.parts for name in part.others)})


_FLORENCE_FILES = (
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
_BERT_FILES = ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
_VOCABULARY = {"vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"}
_SAM = "ybelkada/segment-anything"  # holds the publisher's own files; their checksums are the pin

_ALL = (
    Checkpoint(
        "florence2-base",
        (
            Part(
                "florence-community/Florence-2-base",
                "00921df66db728a9ceb750f5eca43e5c203a2051",
                {"model.safetensors": "62f3e696da74f8869a68ddb529a9b3e14eb25b21c592cb3dea6179bf944df6a0"},
                _FLORENCE_FILES,
            ),
        ),
        463_178_864,
        "MIT",
        "captions, automatic prompts",
    ),
    Checkpoint(
        "florence2-large",
        (
            Part(
                "florence-community/Florence-2-large",
                "4271c66b88cdbc05735372ec13b2360108de5317",
                {"model.safetensors": "7715423d6549bf1e71188bdd84f4ac960cc0597886af24a5ef7b66f128660685"},
                _FLORENCE_FILES,
            ),
        ),
        1_553_541_016,
        "MIT",
        "captions, automatic prompts",
    ),
    Checkpoint(
        "t5-small",
        (
            Part(
                "google-t5/t5-small",
                "df1b051c49625cf57a3d0d8d3863ed4d13564fe4",
                {"model.safetensors": "bd944e5f1b3ad9b70dd9d00010a517059e19265671076b8b0a4a58d9491842bc"},
                ("config.json", "spiece.model", "tokenizer.json", "tokenizer_config.json"),
            ),
        ),
        242_043_056,
        "Apache-2.0",
        "texts",
    ),
    Checkpoint(
        "groundingdino-swint",
        (
            Part(
                "ShilongLiu/GroundingDINO",
                "a94c9b567a2a374598f05c584e96798a170c56fb",
                {
                    "groundingdino_swint_ogc.pth": (
                        "3b3ca2563c77c69f651d7bd133e97139c186df06231157a64c507099c52bc799"
                    )
                },
            ),
            Part(
                "google-bert/bert-base-uncased",
                "86b5e0934494bd15c9632b12f734a8a67f723594",
                _VOCABULARY,
                _BERT_FILES,
            ),
        ),
        693_997_677,
        "Apache-2.0",
        "boxes (groundingdino)",
    ),
    Checkpoint(
        "groundingdino-tiny",
        (
            Part(
                "IDEA-Research/grounding-dino-tiny",
                "a2bb814dd30d776dcf7e30523b00659f4f141c71",
                {"model.safetensors": "1a2412ef99bd74bcd3c2a246fa1e48581f8889a1300c9051974741314fc042f3"},
                (*_BERT_FILES, *_VOCABULARY, "preprocessor_config.json"),
            ),
        ),
        689_359_096,
        "Apache-2.0",
        "boxes (transformers)",
    ),
    Checkpoint(
        "sam-vit-b",
        (
            Part(
                _SAM,
                "main",
                {
                    "checkpoints/sam_vit_b_01ec64.pth": (
                        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
                    )
                },
            ),
        ),
        375_042_383,
        "Apache-2.0",
        "masks",
    ),
    Checkpoint(
        "sam-vit-l",
        (
            Part(
                _SAM,
                "main",
                {
                    "checkpoints/sam_vit_l_0b3195.pth": (
                        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
                    )
                },
            ),
        ),
        1_249_524_607,
        "Apache-2.0",
        "masks",
    ),
    Checkpoint(
        "sam-vit-h",
        (
            Part(
                _SAM,
                "main",
                {
                    "checkpoints/sam_vit_h_4b8939.pth": (
                        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
                    )
                },
            ),
        ),
        2_564_550_879,
        "Apache-2.0",
        "masks",
    ),
)
CHECKPOINTS = {checkpoint.name: checkpoint for checkpoint in _ALL}
"""Name, as in params.yaml -> checkpoint."""


def find_checkpoint(name: str) -> Checkpoint:
    """The checkpoint of that name. Raises InputError with the nearest name."""
    if name not in CHECKPOINTS:
        raise InputError(f"unknown checkpoint '{name}'.{nearest(name, CHECKPOINTS)} See `weights list`.")
    return CHECKPOINTS[name]

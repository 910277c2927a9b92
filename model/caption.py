"""Features of a caption given on the command line, by the encoder that the weights were trained with."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from model.config import TEXT_GUIDANCE
from model.inference import Fuser
from pipeline.config import TextsConfig
from pipeline.errors import InputError


def encode(caption: str, fuser: Fuser) -> NDArray[np.floating]:
    """Text features (T, 512) of a caption. Raises InputError when the weights or this machine lack them."""
    from pipeline.texts import backend

    known = fuser.record.get("text_encoder")
    if fuser.network.config.guidance not in TEXT_GUIDANCE or known is None:
        raise InputError(f"{fuser.path}: was trained without text; leave --caption out")
    if not caption.strip():
        raise InputError("the caption is empty; describe the scene or leave --caption out")
    for name in get_args(get_type_hints(TextsConfig)["backend"]):
        encoder = backend(TextsConfig(backend=name))
        if encoder.identity == known:
            return encoder([caption])[0]
    raise InputError(f"{fuser.path}: knows text of {known}, which is not available here; leave --caption out")

"""A sample's guidance as the stores hold it, for the network that is to take it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.inference import Fuser
from pipeline.errors import InputError
from pipeline.manifest import Sample, content_hash

if TYPE_CHECKING:
    from model.guidance import Guidance


def guidance_for(
    sample: Sample, guidance: Guidance | None, fuser: Fuser
) -> tuple[NDArray[np.floating] | None, NDArray[np.bool_] | None, str]:
    """A sample's stored text features (T, D), masks as the network takes them, and in words what guides it.

    Raises InputError when the sample has changed since its guidance was made.
    """
    text, masks, reason = stored_guidance(sample, guidance, fuser)
    return text, masks, note(text, masks) + reason


def note(text: object, masks: object) -> str:
    """Which guidance there is, in words."""
    kinds = [kind for kind, given in (("text", text), ("masks", masks)) if given is not None]
    return f"guided by {' and '.join(kinds)}" if kinds else "unguided"


def stored_guidance(
    sample: Sample, guidance: Guidance | None, fuser: Fuser
) -> tuple[NDArray[np.floating] | None, NDArray[np.bool_] | None, str]:
    """Text features, masks, and why text is left out. Raises InputError as `guidance_for` does."""
    if guidance is None:
        return None, None, ""
    for store in (guidance.texts, guidance.masks):
        if (
            store is not None
            and store.is_done(sample.id)
            and store.content(sample.id) not in ("", content_hash(sample))
        ):
            raise InputError(
                f"{store.path}: sample '{sample.id}' has changed since its guidance was made; "
                "run `typer pipeline guidance` again"
            )
    text, merged = guidance.text(sample.id), guidance.merged(sample.id)
    trained, reason = fuser.record.get("text_encoder"), ""
    if text is not None and trained not in (None, guidance.text_encoder):
        text, reason = None, f" (not by text: the weights know {trained}, not {guidance.text_encoder})"
    return None if text is None else text.features, fuser.masks_of(merged, sample.id), reason

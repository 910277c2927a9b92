"""What guides fusion, read from the stores: text features and merged masks of a sample."""

from __future__ import annotations

from dataclasses import dataclass

from model.config import MASK_GUIDANCE, TEXT_GUIDANCE
from pipeline.config import TEXT_WIDTH, Place, guidance_dir
from pipeline.errors import InputError
from pipeline.store import MergedMasks, Store, Text, open_store


@dataclass(frozen=True)
class Guidance:
    """The two stores that guide fusion; either may be absent."""

    texts: Store | None = None
    masks: Store | None = None

    def text(self, sample: str) -> Text | None:
        """Text features of a sample, None when there are none."""
        if self.texts is None or not self.texts.is_done(sample):
            return None
        record = self.texts.get(sample)
        assert isinstance(record, Text)
        return record

    @property
    def text_encoder(self) -> str | None:
        """Identity of the model that made the text features, None when there are none."""
        return None if self.texts is None else self.texts.config.get("identity")

    def merged(self, sample: str) -> MergedMasks | None:
        """Merged masks of a sample, None when there are none."""
        if not self.has_masks(sample):
            return None
        assert self.masks is not None
        record = self.masks.get(sample)
        assert isinstance(record, MergedMasks)
        return record

    def contents(self) -> dict[str, str]:
        """Content hashes of the files that guidance was made from, as far as they are recorded."""
        stores = [store.contents() for store in (self.masks, self.texts) if store is not None]
        return {sample: value for store in stores for sample, value in store.items() if value}

    def has_masks(self, sample: str) -> bool:
        """Whether merged masks of the sample are stored."""
        return self.masks is not None and self.masks.is_done(sample)


def open_guidance(dataset: str, use: str = "both") -> Guidance:
    """Open those guidance stores of a data set that exist; ``use`` is ModelConfig.guidance.

    Raises InputError when a store is damaged.
    """
    return open_stores(guidance_dir(dataset), use)


def open_stores(folder: Place, use: str = "both") -> Guidance:
    """Open the guidance stores texts.zarr and merged.zarr of a folder, where they exist.

    Raises InputError when a store is damaged or holds something else.
    """

    def opened(kind: str, wanted: bool) -> Store | None:
        path = folder / f"{kind}.zarr"
        if not wanted or not path.exists():
            return None
        store = open_store(path)
        width = store.sizes.get("D", TEXT_WIDTH)
        if store.kind != kind or width != TEXT_WIDTH:
            held = store.kind if store.kind != kind else f"{kind} of {width} features, not {TEXT_WIDTH}"
            raise InputError(f"{path}: holds {held}; delete it and run `typer pipeline guidance` again")
        return store

    return Guidance(opened("texts", use in TEXT_GUIDANCE), opened("merged", use in MASK_GUIDANCE))

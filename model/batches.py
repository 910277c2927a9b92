"""Samples as tensors, and several of them stacked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Item:
    """One sample as tensors: sources (C, H, W) in [0, 1], text (T, D), bool masks (20, H, W), or 20 for each
    source."""

    id: str
    sources: tuple[Tensor, ...]
    target: Tensor | None
    text: Tensor | None
    masks: Tensor | None


@dataclass(frozen=True)
class Batch:
    """Items stacked: sources (B, C, H, W), text (B, T, D) padded with zeros, its lengths (B,)."""

    ids: tuple[str, ...]
    sources: tuple[Tensor, ...]
    target: Tensor | None
    text: Tensor | None
    text_length: Tensor | None
    masks: Tensor | None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every tensor changed."""

        def changed(value: Tensor | None) -> Tensor | None:
            return None if value is None else change(value)

        return Batch(
            self.ids,
            tuple(change(source) for source in self.sources),
            changed(self.target),
            changed(self.text),
            changed(self.text_length),
            changed(self.masks),
        )

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return self.mapped(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch where a GPU can fetch it by itself; DataLoader calls this."""
        return self.mapped(lambda value: value.pin_memory())

    def part(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop``."""
        chosen = self.mapped(lambda value: value[start:stop])
        return dataclasses.replace(chosen, ids=self.ids[start:stop])

    def without(self, *, text: bool, masks: bool) -> Batch:
        """The same batch with the named guidance removed."""
        return dataclasses.replace(
            self,
            text=None if text else self.text,
            text_length=None if text else self.text_length,
            masks=None if masks else self.masks,
        )


def collate(items: Sequence[Item]) -> Batch:
    """Stack items of equal size. Text missing from some has length 0, missing masks are empty."""
    targets = [item.target for item in items if item.target is not None]
    masks = [item.masks for item in items if item.masks is not None]
    height, width = items[0].sources[0].shape[-2:]
    text, length = pad_texts([item.text for item in items])
    return Batch(
        ids=tuple(item.id for item in items),
        sources=tuple(torch.stack(band) for band in zip(*(item.sources for item in items), strict=True)),
        target=torch.stack(targets) if targets else None,
        text=text,
        text_length=length,
        masks=torch.stack(
            [
                masks[0].new_zeros(masks[0].shape[0], height, width) if item.masks is None else item.masks
                for item in items
            ]
        )
        if masks
        else None,
    )


def pad_texts(texts: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    """Text features (T_i, D) to one (B, T, D) tensor and lengths (B,); (None, None) when nobody has text."""
    known = [text for text in texts if text is not None]
    if not known:
        return None, None
    length = torch.tensor([0 if text is None else len(text) for text in texts])
    padded = torch.zeros(len(texts), int(length.max()), known[0].shape[1])
    for row, text in enumerate(texts):
        if text is not None:
            padded[row, : len(text)] = text
    return padded, length

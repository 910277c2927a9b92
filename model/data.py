"""Samples, images and guidance joined to tensors, in an order that depends on nothing but the seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from model.config import MASK_GUIDANCE, TEXT_GUIDANCE
from model.masks import by_source, mask_channels
from pipeline.config import guidance_dir
from pipeline.errors import InputError
from pipeline.images import luminance, read_image, read_sources
from pipeline.manifest import SHARPENING_TASKS, Sample
from pipeline.store import MergedMasks, Store, Text, open_store

CACHE_BYTES = 2**30  # decoded samples kept in memory; what does not fit is decoded again


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

    def has_masks(self, sample: str) -> bool:
        """Whether merged masks of the sample are stored."""
        return self.masks is not None and self.masks.is_done(sample)


def open_guidance(dataset: str, use: str = "both") -> Guidance:
    """Open those guidance stores of a data set that exist; ``use`` is ModelConfig.guidance.

    Raises InputError when a store is damaged.
    """
    folder = guidance_dir(dataset)

    def opened(name: str, wanted: bool) -> Store | None:
        path = folder / f"{name}.zarr"
        return open_store(path) if wanted and path.exists() else None

    return Guidance(opened("texts", use in TEXT_GUIDANCE), opened("merged", use in MASK_GUIDANCE))


@dataclass(frozen=True)
class Item:
    """One sample as tensors: sources (C, H, W) in [0, 1], text (T, D), masks (20, H, W) of 0 and 1, or 20 for
    each source."""

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

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""

        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        return Batch(
            self.ids,
            tuple(source.to(device) for source in self.sources),
            moved(self.target),
            moved(self.text),
            moved(self.text_length),
            moved(self.masks),
        )

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


@dataclass(frozen=True)
class _Decoded:
    sources: tuple[np.ndarray, ...]  # float32 (C, h, w)
    target: np.ndarray | None
    text: Tensor | None
    masks: np.ndarray | None  # bool (c, H, W)
    mask_sources: np.ndarray | None = None  # uint32 (c,), bit s = seen in source s

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (*self.sources, self.target, self.masks) if array is not None)


class FusionDataset(Dataset[Item]):
    """Samples of ONE task as tensors.

    Fusion tasks give luminance, with ``supervised`` that of the target too; sharpening tasks give all bands
    and the target. In training an item is
    a random crop, flipped and turned, the same way for sources, target and masks, and drawn from
    (seed, epoch, index) alone; otherwise it is the whole image. Images smaller than the crop are reflected.
    With ``unmerged`` every source has its own set of 20 masks. Raises InputError when samples disagree in
    number of sources, bands or ratio, or lack a needed target.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        task: str,
        guidance: Guidance | None = None,
        crop: int = 64,
        train: bool = True,
        seed: int = 0,
        cache_bytes: int = CACHE_BYTES,
        unmerged: bool = False,
        supervised: bool = False,
    ) -> None:
        if not samples:
            raise InputError(
                f"no samples of task '{task}' to work on; check the manifest's task and split columns"
            )
        self.samples = list(samples)
        self.task = task
        self.guidance = guidance or Guidance()
        self.train = train
        self.seed = seed
        self.cache_bytes = cache_bytes
        self.unmerged = unmerged
        self.supervised = supervised or task in SHARPENING_TASKS
        self._cache: dict[int, _Decoded] = {}
        self._cached_bytes = 0
        first = self._decoded(0)
        self.in_channels = tuple(source.shape[0] for source in first.sources)
        self.ratios = self._ratios(first)
        self.out_channels = 1 if first.target is None else first.target.shape[0]
        self.crop = crop // max(self.ratios) * max(self.ratios)
        if self.crop == 0:
            raise InputError(
                f"train.crop {crop} is smaller than the ratio {max(self.ratios)} of the sources; raise it"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        """Item ``index`` of epoch 0, or of the epoch in ``(epoch, index)``."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample, decoded = self.samples[index], self._decoded(index)
        height, width = decoded.sources[0].shape[1:]
        if not self.train:
            masks = decoded.masks
            if masks is None and self.guidance.has_masks(sample.id):
                masks = self._window(sample.id, decoded, 0, 0, height, width)
            return self._item(sample.id, decoded, decoded.sources, decoded.target, masks)
        random = np.random.default_rng((self.seed, epoch, index))
        step = max(self.ratios)
        y = step * int(random.integers(max(height - self.crop, 0) // step + 1))
        x = step * int(random.integers(max(width - self.crop, 0) // step + 1))
        turns, flip = int(random.integers(4)), bool(random.integers(2))

        def cut(array: np.ndarray, ratio: int) -> np.ndarray:
            size = self.crop // ratio
            window = array[:, y // ratio : y // ratio + size, x // ratio : x // ratio + size]
            return _turned(_reflected(window, size), turns, flip)

        masks = None
        if self.guidance.has_masks(sample.id):
            window = self._window(sample.id, decoded, y, x, min(self.crop, height), min(self.crop, width))
            masks = _turned(_reflected(window, self.crop), turns, flip)
        return self._item(
            sample.id,
            decoded,
            tuple(cut(source, ratio) for source, ratio in zip(decoded.sources, self.ratios, strict=True)),
            None if decoded.target is None else cut(decoded.target, 1),
            masks,
        )

    def _window(self, sample: str, decoded: _Decoded, y: int, x: int, height: int, width: int) -> np.ndarray:
        if decoded.masks is not None:
            return decoded.masks[:, y : y + height, x : x + width]
        assert self.guidance.masks is not None
        return self.guidance.masks.merged_crop(sample, y, x, height, width)

    def _item(
        self,
        sample: str,
        decoded: _Decoded,
        sources: Sequence[np.ndarray],
        target: np.ndarray | None,
        masks: np.ndarray | None,
    ) -> Item:
        if masks is not None and self.unmerged:
            masks = by_source(masks, decoded.mask_sources, len(sources), sample)
        return Item(
            sample,
            tuple(torch.from_numpy(np.ascontiguousarray(source)) for source in sources),
            None if target is None else torch.from_numpy(np.ascontiguousarray(target)),
            decoded.text,
            None if masks is None else mask_channels(masks, len(sources) if self.unmerged else 1),
        )

    def _decoded(self, index: int) -> _Decoded:
        if index in self._cache:
            return self._cache[index]
        decoded = self._decode(self.samples[index])
        # Whole masks are worth reading only when they stay: the store cuts crops out more cheaply.
        merged = self.guidance.merged(self.samples[index].id)
        if merged is not None:
            decoded = dataclasses.replace(decoded, mask_sources=merged.sources)
        kept = decoded if merged is None else dataclasses.replace(decoded, masks=merged.mask)
        if self._cached_bytes + kept.nbytes > self.cache_bytes:
            return decoded
        self._cache[index] = kept
        self._cached_bytes += kept.nbytes
        return kept

    def _decode(self, sample: Sample) -> _Decoded:
        images = read_sources(sample)
        target = None
        sharpening = self.task in SHARPENING_TASKS
        sources = tuple(image.pixels if sharpening else luminance(image.pixels)[None] for image in images)
        if self.supervised:
            if sample.target is None:
                raise InputError(
                    f"sample '{sample.id}' has no target, which {self.task} is trained against"
                    f"{'' if sharpening else ' because loss.supervised is set'}; "
                    "fill the target column of the manifest or drop the row"
                )
            target = read_image(sample.target, sample.bits).pixels
            target = target if sharpening else luminance(target)[None]
            if target.shape[1:] != sources[0].shape[1:]:
                raise InputError(
                    f"sample '{sample.id}': the target is {target.shape[1]}x{target.shape[2]} but "
                    f"{sample.roles[0]} is {sources[0].shape[1]}x{sources[0].shape[2]} "
                    f"({sample.target}); make them equal"
                )
        text = self.guidance.text(sample.id)
        decoded = _Decoded(
            sources,
            target,
            None if text is None else torch.from_numpy(text.features.astype(np.float32)),
            None,
        )
        self._check(sample, decoded)
        return decoded

    @staticmethod
    def _ratios(decoded: _Decoded) -> tuple[int, ...]:
        height = decoded.sources[0].shape[1]
        return tuple(height // source.shape[1] for source in decoded.sources)

    def _check(self, sample: Sample, decoded: _Decoded) -> None:
        """Samples that are stacked into one batch must have the same make-up as the first one."""
        if not hasattr(self, "out_channels"):
            return
        bands = tuple(source.shape[0] for source in decoded.sources)
        outputs = 1 if decoded.target is None else decoded.target.shape[0]
        if (bands, self._ratios(decoded), outputs) != (self.in_channels, self.ratios, self.out_channels):
            raise InputError(
                f"sample '{sample.id}' has sources of {bands} bands at ratios {self._ratios(decoded)}, "
                f"sample '{self.samples[0].id}' {self.in_channels} at {self.ratios}; "
                "keep them in separate data sets"
            )


def _turned(array: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    turned = np.rot90(array, turns, axes=(1, 2))
    return turned[:, :, ::-1] if flip else turned


def _reflected(window: np.ndarray, size: int) -> np.ndarray:
    missing = [(0, size - length) for length in window.shape[1:]]
    return (
        np.pad(window, [(0, 0), *missing], mode="symmetric") if any(sum(pair) for pair in missing) else window
    )


class EndlessBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) from step ``start`` to ``stop``: shuffled epochs laid end to end.

    Batch t depends on (seed, t) only, so training continues after a break with the very next batch.
    """

    def __init__(self, length: int, batch: int, seed: int, start: int, stop: int) -> None:
        self.length, self.batch, self.seed, self.start, self.stop = length, batch, seed, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, np.ndarray] = {}
        for step in range(self.start, self.stop):
            keys = []
            for position in range(step * self.batch, (step + 1) * self.batch):
                epoch, place = divmod(position, self.length)
                if epoch not in orders:
                    orders = {e: o for e, o in orders.items() if e == epoch - 1}
                    orders[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.length)
                keys.append((epoch, int(orders[epoch][place])))
            yield keys

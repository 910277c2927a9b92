"""FusionDataset: samples, images and guidance joined to tensors by nothing but (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from model.augmentation import photometric, reflected, turned
from model.batches import Batch, Item, collate
from model.guidance import Guidance
from model.image_cache import cached_window, stamp
from model.masks import by_source, mask_channels
from model.order import Key
from model.planes import Planes, decode
from pipeline.errors import InputError
from pipeline.manifest import SHARPENING_TASKS, Sample, content_hash
from pipeline.store import Store

CACHE_BYTES = 2**30  # decoded samples kept in memory; what does not fit is decoded again


@dataclass(frozen=True, eq=False)
class _Kept:
    """What stays in memory of a sample; masks only where they stay for good."""

    planes: Planes
    text: Tensor | None
    masks: np.ndarray | None = None  # bool (c, H, W)

    @property
    def nbytes(self) -> int:
        return self.planes.nbytes + (0 if self.masks is None else self.masks.nbytes)


class FusionDataset(Dataset[Item]):
    """Samples of ONE task as tensors.

    Fusion tasks give luminance, with ``supervised`` that of the target too; sharpening tasks give all bands
    and the target. In training an item is a random crop, flipped and turned, the same way for sources, target
    and masks, and drawn from (seed, epoch, index) alone; otherwise it is the whole image. Images smaller than
    the crop are reflected. ``photometric``: strength of the change of brightness (model/augmentation.py).
    With ``unmerged`` every source has its own set of 20 masks.

    Images come from the store ``images`` (model/image_cache.py) where one is given, and then only what a crop
    touches is read; else from their files, kept in memory as far as ``cache_bytes`` go. ``content``: the
    hash that a sample's files must have; it is compared when the sample is first used.

    Raises InputError when samples disagree in number of sources, bands or ratio, or lack a needed target.
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
        photometric: float = 0.0,
        images: Store | None = None,
        content: Mapping[str, str] | None = None,
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
        self.photometric = photometric
        self.images = images
        self.content = content or {}
        self._cache: dict[int, _Kept] = {}
        self._cached_bytes = 0
        self._verified: set[int] = set()
        first = self._first()
        self.in_channels = first.bands
        self.ratios = first.ratios
        self.out_channels = first.outputs
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
        return self.item(index, epoch)

    def item(self, index: int, epoch: int = 0, dataset: int = 0) -> Item:
        """Item ``index`` of an epoch; ``dataset`` tells apart several that are trained on together."""
        self._verify(index)
        kept = None if self.images is not None else self._kept(index)
        height, width = self._size(index, kept)
        self._check_masks(index, height, width)
        if not self.train:
            planes, masks = self._window(index, kept, 0, 0, height, width)
            return self._item(index, kept, planes, masks)
        random = np.random.default_rng((self.seed, epoch, index, dataset))
        step = max(self.ratios)
        y = step * int(random.integers(max(height - self.crop, 0) // step + 1))
        x = step * int(random.integers(max(width - self.crop, 0) // step + 1))
        turns, flip = int(random.integers(4)), bool(random.integers(2))
        planes, masks = self._window(index, kept, y, x, min(self.crop, height), min(self.crop, width))
        if self.photometric:
            planes = photometric(planes, self.task, self.photometric, random)

        def laid(array: np.ndarray, ratio: int = 1) -> np.ndarray:
            return turned(reflected(array, self.crop // ratio), turns, flip)

        sources = tuple(laid(*pair) for pair in zip(planes.sources, self.ratios, strict=True))
        target = None if planes.target is None else laid(planes.target)
        return self._item(index, kept, Planes(sources, target), None if masks is None else laid(masks))

    def _size(self, index: int, kept: _Kept | None) -> tuple[int, int]:
        if kept is None:
            assert self.images is not None
            return self.images.size(self.samples[index].id)
        height, width = kept.planes.sources[0].shape[1:]
        return height, width

    def _check_masks(self, index: int, height: int, width: int) -> None:
        sample, masks = self.samples[index].id, self.guidance.masks
        if masks is None or not masks.is_done(sample) or masks.size(sample) == (height, width):
            return
        stored = masks.size(sample)
        raise InputError(
            f"{masks.path}: masks of sample '{sample}' are {stored[0]}x{stored[1]}, its images "
            f"{height}x{width}; run `typer pipeline guidance` for its data set"
        )

    def _window(
        self, index: int, kept: _Kept | None, y: int, x: int, height: int, width: int
    ) -> tuple[Planes, np.ndarray | None]:
        """Images and masks of a window, bool (c, height, width)."""
        sample = self.samples[index].id
        if kept is None:
            assert self.images is not None
            planes = cached_window(self.images, sample, y, x, height, width)
        else:
            planes = kept.planes.window(y, x, height, width)
        if kept is not None and kept.masks is not None:
            return planes, kept.masks[:, y : y + height, x : x + width]
        if not self.guidance.has_masks(sample):
            return planes, None
        assert self.guidance.masks is not None
        return planes, self.guidance.masks.merged_crop(sample, y, x, height, width)

    def _item(self, index: int, kept: _Kept | None, planes: Planes, masks: np.ndarray | None) -> Item:
        sample, sets = self.samples[index].id, 1
        if masks is not None and self.unmerged:
            assert self.guidance.masks is not None
            sets = len(planes.sources)
            masks = by_source(masks, self.guidance.masks.origins(sample), sets, sample)
        return Item(
            sample,
            tuple(torch.from_numpy(np.ascontiguousarray(source)) for source in planes.sources),
            None if planes.target is None else torch.from_numpy(np.ascontiguousarray(planes.target)),
            self._text(sample) if kept is None else kept.text,
            None if masks is None else mask_channels(masks, sets, torch.bool),
        )

    def _text(self, sample: str) -> Tensor | None:
        text = self.guidance.text(sample)
        return None if text is None else torch.from_numpy(text.features.astype(np.float32))

    def _first(self) -> Planes:
        if self.images is None:
            return self._kept(0).planes
        sample = self.samples[0].id
        return cached_window(self.images, sample, 0, 0, *self.images.size(sample))

    def _kept(self, index: int) -> _Kept:
        if index in self._cache:
            return self._cache[index]
        sample = self.samples[index]
        planes = decode(sample, self.task, self.supervised)
        self._check(sample, planes)
        kept = _Kept(planes, self._text(sample.id))
        # Whole masks are worth reading only when they stay: the store cuts crops out more cheaply.
        merged = self.guidance.merged(sample.id)
        whole = kept if merged is None else _Kept(planes, kept.text, merged.mask)
        if self._cached_bytes + whole.nbytes > self.cache_bytes:
            return kept
        self._cache[index] = whole
        self._cached_bytes += whole.nbytes
        return whole

    def _check(self, sample: Sample, planes: Planes) -> None:
        """Samples that are stacked into one batch must have the same make-up as the first one."""
        if not hasattr(self, "out_channels"):
            return
        if (planes.bands, planes.ratios, planes.outputs) != (
            self.in_channels,
            self.ratios,
            self.out_channels,
        ):
            raise InputError(
                f"sample '{sample.id}' has sources of {planes.bands} bands at ratios {planes.ratios}, "
                f"sample '{self.samples[0].id}' {self.in_channels} at {self.ratios}; "
                "keep them in separate data sets"
            )

    def _verify(self, index: int) -> None:
        """Compare a sample's files, when it is first used, with those that were cached and described."""
        if index in self._verified:
            return
        sample = self.samples[index]
        expected = self.content.get(sample.id, "")
        if self.images is None:
            unchanged = not expected or content_hash(sample) == expected
        else:
            cached = self.images.content(sample.id)
            untouched = stamp(sample) == self.images.stamp(sample.id)  # then there is no need to read them
            unchanged = expected in ("", cached) and (untouched or content_hash(sample) == cached)
        if not unchanged:
            raise InputError(
                f"sample '{sample.id}' has changed since its guidance or its cached images were made; run "
                "`typer pipeline guidance` for its data set, and train with --verify once"
            )
        self._verified.add(index)


class Batches(Dataset["Batch | InputError"]):
    """Whole batches by their keys; what is wrong with a sample is returned, so that it can be told from a
    worker process as from this one."""

    def __init__(self, datasets: Sequence[FusionDataset]) -> None:
        self.datasets = datasets

    def __getitem__(self, keys: Sequence[Key]) -> Batch | InputError:
        try:
            return collate(
                [self.datasets[dataset].item(index, epoch, dataset) for dataset, epoch, index in keys]
            )
        except InputError as error:
            return error

"""The images of one sample as a network takes them: decoded from their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import InputError
from pipeline.images import Image, luminance, read_image, read_sources
from pipeline.manifest import SHARPENING_TASKS, Sample


@dataclass(frozen=True, eq=False)
class Planes:
    """Sources and target of one sample, float32 (C, h, w) in [0, 1]; luminance unless the task sharpens."""

    sources: tuple[np.ndarray, ...]
    target: np.ndarray | None

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return sum(plane.nbytes for plane in (*self.sources, self.target) if plane is not None)

    @property
    def ratios(self) -> tuple[int, ...]:
        """How many times smaller than the first source each source is."""
        height = self.sources[0].shape[1]
        return tuple(height // source.shape[1] for source in self.sources)

    @property
    def bands(self) -> tuple[int, ...]:
        """Bands of each source."""
        return tuple(source.shape[0] for source in self.sources)

    @property
    def outputs(self) -> int:
        """Bands of the fused image."""
        return 1 if self.target is None else self.target.shape[0]

    def window(self, y: int, x: int, height: int, width: int) -> Planes:
        """The same place of every image, told in pixels of the first source; whole pixels of the others."""
        return Planes(
            tuple(
                source[:, y // ratio : (y + height) // ratio, x // ratio : (x + width) // ratio]
                for source, ratio in zip(self.sources, self.ratios, strict=True)
            ),
            None if self.target is None else self.target[:, y : y + height, x : x + width],
        )


def read_images(sample: Sample, task: str, supervised: bool = False) -> tuple[list[Image], Image | None]:
    """Decode the sources of a sample and, in sharpening or with ``supervised``, its target.

    Raises InputError for unusable files and for a target that is missing or of another size.
    """
    images = read_sources(sample)
    if not supervised and task not in SHARPENING_TASKS:
        return images, None
    if sample.target is None:
        raise InputError(
            f"sample '{sample.id}' has no target, which {task} is trained against"
            f"{'' if task in SHARPENING_TASKS else ' because loss.supervised is set'}; "
            "fill the target column of the manifest or drop the row"
        )
    target = read_image(sample.target, sample.bits)
    if target.size != images[0].size:
        have, want = ("x".join(map(str, image.size)) for image in (target, images[0]))
        raise InputError(
            f"sample '{sample.id}': the target is {have} but {sample.roles[0]} is {want} "
            f"({sample.target}); make them equal"
        )
    bands, wanted = target.pixels.shape[0], images[-1].pixels.shape[0]
    if task in SHARPENING_TASKS and bands != wanted:
        raise InputError(
            f"sample '{sample.id}': the target has {bands} bands but {sample.roles[-1]}, which is to be "
            f"sharpened, {wanted} ({sample.target}); make them equal"
        )
    return images, target


def as_planes(sources: Sequence[np.ndarray], target: np.ndarray | None, task: str) -> Planes:
    """Decoded bands (C, h, w) as the task's network takes them."""
    if task in SHARPENING_TASKS:
        return Planes(tuple(sources), target)
    wanted = None if target is None else luminance(target)[None]
    return Planes(tuple(luminance(source)[None] for source in sources), wanted)


def decode(sample: Sample, task: str, supervised: bool = False) -> Planes:
    """Decode a sample. Raises InputError as `read_images` does."""
    images, target = read_images(sample, task, supervised)
    return as_planes([image.pixels for image in images], None if target is None else target.pixels, task)

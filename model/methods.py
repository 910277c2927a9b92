"""Fuse a data set's samples by every method that is compared: the network, unguided too, and simple rules.

Each method's images lie in a folder of its name. What was fused from the same weights, images and guidance is
not fused again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.baselines import FUSION_BASELINES, SHARPENING_BASELINES, roles
from model.guidance import Guidance
from model.inference import Fuser, fuse
from model.masks import by_source
from model.memory import Memory, code_hash, file_hash, key_of
from model.pansharpening import PANSHARPENING_BASELINES
from model.results import GUIDED, UNGUIDED, Case
from model.run import TRAINING_CODE
from model.stored import guidance_for
from pipeline import protocols, sensors
from pipeline.images import FloatArray, Image, luminance, read_sources, write_image
from pipeline.manifest import SHARPENING_TASKS, Sample, content_hash

FuseFunction = Callable[
    [Sequence[FloatArray], NDArray[np.floating] | None, NDArray[np.bool_] | None], FloatArray
]
"""Sources (C, H, W), text (T, D) and merged masks (c, H, W), the last two or None, to fused (C, H, W)."""

FUSING_CODE = (
    *TRAINING_CODE, "baselines", "colour", "guided_filter", "inference", "methods", "pansharpening",
)  # fmt: skip
FORMULAS = (Path(protocols.__file__), Path(sensors.__file__))


@dataclasses.dataclass(frozen=True)
class Fusion:
    """Fuses the samples of one task: a network (or a function in its place) with a data set's guidance.

    ``sensor`` is whose optics pansharpening methods assume (`pipeline.sensors`). A network that takes no
    guidance is not run a second time without it.
    """

    network: Fuser | FuseFunction
    guidance: Guidance
    unmerged: bool
    folder: Path
    sensor: str

    @property
    def guidable(self) -> bool:
        """Whether guidance can change what the network, or the function in its place, makes."""
        return not isinstance(self.network, Fuser) or self.network.takes_guidance

    def cases(self, sample: Sample, memory: Memory) -> tuple[list[Case], bool]:
        """Fuse one sample by every method and write the images; also whether it has guidance.

        Raises InputError when its sources cannot be read or do not fit the network.
        """
        images = read_sources(sample)
        text, masks, guided = self._guidance(sample)
        bits = images[-1].bits if sample.task in SHARPENING_TASKS else 8
        code = [*(Path(__file__).with_name(f"{name}.py") for name in FUSING_CODE), *FORMULAS]
        facts = [content_hash(sample), code_hash(code)]
        trained = self.network.record.get("sha256") if isinstance(self.network, Fuser) else None
        parts = {GUIDED: [trained, text, masks], UNGUIDED: [trained]}
        parts |= {method: [self.sensor] for method in PANSHARPENING_BASELINES}
        cases = []
        for method, run in self._methods(images, text, masks, sample.task):
            key = key_of(method, str(bits), *facts, *parts.get(method, []))
            name, digest = memory.known.get(key, ("", ""))
            lasting = trained is not None or method not in (GUIDED, UNGUIDED)
            if lasting and (path := self.folder / name).is_file() and file_hash(path) == digest:
                cases.append(Case(method, sample, path))
                continue
            pixels = run()
            path = fused_path(self.folder, method, sample.id, len(pixels), bits)
            write_image(path, pixels, bits)
            memory.add(key, [path.relative_to(self.folder).as_posix(), file_hash(path)])
            cases.append(Case(method, sample, path))
        return cases, guided

    def _guidance(self, sample: Sample) -> tuple[NDArray[np.floating] | None, NDArray[np.bool_] | None, bool]:
        if isinstance(self.network, Fuser):
            text, masks, _ = guidance_for(sample, self.guidance, self.network)
        else:
            stored, merged = self.guidance.text(sample.id), self.guidance.merged(sample.id)
            text = None if stored is None else stored.features
            masks = None if merged is None else merged.mask
            if merged is not None and self.unmerged:
                masks = by_source(merged.mask, merged.sources, len(sample.sources), sample.id)
        return text, masks, text is not None or masks is not None

    def _methods(
        self,
        images: Sequence[Image],
        text: NDArray[np.floating] | None,
        masks: NDArray[np.bool_] | None,
        task: str,
    ) -> Iterator[tuple[str, Callable[[], FloatArray]]]:
        sources = [image.pixels for image in images]
        yield GUIDED, partial(self._apply, sources, text, masks)
        if self.guidable:
            yield UNGUIDED, partial(self._apply, sources, None, None)
        if task in SHARPENING_TASKS:
            for name, sharpen in SHARPENING_BASELINES.items():
                yield name, partial(sharpen, sources)
            sharp, spectral, ratio = roles(sources)
            if len(sharp) == 1 and ratio > 1:  # they take one panchromatic band
                for name, method in PANSHARPENING_BASELINES.items():
                    yield name, partial(method, sharp, spectral, self.sensor)
        else:
            planes = [luminance(source) for source in sources]
            for name, combine in FUSION_BASELINES.items():
                yield name, partial(_of_planes, combine, planes)

    def _apply(
        self,
        sources: Sequence[FloatArray],
        text: NDArray[np.floating] | None,
        masks: NDArray[np.bool_] | None,
    ) -> FloatArray:
        if isinstance(self.network, Fuser):
            return fuse(sources, self.network, text=text, masks=masks)
        return self.network(sources, text, masks)


def _of_planes(
    rule: Callable[[Sequence[FloatArray]], FloatArray], planes: Sequence[FloatArray]
) -> FloatArray:
    return rule(planes)[None]


def fused_path(folder: Path, method: str, sample: str, bands: int, bits: int = 8) -> Path:
    """Where a sample's fused image lies: PNG where it holds the image without loss, TIFF otherwise."""
    png = (bits == 8 and bands in (1, 3)) or (bits == 16 and bands == 1)
    return folder / "fused" / method / f"{sample}.{'png' if png else 'tif'}"

"""COCO JSON back into the stores: objects that people drew or corrected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.coco import MERGED, CocoFile, Entry, file_name, read_coco
from pipeline.config import MASK_CHANNELS, DatasetConfig, PipelineConfig
from pipeline.errors import InputError
from pipeline.images import image_facts
from pipeline.importing import Imported, SampleNames, origin_of, summary, write_records
from pipeline.manifest import Sample
from pipeline.store import Instances, MergedMasks, SampleInstances


def import_coco(config: PipelineConfig, dataset: str, path: Path, *, merged: bool = False) -> Imported:
    """Fill ``boxes.zarr`` and ``masks.zarr`` (``merged``: ``merged.zarr``) from COCO JSON.

    Images of an export of this project are known by ``sample`` and ``role``; others by ``file_name``: the
    path below the root of one of the sources, or else a name of the sample, which means its first source.
    An image without annotations has no objects; so has a source whose sample is there with another source.
    Raises InputError when an image is not of the size of the sample's grid or a mask cannot be read.
    """
    data = config.dataset(dataset)
    samples = data.samples()
    coco = read_coco(path)
    images, unused = _placed(coco, data, samples, merged)
    if not images:
        role = "merged masks" if merged else "sources"
        raise InputError(f"{path}: none of its {len(coco.images)} images shows {role} of '{dataset}'")
    sizes: dict[str, tuple[int, int]] = {}
    for sample in samples:
        for image in images.get(sample.id, {}).values():
            sizes[sample.id] = size = image_facts(sample.sources[0].path, sample.bits).size
            if (int(image["height"]), int(image["width"])) != size:
                raise InputError(
                    f"{path}: image '{image['file_name']}' is {image['height']}x{image['width']}, but sample "
                    f"'{sample.id}' is {size[0]}x{size[1]}; annotate the images at their full size"
                )
    roles = {sample.id: sample.roles for sample in samples}

    def found_in(sample: str) -> SampleInstances:
        height, width = sizes[sample]
        of = images[sample]
        objects = [
            coco.instances(of[role]) if role in of else _no_objects(height, width) for role in roles[sample]
        ]
        return SampleInstances(height, width, tuple(objects))

    def united_in(sample: str) -> MergedMasks:
        return _merged(coco, images[sample][MERGED], roles[sample], sample)

    origin = origin_of([path])
    grid = {"H": max(h for h, _ in sizes.values()), "W": max(w for _, w in sizes.values())}
    if merged:
        write_records(config, dataset, "merged", images, united_in, origin, **grid)
    else:
        most = {"S": max(len(sample.sources) for sample in samples)}
        write_records(config, dataset, "boxes", images, found_in, origin, **most)
        write_records(config, dataset, "masks", images, found_in, origin, **most, **grid)
    return summary("merged masks" if merged else "masks", samples, images, unused)


def _placed(
    coco: CocoFile, data: DatasetConfig, samples: Sequence[Sample], merged: bool
) -> tuple[dict[str, dict[str, Entry]], int]:
    """Sample id -> role -> COCO image, and how many images are of no sample or of the other kind."""
    root = Path(data.root)
    names = SampleNames(samples, str(coco.path))
    files = {file_name(source.path, root): (s, source.role) for s in samples for source in s.sources}
    known = {sample.id: sample for sample in samples}
    placed: dict[str, dict[str, Entry]] = {}
    unused = 0
    for image in coco.images:
        sample, role = known.get(str(image.get("sample", ""))), image.get("role")
        if sample is None and image["file_name"] in files:
            sample, role = files[image["file_name"]]
        elif sample is None:
            sample = names.find(str(image["file_name"]))
            role = sample.sources[0].role if sample else None
        if merged and "role" not in image:
            role = MERGED  # a foreign file that is given as merged masks
        if sample is None or role not in ((MERGED,) if merged else sample.roles):
            unused += 1
        elif role in placed.setdefault(sample.id, {}):
            raise InputError(f"{coco.path}: two images are the {role} of sample '{sample.id}'; keep one")
        else:
            placed[sample.id][role] = image
    return {sample: of for sample, of in placed.items() if of}, unused


def _merged(coco: CocoFile, image: Entry, roles: Sequence[str], sample: str) -> MergedMasks:
    found: Instances = coco.instances(image)
    if len(found) > MASK_CHANNELS:
        raise InputError(
            f"{coco.path}: sample '{sample}' has {len(found)} merged masks; at most {MASK_CHANNELS} fit"
        )
    assert found.mask is not None
    assert found.iou is not None
    seen = [a.get("sources", ()) for a in coco.annotations[image["id"]]]
    bits = [sum(1 << roles.index(role) for role in of if role in roles) for of in seen]
    sources = np.array(bits, np.uint32) if len(bits) == len(found) else None
    return MergedMasks(found.mask, found.label, found.score, found.iou, sources=sources)


def _no_objects(height: int, width: int) -> Instances:
    none = np.zeros(0, np.float32)
    return Instances(np.zeros((0, 4), np.float32), none, (), none, np.zeros((0, height, width), bool))

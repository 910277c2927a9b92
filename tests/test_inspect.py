"""The picture of one sample's guidance, for every task and for stores that are not there."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from pipeline.config import DatasetConfig, PipelineConfig
from pipeline.images import write_image
from pipeline.inspect import PANEL, inspect
from pipeline.manifest import TASKS, InputError, Sample, Source, write_manifest
from pipeline.records import Caption, Instances, MergedMasks, Record, SampleInstances
from pipeline.store import create_store

BANDS = {"visible": 3, "pet": 3, "ms": 4, "hs": 12, "under": 3, "over": 3}
HEIGHT, WIDTH = 48, 64


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PipelineConfig:
    """A data set `all` with one sample per task, made of gradients."""
    monkeypatch.chdir(tmp_path)
    samples = []
    for task, pairs in TASKS.items():
        sources = []
        for number, role in enumerate(pairs[0]):
            small = 4 if number and task in ("pansharpening", "hyper_multispectral") else 1
            ramp = np.linspace(0, 1, HEIGHT * WIDTH // small**2, dtype=np.float32)
            pixels = np.repeat(ramp.reshape(1, HEIGHT // small, WIDTH // small), BANDS.get(role, 1), axis=0)
            suffix = ".png" if len(pixels) in (1, 3) else ".tif"
            path = Path("data") / task / (role + suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, pixels)
            sources.append(Source(role, path))
        samples.append(Sample(task, task, "test", tuple(sources)))
    write_manifest(Path("all.csv"), samples, Path("data"))
    return PipelineConfig(datasets={"all": DatasetConfig(manifest="all.csv", root="data")})


def write_stores(count: int, without: str = "") -> None:
    """Guidance with ``count`` objects per source and merged channels for every sample."""
    mask = np.zeros((count, HEIGHT, WIDTH), dtype=bool)
    for index in range(count):
        mask[index, 2 * index : 2 * index + 9, 3 * index : 3 * index + 7] = True
    box = np.array([[3 * i, 2 * i, 3 * i + 7, 2 * i + 9] for i in range(count)], dtype=np.float32).reshape(
        -1, 4
    )
    half = np.full(count, 0.5, dtype=np.float32)
    labels = ("person", "a label that is rather long for a tag")[:count] + ("car",) * max(0, count - 2)
    found = Instances(box, half, labels, half, mask)
    sources = np.full(count, 3, dtype=np.uint32)
    records: dict[str, tuple[Record, dict[str, int]]] = {
        "captions": (Caption("A caption of many words. " * 12), {}),
        "masks": (SampleInstances(HEIGHT, WIDTH, (found, found)), {"S": 2, "H": HEIGHT, "W": WIDTH}),
        "merged": (MergedMasks(mask, labels, half, half, 1, 2, sources), {"H": HEIGHT, "W": WIDTH}),
    }
    folder = Path("guidance") / "all"
    folder.mkdir(parents=True)
    for kind, (record, sizes) in records.items():
        if kind != without:
            store = create_store(folder / f"{kind}.zarr", kind, list(TASKS), {}, "f", None, **sizes)
            store.write({task: record for task in TASKS})


@pytest.mark.parametrize("count", [0, 1, 16])
def test_every_task_is_drawn(project: PipelineConfig, count: int) -> None:
    write_stores(count)
    for task in TASKS:
        inspect(project, "all", task, Path(f"{task}.png"))
        with PillowImage.open(f"{task}.png") as picture:
            assert picture.width > 3 * PANEL
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50
    assert not list(Path().glob("*.tmp"))


def test_objects_change_the_picture(project: PipelineConfig) -> None:
    write_stores(2)
    inspect(project, "all", "medical", Path("two.png"))
    pixels = np.asarray(PillowImage.open("two.png").convert("RGB")).astype(int)
    colourful = (pixels.max(axis=2) - pixels.min(axis=2)) > 60
    third = pixels.shape[1] // 3
    assert all(colourful[:, third * n : third * (n + 1)].sum() > 200 for n in range(3))


@pytest.mark.parametrize(
    ("kind", "command"), [("captions", "captions"), ("masks", "masks"), ("merged", "merge")]
)
def test_a_missing_store_names_the_command_that_makes_it(
    project: PipelineConfig, kind: str, command: str
) -> None:
    write_stores(1, without=kind)
    with pytest.raises(
        InputError, match=rf"python -m pipeline {command} --dataset all|guidance --dataset all"
    ):
        inspect(project, "all", "medical", Path("x.png"))
    assert not Path("x.png").exists()


def test_unknown_names_and_other_formats_are_refused(project: PipelineConfig) -> None:
    write_stores(1)
    with pytest.raises(InputError, match="'medical'"):
        inspect(project, "all", "medicla", Path("x.png"))
    with pytest.raises(InputError, match="no sample 'zzz'"):
        inspect(project, "all", "zzz", Path("x.png"))
    with pytest.raises(InputError, match="'all'"):
        inspect(project, "al", "medical", Path("x.png"))
    with pytest.raises(InputError, match=r"\.png"):
        inspect(project, "all", "medical", Path("x.jpg"))

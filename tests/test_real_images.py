"""Every real pair of every task by the documented commands, manifest, guidance, fuse, from its own folder."""

import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import Workspace, scratch_copy
from numpy.typing import NDArray
from PIL import Image
from ruamel.yaml import YAML
from tiny_project import make_weights

from model.inference import SHIPPED
from pipeline.images import SampleImages, luminance, read_sample
from pipeline.manifest import SHARPENING_TASKS, read_manifest

pytestmark = pytest.mark.timeout(900)  # the first test waits for the slowest folder

# Data set -> folder, pairs. The slowest first: two run at a time.
FOLDERS = {
    "roadscene": ("visible_infrared/roadscene", 40),
    "msrs": ("visible_infrared/msrs", 20),
    "llvip": ("visible_infrared/llvip", 6),
    "mefb": ("multi_exposure", 12),
    "satellite": ("pansharpening", 12),
    "tno": ("visible_infrared/tno", 17),
    "medical": ("medical", 30),
    "focus": ("multi_focus", 10),
}
TASKS = ("visible_infrared", "medical", "multi_exposure", "multi_focus", "pansharpening")


@pytest.fixture(scope="module")
def project(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A scratch copy of the project with its data sets and weights.

    The weights are those shipped, else of small networks not yet trained, which add something of their own to
    the sources' mean: what is tested is the way of real images through the commands, and training has its own
    tests.
    """
    project = scratch_copy(tmp_path_factory.mktemp("real") / "project")
    for task in TASKS:
        if not (SHIPPED / f"{task}.safetensors").is_file():
            make_weights(project.path / "runs" / "demo" / task / "weights.safetensors", task, head=0.002)
    for name, (folder, count) in FOLDERS.items():
        said = project.run("typer", "pipeline", "manifest", str(shared_data / folder), "--dataset", name)
        assert f"{count} samples" in said.stdout
    return project


@pytest.fixture(scope="module")
def fused(project: Workspace) -> dict[str, "Future[str]"]:
    """What `rwkvfusion fuse` said of each data set; the data sets are worked on in the background."""

    def work(name: str) -> str:
        project.run("typer", "pipeline", "guidance", "--dataset", name, timeout=600)
        fuse = ("rwkvfusion", "fuse", "--dataset", name, "-o", f"fused/{name}")
        return project.run(*fuse, timeout=600).stdout

    pool = ThreadPoolExecutor(2)
    running = {name: pool.submit(work, name) for name in FOLDERS}
    pool.shutdown(wait=False)
    return running


@pytest.mark.parametrize("name", FOLDERS)
def test_every_pair_goes_through(project: Workspace, fused: dict[str, "Future[str]"], name: str) -> None:
    said = fused[name].result()
    count = FOLDERS[name][1]
    assert f"{count} fused, 0 skipped, 0 failed" in said
    assert len(re.findall("guided by text and masks", said)) == count
    params = YAML(typ="safe").load(project.path / "params.yaml")["datasets"][name]
    samples = read_manifest(project.path / params["manifest"], Path(params["root"]))
    assert len(samples) == count
    for sample in samples:
        sources = read_sample(sample)
        raw = _written(project.path / "fused" / name, sample.id)
        bits = sample.bits or 8
        assert raw.dtype == (np.uint16 if bits > 8 else np.uint8), sample.id
        assert raw.max() < 2**bits
        bands = np.atleast_3d(raw).transpose(2, 0, 1).astype(np.float32) / (2**bits - 1)
        assert bands.shape[1:] == sources.size, sample.id
        assert bands.shape[0] == _bands(sources), sample.id
        _check_content(bands, sources)


def test_the_folders_hold_every_pair(shared_data: Path) -> None:
    """Every folder of real images is among those worked on."""
    worked_on = {shared_data / folder for folder, _ in FOLDERS.values()}
    for file in shared_data.glob("*/*/**/*"):
        assert file.is_dir() or worked_on & set(file.parents), file


def _written(folder: Path, sample: str) -> NDArray[np.generic]:
    """The fused image as it stands in the file, read without the project's own code."""
    (file,) = [path for path in folder.iterdir() if path.stem == sample]
    if file.suffix == ".npy":
        array: NDArray[np.generic] = np.load(file, allow_pickle=False)
        return array
    return np.asarray(Image.open(file)) if file.suffix == ".png" else tifffile.imread(file)


def _bands(sources: SampleImages) -> int:
    """Bands that the result must have: the spectral source's, else 3 as soon as one source has 3."""
    counts = [image.pixels.shape[0] for image in sources.images]
    return counts[-1] if sources.sample.task in SHARPENING_TASKS else max(counts)


def _check_content(bands: NDArray[np.float32], sources: SampleImages) -> None:
    """Not flat, no source again, and made of both of them."""
    name, planes = sources.sample.id, [luminance(image.pixels) for image in sources.images]
    assert min(float(band.std()) for band in bands) > 0.005, name
    grey = luminance(bands)
    assert all(float(np.abs(grey - plane).max()) > 3 / 255 for plane in planes), name
    if sources.sample.task in SHARPENING_TASKS:
        assert all(np.corrcoef(grey.ravel(), plane.ravel())[0, 1] > 0.3 for plane in planes), name
        return
    # Sources may be each other's negative, so their shares are told apart by regression.
    design = np.stack([*(plane.ravel() for plane in planes), np.ones(grey.size)], axis=1)
    shares = np.linalg.lstsq(design, grey.ravel(), rcond=None)[0][:-1]
    # An under-exposed source holds few grey levels: its share is small where its partner is well exposed.
    assert min(shares) > 0.02, (name, shares)

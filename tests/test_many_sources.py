"""More than two sources in every task that is not sharpening: from the manifest to the evaluation."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_project import scene
from typer.testing import CliRunner

from model.cli import app as model_app
from pipeline.cli import app as pipeline_app
from pipeline.images import read_image, write_image
from pipeline.manifest import Sample, Source, write_manifest
from pipeline.store import MergedMasks, SampleInstances, open_store

SIZE = (32, 40)
STACKS = {
    "visible_infrared": ("visible", "infrared", "infrared_2"),
    "medical": ("ct", "pet", "mri"),
    "multi_exposure": ("under", "under_2", "over", "over_2"),
    "multi_focus": ("near", "near_2", "far"),
}
COLOUR = ("visible", "pet", "under", "over")
SPLITS = ("train", "train", "validation", "test")


def make_stacks(task: str) -> list[Sample]:
    """A data set `stacks` of samples with all the task's sources, and its params.yaml."""
    samples = []
    for number, split in enumerate(SPLITS):
        sources = []
        truth = scene(number, 3, *SIZE)
        truth[:, 8:20, 10:22] = 0.9  # something for the detector to find
        for position, role in enumerate(STACKS[task]):
            path = Path("data") / role / f"s{number}.png"
            bands = 3 if role.partition("_")[0] in COLOUR else 1
            gain = (position + 1) / len(STACKS[task])
            write_image(path, (gain * truth[:bands]).astype(np.float32))
            sources.append(Source(role, path))
        samples.append(Sample(f"s{number}", task, split, tuple(sources)))
    write_manifest(Path("stacks.csv"), samples, Path("data"))
    params = {
        "datasets": {"stacks": {"manifest": "stacks.csv", "root": "data", "masks": "auto"}},
        "model": {"width": 4, "encoder_depths": [1, 1], "decoder_depths": [1]},
        "loss": {"ssim_window": 5},
        "train": {"dataset": "stacks", "task": task, "steps": 2, "batch": 2, "crop": 16}
        | {"validate_every": 1, "warmup_steps": 1},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params))
    return samples


def run(app: object, *command: str) -> str:
    result = CliRunner().invoke(app, list(command))  # type: ignore[arg-type]
    assert result.exit_code == 0, f"{command}: {result.output}"
    return result.output


@pytest.mark.parametrize(
    ("task", "guidance"), [*((task, "both") for task in STACKS), ("multi_exposure", "unmerged")]
)
def test_stacks_go_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, guidance: str
) -> None:
    monkeypatch.chdir(tmp_path)
    samples = make_stacks(task)
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["model"]["guidance"] = guidance
    params["merge"] = {"mode": "unmerged" if guidance == "unmerged" else "merged"}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    run(pipeline_app, "guidance", "--dataset", "stacks")
    masks, united = (open_store(Path(f"guidance/stacks/{kind}.zarr")) for kind in ("masks", "merged"))
    for sample in samples:
        found, merged = masks.get(sample.id), united.get(sample.id)
        assert isinstance(found, SampleInstances)
        assert isinstance(merged, MergedMasks)
        assert len(found.sources) == len(STACKS[task])
        assert merged.sources is None or int(merged.sources.max(initial=0)) < 2 ** len(STACKS[task])
    run(model_app, "train")
    run(model_app, "fuse", "--dataset", "stacks", "--split", "test", "-o", "fused")
    fused = read_image(next(Path("fused").iterdir()))
    assert fused.size == SIZE
    rest = [str(source.path) for source in samples[-1].sources[1:]]
    weights = f"runs/stacks/{task}/weights.safetensors"
    less = ["fuse", *rest, "--task", task, "--weights", weights, "-o", "less.png"]
    result = CliRunner().invoke(model_app, less)
    assert result.exit_code == 2, result.output  # the weights want all of them, and say so
    assert str(len(STACKS[task])) in result.output
    run(model_app, "evaluate")
    with Path("reports/stacks/samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["sample"] for row in rows} == {"s3"}
    values = [float(row[name]) for row in rows for name in ("MI", "SF", "Qabf") if row.get(name)]
    assert values
    assert np.isfinite(values).all()

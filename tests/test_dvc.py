"""DVC around the stages: what reruns after a change, and what a killed run leaves."""

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import Workspace
from ruamel.yaml import YAML
from test_cli import PIPELINE, scene

STAGES = ("captions", "texts", "boxes", "masks", "merge")


def add_dataset(workspace: Workspace, name: str, count: int, size: tuple[int, int] = (48, 64)) -> list[str]:
    """Make a user's data set and return its stages' names."""
    for index in range(count):
        scene(workspace.path / f"{name}_images", f"s{index:02d}", size, warm=190 + 5 * index)
    workspace.run(*PIPELINE, "manifest", f"{name}_images", "--dataset", name)
    return [f"{stage}@{name}" for stage in STAGES]


def change(workspace: Workspace, section: str, key: str, value: object) -> None:
    path = workspace.path / "params.yaml"
    yaml = YAML()
    params = yaml.load(path)
    target = params
    for part in section.split("."):
        target = target[part]
    target[key] = value
    yaml.dump(params, path)


def outdated(workspace: Workspace, stages: list[str]) -> set[str]:
    return set(json.loads(workspace.run("dvc", "status", "--json", *stages).stdout))


def contents(folder: Path) -> dict[str, str]:
    """Every file of the stores -> hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(part.endswith(".zarr") for part in path.relative_to(folder).parts)
    }


def test_a_change_reruns_only_what_follows_from_it(workspace: Workspace) -> None:
    mine, yours = add_dataset(workspace, "mine", 2), add_dataset(workspace, "yours", 2)
    both = mine + yours
    workspace.run("dvc", "repro", *both)
    assert outdated(workspace, both) == set()

    change(workspace, "merge", "min_area", 17)
    assert outdated(workspace, both) == {"merge@mine", "merge@yours"}
    change(workspace, "merge", "min_area", 16)
    assert outdated(workspace, both) == set()

    change(workspace, "datasets.mine", "prompt", ["person"])
    assert outdated(workspace, both) == {"boxes@mine", "masks@mine", "merge@mine"}

    ran = workspace.run("dvc", "repro", *both).stdout
    assert "Running stage 'boxes@mine'" in ran
    assert "Running stage 'boxes@yours'" not in ran
    assert "Running stage 'captions@mine'" not in ran


@pytest.mark.parametrize("store", ["captions.zarr", "masks.zarr"])
def test_a_killed_run_resumes_to_the_same_stores(workspace: Workspace, tmp_path: Path, store: str) -> None:
    stages = add_dataset(workspace, "mine", 6, size=(120, 160))
    undisturbed = Workspace(tmp_path / "undisturbed")
    shutil.copytree(workspace.path, undisturbed.path)

    process = workspace.start("dvc", "repro", *stages)
    deadline = time.monotonic() + 60
    while not (workspace.path / "guidance" / "mine" / store).exists() and process.poll() is None:
        assert time.monotonic() < deadline, f"{store} was never begun"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    workspace.run("dvc", "repro", *stages)
    undisturbed.run("dvc", "repro", *stages)
    assert outdated(workspace, stages) == set()
    expected = contents(undisturbed.path / "guidance" / "mine")
    assert len({name.split("/")[0] for name in expected}) == len(STAGES)
    assert contents(workspace.path / "guidance" / "mine") == expected

"""The pipeline's command line as typed: short forms, messages, exit codes, no half-written output."""

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Workspace
from PIL import Image
from ruamel.yaml import YAML

PIPELINE = (sys.executable, "-m", "pipeline")


def scene(folder: Path, stem: str, size: tuple[int, int] = (48, 64), warm: int = 230) -> None:
    """A visible picture with a bright square and an infrared one with a warm disc."""
    y, x = np.mgrid[: size[0], : size[1]]
    visible = np.stack([40 + x, 60 + y, 90 + 0 * x], -1).clip(0, 255).astype(np.uint8)
    visible[8:20, 6:18] = 220
    infrared = np.full(size, 50, np.uint8)
    infrared[(y - 30) ** 2 + (x - 45) ** 2 < 81] = warm
    for role, pixels in (("visible", visible), ("infrared", infrared)):
        (folder / role).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / role / f"{stem}.png")


@pytest.fixture
def mine(workspace: Workspace) -> Workspace:
    """A workspace with a user's data set `mine` of two samples, as the README tells to make it."""
    scene(workspace.path / "my_images", "a")
    scene(workspace.path / "my_images", "b", warm=200)
    workspace.run(*PIPELINE, "manifest", "my_images", "--dataset", "mine")
    return workspace


def refused(workspace: Workspace, *command: str) -> str:
    """Run a command that must be refused; return its one line on stderr."""
    before = {path for path in workspace.path.rglob("*") if "__pycache__" not in path.parts}
    result = workspace.run(*command, check=False)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    after = {path for path in workspace.path.rglob("*") if "__pycache__" not in path.parts}
    assert after == before, "a refused command left something behind"
    return lines[0]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("typer", "pipeline", "--help"), ("guidance", "manifest", "inspect")),
        (("typer", "pipeline", "guidance", "--help"), ("--dataset",)),
        (("typer", "pipeline", "run", "guidance", "--help"), ("--dataset",)),
        (("typer", "model", "train", "--help"), ("--task",)),
        ((*PIPELINE, "--help"), ("guidance", "captions", "merge")),
        (("rwkvfusion", "fuse", "--help"), ("--weights", "-o")),
    ],
)
def test_help_is_found_as_typed(
    workspace: Workspace, command: tuple[str, ...], told: tuple[str, ...]
) -> None:
    output = workspace.run(*command).stdout
    assert all(word in output for word in told), output


def test_help_does_not_load_the_heavy_libraries(workspace: Workspace) -> None:
    code = (
        "import sys, pipeline.cli; "
        "print(sorted({'torch', 'transformers', 'zarr', 'dask', 'skimage'} & set(sys.modules)))"
    )
    assert workspace.run(sys.executable, "-c", code).stdout.strip() == "[]"


def test_manifest_lists_a_users_folder(mine: Workspace) -> None:
    with (mine.path / "data_manifests" / "mine.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["sample"], row["task"], row["split"]) for row in rows] == [
        ("a", "visible_infrared", "test"),
        ("b", "visible_infrared", "test"),
    ]
    section = YAML(typ="safe").load(mine.path / "params.yaml")["datasets"]["mine"]
    assert section["manifest"] == "data_manifests/mine.csv"


def test_guidance_of_a_users_folder_and_nothing_the_second_time(mine: Workspace) -> None:
    mine.run("typer", "pipeline", "guidance", "--dataset", "mine")
    folder = mine.path / "guidance" / "mine"
    assert {path.name for path in folder.glob("*.zarr")} == {
        f"{kind}.zarr" for kind in ("captions", "texts", "boxes", "masks", "merged")
    }
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    mine.run("typer", "pipeline", "guidance", "--dataset", "mine")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == times


def test_inspect_draws_a_sample(mine: Workspace) -> None:
    mine.run(*PIPELINE, "guidance", "--dataset", "mine")
    mine.run(*PIPELINE, "inspect", "--dataset", "mine", "--sample", "a", "-o", "a.png")
    with Image.open(mine.path / "a.png") as picture:
        assert min(picture.size) > 48
    message = refused(mine, *PIPELINE, "inspect", "--dataset", "mine", "--sample", "c", "-o", "c.png")
    assert "'c'" in message


def test_unknown_data_set_suggests_the_nearest(workspace: Workspace) -> None:
    for command in (PIPELINE, ("typer", "pipeline")):
        message = refused(workspace, *command, "guidance", "--dataset", "dmo")
        assert "'dmo'" in message
        assert "'demo'" in message


def test_unknown_key_in_params_suggests_the_nearest(workspace: Workspace) -> None:
    params = workspace.path / "params.yaml"
    params.write_text(params.read_text().replace("min_area:", "min_aera:"))
    message = refused(workspace, *PIPELINE, "guidance", "--dataset", "demo")
    assert "params.yaml" in message
    assert "min_aera" in message
    assert "min_area" in message


def test_missing_params_says_where_to_run(workspace: Workspace) -> None:
    (workspace.path / "params.yaml").unlink()
    assert "params.yaml" in refused(workspace, *PIPELINE, "guidance", "--dataset", "demo")


def test_manifest_of_an_empty_folder(workspace: Workspace) -> None:
    (workspace.path / "nothing").mkdir()
    message = refused(workspace, *PIPELINE, "manifest", "nothing", "--dataset", "mine")
    assert "nothing" in message
    assert "visible" in message


def test_manifest_without_a_common_name(workspace: Workspace) -> None:
    scene(workspace.path / "odd", "a")
    (workspace.path / "odd" / "infrared" / "a.png").rename(workspace.path / "odd" / "infrared" / "z.png")
    assert "same name" in refused(workspace, *PIPELINE, "manifest", "odd", "--dataset", "mine")


@pytest.mark.parametrize("damage", ["missing", "unreadable", "size"])
def test_a_bad_image_is_named_and_the_others_are_done(mine: Workspace, damage: str) -> None:
    bad = [mine.path / "my_images" / "infrared" / f"{stem}.png" for stem in "ba"]
    for still_good, path in ((1, bad[0]), (0, bad[1])):
        if damage == "missing":
            path.unlink()
        elif damage == "unreadable":
            path.write_text("no image")
        else:
            Image.fromarray(np.zeros((10, 10), np.uint8)).save(path)
        result = mine.run(*PIPELINE, "captions", "--dataset", "mine", check=False)
        assert result.returncode == (1 if still_good else 2), result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        assert path.name in result.stderr + result.stdout


def test_a_corrupted_store_is_named(mine: Workspace) -> None:
    mine.run(*PIPELINE, "captions", "--dataset", "mine")
    store = mine.path / "guidance" / "mine" / "captions.zarr"
    (store / "zarr.json").write_text("{")
    result = mine.run(*PIPELINE, "captions", "--dataset", "mine", check=False)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "captions.zarr" in result.stderr
    shutil.rmtree(store)
    mine.run(*PIPELINE, "captions", "--dataset", "mine")

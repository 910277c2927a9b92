"""Manifests: what is written is read back, folders are recognised, mistakes name the row and the remedy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import InputError
from pipeline.manifest import (
    ROLES,
    SPLITS,
    TASKS,
    Sample,
    Source,
    content_hash,
    read_manifest,
    scan_folder,
    write_manifest,
)

ROOT = Path("root")
IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    made = []
    for name in draw(st.lists(IDS, min_size=1, max_size=6, unique=True)):
        task = draw(st.sampled_from(sorted(TASKS)))
        roles = draw(st.sampled_from(TASKS[task]))
        sources = tuple(Source(role, ROOT / role / f"{name}, a.png") for role in roles)
        target = draw(st.sampled_from([None, ROOT / "target" / f"{name}.png"]))
        made.append(
            Sample(
                name,
                task,
                draw(st.sampled_from(SPLITS)),
                sources,
                target,
                None,
                draw(st.sampled_from([None, 11])),
            )
        )
    return made


@given(samples())
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, made: list[Sample]) -> None:
    path = tmp_path_factory.mktemp("manifest") / "a.csv"
    write_manifest(path, made, ROOT)
    assert read_manifest(path, ROOT) == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 'sample' is missing"),
        ("sample,task,split,visible,infrared\n", "lists no samples"),
        ("sample,task,split,visable,infrared\na,visible_infrared,test,a,b\n", "Did you mean 'visible'?"),
        (
            "sample,task,split,visible,infrared\na,visible_infra,test,a,b\n",
            "Did you mean 'visible_infrared'?",
        ),
        ("sample,task,split,visible,infrared\na,visible_infrared,tst,a,b\n", "Did you mean 'test'?"),
        ("sample,task,split,visible,infrared\na,visible_infrared,test,a,\n", "at least two"),
        ("sample,task,split,visible,infrared\n../a,visible_infrared,test,a,b\n", "must be letters"),
        ("sample,task,split,bits,visible,infrared\na,visible_infrared,test,x,a,b\n", "bits 'x'"),
        (
            "sample,task,split,visible,infrared\na,visible_infrared,test,a,b\na,visible_infrared,test,a,b\n",
            "listed twice",
        ),
    ],
)
def test_a_mistake_names_the_manifest_and_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_manifest(path, tmp_path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="typer pipeline manifest"):
        read_manifest(tmp_path / "none.csv", tmp_path)


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(path)
    return path


def test_folders_named_after_roles_are_samples_wherever_they_lie(tmp_path: Path) -> None:
    for role in ("Visible", "Infrared"):
        picture(tmp_path / "night" / role / "1.png")
        picture(tmp_path / "day" / role / "1.png")
    picture(tmp_path / "night" / "Visible" / "alone.png")
    for role in ("ct", "pet", "mri"):
        picture(tmp_path / "brain" / role / "a b.png")
    found = {sample.id: sample for sample in scan_folder(tmp_path)}
    assert set(found) == {"day_1", "night_1", "brain_a-b"}
    assert found["brain_a-b"].roles == ("ct", "pet", "mri")
    assert found["day_1"].sources[1] == Source("infrared", tmp_path / "day" / "Infrared" / "1.png")
    assert {sample.task for sample in found.values()} == {"visible_infrared", "medical"}


def test_targets_are_found_and_optional(tmp_path: Path) -> None:
    for role in ("near", "far", "target"):
        picture(tmp_path / role / "a.png")
    picture(tmp_path / "near" / "b.png")
    picture(tmp_path / "far" / "b.png")
    targets = {sample.id: sample.target for sample in scan_folder(tmp_path)}
    assert targets == {"a": tmp_path / "target" / "a.png", "b": None}


def test_a_folder_without_samples_says_what_is_expected(tmp_path: Path) -> None:
    picture(tmp_path / "left" / "a.png")
    with pytest.raises(InputError, match="name the sub-folders"):
        scan_folder(tmp_path)
    picture(tmp_path / "visible" / "a.png")
    picture(tmp_path / "infrared" / "b.png")
    with pytest.raises(InputError, match="same name"):
        scan_folder(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        scan_folder(tmp_path / "absent")


def test_content_follows_bytes_roles_and_nothing_else(tmp_path: Path) -> None:
    a, b = picture(tmp_path / "a.png", 1), picture(tmp_path / "b.png", 2)
    sample = Sample("x", "visible_infrared", "test", (Source("visible", a), Source("infrared", b)))
    before = content_hash(sample)
    assert content_hash(replace(sample, id="y", split="train")) == before
    swapped = replace(sample, sources=(Source("visible", b), Source("infrared", a)))
    assert content_hash(swapped) != before
    assert content_hash(replace(sample, bits=11)) != before
    assert content_hash(replace(sample, target=a)) != before
    picture(a, 3)
    assert content_hash(sample) != before
    a.unlink()
    with pytest.raises(InputError, match="'x'"):
        content_hash(sample)


def test_every_tasks_roles_stand_in_source_order() -> None:
    for pairs in TASKS.values():
        for roles in pairs:
            assert [ROLES.index(role) for role in roles] == sorted(ROLES.index(role) for role in roles)


def test_all_real_samples_are_recognised(shared_data: Path) -> None:
    found = scan_folder(shared_data)
    counts = {task: sum(sample.task == task for sample in found) for task in TASKS}
    assert counts == {
        "visible_infrared": 83,
        "medical": 30,
        "multi_exposure": 12,
        "multi_focus": 10,
        "pansharpening": 12,
        "hyper_multispectral": 0,
    }

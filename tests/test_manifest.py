"""Manifests: what is written is read back, folders are recognised, mistakes name the row and the remedy."""

import pickle
from dataclasses import replace
from pathlib import Path

import h5py
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
        ("sample,task,split,bits,visible,infrared\na,visible_infrared,test,²,a,b\n", "bits '²'"),
        ("sample,task,split,visible,visible\na,visible_infrared,test,a,b\n", "'visible' is there twice"),
        ("sample,task,split,visible,infrared\n\n,,,,\na,visible_infrared,tst,a,b\n", "row 4: unknown split"),
        ("sample,task,split,visible,infrared\n\n,,,,\n", "lists no samples"),
    ],
)
def test_a_mistake_names_the_manifest_and_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_manifest(path, tmp_path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_what_spreadsheets_leave_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    rows = ["sample, task ,split,visible,infrared", "", "a,visible_infrared,test, 1.png,2.png", ",,,,", ""]
    path.write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    (sample,) = read_manifest(path, tmp_path)
    assert sample.roles == ("visible", "infrared")
    assert sample.sources[0].path == tmp_path / "1.png"


def test_a_missing_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="typer pipeline manifest"):
        read_manifest(tmp_path / "none.csv", tmp_path)


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(path)
    return path


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


def test_samples_of_a_stack_have_each_their_own_content(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 2048, (3, 4, 8, 8))
    samples = []
    for number in range(3):
        sources = tuple(Source(role, tmp_path / f"a.h5#group/{role}[{number}]") for role in ("pan", "ms"))
        samples.append(Sample(f"s{number}", "pansharpening", "train", sources, bits=11))

    def save() -> list[str]:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["group/pan"], file["group/ms"] = stack[:, :1], stack
        return [content_hash(sample) for sample in samples]

    before = save()
    assert len(set(before)) == 3
    stack[1, 2, 3, 4] += 1
    after = save()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    (tmp_path / "a.h5").write_text("no")
    with pytest.raises(InputError, match=r"a\.h5#group/pan\[0\]: cannot be read"):
        content_hash(samples[0])


def test_every_tasks_roles_stand_in_source_order() -> None:
    for pairs in TASKS.values():
        for roles in pairs:
            assert [ROLES.index(role) for role in roles] == sorted(ROLES.index(role) for role in roles)


def test_a_source_is_its_role_and_path_however_it_was_given() -> None:
    text, path = Source("visible", "a//b/1.png"), Source("visible", Path("a/b/1.png"))
    assert text == path
    assert hash(text) == hash(path)
    assert text.path == Path("a/b/1.png")
    assert pickle.loads(pickle.dumps(Source("visible", "a/b/1.png"))) == path
    assert text != Source("infrared", path.path)
    assert text != Source("visible", "a/b/2.png")


def test_paths_of_a_manifest_lie_below_the_root_unless_they_are_absolute(tmp_path: Path) -> None:
    table = tmp_path / "some.csv"
    table.write_text("sample,task,split,near,far,target\na,multi_focus,train,./x/1.png,/y/2.png,/z/3.png\n")
    (sample,) = read_manifest(table, Path("root"))
    assert [source.path for source in sample.sources] == [Path("root/x/1.png"), Path("/y/2.png")]
    assert sample.target == Path("/z/3.png")

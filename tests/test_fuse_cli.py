"""The command `fuse`: which samples it means, what it writes, how it ends."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from tiny_project import make_project, make_weights, masks_of, scene, text_of
from typer.testing import CliRunner

from model.cli import app
from model.inference import fuse as fuse_arrays
from model.inference import load_weights
from model.jobs import guess_task, ordered, role_of
from pipeline.errors import InputError
from pipeline.images import quantise, read_image, write_image


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    for task in ("visible_infrared", "pansharpening", "medical", "multi_focus"):
        make_weights(tmp_path / "runs/demo" / task / "weights.safetensors", task)
    monkeypatch.setattr("model.inference.SHIPPED", tmp_path / "shipped")
    return tmp_path


def fuse(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and everything printed, on one line per message."""
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["fuse", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_two_files(project: Path) -> None:
    code, said = fuse("data/visible/vi0.png", "data/infrared/vi0.png", "-o", "out/fused.png")
    assert code == 0
    assert "out/fused.png: visible_infrared (visible+infrared), unguided" in said
    fused = read_image(project / "out/fused.png")
    sources = [read_image(project / f"data/{role}/vi0.png").pixels for role in ("visible", "infrared")]
    expected = fuse_arrays(sources, load_weights("visible_infrared"))
    assert np.array_equal(quantise(fused.pixels, 8), quantise(expected, 8))
    assert fused.size == (24, 32)


def test_order_of_the_sources_follows_their_roles(project: Path) -> None:
    fuse("data/visible/vi0.png", "data/infrared/vi0.png", "-o", "a.png")
    fuse("data/infrared/vi0.png", "data/visible/vi0.png", "-o", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_folders_equal_single_files_and_name_what_has_no_partner(project: Path) -> None:
    (project / "data/infrared/vi7.png").unlink()
    code, said = fuse("data/visible", "data/infrared", "-o", "out")
    assert code == 0
    assert "no partner for data/visible/vi7.png" in said
    assert "7 fused, 0 skipped, 0 failed, 1 without a partner" in said
    fuse("data/visible/vi3.png", "data/infrared/vi3.png", "-o", "single.png")
    assert Path("single.png").read_bytes() == Path("out/vi3.png").read_bytes()
    code, said = fuse("data/visible", "data/infrared", "-o", "out")
    assert code == 0
    assert "0 fused, 7 skipped" in said


def test_a_data_set_with_its_guidance_and_every_task(project: Path) -> None:
    code, said = fuse("--dataset", "tiny", "--split", "test", "-o", "out")
    assert code == 0
    assert "out/vi6.png: visible_infrared (visible+infrared), guided by text and masks" in said
    assert "out/ps7.tif: pansharpening (pan+ms), guided by text and masks" in said
    assert "4 fused" in said
    sources = [read_image(project / f"data/{role}/vi6.png").pixels for role in ("visible", "infrared")]
    expected = fuse_arrays(
        sources, load_weights("visible_infrared"), text=text_of(6), masks=masks_of(6, (24, 32))
    )
    assert np.array_equal(quantise(read_image(project / "out/vi6.png").pixels, 8), quantise(expected, 8))
    assert tifffile.imread("out/ps7.tif").shape == (32, 32, 4)
    assert tifffile.imread("out/ps7.tif").dtype == np.uint16


def test_own_training_is_preferred_for_a_data_set(project: Path) -> None:
    own = make_weights(project / "runs/tiny/visible_infrared/weights.safetensors", "visible_infrared", seed=5)
    fuse("--dataset", "tiny", "--split", "test", "--task", "visible_infrared", "-o", "out")
    fuse(
        *("--dataset", "tiny", "--split", "test", "--task", "visible_infrared", "-o", "named"),
        *("--weights", str(own)),
    )
    assert Path("out/vi6.png").read_bytes() == Path("named/vi6.png").read_bytes()


def test_bit_depth_follows_the_inputs(project: Path) -> None:
    for name, seed in (("ct", 1), ("mri", 2)):
        write_image(project / f"{name}.png", scene(seed, 1, 20, 20), 16)
    code, said = fuse("ct.png", "mri.png", "-o", "fused.png")
    assert code == 0
    assert "medical (ct+mri)" in said
    assert np.asarray(Image.open("fused.png")).max() > 255
    for name, seed in (("ct", 1), ("mri", 2)):
        tifffile.imwrite(f"{name}.tif", scene(seed, 1, 20, 20)[0])
    assert fuse("ct.tif", "mri.tif", "-o", "fused.tif")[0] == 0
    assert tifffile.imread("fused.tif").dtype == np.float32


def test_three_sources(project: Path) -> None:
    for number in range(3):
        write_image(project / f"focus{number}.png", scene(number, 3, 20, 24))
    code, _ = fuse("focus0.png", "focus1.png", "focus2.png", "--task", "multi_focus", "-o", "fused.png")
    assert code == 0
    assert np.asarray(Image.open("fused.png")).shape == (20, 24, 3)


def test_an_existing_result_is_kept_unless_told(project: Path) -> None:
    arguments = ("data/visible/vi0.png", "data/infrared/vi0.png", "-o", "fused.png")
    Path("fused.png").write_bytes(b"precious")
    code, said = fuse(*arguments)
    assert code == 0
    assert "skipped (--overwrite to replace)" in said
    assert Path("fused.png").read_bytes() == b"precious"
    assert fuse(*arguments, "--overwrite")[0] == 0
    assert Path("fused.png").read_bytes() != b"precious"


@pytest.mark.parametrize("link", [False, True])
def test_an_input_is_never_overwritten(project: Path, link: bool) -> None:
    output = Path("data/visible/vi0.png")
    before = output.read_bytes()
    if link:
        Path("link.png").symlink_to(output)
        output = Path("link.png")
    code, said = fuse("data/visible/vi0.png", "data/infrared/vi0.png", "-o", output, "--overwrite")
    assert code == 2
    assert "is the visible source" in said
    assert Path("data/visible/vi0.png").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data/visible/vi0.png", "-o", "x.png"], "at least two files"),
        (["data/visible/vi0.png", "absent.png", "-o", "x.png"], "absent.png: no such file"),
        (["data/visible", "data/infrared/vi0.png", "-o", "x"], "only files or only folders"),
        (["data/visible", "data/pan", "-o", "x"], "no file name occurs in all of"),
        (["data/visible", "data/infrared", "-o", "x.png"], "-o must be a folder"),
        (["a.png", "b.png", "-o", "x.png"], "cannot tell the task.*--task"),
        (["a.png", "b.png", "-o", "x.png", "--task", "multifocus"], "Did you mean 'multi_focus'"),
        (
            ["a.png", "b.png", "-o", "x.png", "--task", "multi_exposure"],
            "no weights for 'multi_exposure' yet",
        ),
        (
            ["a.png", "b.png", "-o", "x.png", "--task", "medical", "--weights", "multi_focus"],
            "are of task medical",
        ),
        (["a.png", "b.png", "-o", "x.gif", "--task", "medical"], "cannot write '.gif'"),
        (["a.png", "c.png", "-o", "x.png", "--task", "medical"], "16x20.*register and resize"),
        (["a.png", "broken.png", "-o", "x.png", "--task", "medical"], "broken.png: cannot be read"),
        (["--dataset", "tinny", "-o", "x"], "Did you mean 'tiny'"),
        (["--dataset", "tiny", "-o", "x", "--split", "tests"], "Did you mean 'test'"),
        (
            ["--dataset", "tiny", "-o", "x", "--task", "medical"],
            "no sample has split 'any' and task 'medical'",
        ),
        (["--dataset", "tiny", "a.png", "b.png", "-o", "x"], "either"),
        (["a.png", "b.png", "-o", "x.png", "--split", "test"], "--split selects from a data set"),
        (["-o", "x"], "either"),
        (["a.png", "b.png", "-o", "b.png/x.png", "--task", "medical"], r"\(b.png\).*give another path"),
        (["data/visible", "data/infrared", "-o", "a.txt"], "give another path"),
        (["data/visible", "data/empty", "-o", "x"], "no file name occurs in all of"),
        (["a.png", "animated.png", "-o", "x.png", "--task", "medical"], "animated.png: is an animation"),
        (["a.png", "text.gif", "-o", "x.png", "--task", "medical"], "'.gif' is not a supported"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(project: Path, arguments: list[str], message: str) -> None:
    for name, size in (("a", (16, 16)), ("b", (16, 16)), ("c", (16, 20))):
        write_image(project / f"{name}.png", scene(1, 1, *size))
    (project / "broken.png").write_bytes(b"not an image")
    (project / "text.gif").write_bytes(b"GIF89a")
    (project / "a.txt").write_text("a file")
    (project / "data" / "empty").mkdir()
    frames = [Image.new("L", (16, 16), grey) for grey in (0, 200)]
    frames[0].save(project / "animated.png", "GIF", save_all=True, append_images=frames[1:])
    code, said = fuse(*arguments)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert not Path("x.png").exists()
    assert not list(project.rglob("*.tmp"))


def test_failing_samples_are_named_and_the_others_fused(project: Path) -> None:
    (project / "data/infrared/vi1.png").write_bytes(b"not an image")
    write_image(project / "data/infrared/vi2.png", scene(0, 1, 10, 10))
    code, said = fuse("data/visible", "data/infrared", "-o", "out")
    assert code == 1
    assert "6 fused, 0 skipped, 2 failed" in said
    assert "failed vi1: data/infrared/vi1.png" in said
    assert "failed vi2: sample 'vi2': visible is 24x32 but infrared is 10x10" in said
    assert sorted(path.name for path in Path("out").iterdir()) == [f"vi{n}.png" for n in (0, 3, 4, 5, 6, 7)]


def test_text_of_an_encoder_that_the_weights_never_saw_is_left_out(project: Path) -> None:
    arguments = ("--dataset", "tiny", "--split", "test", "--task", "visible_infrared", "-o")
    weights = make_weights(project / "known.safetensors", "visible_infrared")
    record = json.loads(weights.with_suffix(".json").read_text())
    fuse(*arguments, "with_text", "--weights", str(weights))
    weights.with_suffix(".json").write_text(json.dumps(record | {"text_encoder": "t5-small"}))
    code, said = fuse(*arguments, "without", "--weights", str(weights))
    assert code == 0
    assert "guided by masks (not by text: the weights know t5-small" in said
    image = next(Path("without").iterdir()).name
    assert (project / "without" / image).read_bytes() != (project / "with_text" / image).read_bytes()


def test_stale_guidance_is_not_used(project: Path) -> None:
    write_image(project / "data/visible/vi6.png", scene(50, 3, 24, 32))
    code, said = fuse("--dataset", "tiny", "--split", "test", "--task", "visible_infrared", "-o", "out")
    assert code == 1
    assert "sample 'vi6' has changed since its guidance was made" in said


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("data/ir/0001.png", "infrared"),
        ("MSRS/Vis/0001.png", "visible"),
        ("ct_mri/mri/1.png", "mri"),
        ("scene_over.jpg", "over"),
        ("pan_ms/1.png", None),
        ("first.png", None),
        ("x/thermal-07.png", "infrared"),
    ],
)
def test_roles_told_by_names(name: str, role: str | None) -> None:
    assert role_of(Path(name)) == role


def test_tasks_told_by_the_images(tmp_path: Path) -> None:
    images = {
        "colour.png": scene(1, 3, 16, 16),
        "plain.png": scene(2, 1, 16, 16),
        "fine.tif": scene(3, 1, 32, 32),
        "coarse.tif": scene(4, 4, 8, 8),
        "fine3.tif": scene(5, 4, 32, 32),
        "coarse31.tif": scene(6, 31, 8, 8),
    }
    for name, pixels in images.items():
        write_image(tmp_path / name, pixels)

    def told(*names: str) -> str:
        return guess_task([tmp_path / name for name in names])

    assert told("plain.png", "colour.png") == "visible_infrared"
    assert told("coarse.tif", "fine.tif") == "pansharpening"
    assert told("fine3.tif", "coarse31.tif") == "hyper_multispectral"
    with pytest.raises(InputError, match="cannot tell the task"):
        told("plain.png", "plain.png")
    sources = ordered([tmp_path / "coarse.tif", tmp_path / "fine.tif"], "pansharpening")
    assert [(source.role, source.path.name) for source in sources] == [
        ("pan", "fine.tif"),
        ("ms", "coarse.tif"),
    ]


def test_interrupt_keeps_finished_images_and_ends_with_130(project: Path) -> None:
    """The process is interrupted while it works through many samples; running it again does the rest."""
    for number in range(60):
        shutil.copy("data/visible/vi0.png", f"data/visible/more{number}.png")
        shutil.copy("data/infrared/vi0.png", f"data/infrared/more{number}.png")
    command = [sys.executable, "-m", "model", "fuse", "data/visible", "data/infrared", "-o", "out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not list(Path("out").glob("*.png")):
        time.sleep(0.002)
    process.send_signal(2)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130
    assert errors.startswith("error: interrupted")
    assert "Traceback" not in errors
    done = list(Path("out").glob("*.png"))
    assert 0 < len(done) < 68
    assert all(read_image(path).size == (24, 32) for path in done)
    assert not list(Path("out").glob("*.tmp"))
    code, said = fuse("data/visible", "data/infrared", "-o", "out")
    assert code == 0
    assert f"{68 - len(done)} fused, {len(done)} skipped" in said


def test_help_answers_without_loading_torch() -> None:
    probe = "import sys, model.cli; print([m for m in ('torch', 'zarr', 'numba') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_fusing_loads_nothing_that_it_does_not_need(project: Path) -> None:
    """Each of these would cost between 0.3 and 3 seconds before the first fused image."""
    probe = (
        "import sys; from model.fusing import run_jobs; from model.jobs import jobs_of_paths; "
        "from pathlib import Path; "
        "run_jobs(jobs_of_paths([Path('data/visible/vi0.png'), Path('data/infrared/vi0.png')], "
        "Path('x.png'), None)[0]); "
        "slow = ('torch._dynamo', 'sympy', 'zarr', 'dask', 'transformers', 'torchvision', 'rasterio'); "
        "print([name for name in slow if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert Path("x.png").is_file()
    assert result.stdout.splitlines()[-1] == "[]"


def test_real_pairs(project: Path, shared_data: Path) -> None:
    """A pair of each kind, straight from its folder, with the task told by the folders' names."""
    folders = {
        "visible_infrared": sorted(shared_data.glob("visible_infrared/*/visible"))[:1],
        "medical": sorted(shared_data.glob("medical/*/mri")),
    }
    for task, found in folders.items():
        for folder in found:
            partner = next(
                other for other in sorted(folder.parent.iterdir()) if other != folder and other.is_dir()
            )
            first = sorted(folder.iterdir())[0]
            second = next(path for path in sorted(partner.iterdir()) if path.stem == first.stem)
            output = project / f"{folder.parent.name}.png"
            code, said = fuse(first, second, "-o", output)
            assert code == 0, said
            assert task in said
            assert read_image(output).size == read_image(first).size


def test_the_process_ends_with_its_code_and_all_it_said(project: Path) -> None:
    """It ends without taking Python apart: nothing may be lost on the way."""
    command = [sys.executable, "-m", "model", "fuse", "data/visible", "data/infrared", "-o"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    weights = ["--weights", "runs/demo/visible_infrared/weights.safetensors"]
    for output, code, line in (
        ("out", 0, "8 fused, 0 skipped, 0 failed"),
        ("out.png", 2, "must be a folder"),
    ):
        ended = subprocess.run(
            [*command, output, *weights], env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == code, ended.stderr
        assert line in ended.stdout + ended.stderr
    assert len(list(Path("out").iterdir())) == 8
    # Nobody listens, or a terminal that does not know the letters of a name.
    Path("out").rename("öut")
    command = [*command, "öut", *weights]
    environment["PYTHONIOENCODING"] = "ascii"
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\\xf6ut" in ended.stdout
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    ended = subprocess.run(closed, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")

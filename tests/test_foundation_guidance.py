"""All five stages with the foundation backends and tiny random checkpoints, by the documented commands."""

import sys
from pathlib import Path

import fake_backends
import numpy as np
import pytest
import yaml
from conftest import Workspace
from typer.testing import CliRunner

from pipeline import florence2_words, groundingdino_boxes
from pipeline.cli import app
from pipeline.store import Caption, MergedMasks, SampleInstances, Text, open_store

SECTIONS: dict[str, dict] = {
    "captions": {"backend": "florence2", "beams": 1, "max_new_tokens": 4},
    "texts": {"backend": "t5"},
    "boxes": {"backend": "groundingdino", "threshold": 0.0, "text_threshold": 0.0, "max_boxes": 5},
    "masks": {"backend": "sam"},
    "merge": {"min_score": 0.0, "min_predicted_iou": 0.0},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two samples of two sources, and the foundation backends in params.yaml; no checkpoint in the cache."""
    monkeypatch.chdir(tmp_path)
    for variable in ("RWKVFUSION_WEIGHTS", "RWKVFUSION_DEVICE"):
        monkeypatch.setenv(variable, "")  # the command line sets them; undone after the test
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(florence2_words, "OBJECT_TOKENS", 20)
    monkeypatch.setattr(groundingdino_boxes, "SHORT_SIDE", 64)
    fake_backends.make_dataset(tmp_path, [(48, 64), (48, 64)])
    write_params()
    return tmp_path


def write_params(masks: str = "prompt", **sections: dict) -> None:
    prompt = ["people", "car"] if masks == "prompt" else []
    data = {"manifest": "mini.csv", "root": "images", "masks": masks, "prompt": prompt}
    merged = {name: {**values, **sections.get(name, {})} for name, values in SECTIONS.items()}
    Path("params.yaml").write_text(yaml.safe_dump({"datasets": {"mini": data}, **merged}))


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def get(kind: str, sample: str) -> object:
    return open_store(Path(f"guidance/mini/{kind}.zarr")).get(sample)


def identity(kind: str) -> str:
    return str(open_store(Path(f"guidance/mini/{kind}.zarr")).config["identity"])


def test_guidance_from_foundation_models(project: Path, tiny_checkpoints: Path) -> None:
    options = ("--dataset", "mini", "--weights", str(tiny_checkpoints), "--device", "cpu")
    code, output = run("guidance", *options)
    assert code == 0, output
    for name in ("s000", "s001"):
        caption, text, found, merged = (get(kind, name) for kind in ("captions", "texts", "masks", "merged"))
        assert isinstance(caption, Caption)
        assert isinstance(text, Text)
        assert isinstance(found, SampleInstances)
        assert isinstance(merged, MergedMasks)
        assert caption.text.startswith("visible: ")
        assert text.features.shape[1] == 512
        assert np.isfinite(text.features).all()
        assert all({*source.label} <= {"person", "car"} and len(source) == 5 for source in found.sources)
        assert all(source.mask is not None and source.mask.shape == (5, 48, 64) for source in found.sources)
        assert merged.mask.any()
    assert identity("captions").startswith("florence-community/Florence-2-base@00921df66db7 sha256:")
    assert identity("texts").startswith("google-t5/t5-small@df1b051c4962 sha256:")
    assert identity("masks").startswith("ybelkada/segment-anything@main sha256:")
    code, output = run("guidance", *options)
    assert code == 0
    assert output.count("2 samples up to date") == 5

    # An automatic prompt and the other detector change the boxes.
    write_params(masks="auto", boxes={"backend": "transformers"})
    code, output = run("boxes", *options)
    assert code == 0, output
    assert "all samples are computed again" in output
    assert "IDEA-Research/grounding-dino-tiny@a2bb814dd30d sha256:" in identity("boxes")
    assert "<OD> of florence-community/Florence-2-base@00921df66db7 sha256:" in identity("boxes")
    write_params(masks="auto", boxes={"backend": "transformers", "words_are": "phrases"})
    code, output = run("boxes", *options)
    assert code == 0, output
    assert "words_are changed from objects to phrases" in output
    assert "<CAPTION_TO_PHRASE_GROUNDING> of <DETAILED_CAPTION> of florence-" in identity("boxes")

    # A sample that cannot be read costs only itself.
    (project / "images/visible/s001.png").write_bytes(b"no picture")
    code, output = run("captions", *options)
    assert code == 1
    assert "images/visible/s001.png" in output


def test_a_missing_checkpoint_says_what_to_run(project: Path, tiny_checkpoints: Path) -> None:
    code, output = run("guidance", "--dataset", "mini")
    assert code == 2
    folder = project / "cache/rwkvfusion/weights/florence2-base"
    command = "python -m pipeline weights fetch florence2-base"
    assert output.startswith(f"error: {folder}: has no model.safetensors; run `{command}`")
    assert not Path("guidance").exists(), "nothing is begun that cannot be finished"
    assert run("masks", "--dataset", "mini", "--weights", "nowhere") == (
        2,
        "error: --weights nowhere: no such folder\n",
    )
    partial = project / "weights"
    partial.mkdir()
    for name in ("florence2-base", "t5-small", "groundingdino-swint"):
        (partial / name).symlink_to(tiny_checkpoints / name)
    code, output = run("guidance", "--dataset", "mini", "--weights", str(partial))
    assert code == 2
    assert "weights fetch sam-vit-b" in output
    assert not Path("guidance").exists()


def test_a_device_that_is_not_there(project: Path, tiny_checkpoints: Path) -> None:
    weights = ("--weights", str(tiny_checkpoints))
    code, output = run("captions", "--dataset", "mini", *weights, "--device", "cuda:77")
    assert code == 2, output
    assert "error: --device 'cuda:77': there are" in output


def test_a_damaged_checkpoint_ends_the_run_at_once(project: Path, tiny_checkpoints: Path) -> None:
    folder = project / "weights/florence2-base"
    folder.mkdir(parents=True)
    for file in (tiny_checkpoints / "florence2-base").iterdir():
        (folder / file.name).write_bytes(file.read_bytes()[: 100 if file.suffix == ".safetensors" else None])
    code, output = run("captions", "--dataset", "mini", "--weights", str(project / "weights"))
    assert code == 2, output
    assert f"error: {folder}: cannot be loaded as florence2-base" in output
    assert output.count("cannot be loaded") == 1
    assert not list(Path("guidance/mini").glob("*errors.csv")), "no sample is to blame"


@pytest.mark.slow
def test_typer_on_real_images(workspace: Workspace, shared_data: Path, tiny_checkpoints: Path) -> None:
    """The command as documented, on a real pair of visible and infrared images."""
    source = shared_data / "visible_infrared" / "msrs"
    for role in ("visible", "infrared"):
        (workspace.path / "mine" / role).mkdir(parents=True)
        file = sorted((source / role).iterdir())[0]
        (workspace.path / "mine" / role / file.name).symlink_to(file)
    python = str(Path(sys.executable))
    workspace.run(python, "-m", "pipeline", "manifest", "mine", "--dataset", "mine")
    params = yaml.safe_load((workspace.path / "params.yaml").read_text())
    for name, values in SECTIONS.items():
        params[name].update(values)
    params["boxes"]["backend"] = "transformers"  # its tiny checkpoint sees small pictures
    params["datasets"]["mine"].update(masks="prompt", prompt=["person", "car"])
    (workspace.path / "params.yaml").write_text(yaml.safe_dump(params))
    typer = str(Path(sys.executable).with_name("typer"))
    weights = ("--weights", str(tiny_checkpoints))
    result = workspace.run(typer, "pipeline", "guidance", "--dataset", "mine", *weights)
    assert "guidance of mine" in result.stdout
    assert "masks: 1 sample in" in result.stdout

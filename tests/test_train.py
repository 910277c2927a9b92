"""Training: bit-identical after any break, started anew by any change, and its errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from tiny_project import make_project

from model.batches import collate
from model.checkpoint import list_checkpoints
from model.config import TrainConfig, load_config
from model.inference import load_weights
from model.preparation import prepare
from model.run import trained_on
from model.train import Trainer, drop_guidance, learning_rate, train
from model.watch import forget_after
from pipeline.errors import InputError

RUN = Path("runs/tiny/visible_infrared")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    return tmp_path


def trained(task: str = "visible_infrared") -> tuple[dict[str, torch.Tensor], str]:
    """Train; return the weights and what was printed."""
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    path = train("tiny", task, device="cpu", console=console)
    return load_file(path), console.export_text()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("task", ["visible_infrared", "pansharpening"])
def test_training_changes_weights_and_keeps_a_record(project: Path, task: str) -> None:
    weights, _ = trained(task)
    assert any(value.abs().sum() > 0 for name, value in weights.items() if name.startswith("head"))
    folder = project / "runs" / "tiny" / task
    record = json.loads((folder / "weights.json").read_text())
    assert record["task"] == task
    assert record["train_samples"] == [f"{'vi' if task == 'visible_infrared' else 'ps'}{n}" for n in range(5)]
    assert len(record["validation_samples"]) == 1
    assert set(record["metrics"]) >= {"loss", "PSNR" if task == "pansharpening" else "Qabf"}
    assert record["model"]["in_channels"] == ([1, 4] if task == "pansharpening" else [1, 1])
    assert record["facts"]["store of texts"] == "texts-1"
    assert load_weights(folder / "weights.safetensors").task == task
    curve = (folder / "dvclive/plots/metrics/validation/loss.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in curve] == ["step", "2", "4", "6"]
    assert len(list_checkpoints(folder / "checkpoints")) == 2


def test_a_finished_run_is_up_to_date(project: Path) -> None:
    trained()
    before = (RUN / "weights.json").stat().st_mtime_ns
    _, said = trained()
    assert "up to date" in said
    assert (RUN / "weights.json").stat().st_mtime_ns == before


def test_a_change_of_parameters_or_data_starts_anew_and_says_why(project: Path) -> None:
    trained()
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("batch: 2", "batch: 3"))
    _, said = trained()
    assert "anew because train.batch was 2 and is 3" in said
    from tiny_project import scene

    from pipeline.images import write_image

    write_image(project / "data/visible/vi2.png", scene(77, 3, 24, 32))
    with pytest.raises(InputError, match="'vi2' has changed since its texts were made"):
        trained()
    params.write_text(params.read_text().replace("width: 4", "width: 4\n  guidance: none"))
    _, said = trained()
    assert "1 samples changed (vi2" in said
    assert "model.guidance was both and is none" in said


def test_resumed_equals_uninterrupted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by an error after step 5 (last checkpoint: 4), then run again."""
    whole, _ = trained()
    (RUN / "weights.safetensors").unlink()
    (RUN / "weights.json").unlink()
    for path in list_checkpoints(RUN / "checkpoints"):
        path.unlink()
    update = Trainer.update

    def dies(self: Trainer, *arguments: object) -> object:
        if self.step == 5:
            raise RuntimeError("power failure")
        return update(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "update", dies)
    with pytest.raises(RuntimeError, match="power failure"):
        trained()
    monkeypatch.setattr(Trainer, "update", update)
    resumed, said = trained()
    assert "going on from step 4" in said
    assert same(whole, resumed)
    curve = (RUN / "dvclive/plots/metrics/validation/loss.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in curve] == ["step", "2", "4", "6"]


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9, wherever it hits, in a process of its own; then the weights of an undisturbed run."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        make_project(tmp_path / name, steps=30)
    monkeypatch.chdir(tmp_path / "whole")
    whole, _ = trained()
    monkeypatch.chdir(tmp_path / "killed")
    command = [sys.executable, "-m", "model", "train", "--task", "visible_infrared", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (
        time.monotonic() < deadline and process.poll() is None and not list_checkpoints(RUN / "checkpoints")
    ):
        time.sleep(0.005)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list_checkpoints(RUN / "checkpoints")
    assert not (RUN / "weights.json").exists()
    again, said = trained()
    assert "going on from step" in said
    assert same(whole, again)


def test_interrupt_saves_after_the_current_step(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Trainer.update

    def interrupted(self: Trainer, *arguments: object) -> object:
        if self.step == 1:
            signal.raise_signal(signal.SIGINT)
        return update(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained()
    assert list_checkpoints(RUN / "checkpoints")[0].name.startswith("step-00000003-")
    monkeypatch.setattr(Trainer, "update", update)
    _, said = trained()
    assert "going on from step 3" in said


def test_a_loss_that_is_not_finite_names_samples_and_checkpoint(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Trainer.losses

    def broken(self: Trainer, *arguments: object) -> dict[str, torch.Tensor]:
        parts = losses(self, *arguments)  # type: ignore[arg-type]
        return {name: value * (float("nan") if self.step == 3 else 1) for name, value in parts.items()}

    monkeypatch.setattr(Trainer, "losses", broken)
    with pytest.raises(
        InputError, match=r"step 3 \(samples vi\d, vi\d\); last good checkpoint: .*step-00000002-"
    ):
        trained()
    assert not (RUN / "weights.safetensors").exists()


def given_weights(project: Path) -> Path:
    """Weights of a finished run, moved out of its folder."""
    trained()
    return (project / RUN).rename(project / "given") / "weights.safetensors"


def change(project: Path, section: str, **values: object) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params[section] |= values
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def test_training_goes_on_from_given_weights(project: Path) -> None:
    given = given_weights(project)
    change(project, "train", start=str(given), lr=1e-9, ema=0.0)
    weights, printed = trained()
    assert f"from {given}" in printed
    for name, value in load_file(given).items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)
    record = json.loads((project / RUN / "weights.json").read_text())
    before = json.loads(given.with_suffix(".json").read_text())
    assert record["start"] == before
    assert record["facts"]["start"] == before["sha256"]
    assert "up to date" in trained()[1]
    samples = load_config().dataset("tiny").samples()
    grown = {"facts": {}, "start": {"facts": {}, "start": before}}
    assert trained_on(grown, samples) == trained_on(before, samples) != []


def test_weights_that_cannot_be_started_from(project: Path) -> None:
    change(project, "train", start="absent.safetensors")
    with pytest.raises(InputError, match=r"absent\.json: cannot be read"):
        trained()
    change(project, "train", start="")
    change(project, "train", start=str(given_weights(project)))
    change(project, "model", width=8)
    with pytest.raises(InputError, match=r"weights of another network \(width 4 against 8\)"):
        trained()


def test_learning_rate_warms_up_and_falls_to_one_percent() -> None:
    config = TrainConfig(steps=110, warmup_steps=10, lr=0.5)
    rates = [learning_rate(step, config) for step in range(110)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[9] == pytest.approx(0.5)
    assert max(rates) == pytest.approx(0.5)
    assert rates[60] == pytest.approx(0.5 * (0.01 + 0.99 * 0.5))
    assert rates[-1] == pytest.approx(0.005, rel=0.05)


def test_guidance_is_dropped_independently_at_the_given_rates(project: Path) -> None:
    run = prepare(load_config().for_task("visible_infrared"))
    batch = collate([run.training[0][0], run.training[0][1]])
    config = TrainConfig(text_dropout=0.5, mask_dropout=0.2)
    kept = [drop_guidance(batch, step, config) for step in range(2000)]
    text = [b.text is None for b in kept]
    masks = [b.masks is None for b in kept]
    both = [first and second for first, second in zip(text, masks, strict=True)]
    assert sum(text) / 2000 == pytest.approx(0.5, abs=0.04)
    assert sum(masks) / 2000 == pytest.approx(0.2, abs=0.04)
    assert sum(both) / 2000 == pytest.approx(0.1, abs=0.03)
    assert all((b.text is None) == (b.text_length is None) for b in kept)


def test_training_reduces_the_loss(project: Path) -> None:
    params = project / "params.yaml"
    params.write_text(
        params.read_text().replace("steps: 6", "steps: 60").replace("validate_every: 2", "validate_every: 60")
    )
    trained()
    lines = (RUN / "dvclive/plots/metrics/train/loss.tsv").read_text().splitlines()[1:]
    losses = [float(line.split("\t")[1]) for line in lines]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("task", "dataset", "message"),
    [
        ("visible-infrared", "tiny", "Did you mean 'visible_infrared'"),
        ("visible_infrared", "tinny", "Did you mean 'tiny'"),
        ("medical", "tiny", "no sample of task 'medical' has split 'train'"),
    ],
)
def test_names_that_are_not_known(project: Path, task: str, dataset: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(dataset, task)


def test_missing_guidance_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, guidance=False)
    with pytest.raises(
        InputError, match=r"no texts yet.*typer pipeline guidance --dataset tiny.*model.guidance: none"
    ):
        train("tiny", "visible_infrared")


def test_unusable_device_is_explained(project: Path) -> None:
    with pytest.raises(InputError, match=r"device 'gpu' cannot be used here.*--device cpu"):
        train("tiny", "visible_infrared", device="gpu")


def test_validation_does_not_disturb_training(project: Path) -> None:
    with_validation, _ = trained()
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("validate_every: 2", "validate_every: 6"))
    without, _ = trained()
    assert same(with_validation, without)


def test_curves_forget_what_will_be_done_again(tmp_path: Path) -> None:
    curve = tmp_path / "plots/metrics/train/loss.tsv"
    curve.parent.mkdir(parents=True)
    curve.write_text("step\tloss\n10\t3.0\n20\t2.0\n30\t1.0\n")
    forget_after(tmp_path, 20)
    assert curve.read_text() == "step\tloss\n10\t3.0\n20\t2.0\n"

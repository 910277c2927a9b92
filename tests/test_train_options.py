"""What can be set about training beside its data: each option does what it says, and nothing else."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from tiny_project import make_project

import model.train
from model.checkpoint import list_checkpoints
from model.config import load_config
from model.describe import describe_weights
from model.preparation import prepare
from model.processes import Processes
from model.record import training_time
from model.train import Trainer, train
from model.validation import Best
from pipeline.errors import InputError
from pipeline.images import write_image

TASK = "visible_infrared"
RUN = Path("runs/tiny") / TASK


def project(root: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    root.mkdir(exist_ok=True)
    monkeypatch.chdir(root)
    make_project(root, **settings)


def trained(task: str = TASK, **options: object) -> tuple[dict[str, torch.Tensor], str]:
    """Train; return the weights and what was printed."""
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    path = train("tiny", task, device="cpu", console=console, **options)  # type: ignore[arg-type]
    return load_file(path), console.export_text()


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_parts_of_a_batch_add_up_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for parts in (1, 2, 4):
        project(tmp_path / str(parts), monkeypatch, batch=4, accumulate=parts, mask_dropout=0)
        weights.append(trained()[0])
    assert distance(weights[0], weights[1]) < 1e-5
    assert distance(weights[0], weights[2]) < 1e-5


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process takes 4 samples a step, each of two takes 2: the same weights within rounding."""
    project(tmp_path / "one", monkeypatch, batch=4)
    one, _ = trained()
    project(tmp_path / "two", monkeypatch, batch=4)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = "-m torch.distributed.run --standalone --nproc-per-node 2 -m model train --device cpu --task"
    result = subprocess.run(
        [sys.executable, *command.split(), TASK], env=environment, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("wrote runs/tiny") == 1  # one of them speaks
    assert distance(one, load_file(RUN / "weights.safetensors")) < 1e-5
    facts = [json.loads((tmp_path / n / RUN / "weights.json").read_text()) for n in ("one", "two")]
    assert facts[0]["facts"] == facts[1]["facts"]
    assert facts[0]["metrics"] == pytest.approx(facts[1]["metrics"], abs=1e-4)


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, monkeypatch, batch=4)
    run = prepare(load_config().for_task(TASK))
    with pytest.raises(InputError, match=r"batch 4 cannot be divided among 3 processes.*multiple of 3"):
        Trainer(run, Processes(torch.device("cpu"), 0, 3))
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["train"]["accumulate"] = 3
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(InputError, match="4 cannot be taken in 3 equal parts"):
        load_config()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_nearly_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    losses = {}
    for name in ("float32", precision):
        project(tmp_path / name, monkeypatch, precision=name)
        weights, _ = trained()
        assert all(value.dtype == torch.float32 for value in weights.values())
        lines = (RUN / "dvclive/plots/metrics/validation/loss.tsv").read_text().splitlines()[1:]
        losses[name] = [float(line.split("\t")[1]) for line in lines]
    assert losses[precision] == pytest.approx(losses["float32"], rel=0.02)
    assert losses[precision] != losses["float32"]


def test_overflow_of_a_scaled_gradient_lowers_the_scale_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, monkeypatch, precision="float16")
    trainer = Trainer(prepare(load_config().for_task(TASK)), Processes(torch.device("cpu")))
    batch = next(trainer.batches())
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    weight = trainer.network.head.weight
    handle = weight.register_hook(lambda gradient: gradient * float("inf"))
    scale = trainer.scaler.get_scale()
    trainer.update(batch)
    assert trainer.scaler.get_scale() == scale / 2
    assert distance(before, trainer.network.state_dict()) == 0
    while trainer.scaler.get_scale() > model.train.SMALLEST_SCALE:
        trainer.update(batch)
    with pytest.raises(InputError, match="not finite at step"):
        trainer.update(batch)
    handle.remove()


def falling(values: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let validations give these losses, one after another."""
    given = iter(values.values())
    monkeypatch.setattr(model.train, "validate", lambda *arguments: {"loss": next(given)})


def test_training_stops_when_nothing_gets_better_and_keeps_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path / "long", monkeypatch, steps=20, best_metric="loss", patience=2)
    falling({2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5, 10: 0.1}, monkeypatch)
    best, said = trained()
    record = json.loads((RUN / "weights.json").read_text())
    assert (record["step"], record["metrics"]) == (4, {"loss": 1.0})
    assert "no better loss since step 4" in said
    saved = list_checkpoints(RUN / "checkpoints")
    assert [path.name[:13] for path in saved] == ["step-00000008", "step-00000006"]
    state = torch.load(saved[0], weights_only=True)
    assert distance(best, state["best"]["weights"]) == 0
    assert distance(best, state["average"]) > 0
    (RUN / "weights.json").unlink()  # killed just before the end
    again, said = trained()
    assert "going on from step 8" in said
    assert distance(best, again) == 0


def test_the_best_is_the_lowest_loss_and_the_highest_of_all_else() -> None:
    weights = {"w": torch.zeros(1)}
    for metric, values, expected in (("loss", [3, 1, 2], 1), ("PSNR", [3, 1, 4, 4], 2), ("", [3, 1, 2], 2)):
        best = Best(metric)
        for step, value in enumerate(values):
            best.take(step, {metric or "loss": float(value)}, {"w": weights["w"] + step})
        assert best.chosen({"w": weights["w"] + len(values) - 1}, len(values) - 1)[2] == expected
    with pytest.raises(InputError, match=r"PSNR is not measured in this task; choose one of loss, Qabf"):
        Best("PSNR").take(1, {"Qabf": 1.0, "loss": 2.0}, weights)
    with pytest.raises(
        InputError, match=r"Qabf is not measured for these validation samples; choose .* loss$"
    ):
        Best("Qabf").take(1, {"Qabf": float("nan"), "loss": 2.0}, weights)


def test_a_black_validation_sample_is_left_out_of_the_figures_it_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, monkeypatch, best_metric="Qabf", steps=2)
    alone = json.loads(trained_record())["metrics"]
    rows = Path("tiny.csv").read_text().splitlines(keepends=True)
    (row,) = [row for row in rows if row.startswith("vi5,")]
    for folder in ("visible", "infrared"):
        write_image(Path("data", folder, "black.png"), np.zeros((1, 24, 32), np.float32))
    Path("tiny.csv").write_text("".join([*rows, row.replace("vi5", "black")]))
    both = json.loads(trained_record())["metrics"]
    assert both["Qabf"] == pytest.approx(alone["Qabf"], rel=1e-6)
    assert both["loss"] < alone["loss"]
    Path("tiny.csv").write_text("".join(row for row in rows if ",validation," not in row))
    with pytest.raises(InputError, match=r"no sample of task 'visible_infrared' with split 'validation'"):
        trained()


def trained_record() -> str:
    trained()
    return (RUN / "weights.json").read_text()


def test_too_little_memory_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, monkeypatch)

    def hungry(self: Trainer, *arguments: object) -> dict[str, torch.Tensor]:
        return {"loss": torch.empty(2**58)}

    monkeypatch.setattr(Trainer, "losses", hungry)
    with pytest.raises(InputError, match=r"not enough memory; lower train.batch or train.crop"):
        trained()


def test_a_repetition_is_byte_for_byte_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC then finds nothing changed: when and how long was trained stands beside the folder."""
    contents = []
    for name in ("first", "second"):
        project(tmp_path / name, monkeypatch)
        trained(workers=int(name == "second"), cache="disk" if name == "second" else "memory")
        files = sorted(path for path in RUN.rglob("*") if path.is_file())
        contents.append({str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
        record = json.loads((RUN / "weights.json").read_text())
        seconds, finished = training_time(RUN / "weights.safetensors", record) or (0, "")
        assert seconds > 0
        assert finished[:2] == "20"
        told = describe_weights(str(RUN / "weights.safetensors"))
        assert f"5 samples (1 for validation), 6 steps of 2 crops of 16, seed 0, {seconds:.0f} s, 20" in told
    assert contents[0] == contents[1]
    names = " ".join(contents[0])
    assert all(part in names for part in ("validation/loss.tsv", "vi5/6.png", "checkpoints/step-00000006"))
    assert set(record["environment"]) == {"python", "torch", "numpy", "numba", "machine", "device"}


def test_data_sets_are_mixed_by_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, monkeypatch, mix={"other": 3.0}, batch=4)
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["datasets"]["other"] = dict(params["datasets"]["tiny"])
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(InputError, match="data set 'other' has no texts yet"):
        trained()
    Path("guidance/other").symlink_to(Path("guidance/tiny").resolve())
    seen: list[str] = []
    update = Trainer.update

    def counted(self: Trainer, batch: object, *arguments: object) -> object:
        seen.extend(f"{key}" for key in batch.ids)  # type: ignore[attr-defined]
        return update(self, batch, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "update", counted)
    trained()
    record = json.loads((RUN / "weights.json").read_text())
    assert record["train_samples"] == [f"{where}vi{n}" for where in ("", "other/") for n in range(5)]
    assert record["facts"]["train.mix"] == "{'other': 3.0}"
    assert "on data set tiny + other, " in describe_weights(str(RUN / "weights.safetensors"))
    assert record["facts"]["store of other/texts"] == "texts-1"
    assert len(seen) == 24
    params["model"]["guidance"] = "none"
    params["datasets"]["other"]["manifest"] = "other.csv"
    table = Path("tiny.csv").read_text().replace("visible/vi", "infrared/vi")
    Path("other.csv").write_text(table)
    Path("params.yaml").write_text(yaml.safe_dump(params))
    trained()  # grey instead of colour is luminance all the same
    params["train"]["task"] = "pansharpening"
    from pipeline.images import write_image

    for number in range(8):
        write_image(Path(f"data/five/ps{number}.tif"), np.full((5, 8, 8), 0.5, np.float32), 16)
        write_image(Path(f"data/sharp/ps{number}.tif"), np.full((5, 32, 32), 0.5, np.float32), 16)
    table = Path("tiny.csv").read_text().replace("ms/ps", "five/ps").replace("target/ps", "sharp/ps")
    Path("other.csv").write_text(table)
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(
        InputError, match=r"'other' of train.mix has bands of sources \(1, 5\), 'tiny' \(1, 4\)"
    ):
        trained("pansharpening")


def test_tensorboard_gets_curves_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    project(tmp_path, monkeypatch)
    trained(tensorboard=True)
    events = EventAccumulator(str(Path("runs/tiny/tensorboard") / TASK))
    events.Reload()
    assert [event.step for event in events.Scalars("validation/loss")] == [2, 4, 6]
    assert events.Tags()["images"] == ["vi5"]

"""Parameters: every mistake in params.yaml is named, and registering a data set keeps what is there."""

from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from model.config import load_config
from pipeline.config import DatasetConfig, Sensor, build, load_pipeline, register_dataset
from pipeline.errors import InputError
from pipeline.sensors import GAINS, SENSORS

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"


def changed(tmp_path: Path, keys: list[str], value: Any) -> Path:
    """A copy of params.yaml with one value set."""
    params = YAML(typ="safe").load(PARAMS)
    section = params
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    path = tmp_path / "params.yaml"
    YAML().dump(params, path)
    return path


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["merge", "min_aera"], 3, "unknown key 'merge.min_aera'. Did you mean 'min_area'?"),
        (["datasets", "demo", "promt"], [], "unknown key 'datasets.demo.promt'. Did you mean 'prompt'?"),
        (["boxes", "threshold"], 1.5, "'boxes.threshold' is 1.5"),
        (["captions", "backend"], "florence", "'captions.backend' is 'florence'"),
        (["merg"], {}, "unknown section 'merg'. Did you mean 'merge'?"),
    ],
)
def test_a_wrong_pipeline_parameter_is_named(
    tmp_path: Path, keys: list[str], value: Any, message: str
) -> None:
    with pytest.raises(InputError) as error:
        load_pipeline(changed(tmp_path, keys, value))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["train", "stps"], 3, "unknown key 'train.stps'. Did you mean 'steps'?"),
        (["model", "scan"], 4, "'model.scan' is 4"),
        (["model", "decoder_depths"], [1, 1], "one level fewer"),
        (["tasks", "pansharpening"], {"modl": {}}, "Did you mean 'model'?"),
        (["tasks", "pansharpening"], {"model": {"widht": 8}}, "Did you mean 'width'?"),
        (["tasks", "pansharpenin"], {}, "Did you mean 'pansharpening'?"),
        (["tasks", "medical"], {"train": {"dataset": "ct"}}, "tasks.medical.train.dataset has no effect"),
        (["model", "mask_channels"], 4, "model.mask_channels follows from the data"),
        (["tasks", "medical"], {"model": {"text_width": 8}}, "tasks.medical.model.text_width follows"),
        (["model", "encoder_depths"], [1, -1], "'model.encoder_depths.1' is -1"),
        (["model", "channel_ratio"], float("inf"), "'model.channel_ratio' is inf"),
        (["train", "seed"], -1, "'train.seed' is -1"),
        (["train", "seed"], 2**64, "'train.seed' is"),
        (["train", "mix"], {"demo": float("inf")}, "'train.mix.demo' is inf"),
    ],
)
def test_a_wrong_model_parameter_is_named(tmp_path: Path, keys: list[str], value: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(changed(tmp_path, keys, value))
    assert message in str(error.value)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load_pipeline(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("datasets: {demo: [")
    with pytest.raises(InputError, match="not valid YAML"):
        load_pipeline(tmp_path / "params.yaml")


def test_a_task_changes_only_what_it_names(tmp_path: Path) -> None:
    path = changed(tmp_path, ["tasks", "medical"], {"model": {"width": 8}, "train": {"steps": 7}})
    base, medical = load_config(path), load_config(path).for_task("medical", "mine")
    assert (medical.model.width, medical.train.steps) == (8, 7)
    assert (medical.train.task, medical.train.dataset) == ("medical", "mine")
    assert medical.model.scan == base.model.scan
    assert medical.loss == base.loss


def test_unknown_data_set_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'demo'"):
        load_pipeline(PARAMS).dataset("dem")


def test_the_sensor_of_a_data_set_is_one_that_is_known() -> None:
    assert set(SENSORS) == {*GAINS, "other"} == set(get_args(Sensor))
    with pytest.raises(InputError, match=r"params\.yaml: 'sensor' is 'spot5'"):
        build(DatasetConfig, {"manifest": "a.csv", "root": "a", "sensor": "spot5"}, "params.yaml")


def test_registering_keeps_comments_and_other_data_sets(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text())
    mine = DatasetConfig(manifest="data_manifests/mine.csv", root="pictures")
    assert register_dataset("mine", mine, path)
    before, after = PARAMS.read_text().splitlines(), path.read_text().splitlines()
    assert [
        line for line in after if line.split("#")[0].split() not in [b.split("#")[0].split() for b in before]
    ] == [
        "  mine:",
        "    manifest: data_manifests/mine.csv",
        "    root: pictures",
        "    masks: auto",
    ]
    place = after.index("  mine:")
    assert [*after[:place], *after[place + 4 :]] == before, "nothing else moved"
    assert after[place + 4 : place + 6] == ["", "captions:"]
    assert load_pipeline(path).dataset("mine") == mine
    assert not register_dataset("mine", mine, path)
    with pytest.raises(InputError, match="another name"):
        register_dataset("mine", DatasetConfig(manifest=mine.manifest, root="elsewhere"), path)
    assert not register_dataset(
        "mine", DatasetConfig(manifest=mine.manifest, root="./pictures/../pictures"), path
    )


@pytest.mark.parametrize(
    "text", ["captions: {}", "datasets:", "datasets: [a]", "datasets: {mine: }", "datasets: {1: {}}"]
)
def test_registering_refuses_sections_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml: 'datasets"):
        register_dataset("mine", DatasetConfig(manifest="mine.csv", root="pictures"), path)
    assert path.read_text() == text

"""The ablation rows: what they set exists, what they cite is printed in the paper, what DVC makes of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import Workspace
from ruamel.yaml import YAML

from model import ablate
from model.ablate import COLUMNS, HYPERSPECTRAL, TABLES, VISIBLE_INFRARED, experiments, results, table_of
from model.config import load_config
from pipeline.errors import InputError

ROOT = Path(__file__).parents[1]
EVERY_ROW = [(number, row) for number, rows in TABLES.items() for row in rows]


@pytest.mark.parametrize(("table", "row"), EVERY_ROW)
def test_every_row_is_a_valid_configuration(table: int, row: str, tmp_path: Path) -> None:
    (experiment,) = experiments(table, "demo", [VISIBLE_INFRARED], [row], {"train.steps": "7"})
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    for name, value in experiment.settings.items():
        *path, last = name.split(".")
        section = params
        for part in path:
            section = section[part]
        assert last in section, f"{name} is not in params.yaml"
        section[last] = yaml.load(value)
    yaml.dump(params, tmp_path / "params.yaml")
    assert load_config(tmp_path / "params.yaml").train.steps == 7


def test_rows_differ_from_each_other() -> None:
    for table, rows in TABLES.items():
        settings = [tuple(variant.settings.items()) for variant in rows.values()]
        assert len(set(settings)) == len(rows), f"Table {table}"


def test_the_papers_values_are_those_it_prints() -> None:
    paper = ROOT.parent / "shared" / "paper" / "rwkvfusion.md"
    if not paper.is_file():
        pytest.skip("the paper's text is not beside the repository")
    text = paper.read_text()
    for table, rows in TABLES.items():
        part = text[text.index(f"TABLE {table}:") :]
        lines = [re.split(r"\t+", line) for line in part[:3000].splitlines() if "\t" in line]
        printed = [
            [float(cell) for cell in line[1:] if cell] for line in lines if re.fullmatch(r"[\d.]+", line[1])
        ]
        order = [HYPERSPECTRAL, VISIBLE_INFRARED]
        ours = [
            [value for task in order for value in variant.paper.get(task, ())] for variant in rows.values()
        ]
        assert printed[: len(ours)] == ours, f"Table {table}"
        assert all(
            len(values) == len(COLUMNS[task])
            for variant in rows.values()
            for task, values in variant.paper.items()
        )


def test_finished_rows_stand_beside_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "reports/demo/ablation/visible_infrared/metrics.json"
    means = {"MI": 2.5, "VIF": 0.5, "Qcv": None, "guidance_effect": 1.0}
    data = {"metrics": {path: {"data": {VISIBLE_INFRARED: {"rwkvfusion": means}}}}}
    shown = [
        {"rev": "workspace", "data": data, "experiments": None},
        {
            "rev": "0123456",
            "data": {},
            "experiments": [
                {"revs": [{"rev": "a", "name": "table7-i-visible-infrared", "data": data}], "name": None},
                {"revs": [{"rev": "b", "name": "table7-ii-visible-infrared", "data": None}], "name": None},
                {"revs": [{"rev": "c", "name": "someone-elses", "data": data}], "name": None},
            ],
        },
    ]
    monkeypatch.setattr(ablate, "_dvc", lambda arguments: json.dumps(shown))
    found = results(experiments(7, "demo", [VISIBLE_INFRARED], None, {}), "demo")
    assert found == {"table7-i-visible-infrared": {"MI": 2.5, "VIF": 0.5, "guidance_effect": 1.0}}
    lines = table_of(7, VISIBLE_INFRARED, "demo", found).splitlines()
    assert "| i | Only caption | 2.500 / 3.2 | 0.500 / 0.76 | – / 9.93 |" in lines[4]
    assert "| ii | Only merged mask | – / 3.36 |" in lines[5]


def test_what_the_paper_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match="choose one of 6, 7, 8"):
        experiments(5, "demo", [VISIBLE_INFRARED], None, {})
    with pytest.raises(InputError, match="has no row 'z'"):
        experiments(6, "demo", [VISIBLE_INFRARED], ["z"], {})
    with pytest.raises(InputError, match="Table 7 is about visible_infrared"):
        experiments(7, "demo", [HYPERSPECTRAL], None, {})


@pytest.mark.slow
def test_rows_are_queued_with_dvc(workspace: Workspace) -> None:
    (workspace.path / ".dvc" / "config.local").unlink()
    (workspace.path / ".gitignore").write_text("/data/\n/guidance/\n/runs/\n/reports/\n")
    author = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    workspace.run("git", "init", "-q")
    workspace.run("git", "add", "-A")
    workspace.run("git", *author, "commit", "-q", "-m", "a project")
    words = ["python", "-m", "model", "ablate", "--table", "6", "--row", "f", "--queue"]
    assert "1 row queued" in workspace.run(*words, "--set", "train.steps=3").stdout
    status = workspace.run("dvc", "queue", "status").stdout
    assert "table6-f-visible-infrared" in status

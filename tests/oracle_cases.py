"""The reference arrays of the pansharpening toolboxes, which are not part of the repository."""

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "oracle_metrics"


def pan_cases() -> list[Any]:
    """One parameter per case: its facts, and the path of each array under its name; skipped without them."""
    if not FOLDER.is_dir():
        return [pytest.param({}, marks=pytest.mark.skip(reason="no reference arrays beside the repository"))]
    cases = json.loads((FOLDER / "cases.json").read_text())["pan_cases"]
    return [
        pytest.param(case | {name: FOLDER / file for name, file in case["files"].items()}, id=case["name"])
        for case in cases
    ]

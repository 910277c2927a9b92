"""The record (json) that lies beside trained weights and says what they are."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

FORMAT = 1


def read_record(path: Path) -> dict[str, Any]:
    """The record beside a weights file. Raises InputError when it is missing or not one of ours."""
    record_path = path.with_suffix(".json")
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{record_path}: cannot be read ({error}); weights come with a .json of the same name"
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(
            f"{record_path}: not a record of rwkvfusion weights in format {FORMAT}; train them anew"
        )
    return record

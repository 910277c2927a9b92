"""What a store says of itself before it is trusted, and what is to be done where it is of no use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import InputError
from pipeline.objects import Place

SCHEMA = 1


def fingerprint(config: Mapping[str, Any], upstream: str | None) -> str:
    """Hash of everything but the files that decides what a stage computes."""
    text = json.dumps([SCHEMA, config, upstream], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_attributes(path: Place) -> dict[str, Any] | None:
    """The store's own attributes before anything else of it is trusted; None when there is no store."""
    if not path.exists():
        return None
    try:
        attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        if {"schema", "kind", "fingerprint", "upstream", "config"} <= set(attributes):
            return dict(attributes)
    except InputError:  # storage that does not answer says nothing of the store
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"zarr.json: {error}") from error
    raise damaged(path, "zarr.json lacks this project's attributes")


def why_stale(
    attributes: Mapping[str, Any], config: Mapping[str, Any], fingerprint: str, upstream: str | None
) -> str:
    """Why a store's records are of no use any more, "" when they are."""
    if attributes["schema"] != SCHEMA:
        return f"the store has schema {attributes['schema']}, this version writes {SCHEMA}"
    if attributes["fingerprint"] == fingerprint:
        return ""
    old = attributes["config"]
    changed = [key for key in sorted(old.keys() | config.keys()) if old.get(key) != config.get(key)]
    if changed:
        return ", ".join(f"{key} changed from {old.get(key)} to {config.get(key)}" for key in changed)
    return (
        "the stage before it was computed anew"
        if attributes["upstream"] != upstream
        else "it was made otherwise"
    )


def remedy(path: Place) -> str:
    """What the user is to do where a store is missing or of no use."""
    if path.parent.name == "images":
        return "train again: it is a cache"
    stage = {"merged": "merge"}.get(path.stem, path.stem)
    return f"run `python -m pipeline {stage} --dataset {path.parent.name}`"


def damaged(path: Place, what: str) -> InputError:
    """The error for a store that cannot be trusted."""
    return InputError(
        f"{path}: the store is damaged ({' '.join(what.split())}); delete it and {remedy(path)}"
    )

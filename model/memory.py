"""What an interrupted command need not do again: finished work by a key that changes with every input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Memory:
    """Key -> what was found, kept as the lines of a file; without a path, for this process only."""

    path: Path | None
    known: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path | None) -> Memory:
        """Read the file if there is one; a line that an interruption cut short is left out."""
        memory = cls(path)
        if path is not None and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            if text and not text.endswith("\n"):
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                    memory.known[entry["key"]] = entry["found"]
                except (ValueError, KeyError, TypeError):
                    continue  # its work is done again
        return memory

    def add(self, key: str, found: Any) -> None:
        """Remember a finding (whatever JSON holds) and append it to the file."""
        self.known[key] = found
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "found": found}) + "\n")


def key_of(*parts: str | NDArray[np.generic] | None) -> str:
    """One hash of texts and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_hash(paths: Iterable[Path]) -> str:
    """SHA-256 of source files, so that changed code does its work again."""
    return key_of(*(file_hash(path) for path in sorted(paths)))

"""Where the files of a foundation checkpoint lie, how they get there, and what they are.

A checkpoint is a folder `<weights>/<name>/`. Weight files are pinned by SHA-256 (pipeline/checkpoints.py),
configurations and tokenisers by the hub's revision and by the checksum that `fetched.json` recorded when they
were first fetched. Files that somebody else put there are used as they are: what a store remembers is the
checksum of the bytes that were read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from pipeline.checkpoints import Checkpoint, Part, find_checkpoint
from pipeline.errors import InputError, first_line
from pipeline.images import write_atomically

FOLDER_VARIABLE = "RWKVFUSION_WEIGHTS"
RECORD = "fetched.json"
UNFINISHED = ".unfinished"
TIMEOUT = 60.0  # seconds without a byte
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416


def weights_folder() -> Path:
    """Folder of all checkpoints: `$RWKVFUSION_WEIGHTS`, else `rwkvfusion/weights` in the user's cache."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rwkvfusion" / "weights"


def missing(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Files without which the checkpoint cannot be used, that ``folder`` (of all checkpoints) lacks."""
    return [name for name in checkpoint.pinned if not (folder / checkpoint.name / name).is_file()]


def locate(name: str) -> Path:
    """The folder of a checkpoint whose files are all there. Raises InputError that says what to run."""
    checkpoint, folder = find_checkpoint(name), weights_folder()
    absent = missing(checkpoint, folder)
    if absent:
        raise InputError(
            f"{folder / name}: has no {', '.join(absent)}; run `python -m pipeline weights fetch {name}`, "
            "or name a folder that has it with --weights"
        )
    return folder / name


def checkpoint_identity(name: str) -> str:
    """What a store remembers of a checkpoint: repositories, revisions and a hash of all its files.

    Raises InputError when files are missing, or have changed since they were fetched.
    """
    return _identity(locate(name), name)


@cache
def _identity(folder: Path, name: str) -> str:
    """Once per process: large files take seconds to hash where no record of them is kept."""
    checkpoint = find_checkpoint(name)
    recorded = _read_record(folder)
    digest = hashlib.sha256()
    for file in _present(checkpoint, folder):
        value = _current(file, recorded.get(file.name))
        if file.name in recorded and value != recorded[file.name]["sha256"]:
            raise InputError(
                f"{file}: has changed since it was fetched; run `python -m pipeline weights fetch "
                f"{checkpoint.name}` to have the original back"
            )
        if value != checkpoint.pinned.get(file.name, value):
            print(
                f"{file}: is not the published {checkpoint.name}; its own checksum goes into the stores",
                file=sys.stderr,
            )
        digest.update(f"{file.name} {value}\n".encode())
    source = " + ".join(f"{part.repo}@{part.revision[:12]}" for part in checkpoint.parts)
    return f"{source} sha256:{digest.hexdigest()[:24]}"


def _present(checkpoint: Checkpoint, folder: Path) -> Iterator[Path]:
    return (folder / name for name in checkpoint.names if (folder / name).is_file())


def _current(file: Path, recorded: Mapping[str, object] | None) -> str:
    """SHA-256 of a file, from the record while size and time of change are those of the record."""
    status = file.stat()
    if recorded and (recorded["size"], recorded["mtime_ns"]) == (status.st_size, status.st_mtime_ns):
        return str(recorded["sha256"])
    return sha256_of(file)


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read_record(folder: Path) -> dict[str, dict[str, object]]:
    path = folder / RECORD
    try:
        record: dict[str, dict[str, object]] = json.loads(path.read_text()) if path.is_file() else {}
        for name, entry in record.items():
            if not {"sha256", "size", "mtime_ns"} <= entry.keys():
                raise ValueError(f"of {name} it does not say all")
        return record
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: is damaged ({error}); remove it and fetch again") from error


def fetch(name: str) -> Path:
    """Download what a checkpoint lacks; an interrupted download is resumed. Returns its folder.

    A file appears in its place only after its checksum was compared: with the pinned one, or with the one
    recorded when it was first fetched. Raises InputError when a checksum differs or the hub does not answer.
    """
    checkpoint = find_checkpoint(name)
    folder = weights_folder() / name
    recorded = _read_record(folder)
    for part in checkpoint.parts:
        for path in (*part.pinned, *part.others):
            file = folder / Path(path).name
            known = part.pinned.get(path) or str(recorded.get(file.name, {}).get("sha256", ""))
            if file.is_file() and known and sha256_of(file) == known:
                value = known
            else:
                downloaded = _download(part, path, folder / UNFINISHED)
                if downloaded is None:
                    continue
                value = sha256_of(downloaded)
                if known and value != known:
                    downloaded.unlink()
                    raise InputError(
                        f"{part.repo}, {path}: sha256 is {value}, not {known}; nothing was kept. Try again; "
                        "if it stays so, do not use that file"
                    )
                os.replace(downloaded, file)
            status = file.stat()
            recorded[file.name] = {
                "sha256": value,
                "size": status.st_size,
                "mtime_ns": status.st_mtime_ns,
                "source": f"{part.repo}@{part.revision}",
            }
            _write_record(folder, recorded)
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return folder


def _write_record(folder: Path, recorded: Mapping[str, object]) -> None:
    text = json.dumps(recorded, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / RECORD, lambda temporary: temporary.write_text(text))


def _download(part: Part, path: str, unfinished: Path) -> Path | None:
    """The file, below ``unfinished``; None if it is optional and the repository has no such file.

    The hub's own client forgets a download that was interrupted; checkpoints are large: here it is resumed.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HTTPError

    unfinished.mkdir(parents=True, exist_ok=True)
    file = unfinished / Path(path).name
    url = hf_hub_url(part.repo, path, revision=part.revision)
    while True:
        before = file.stat().st_size if file.exists() else 0
        try:
            _append(url, file, before)
            return file
        except EntryNotFoundError as error:
            if path in part.others:
                return None
            raise _unreachable(part, path, error) from error
        except (HTTPError, ConnectionError, TimeoutError) as error:
            if not file.exists() or file.stat().st_size == before:
                raise _unreachable(part, path, error) from error


def _append(url: str, file: Path, start: int) -> None:
    """Download what ``file`` lacks from byte ``start`` on, with a bar on a terminal."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with (
        get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        if response.status_code == RANGE_NOT_SATISFIABLE:
            return  # nothing is left to fetch; the checksum decides
        hf_raise_for_status(response)
        resumed = response.status_code == PARTIAL_CONTENT
        done = start if resumed else 0
        length = int(response.headers.get("Content-Length", 0))
        task = progress.add_task(file.name, total=done + length or None, completed=done)
        with file.open("ab" if resumed else "wb") as opened:
            for chunk in response.iter_bytes():
                opened.write(chunk)
                progress.advance(task, len(chunk))


def _unreachable(part: Part, path: str, error: Exception) -> InputError:
    return InputError(
        f"{part.repo}, {path}: cannot be fetched ({first_line(error)}); run again to resume, or copy the "
        "checkpoint's folder from a machine that has it (`python -m pipeline weights list` says where to)"
    )


def verify(name: str) -> list[str]:
    """Read every file of a checkpoint again and say what differs from the pinned and recorded checksums."""
    checkpoint, folder = find_checkpoint(name), weights_folder()
    remedy = f"run `python -m pipeline weights fetch {name}`"
    problems = [f"{folder / name / file}: is missing; {remedy}" for file in missing(checkpoint, folder)]
    recorded = _read_record(folder / name)
    for file in _present(checkpoint, folder / name):
        expected = checkpoint.pinned.get(file.name) or recorded.get(file.name, {}).get("sha256")
        value = sha256_of(file)
        if expected is not None and value != expected:
            problems.append(f"{file}: sha256 is {value}, not {expected}")
    return problems

"""What was imported stays: a stage whose store was filled from a file keeps it and computes nothing.

An imported store is an ordinary store whose ``config`` says what it was made from (``imported``: the file's
name, ``sha256``: of its bytes) and whose fingerprint is the hash of that. A stage that finds one takes this
configuration for its own. So the fingerprint matches, records of unchanged samples are current, samples
without one fail with the remedy, and what follows is computed anew when another file is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.durability import recover, remove, swap
from pipeline.errors import InputError
from pipeline.objects import Place
from pipeline.store import Record, create_store, fingerprint, locked, open_store

if TYPE_CHECKING:
    from pipeline.passes import Inputs, Stage


def as_imported(stage: Stage) -> Stage:
    """The stage as it is, or, when its store was imported, one that keeps the store and refuses to compute.

    A store that cannot be opened is left to the runner. The caller holds `locked(stage.path)`.
    """
    recover(stage.path)
    try:
        store = open_store(stage.path)
    except InputError:
        return stage
    if "imported" not in store.config:
        return stage
    origin, remedy = store.config["imported"], f"delete {stage.path} to compute it"
    print(f"{stage.name}: imported from {origin}, kept as it is; {remedy}", flush=True)

    def refuse(inputs: Sequence[Inputs]) -> NoReturn:
        sample = inputs[0].sample.id
        raise InputError(
            f"sample '{sample}': is not among what was imported from {origin}, or its files changed since; "
            f"import again with it, or {remedy}"
        )

    return dataclasses.replace(
        stage, config=store.config, compute=refuse, before=None, images=False, sizes=store.sizes
    )


def write_imported(
    path: Place,
    kind: str,
    content: Mapping[str, str],
    present: Collection[str],
    record: Callable[[str], Record],
    config: Mapping[str, Any],
    **sizes: int,
) -> None:
    """Put a store of imported records in the place of the one at ``path``, once it is complete.

    ``content``: content hash of every sample of the data set, in order; ``record`` is called for those that
    are ``present``, a shard's worth at a time. Raises InputError when another run is writing the store or the
    disk is full, and whatever ``record`` raises; the old store is then as it was.
    """
    beside = path.with_name(f"{path.name}.import")
    with locked(path):
        try:
            store = create_store(
                beside, kind, list(content), config, fingerprint(config, None), None, **sizes
            )
            shards: dict[int, list[str]] = {}
            for sample in content:
                if sample in present:
                    shards.setdefault(store.row(sample) // store.rows, []).append(sample)
            for shard in shards.values():
                store.write({sample: record(sample) for sample in shard}, content)
            swap(beside, path)
        finally:
            remove(beside)

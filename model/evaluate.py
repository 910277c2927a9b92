"""Evaluate the trained networks of a data set beside simple rules.

Everything is written to reports/<dataset>/ (`model.results`) with the fused images under `fused/<method>/`.
Finished work is kept, so that an interrupted evaluation goes on where it
stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from model.config import load_config, report_dir
from model.guidance import open_guidance
from model.inference import Fuser, load_model, load_weights
from model.measure import OPTIONS, Options, read_fused
from model.memory import Memory
from model.methods import FuseFunction, Fusion
from model.results import GUIDED, UNGUIDED, Evaluation, read_results, write_results
from model.run import trained_on
from model.scoring import few, score_all
from model.tables import say, write_tables
from pipeline.errors import InputError
from pipeline.manifest import TASKS, Sample

FUSED = "fused.jsonl"  # finished images


def evaluate(
    dataset: str,
    tasks: Sequence[str] | None = None,
    fusers: Mapping[str, FuseFunction] | None = None,
    console: Console | None = None,
    *,
    weights: str | None = None,
    out: Path | None = None,
    options: Options = OPTIONS,
) -> Evaluation:
    """Fuse and measure the test samples of each (chosen) task of a data set; write and return the results.

    ``weights`` are used for their own task, in place of those trained on the data set; ``fusers`` gives the
    network of a task as a function. Results of tasks that were not chosen stay as they are. A sample that
    cannot be fused or measured is a failure of the evaluation and the rest goes on. Raises InputError for an
    unknown data set or task, a data set without test samples, and a task without weights.
    """
    options.check()
    params = load_config()
    config = params.dataset(dataset)
    samples = [sample for sample in config.samples() if sample.split == "test"]
    present = [task for task in TASKS if any(sample.task == task for sample in samples)]
    if not present:
        raise InputError(
            f"{config.manifest}: no sample has split 'test'; set it in some rows to evaluate on them"
        )
    sensor = options.sensor or config.sensor
    options = replace(options, sensor=sensor)
    given = None if weights is None else load_weights(weights)
    chosen = list(tasks) if tasks is not None else present if given is None else [given.task]
    for task in chosen:
        if task not in present:
            raise InputError(
                f"{config.manifest}: no test sample of task '{task}'; it has {', '.join(present)}"
            )
        if given is not None and given.task != task:
            raise InputError(f"{given.path}: weights for {given.task}, not for {task}; leave one of them out")
    networks = {task: fusers[task] if fusers else given or load_model(dataset, task) for task in chosen}
    console = console or Console()
    guidance = open_guidance(dataset)
    folder = out or report_dir(dataset)
    found = Evaluation([], [], dataset, options.profile)
    for task in chosen:
        unmerged = params.for_task(task, dataset).model.guidance == "unmerged"
        fusion = Fusion(networks[task], guidance, unmerged, folder, sensor)
        _fuse_all(fusion, [sample for sample in samples if sample.task == task], found, console, dataset)
    score_all(found, folder, options, console)
    _add_effects(found)
    others = {sample.id: sample.task for sample in samples if sample.task not in chosen}
    everything = _with_other_tasks(found, folder, others)
    write_results(folder, everything)
    write_tables(folder, everything)
    say(found, console)
    return found


def _fuse_all(
    fusion: Fusion, samples: Sequence[Sample], found: Evaluation, console: Console, dataset: str
) -> None:
    memory = Memory.at(fusion.folder / FUSED)
    task = samples[0].task
    bare = 0
    for sample in track(samples, description=f"fusing {task}", console=console, transient=True):
        try:
            cases, guided = fusion.cases(sample, memory)
        except InputError as error:
            found.failures.append((GUIDED, sample.id, str(error)))
            continue
        found.cases += cases
        bare += not guided
    if bare and fusion.guidable:
        found.warnings.append(
            f"{task}: {bare} of {len(samples)} samples have no guidance stored; "
            f"run `typer pipeline guidance --dataset {dataset}` first to use it"
        )
    if isinstance(fusion.network, Fuser):
        known = trained_on(fusion.network.record, samples)
        if known:
            found.warnings.append(
                f"{task}: the weights were trained on {len(known)} of the {len(samples)} samples "
                f"({few(known)}); figures of those say nothing about other images"
            )


def _add_effects(found: Evaluation) -> None:
    """What removing the guidance changes: mean absolute difference of the written images, in grey levels."""
    plain = {case.sample.id: case.fused for case in found.cases if case.method == UNGUIDED}
    for case in found.cases:
        if case.method == GUIDED and case.sample.id in plain:
            bits = case.sample.bits
            pair = [read_fused(path, bits) for path in (case.fused, plain[case.sample.id])]
            effect = 255 * float(np.abs(pair[0] - pair[1]).mean(dtype=np.float64))
            found.effects[case.sample.id] = round(effect, 6)


def _with_other_tasks(found: Evaluation, folder: Path, others: Mapping[str, str]) -> Evaluation:
    """The evaluation and what the folder holds of ``others``, id -> task of samples not evaluated now."""
    try:
        before = read_results(folder)
    except InputError:  # nothing there, or no longer whole: this evaluation replaces it
        return found
    if before.dataset != found.dataset or before.profile != found.profile:
        return found
    cases = [case for case in before.cases if others.get(case.sample.id) == case.sample.task]
    kept = {case.sample.id for case in cases}
    failures = [failure for failure in before.failures if failure[1] in others]
    # A warning begins with its task, or is about all of them.
    again = set(TASKS) - set(others.values())
    warnings = [text for text in before.warnings if others and text.partition(":")[0] not in again]
    order = {task: place for place, task in enumerate(TASKS)}
    return replace(
        found,
        cases=sorted([*found.cases, *cases], key=lambda case: order[case.sample.task]),
        rows=sorted(
            [*found.rows, *(row for row in before.rows if row.sample in kept)],
            key=lambda row: order[row.task],
        ),
        failures=[*found.failures, *failures],
        warnings=list(dict.fromkeys([*found.warnings, *warnings])),
        effects=found.effects | {name: value for name, value in before.effects.items() if name in kept},
    )

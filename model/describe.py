"""What `describe` prints: a preset's layers and cost, or where trained weights come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.complexity import count_operations, example, measure
from model.inference import find_weights
from model.network import RWKVFusion
from model.presets import preset
from model.record import read_record, record_of, training_time
from pipeline.errors import InputError

SIDE = 64  # of the sample that operations are counted for, as in Tables 4 and 5
TOKENS = 64  # of the text
MEGAPIXEL_SIDE = 512  # of the image that memory is measured on


def describe_preset(name: str) -> str:
    """Layers, parameters, operations and memory of a preset. Raises InputError for an unknown name."""
    config = preset(name)
    network = RWKVFusion(config).eval()
    inputs = example(config, SIDE, SIDE)
    counts, torch_total = count_operations(network, inputs)
    with_text, _ = count_operations(network, example(config, SIDE, SIDE, TOKENS))
    rows = [
        (part, _parameters(network, part), _below(counts, part))
        for part in _parts(name for name, _ in network.named_parameters())
    ]
    operator = {
        layer: value for layer, value in counts.items() if layer.endswith(("spatial_mix", "text_mix"))
    }
    total, parameters = sum(counts.values()), sum(p.numel() for p in network.parameters())
    footprint = measure(config, MEGAPIXEL_SIDE, MEGAPIXEL_SIDE, TOKENS)
    megapixels = MEGAPIXEL_SIDE**2 / 1e6
    lines = [f"{name}: {_settings(config)}", "", f"{'part':<14}{'parameters':>12}{'MFLOP':>10}"]
    lines += [f"{part:<14}{count:>12,}{cost / 1e6:>10.1f}" for part, count, cost in rows]
    lines += [
        "",
        f"parameters {parameters / 1e6:.3f} M",
        f"FLOPs {total / 1e9:.3f} G for {SIDE}x{SIDE} pixels without text, "
        f"{sum(with_text.values()) / 1e9:.3f} G with {TOKENS} tokens; one multiplication and addition is one",
        f"  of these in spatial mixes {sum(operator.values()) / 1e9:.3f} G",
        f"torch.utils.flop_counter {torch_total / 1e9:.3f} G, halved to the same unit; it knows no bi-WKV",
        f"activations {footprint.activations / megapixels / 2**20:.0f} MiB per megapixel without gradients, "
        f"{footprint.seconds / megapixels:.1f} s (measured at {MEGAPIXEL_SIDE}x{MEGAPIXEL_SIDE}, CPU)",
    ]
    return "\n".join(lines)


def describe_weights(name: str) -> str:
    """The history of trained weights, by task id or path. Raises InputError when there are none."""
    path = find_weights(name)
    record = read_record(path)
    try:
        return "\n".join(_history(path, record))
    except KeyError as error:
        raise InputError(
            f"{record_of(path)}: does not tell {error}; only weights that `python -m model train` wrote have "
            "a history"
        ) from error


def _history(path: Path, record: Mapping[str, Any]) -> Iterator[str]:
    train, time = record["train"], training_time(path, record)
    yield from (
        f"{path}: {record['task']}, sources {' + '.join(record['roles'])}",
        f"trained    on data set {_data(record)}, {len(record['train_samples'])} samples "
        f"({len(record['validation_samples'])} for validation), {train['steps']} steps of {train['batch']} "
        f"crops of {train['crop']}, seed {train['seed']}" + (f", {time[0]:.0f} s, {time[1]}" if time else ""),
        *_started(record),
        f"guidance   {record['guidance']}",
        "metrics    "
        + (", ".join(f"{key} {value:.4g}" for key, value in record["metrics"].items()) or "none"),
        f"network    {record['parameters']:,} parameters; {_settings(record['model'])}",
        f"loss       {_settings(record['loss'])}",
        f"code       {record['code']}; " + ", ".join(f"{k} {v}" for k, v in record["environment"].items()),
        f"again      python -m model train --task {record['task']} --dataset {record['dataset']}",
        f"sha256     {record['sha256']}",
    )


def _started(record: Mapping[str, Any]) -> Iterator[str]:
    """A line for each of the weights that training started from, the latest first."""
    while (start := record.get("start")) is not None:
        yield (
            f"started    from weights trained on data set {_data(start)}, {len(start['train_samples'])} "
            f"samples, {start['train']['steps']} steps; sha256 {start['sha256']}"
        )
        record = start


def _data(record: Mapping[str, Any]) -> str:
    """The data sets that samples were drawn from; early records know of one only."""
    return " + ".join([record["dataset"], *record["train"].get("mix", {})])


def _settings(values: Any) -> str:
    values = values if isinstance(values, dict) else vars(values)
    public = {key: value for key, value in values.items() if not key.startswith("_")}
    return ", ".join(
        f"{key} {'-'.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for key, value in public.items()
    )


def _parts(names: Iterable[str]) -> list[str]:
    """`encoder.0.1`, one layer, for every parameter in it; else the name's first word. In order."""
    parts: dict[str, None] = {}
    for name in names:
        words = name.split(".")
        parts[".".join(words[:3]) if words[0] in ("encoder", "decoder") else words[0]] = None
    return list(parts)


def _parameters(network: RWKVFusion, part: str) -> int:
    return sum(p.numel() for name, p in network.named_parameters() if _inside(name, part))


def _below(counts: dict[str, int], part: str) -> int:
    return sum(value for name, value in counts.items() if _inside(name, part))


def _inside(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")

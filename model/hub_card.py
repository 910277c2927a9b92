"""The card (README.md) of weights on the Hugging Face Hub, made from their record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from pipeline.manifest import SHARPENING_TASKS

TEMPLATE = """---
{{ card_data }}
---

# RWKVFusion for {{ task }}

Fuses registered {{ roles }} images of one scene ({{ parameters }} parameters), as described in *An
Efficient Image Fusion Network Exploiting Unifying Language and Mask Guidance* (Cao, Liang, Deng, Vivone);
an independent implementation.

## Use

```python
from model import fuse, load_weights

weights = load_weights("hf://OWNER/NAME@REVISION")  # a commit pins the weights
fused = fuse([{{ arguments }}], weights)
```

or `rwkvfusion fuse {{ files }} --weights hf://OWNER/NAME -o fused.png`. The folder holds safetensors and
JSON; nothing in it is executed.

Input: {{ input }} Guidance: {{ guidance }}{{ encoder }}.

## Training

{{ training }}

| | |
| --- | --- |
{% for name, value in settings -%}
| {{ name }} | {{ value }} |
{% endfor %}
## Metrics

{% if metrics -%}
On the samples held out for validation, at the end of training:

| metric | value |
| --- | ---: |
{% for name, value in metrics -%}
| {{ name }} | {{ value }} |
{% endfor -%}
{% else -%}
None were recorded during training; measure with `python -m model evaluate`.
{% endif %}
## Limits

- {{ size }}
- Trained on the samples named in `config.json` and on nothing else; other sensors and scenes may fare worse.
- Sources must be aligned pixel by pixel and of the sizes of the task; nothing is registered.
- Fused pixels are made for looking at, not for measuring: do not diagnose or decide from them alone.

## Licence

The weights: {{ licence }}. The training images are not included and have terms of their own: check those
before you use the weights.
"""


def model_card(record: Mapping[str, Any], licence: str) -> ModelCard:
    """The card of weights with this record; ``licence`` is an identifier of the Hub, such as apache-2.0."""
    roles, task = list(record["roles"]), str(record["task"])
    data = ModelCardData(
        license=licence,
        library_name="rwkvfusion",
        pipeline_tag="image-to-image",
        tags=["image-fusion", task.replace("_", "-"), "rwkv"],
    )
    encoder = record.get("text_encoder")
    parameters = record.get("parameters")
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        task=task.replace("_", " "),
        roles=" and ".join(roles),
        arguments=", ".join(roles),
        files=" ".join(f"{role}.png" for role in roles),
        parameters="an unknown number of" if parameters is None else f"{parameters:,}",
        input=_input(record),
        guidance=record.get("guidance") or record["model"]["guidance"],
        encoder=f" (text features by `{encoder}`)" if encoder else "",
        training=_training(record),
        settings=[
            (f"{part}.{name}", value)
            for part in ("train", "loss", "model")
            for name, value in (record.get(part) or {}).items()
        ],
        metrics=[(name, f"{value:.4g}") for name, value in (record.get("metrics") or {}).items()],
        size="The network is small and was trained for a short time."
        if float(record.get("seconds", 0)) < 24 * 3600
        else "The curves of the training say how far it had converged.",
        licence=licence,
    )


def _input(record: Mapping[str, Any]) -> str:
    channels = record["model"]["in_channels"]
    if record["task"] in SHARPENING_TASKS:
        sources = zip(record["roles"], channels, record["ratios"], strict=True)
        return " ".join(
            f"{role}: {bands} bands{f', {ratio} times coarser' if ratio > 1 else ''}."
            for role, bands, ratio in sources
        )
    return "grey or RGB; the network fuses luminance, and colour is added afterwards."


def _training(record: Mapping[str, Any]) -> str:
    if "train" not in record:
        return "No history is recorded."
    train, held = record["train"], record.get("validation_samples", ())
    text = (
        f"On data set `{record['dataset']}`: {len(record['train_samples'])} samples, {len(held)} for "
        f"validation, {train['steps']} steps of {train['batch']} crops of {train['crop']} pixels, seed "
        f"{train['seed']}"
    )
    if "seconds" in record:
        text += f"; {record['seconds']:.0f} seconds, finished {record.get('finished', '')}"
    return f"{text}. `config.json` lists every sample and value; code `{record.get('code', '')}`."

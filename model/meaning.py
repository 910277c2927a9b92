"""What a metric's column means, in the words of its own documentation."""

from __future__ import annotations

import inspect

from model.metrics import profile, sharpening
from pipeline.manifest import SHARPENING_TASKS


def meaning(metric: str, task: str, name: str) -> str:
    """The first line of the documentation of a column of profile ``name``, without the metric's name."""
    chosen = profile(name)
    target = {**chosen.target, "target_PSNR": sharpening.psnr, "target_SSIM": sharpening.ssim}
    fusion = {**chosen.sources, **chosen.fused}
    known = {**fusion, **target} if task in SHARPENING_TASKS else {**target, **fusion}
    first = (inspect.getdoc(known.get(metric)) or metric).splitlines()[0]
    text = first.partition(": ")[2].replace(" * ", " ")
    return text + (" To the target." if metric.startswith("target_") else "")

"""What a metric's column means, in the words of its own documentation."""

from __future__ import annotations

import inspect

from model.metrics import full_resolution, profile, sharpening
from pipeline.manifest import SHARPENING_TASKS

FULL_RESOLUTION = {
    "D_lambda_K": full_resolution.filtered_spectral_distortion,
    "D_lambda": full_resolution.spectral_distortion,
    "D_s": full_resolution.spatial_distortion,
}
PRODUCTS = {"HQNR": "(1 - D_lambda_K) (1 - D_s).", "QNR": "(1 - D_lambda) (1 - D_s)."}


def meaning(metric: str, task: str, name: str) -> str:
    """The first line of the documentation of a column of profile ``name``, without the metric's name."""
    if metric in PRODUCTS:
        return PRODUCTS[metric]
    chosen = profile(name)
    target = {**chosen.target, **FULL_RESOLUTION}
    target |= {"target_PSNR": sharpening.psnr, "target_SSIM": sharpening.ssim}
    fusion = {**chosen.sources, **chosen.slow, **chosen.fused}
    known = {**fusion, **target} if task in SHARPENING_TASKS else {**target, **fusion}
    first = (inspect.getdoc(known.get(metric)) or metric).splitlines()[0]
    text = first.partition(": ")[2].replace(" * ", " ")
    return text + (" To the target." if metric.startswith("target_") else "")

"""Every metric against the values of the published toolboxes, run in GNU Octave (shared/oracle_metrics)."""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.io import imread

import model.metrics as metrics

ORACLE = Path(__file__).parents[2] / "shared" / "oracle_metrics"

# oracle id -> the same quantity from our functions, given (first, second, fused) on 0..255
GREY: dict[str, Callable[..., Any]] = {
    "tang.MI_evaluation_double": metrics.mutual_information,
    "vifb.Mutinf": lambda a, b, f: metrics.mutual_information(a, b, f) * math.log(2),
    "vifb.Qabf": metrics.edge_preservation,
    "tang.analysis_Qabf": metrics.edge_preservation,
    "vifb.Qcb": metrics.contrast_preservation,
    "liu.metricChenBlum": metrics.contrast_preservation,
    "vifb.Qcv": metrics.perceived_error,
    "liu.metricChen": metrics.perceived_error,
    "mefb.Qy": metrics.structure_choice,
    "vifb.Ssim": metrics.structural_sum,
    "liu.ssim_index_af": lambda a, b, f: metrics.structural_sum(a, a, f) / 2,
    "liu.ssim_index_bf": lambda a, b, f: metrics.structural_sum(b, b, f) / 2,
    "tang.vifp_af": lambda a, b, f: metrics.visual_fidelity(a, a, f) / 2,
    "tang.vifp_bf": lambda a, b, f: metrics.visual_fidelity(b, b, f) / 2,
    "tang.CC_evaluation": metrics.correlation,
    "tang.analysis_SCD": metrics.difference_correlation,
    "tang.PSNR_evaluation": lambda a, b, f: metrics.source_psnr(a, b, f) + 20 * math.log10(255),
    "tang.MSE_evaluation": lambda a, b, f: 10 ** (-metrics.source_psnr(a, b, f) / 10),
    "tang.SF_evaluation": lambda a, b, f: metrics.spatial_frequency(f),
    "vifb.Spatial_frequency": lambda a, b, f: metrics.spatial_frequency(f, divisor="pixels"),
    "mefb.Spatial_frequency": lambda a, b, f: metrics.spatial_frequency(f, divisor="pixels"),
    "tang.entropy": lambda a, b, f: metrics.entropy(f),
    "vifb.Entropy": lambda a, b, f: metrics.entropy(f),
    "tang.AG_evaluation": lambda a, b, f: metrics.average_gradient(f),
    "vifb.Avg_gradient": lambda a, b, f: metrics.average_gradient(f),
    "tang.SD_evaluation": lambda a, b, f: metrics.standard_deviation(f),
    "mefb.SD": lambda a, b, f: metrics.standard_deviation(f),
    "vifb.Variance": lambda a, b, f: metrics.standard_deviation(f),
    "tang.analysis_nabf_fused_first": metrics.artefacts,
    "tang.analysis_nabf_as_called": lambda a, b, f: metrics.artefacts(b, f, a),
    "mefb.Qncie": metrics.nonlinear_correlation,
    "liu.metricWang": metrics.nonlinear_correlation,
}
# oracle id after its family -> the same quantity, given (target, fused) as (band, H, W)
TARGET: dict[str, Callable[..., Any]] = {
    "SAM": metrics.spectral_angle,
    "ERGAS_4": lambda gt, f: metrics.ergas(gt, f, ratio=4),
    "psnr_mean_of_bands": metrics.psnr,
    "psnr_index_global": lambda gt, f: metrics.psnr(gt.reshape(1, 1, -1), f.reshape(1, 1, -1)),
    "ssim_wang_mean_of_bands_L1": metrics.ssim,
    "SCC": metrics.spatial_correlation,
}
# The reference is defective or another form of the same formula; compared with what the right column says.
FOLLOWED_INSTEAD = {
    "tang.MI_evaluation": "merges grey levels 254 and 255 (uint8 + 1): the same on doubles",
    "liu.metricYang": "mefb.Qy before flat windows are left out: the stable form",
}
# Tolerance where the reference gives none: a well-conditioned form of the formula.
STABLE = 1e-6


@cache
def oracle(section: str) -> list[dict[str, Any]]:
    """Cases of the reference values, or none where they are not at hand."""
    path = ORACLE / "cases.json"
    return json.loads(path.read_text())[section] if path.exists() else []


def usable(name: str, entry: dict[str, Any]) -> bool:
    """Whether this value can be compared: reproducible, or undefined in the reference too."""
    return entry["status"] == "nan" or (
        entry["status"] == "ok" and (entry["rtol"] is not None or "stable_value" in entry)
    )


def agrees(name: str, entry: dict[str, Any], ours: float, least: float = 0) -> str | None:
    """None where our value is within the reference value's own tolerance, else both values."""
    if entry["status"] == "nan":
        return None if math.isnan(ours) else f"{name}: the reference is NaN, ours {ours}"
    stable = "stable_value" in entry
    value = entry["stable_value" if stable else "value"]
    tolerance = max(STABLE if stable else entry["rtol"], least)
    close = ours == pytest.approx(value, rel=tolerance, abs=1e-9)
    return None if close else f"{name}: the reference is {value}, ours {ours}"


def planes(case: dict[str, Any]) -> list[np.ndarray]:
    return [imread(ORACLE / case[key]).astype(float) for key in "abf"]


needs_oracle = pytest.mark.skipif(
    not (ORACLE / "cases.json").exists(),
    reason="reference values are not at hand (shared/oracle_metrics beside the repository)",
)


@needs_oracle
@pytest.mark.parametrize("case", oracle("gray_cases"), ids=lambda case: case["name"])
def test_grey_cases_agree_with_the_reference_toolboxes(case: dict[str, Any]) -> None:
    a, b, f = planes(case)
    values = {n: e for n, e in case["values"].items() if n in GREY and usable(n, e)}
    assert len(values) >= len(GREY) - 8
    wrong = [agrees(name, entry, GREY[name](a, b, f)) for name, entry in values.items()]
    assert not any(wrong), [text for text in wrong if text]


@needs_oracle
@pytest.mark.parametrize("case", oracle("gray_cases")[::4], ids=lambda case: case["name"])
def test_batches_of_tensors_agree_too(case: dict[str, Any]) -> None:
    a, b, f = (torch.from_numpy(plane).float() for plane in planes(case))
    # the second sample, blank beside the case, must not change the first one
    a, b, f = (torch.stack([plane, torch.zeros_like(plane)]) for plane in (a, b, f))
    wrong = []
    for name, entry in case["values"].items():
        if name in GREY and usable(name, entry):
            ours = GREY[name](a, b, f)
            assert ours.shape == (2,)
            assert ours.dtype == torch.float64
            wrong.append(agrees(name, entry, float(ours[0]), least=1e-4))
    assert not any(wrong), [text for text in wrong if text]


@needs_oracle
@pytest.mark.parametrize("case", oracle("rgb_cases"), ids=lambda case: case["name"])
def test_colour_cases_agree_as_the_mean_of_channels(case: dict[str, Any]) -> None:
    loaded = planes(case)
    height, width = loaded[0].shape[:2]
    a, b, f = (
        np.broadcast_to(np.atleast_3d(plane), (height, width, 3)).transpose(2, 0, 1) for plane in loaded
    )
    for name in ("Mutinf", "Qabf", "Qcb", "Qcv", "Ssim", "Entropy", "Avg_gradient"):
        ours = float(np.mean(GREY[f"vifb.{name}"](a, b, f)))
        assert agrees(name, case["values"][f"vifb.{name}"], ours) is None


@needs_oracle
@pytest.mark.parametrize("case", oracle("pan_cases") + oracle("hs_cases"), ids=lambda case: case["name"])
def test_sharpening_cases_agree_with_the_reference_toolboxes(case: dict[str, Any]) -> None:
    gt, f = (np.moveaxis(np.load(ORACLE / case["files"][key]).astype(float), -1, 0) for key in ("gt", "f"))
    wrong = []
    for name, entry in case["values"].items():
        quantity = name.split(".")[1]
        cut = slice(20, -21) if quantity.startswith("cut21_") else slice(None)
        measure = TARGET.get(quantity.removeprefix("cut21_"))
        if measure is not None and usable(name, entry):
            wrong.append(agrees(name, entry, measure(gt[:, cut, cut], f[:, cut, cut])))
    assert len(wrong) >= 5
    assert not any(wrong), [text for text in wrong if text]

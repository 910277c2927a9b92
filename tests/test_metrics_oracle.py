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
from model.metrics import full_resolution
from model.metrics.hypercomplex import universal_quality

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
    "tang.analysis_ms_ssim": metrics.exposure_structure,
    "tang.analysis_fmi_none": metrics.pixel_information,
    "tang.analysis_fmi_gradient": metrics.gradient_information,
    "tang.analysis_fmi_dct": metrics.cosine_information,
}
# oracle id after its family -> the same quantity, given (target, fused) as (band, H, W)
TARGET: dict[str, Callable[..., Any]] = {
    "SAM": metrics.spectral_angle,
    "ERGAS_4": lambda gt, f: metrics.ergas(gt, f, ratio=4),
    "psnr_mean_of_bands": metrics.psnr,
    "psnr_index_global": lambda gt, f: metrics.psnr(gt.reshape(1, 1, -1), f.reshape(1, 1, -1)),
    "ssim_wang_mean_of_bands_L1": metrics.ssim,
    "SCC": metrics.spatial_correlation,
    "CC_mean_of_bands": lambda gt, f: float(np.mean(metrics.correlation(gt, gt, f))),
    "Q_avg": universal_quality,
    "q2n_32": lambda gt, f: metrics.q2n(gt, f, levels=1),
    "q2n_32_of_round_2047x": metrics.q2n,
}
# Ids that no function of ours computes, with the reason.
NOT_FOLLOWED = {
    "tang.MI_evaluation": "merges grey levels 254 and 255 (uint8 + 1); compared with the same on doubles",
    "liu.metricYang": "mefb.Qy without leaving out flat windows: rounding noise over rounding noise",
    "vifb.Psnr": "divides the root of the summed square error by the pixels: depends on the image's size",
    "vifb.Rmse": "as vifb.Psnr",
    **{
        name: "not among our metrics"
        for name in (
            "liu.metricMI_sw1", "liu.metricMI_sw3", "liu.metricXydeas", "liu.metricZheng",
            "liu.metricPeilla_1", "liu.metricCvejic_2", "vifb.Cross_entropy", "vifb.Edge_intensity",
            "mefb.NMI", "mefb.VIF", "mefb.TE", "mefb.Qc", "mefb.Qw",
        )
    },
}  # fmt: skip
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
    assert len(values) >= 28
    wrong = [agrees(name, entry, GREY[name](a, b, f)) for name, entry in values.items()]
    assert not any(wrong), [text for text in wrong if text]


@needs_oracle
@pytest.mark.parametrize(
    "case", [c for c in oracle("gray_cases") if "patch" in c], ids=lambda case: case["name"]
)
def test_feature_information_agrees_on_the_patches(case: dict[str, Any]) -> None:
    patch = case["patch"]
    rows = slice(patch["row0"], patch["row0"] + patch["height"])
    columns = slice(patch["col0"], patch["col0"] + patch["width"])
    a, b, f = (plane[rows, columns] for plane in planes(case))
    assert len(patch["values"]) == 3
    for name, entry in patch["values"].items():
        assert agrees(name, entry, GREY[name](a, b, f)) is None


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
@pytest.mark.parametrize("case", oracle("gray_cases") + oracle("rgb_cases"), ids=lambda case: case["name"])
def test_the_authors_profile_agrees_with_the_authors_script(case: dict[str, Any]) -> None:
    height, width = case["shape"][:2]
    a, b, f = (
        np.broadcast_to(np.atleast_3d(plane), (height, width, 3)).transpose(2, 0, 1) for plane in planes(case)
    )
    ours = metrics.fusion_metrics((a, b), f, definitions="rwkvfusion")
    wrong = []
    for name, value in ours.items():
        entry = case["values"][name.replace("_", ".")]
        if usable(name, entry):
            wrong.append(agrees(name, entry, value))
    assert len(wrong) >= 6
    assert not any(wrong), [text for text in wrong if text]


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


@needs_oracle
@pytest.mark.parametrize("case", oracle("pan_cases"), ids=lambda case: case["name"])
def test_full_resolution_cases_agree_with_the_reference_toolbox(case: dict[str, Any]) -> None:
    arrays = {key: np.load(ORACLE / path).astype(float) for key, path in case["files"].items()}
    ms, lms, f = (np.moveaxis(arrays[key], -1, 0) for key in ("ms", "lms", "f"))
    whole = full_resolution.full_resolution_metrics(arrays["pan"], ms, f, sensor=case["sensor"], levels=1)
    parts = {
        "D_lambda_K": full_resolution.filtered_spectral_distortion(lms, f, sensor=case["sensor"], levels=1),
        "D_lambda": full_resolution.spectral_distortion(lms, f),
        "D_s": full_resolution.spatial_distortion(lms, f, arrays["pan"]),
    }
    for name, value in whole.items():
        entry = case["values"][f"dlpan.{name}"]
        # the toolbox was given expanded bands rounded to float32
        assert agrees(name, entry, value, least=1e-5) is None or abs(value - entry["value"]) < 1e-6
        if name in parts:
            assert agrees(name, entry, parts[name]) is None
    tensors = {key: torch.from_numpy(array) for key, array in (("pan", arrays["pan"]), ("ms", ms), ("f", f))}
    batch = full_resolution.full_resolution_metrics(
        *(torch.stack([tensor, tensor / 2]) for tensor in tensors.values()), sensor=case["sensor"], levels=1
    )
    assert {name: float(value[0]) for name, value in batch.items()} == pytest.approx(whole, rel=1e-9)


@needs_oracle
def test_every_reference_function_is_compared_or_said_not_to_be() -> None:
    functions = json.loads((ORACLE / "cases.json").read_text())["functions"]
    full = {"D_lambda", "D_lambda_K", "D_s", "HQNR", "QNR"}
    compared = {
        name
        for name in functions
        if name in GREY
        or name.startswith("rwkvfusion.")
        or name.split(".")[1].removeprefix("cut21_") in TARGET.keys() | full
    }
    assert functions.keys() - compared == NOT_FOLLOWED.keys()
    assert not compared & NOT_FOLLOWED.keys()

"""Image fusion metrics, profile `reference`: the definitions of VIFB, MEFB, Tang and DLPan (docs/metrics.md).

Fusion metrics take luminance planes (H, W) on 0..255; metrics against a target take (band, H, W) on 0..1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model.metrics.fidelity import visual_fidelity
from model.metrics.gradient import average_gradient, edge_preservation, spatial_frequency, standard_deviation
from model.metrics.information import correlation, difference_correlation, entropy, mutual_information
from model.metrics.perception import contrast_preservation, perceived_error, structure_choice
from model.metrics.planes import Plane
from model.metrics.sharpening import ergas, psnr, spectral_angle, ssim
from model.metrics.structure import source_psnr, structural_sum

PROFILE = "reference"

SOURCE_METRICS = {
    "MI": mutual_information,
    "VIF": visual_fidelity,
    "Qabf": edge_preservation,
    "Qcb": contrast_preservation,
    "Qcv": perceived_error,
    "Qy": structure_choice,
    "SSIM": structural_sum,
    "SCD": difference_correlation,
    "CC": correlation,
    "PSNR": source_psnr,
}
FUSED_METRICS = {
    "SF": spatial_frequency,
    "EN": entropy,
    "SD": standard_deviation,
    "AG": average_gradient,
}


@dataclass(frozen=True)
class Direction:
    """How a column of a metrics table reads: which way is better, its unit, the decimals worth printing."""

    better: Literal["higher", "lower"] = "higher"
    unit: str = ""
    decimals: int = 3


DIRECTIONS = {  # in the order in which tables show them
    "MI": Direction(unit="bit"),
    "VIF": Direction(),
    "SF": Direction(decimals=2),
    "Qabf": Direction(),
    "Qcb": Direction(),
    "Qy": Direction(),
    "Qcv": Direction("lower", decimals=1),
    "PSNR": Direction(unit="dB", decimals=2),
    "SSIM": Direction(),
    "EN": Direction(unit="bit"),
    "SD": Direction(decimals=2),
    "AG": Direction(decimals=2),
    "SCD": Direction(),
    "CC": Direction(),
    "target_PSNR": Direction(unit="dB", decimals=2),
    "target_SSIM": Direction(),
    "spectral_angle": Direction("lower", unit="°"),
    "ERGAS": Direction("lower"),
}


def fusion_metrics(sources: Sequence[Plane], fused: Plane) -> dict[str, float]:
    """Every fusion metric of one sample by name; luminance (H, W) on 0..255.

    Metrics that compare with the sources are defined for two; with another number only those of the fused
    image alone are given.
    """
    values: dict[str, float] = {}
    if len(sources) == 2:
        first, second = sources
        values = {name: metric(first, second, fused) for name, metric in SOURCE_METRICS.items()}
    return values | {name: metric(fused) for name, metric in FUSED_METRICS.items()}


def target_metrics(target: Plane, fused: Plane) -> dict[str, float]:
    """PSNR and SSIM of the fused image against the target, both (band, H, W) on 0..1."""
    return {"target_PSNR": psnr(target, fused), "target_SSIM": ssim(target, fused)}


def sharpening_metrics(target: Plane, fused: Plane, ratio: float) -> dict[str, float]:
    """PSNR, SSIM, spectral angle and ERGAS against the target, both (band, H, W) on 0..1."""
    return {
        "PSNR": psnr(target, fused),
        "SSIM": ssim(target, fused),
        "spectral_angle": spectral_angle(target, fused),
        "ERGAS": ergas(target, fused, ratio=ratio),
    }

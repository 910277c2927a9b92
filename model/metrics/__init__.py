"""Image fusion metrics in two profiles that share no column name (docs/metrics.md).

`reference`: the definitions of VIFB, MEFB, Tang and DLPan. Fusion metrics take luminance planes (H, W) on
0..255; metrics against a target take (band, H, W) on 0..1. `rwkvfusion`: what the authors' script computes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from model.metrics.fidelity import visual_fidelity
from model.metrics.gradient import (
    artefacts,
    average_gradient,
    edge_preservation,
    spatial_frequency,
    standard_deviation,
)
from model.metrics.information import (
    correlation,
    difference_correlation,
    entropy,
    mutual_information,
    nonlinear_correlation,
)
from model.metrics.perception import contrast_preservation, perceived_error, structure_choice
from model.metrics.sharpening import ergas, psnr, spatial_correlation, spectral_angle, ssim
from model.metrics.structure import multiscale_sum, source_psnr, structural_sum
from pipeline.errors import InputError

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
    "MS-SSIM": multiscale_sum,
    "Nabf": artefacts,
    "Qncie": nonlinear_correlation,
}
FUSED_METRICS = {
    "SF": spatial_frequency,
    "EN": entropy,
    "SD": standard_deviation,
    "AG": average_gradient,
}


@dataclass(frozen=True)
class Direction:
    """How a column of a metrics table reads: which way is better, its unit, the decimals worth printing, and
    the smallest and largest value that it can take."""

    better: Literal["higher", "lower"] = "higher"
    unit: str = ""
    decimals: int = 3
    low: float = 0.0
    high: float = float("inf")


DIRECTIONS = {  # in the order in which tables show them
    "MI": Direction(unit="bit", high=16),
    "VIF": Direction(),
    "SF": Direction(decimals=2, high=255 * 2**0.5),
    "Qabf": Direction(high=0.9876),
    "Qcb": Direction(high=1),
    "Qy": Direction(low=-1, high=1),
    "Qcv": Direction("lower", decimals=1),
    "PSNR": Direction(unit="dB", decimals=2, low=-float("inf")),
    "SSIM": Direction(low=-2, high=2),
    "EN": Direction(unit="bit", high=8),
    "SD": Direction(decimals=2, high=127.5),
    "AG": Direction(decimals=2),
    "SCD": Direction(low=-2, high=2),
    "CC": Direction(low=-1, high=1),
    "MS-SSIM": Direction(high=2),
    "Nabf": Direction("lower", high=1),
    "Qncie": Direction(decimals=4, high=1),
    "target_PSNR": Direction(unit="dB", decimals=2, low=-float("inf")),
    "target_SSIM": Direction(low=-1, high=1),
    "spectral_angle": Direction("lower", unit="°", high=180),
    "ERGAS": Direction("lower"),
    "SCC": Direction(high=1),
}


@dataclass(frozen=True)
class Profile:
    """One set of definitions: column name -> function, by what the fused image is compared with.

    `sources`: (first, second, fused); `fused`: (fused); `target`: (target, fused). `slow` names the columns
    that take seconds per sample. `channels` is what the first two kinds take: luminance planes (H, W), or
    colour images (3, H, W) whose channels they average.
    """

    name: str
    channels: Literal["luminance", "rgb"]
    sources: Mapping[str, Callable[..., Any]]
    fused: Mapping[str, Callable[..., Any]]
    target: Mapping[str, Callable[..., Any]]
    slow: frozenset[str] = frozenset()


TARGET_METRICS = {
    "PSNR": psnr,
    "SSIM": ssim,
    "spectral_angle": spectral_angle,
    "ERGAS": ergas,
    "SCC": spatial_correlation,
}
PROFILES = {
    "reference": Profile("reference", "luminance", SOURCE_METRICS, FUSED_METRICS, TARGET_METRICS),
}


def profile(name: str) -> Profile:
    """The profile of this name. Raises InputError for another one."""
    if name not in PROFILES:
        raise InputError(f"no profile of metrics '{name}': use one of {', '.join(PROFILES)}")
    return PROFILES[name]


def fusion_metrics(sources: Sequence[Any], fused: Any) -> dict[str, Any]:
    """Every fusion metric of one sample by name; luminance (H, W) on 0..255.

    Metrics that compare with the sources are defined for two; with another number only those of the fused
    image alone are given.
    """
    values: dict[str, Any] = {}
    if len(sources) == 2:
        first, second = sources
        values = {name: metric(first, second, fused) for name, metric in SOURCE_METRICS.items()}
    return values | {name: metric(fused) for name, metric in FUSED_METRICS.items()}


def target_metrics(target: Any, fused: Any) -> dict[str, Any]:
    """PSNR and SSIM of the fused image against the target, both (band, H, W) on 0..1."""
    return {"target_PSNR": psnr(target, fused), "target_SSIM": ssim(target, fused)}


def sharpening_metrics(target: Any, fused: Any, ratio: float) -> dict[str, Any]:
    """PSNR, SSIM, spectral angle, ERGAS and SCC against the target, both (band, H, W) on 0..1."""
    parameters = {"ERGAS": {"ratio": ratio}}
    return {
        name: metric(target, fused, **parameters.get(name, {})) for name, metric in TARGET_METRICS.items()
    }

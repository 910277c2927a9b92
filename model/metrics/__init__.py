"""Image fusion metrics in two profiles that share no column name (docs/metrics.md).

`reference`: the definitions of VIFB, MEFB, Tang and DLPan. Fusion metrics take luminance planes (H, W) on
0..255; metrics against a target take (band, H, W) on 0..1. `rwkvfusion`: what the authors' script computes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from model.metrics import rwkvfusion
from model.metrics.feature_information import (
    cosine_information,
    gradient_information,
    pixel_information,
    wavelet_information,
)
from model.metrics.fidelity import visual_fidelity
from model.metrics.gradient import (
    artefacts,
    average_gradient,
    edge_preservation,
    spatial_frequency,
    standard_deviation,
)
from model.metrics.hypercomplex import q2n
from model.metrics.information import (
    correlation,
    difference_correlation,
    entropy,
    mutual_information,
    nonlinear_correlation,
)
from model.metrics.lpips import perceptual_distance
from model.metrics.perception import contrast_preservation, perceived_error, structure_choice
from model.metrics.sharpening import ergas, psnr, spatial_correlation, spectral_angle, ssim
from model.metrics.structure import exposure_structure, multiscale_sum, source_psnr, structural_sum
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
    "MEF-SSIM": exposure_structure,
}
SLOW_METRICS = {  # against the sources too, about a second per sample each
    "FMI_pixel": pixel_information,
    "FMI_gradient": gradient_information,
    "FMI_wavelet": wavelet_information,
    "FMI_DCT": cosine_information,
}
FUSED_METRICS = {
    "SF": spatial_frequency,
    "EN": entropy,
    "SD": standard_deviation,
    "AG": average_gradient,
}


@dataclass(frozen=True)
class Direction:
    """How a column of a metrics table reads: which way is better, its unit, the decimals worth printing.

    The ranges of values are in docs/metrics.md and in the metrics' own documentation.
    """

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
    "LPIPS": Direction("lower"),
    "PSNR": Direction(unit="dB", decimals=2),
    "SSIM": Direction(),
    "EN": Direction(unit="bit"),
    "SD": Direction(decimals=2),
    "AG": Direction(decimals=2),
    "SCD": Direction(),
    "CC": Direction(),
    "MS-SSIM": Direction(),
    "Nabf": Direction("lower"),
    "Qncie": Direction(decimals=4),
    "MEF-SSIM": Direction(),
    "FMI_pixel": Direction(),
    "FMI_gradient": Direction(),
    "FMI_wavelet": Direction(),
    "FMI_DCT": Direction(),
    "target_PSNR": Direction(unit="dB", decimals=2),
    "target_SSIM": Direction(),
    "spectral_angle": Direction("lower", unit="°"),
    "ERGAS": Direction("lower"),
    "SCC": Direction(),
    "Q2n": Direction(),
    "D_lambda_K": Direction("lower"),
    "D_s": Direction("lower"),
    "HQNR": Direction(),
    "D_lambda": Direction("lower"),
    "QNR": Direction(),
}
AUTHORS = ("MI", "VIF", "SF", "Qabf", "Qcb", "Qy", "Qcv", "LPIPS")
DIRECTIONS |= {f"rwkvfusion_{name}": DIRECTIONS[name] for name in AUTHORS}
DIRECTIONS["rwkvfusion_MI"] = Direction(unit="nat")


@dataclass(frozen=True)
class Profile:
    """One set of definitions: column name -> function, by what the fused image is compared with.

    `sources`: (first, second, fused), `slow` ones of these separately; `fused`: (fused); `target`: (target,
    fused). `channels` is what these take on 0..255, the target's excepted: luminance planes (H, W), or colour
    images (3, H, W) whose channels they average. `perceptual`: the column of LPIPS, which needs weights. At
    full resolution see `model.metrics.full_resolution`.
    """

    name: str
    channels: Literal["luminance", "rgb"]
    perceptual: str
    sources: Mapping[str, Callable[..., Any]]
    fused: Mapping[str, Callable[..., Any]]
    slow: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    target: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def lpips(self, first: Any, second: Any, fused: Any, *, weights: Path | str) -> Any:
        """`perceptual_distance` of images as the profile takes them."""
        images = (first, second, fused)
        if self.channels == "luminance":
            images = (first[..., None, :, :], second[..., None, :, :], fused[..., None, :, :])
        return perceptual_distance(*images, weights=weights)


TARGET_METRICS: dict[str, Callable[..., Any]] = {
    "PSNR": psnr,
    "SSIM": ssim,
    "spectral_angle": spectral_angle,
    "ERGAS": ergas,
    "SCC": spatial_correlation,
    "Q2n": q2n,
}
PROFILES = {
    "reference": Profile(
        "reference", "luminance", "LPIPS", SOURCE_METRICS, FUSED_METRICS, SLOW_METRICS, TARGET_METRICS
    ),
    "rwkvfusion": Profile(
        "rwkvfusion", "rgb", "rwkvfusion_LPIPS", rwkvfusion.SOURCE_METRICS, rwkvfusion.FUSED_METRICS
    ),
}


def profile(name: str) -> Profile:
    """The profile of this name. Raises InputError for another one."""
    if name not in PROFILES:
        raise InputError(f"no profile of metrics '{name}': use one of {', '.join(PROFILES)}")
    return PROFILES[name]


def fusion_metrics(
    sources: Sequence[Any],
    fused: Any,
    *,
    definitions: str = PROFILE,
    slow: bool = False,
    weights: Path | str | None = None,
) -> dict[str, Any]:
    """Every fusion metric of one sample by its column's name, in one profile.

    `slow` adds FMI, `weights` LPIPS (see `model.metrics.lpips.backbone_file`, whose InputError says why there
    are none).

    Profile `reference`: luminance (H, W) on 0..255; `rwkvfusion`: colour (3, H, W) on 0..255. Metrics that
    compare with the sources are defined for two; with another number only those of the fused image alone are
    given.
    """
    chosen = profile(definitions)
    values: dict[str, Any] = {}
    if len(sources) == 2:
        against = {**chosen.sources, **(chosen.slow if slow else {})}
        values = {name: metric(*sources, fused) for name, metric in against.items()}
        if weights is not None:
            values[chosen.perceptual] = chosen.lpips(sources[0], sources[1], fused, weights=weights)
    return values | {name: metric(fused) for name, metric in chosen.fused.items()}


def target_metrics(target: Any, fused: Any) -> dict[str, Any]:
    """PSNR and SSIM of the fused image against the target, both (band, H, W) on 0..1."""
    return {"target_PSNR": psnr(target, fused), "target_SSIM": ssim(target, fused)}


def sharpening_metrics(
    target: Any,
    fused: Any,
    ratio: float,
    levels: float = 2047.0,
    metrics: Mapping[str, Callable[..., Any]] = TARGET_METRICS,
) -> dict[str, Any]:
    """PSNR, SSIM, spectral angle, ERGAS, SCC and Q2n (or those of them given) against the target, both (band,
    H, W) on 0..1.

    `levels`: the digital number of 1.0, 2^bits - 1; only Q2n, which rounds to digital numbers, depends on it.
    """
    parameters = {"ERGAS": {"ratio": ratio}, "Q2n": {"levels": levels}}
    return {name: metric(target, fused, **parameters.get(name, {})) for name, metric in metrics.items()}

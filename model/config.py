"""The names of every parameter of the network and its training; their values stand in params.yaml."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.config import (
    MASK_CHANNELS,
    PARAMS,
    STRICT,
    TEXT_WIDTH,
    DatasetConfig,
    build,
    find_dataset,
    load_sections,
)
from pipeline.errors import InputError
from pipeline.manifest import TASKS, nearest

Depth = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The network (sect. 3.2-3.5).

    ``encoder_depths``: BRWKV layers per level of the encoder, finest first; ``decoder_depths`` likewise, one
    level fewer. ``width`` doubles with each level. ``channel_ratio``: hidden channels of the channel mix.
    The second group are the rows of Tables 6 and 7 (docs/network.md): ``operator``, the attention of the
    spatial mixes; ``scan``, strategy 1, 2 or 3 of sect. 3.4; ``fusion``, the module that takes the guidance
    in; ``backbone``; ``guidance``, what is taken in, ``unmerged`` being the text and every source's own
    masks. The last group are facts of the data, filled in by the trainer; ``mask_channels`` are those of one
    set of masks.
    """

    width: int = Field(default=16, ge=4, le=2**16)
    encoder_depths: tuple[Depth, ...] = Field(default=(1, 1), min_length=1)
    decoder_depths: tuple[Depth, ...] = (1,)
    channel_ratio: float = Field(default=2.0, gt=0, le=2**8)

    operator: Literal[
        "bi_wkv", "window_bi_wkv", "attention", "flatten_attention", "window_attention", "vmamba"
    ] = "bi_wkv"
    scan: Literal[1, 2, 3] = 1
    fusion: Literal["mfm", "mlp", "cross_attention"] = "mfm"
    backbone: Literal["unet", "plain"] = "unet"
    guidance: Literal["both", "text", "masks", "none", "unmerged"] = "both"

    in_channels: tuple[int, ...] = (1, 1)
    out_channels: int = 1
    base: int | None = None
    text_width: int = TEXT_WIDTH
    mask_channels: int = MASK_CHANNELS

    def __post_init__(self) -> None:
        if len(self.decoder_depths) != len(self.encoder_depths) - 1:
            raise ValueError("decoder_depths must have one level fewer than encoder_depths")
        if self.base is not None and not 0 <= self.base < len(self.in_channels):
            raise ValueError("base must be the number of a source: 0 for the first")

    @property
    def mask_inputs(self) -> int:
        """Channels of the masks given to the network: unmerged, every source has its own set."""
        if self.guidance not in MASK_GUIDANCE:
            return 0
        return self.mask_channels * (len(self.in_channels) if self.guidance == "unmerged" else 1)


TEXT_GUIDANCE = ("both", "text", "unmerged")
MASK_GUIDANCE = ("both", "masks", "unmerged")
"""Values of ModelConfig.guidance with text, and with masks."""

VALIDATION_METRICS = ("loss", "Qabf", "SSIM_sum", "PSNR")
"""Validation figures that weights can be chosen by; of the loss the lowest, of the others the highest."""

DATA_FACTS = ("in_channels", "out_channels", "base", "text_width", "mask_channels")
"""Fields of ModelConfig that the data decide; they are not in params.yaml."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LossConfig:
    """Weights of eq. 19-23, and terms that others use.

    ``intensity``, ``ssim``, ``gradient`` are η1, η2, η3 of eq. 20; ``sharpening_ssim`` is λ of eq. 19.
    ``intensity_target``: ``sources`` is eq. 21 as printed, ``maximum`` the L1 distance to the brighter
    source, to which ``detail`` adds that share of what the other sources show beside their local mean,
    ``exposure_fusion`` that to the blend of model/exposure_fusion.py, which chooses the well exposed source.
    ``gradient_target``: ``magnitude`` is eq. 23, ``vector`` keeps the sign and direction of the strongest
    edge; ``gradient_gain`` times as strong is what the fused edge should be. ``supervised``: a fusion task
    whose samples have a target (simulated defocus, say) is trained against its target's luminance by eq. 19,
    as sharpening always is. ``mask_weight``: how much more the intensity of a pixel counts that lies on an
    object (1: twice). ``colour``: weight of the spectral angle to the target; only sharpening has bands that
    could have one. ``outside``: weight of how far values of a fusion without target lie outside [0, 1], where
    they are cut off when the image is used, and the edges that the other terms like with them.
    """

    intensity: float = Field(default=10.0, ge=0)
    ssim: float = Field(default=2.0, ge=0)
    gradient: float = Field(default=20.0, ge=0)
    sharpening_ssim: float = Field(default=0.1, ge=0)
    intensity_target: Literal["sources", "maximum", "exposure_fusion"] = "sources"
    detail: float = Field(default=0.0, ge=0)
    gradient_target: Literal["magnitude", "vector"] = "magnitude"
    gradient_gain: float = Field(default=1.0, gt=0)
    supervised: bool = False
    ssim_window: int = Field(default=11, ge=3)
    mask_weight: float = Field(default=0.0, ge=0)
    colour: float = Field(default=0.0, ge=0)
    outside: float = Field(default=0.0, ge=0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """One training run.

    ``start``: weights of the same network to start from (a .safetensors file with its .json), "" for random.
    ``mix``: further data sets to draw samples from, each with its weight; that of ``dataset`` is 1.
    ``batch``: samples of a step, over all processes; ``accumulate``: parts that each process takes one after
    another, to save memory. ``text_dropout`` and ``mask_dropout``: chance that a batch goes without that
    guidance. ``photometric``: strength of random changes of brightness (model/augmentation.py).
    ``precision``: of the forward pass; weights, loss and optimiser are float32. ``best_metric``: validation
    figure by which the weights are chosen, "" for those of the last step; ``patience``: validations without
    a better one after which training stops, 0 for never.
    """

    dataset: str = "demo"
    start: str = ""
    mix: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    task: str = "visible_infrared"
    steps: int = Field(default=60, ge=1)
    batch: int = Field(default=4, ge=1)
    crop: int = Field(default=64, ge=8)
    lr: float = Field(default=4e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=10, ge=0)
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=True)  # .inf: no clipping
    ema: float = Field(default=0.95, ge=0, lt=1)
    text_dropout: float = Field(default=0.25, ge=0, le=1)
    mask_dropout: float = Field(default=0.25, ge=0, le=1)
    photometric: float = Field(default=0.0, ge=0, le=1)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    accumulate: int = Field(default=1, ge=1)
    compile: bool = False
    validate_every: int = Field(default=40, ge=1)
    best_metric: Literal["", "loss", "Qabf", "SSIM_sum", "PSNR"] = ""
    patience: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**64)

    def __post_init__(self) -> None:
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch {self.batch} cannot be taken in {self.accumulate} equal parts (accumulate)"
            )
        if self.patience and not self.best_metric:
            raise ValueError("patience needs best_metric, the figure that has to get better")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskConfig:
    """What one task changes: keys of the ``model``, ``loss`` and ``train`` sections with other values."""

    model: dict[str, Any] = Field(default_factory=dict)
    loss: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """All sections of params.yaml that the model reads."""

    datasets: dict[str, DatasetConfig]
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    tasks: dict[str, TaskConfig] = Field(default_factory=dict)

    def dataset(self, name: str) -> DatasetConfig:
        """Return one data set's section. Raises InputError with the nearest name."""
        return find_dataset(self.datasets, name)

    def for_task(self, task: str, dataset: str | None = None) -> Config:
        """Return the configuration with ``tasks.<task>`` applied, and ``train.task`` / ``train.dataset`` set.

        Raises InputError for an unknown task or key.
        """
        if task not in TASKS:
            raise InputError(f"unknown task '{task}'.{nearest(task, TASKS)}")
        change = self.tasks.get(task, TaskConfig())
        place = f"{PARAMS}: tasks.{task}"
        train = {**dataclasses.asdict(self.train), **change.train, "task": task}
        if dataset is not None:
            train["dataset"] = dataset
        return dataclasses.replace(
            self,
            model=build(ModelConfig, {**dataclasses.asdict(self.model), **change.model}, f"{place}.model"),
            loss=build(LossConfig, {**dataclasses.asdict(self.loss), **change.loss}, f"{place}.loss"),
            train=build(TrainConfig, train, f"{place}.train"),
        )


def load_config(path: Path = PARAMS) -> Config:
    """Read the model's sections of params.yaml. Raises InputError naming the key."""
    config = load_sections(Config, path)
    networks = {"model": config.model}
    for task, change in config.tasks.items():
        networks[f"tasks.{task}.model"] = config.for_task(task).model
        for name in ("dataset", "task"):
            if name in change.train:
                raise InputError(
                    f"{path}: tasks.{task}.train.{name} has no effect; give --{name} to the command, or set "
                    f"train.{name}"
                )
    for place, network in networks.items():
        for name in DATA_FACTS:
            if getattr(network, name) != getattr(ModelConfig(), name):
                raise InputError(f"{path}: {place}.{name} follows from the data; remove the key")
    return config


def run_dir(dataset: str, task: str) -> Path:
    """Folder of one training run: checkpoints, weights, curves."""
    return Path("runs") / dataset / task


def report_dir(dataset: str) -> Path:
    """Folder of a data set's evaluation: figures, fused images, report."""
    return Path("reports") / dataset

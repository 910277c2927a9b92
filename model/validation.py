"""How good a network is on whole held-out images, and which of its states has been the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.batches import Batch, collate
from model.config import VALIDATION_METRICS, LossConfig
from model.data import FusionDataset
from model.losses import fusion_loss
from pipeline.errors import InputError
from pipeline.images import display, enlarge

PICTURES = 2  # samples that are shown


@torch.no_grad()
def validate(
    network: nn.Module,
    dataset: FusionDataset,
    config: LossConfig,
    device: torch.device,
    show: Callable[[str, np.ndarray], None],
) -> dict[str, float]:
    """Mean loss parts and metrics over whole images, in float32; the first ones are given to ``show``.

    Samples for which a figure is not defined are left out of its mean.
    """
    rows = []
    for index in range(len(dataset)):
        batch = collate([dataset[index]]).to(device)
        fused = network(batch.sources, batch.text, batch.text_length, batch.masks)
        parts = fusion_loss(fused, batch.sources, batch.target, config, batch.masks)
        rows.append({name: float(value) for name, value in parts.items()} | quality(batch, fused))
        if index < PICTURES:
            show(batch.ids[0], picture(batch, fused))
    return {name: _mean([row[name] for row in rows]) for name in rows[0]}


def _mean(values: Sequence[float]) -> float:
    """The mean of the samples for which a figure is defined; NaN where it is for none."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


@contextmanager
def averaged(network: nn.Module, average: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the network bear the averaged weights, in evaluation mode, for a while."""
    own = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(average)
    network.eval()
    try:
        yield
    finally:
        network.load_state_dict(own)
        network.train()


def quality(batch: Batch, fused: Tensor) -> dict[str, float]:
    """PSNR to the target in sharpening; Qabf and the SSIM sum of a two-source fusion."""
    from model.metrics import SOURCE_METRICS
    from model.metrics.sharpening import psnr

    result = fused[0].clamp(0, 1).double().cpu().numpy()
    if batch.target is not None:
        return {"PSNR": psnr(batch.target[0].double().cpu().numpy(), result)}
    planes = [255 * source[0, 0].double().cpu().numpy() for source in batch.sources]
    if len(planes) != 2:
        return {}
    # Not "SSIM": the loss part `ssim` is written beside it, and some file systems ignore case.
    metrics = {"Qabf": SOURCE_METRICS["Qabf"], "SSIM_sum": SOURCE_METRICS["SSIM"]}
    return {name: float(metric(planes[0], planes[1], 255 * result[0])) for name, metric in metrics.items()}


def picture(batch: Batch, fused: Tensor) -> np.ndarray:
    """Sources, fused image and target of a batch's first sample side by side: uint8 (H, W, 3)."""
    size = (fused.shape[-2], fused.shape[-1])
    images = [*batch.sources, fused.clamp(0, 1), *([] if batch.target is None else [batch.target])]
    return np.concatenate([display(enlarge(image[0].cpu().numpy(), size)) for image in images], axis=1)


class Best:
    """The best weights so far by one validation figure; without a figure, those of the last step."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.last: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        self.step = 0
        self.weights: dict[str, Tensor] | None = None
        self.waiting = 0

    def take(self, step: int, values: Mapping[str, float], weights: Mapping[str, Tensor]) -> None:
        """Hear of a validation of these weights. Raises InputError where the figure has no value."""
        self.last = dict(values)
        if not self.metric:
            return
        measured = [name for name in VALIDATION_METRICS if not math.isnan(values.get(name, math.nan))]
        if self.metric not in measured:
            where = "for these validation samples" if self.metric in values else "in this task"
            raise InputError(
                f"train.best_metric: {self.metric} is not measured {where}; choose one of "
                f"{', '.join(measured)}"
            )
        sign = -1 if self.metric == "loss" else 1
        if self.weights is None or sign * values[self.metric] > sign * self.metrics[self.metric]:
            self.step, self.metrics, self.waiting = step, dict(values), 0
            self.weights = {name: value.clone() for name, value in weights.items()}
        else:
            self.waiting += 1

    def exhausted(self, patience: int) -> bool:
        """Whether the last ``patience`` validations brought nothing better; never for 0."""
        return 0 < patience <= self.waiting

    def chosen(
        self, weights: Mapping[str, Tensor], step: int
    ) -> tuple[Mapping[str, Tensor], dict[str, float], int]:
        """The weights to keep, their validation and their step: the best, else the given last ones."""
        return (weights, self.last, step) if self.weights is None else (self.weights, self.metrics, self.step)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: value for name, value in vars(self).items() if name != "metric"}

    def restore(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)

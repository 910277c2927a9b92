"""Train one task's network on cached guidance; stop and go on at any step with the same result.

What step t does depends on (seed, t) and the state after step t - 1 alone: order of samples, crops, flips,
guidance dropout and learning rate are functions of the seed and the step. A run that was killed therefore
goes on from its last checkpoint to the very same weights (bit-identical on the CPU).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import Config, TrainConfig, load_config
from model.data import Batch, EndlessBatches, FusionDataset, collate
from model.losses import fusion_loss
from model.network import RWKVFusion
from model.run import Run, prepare
from model.watch import Interrupt, Watch
from pipeline.errors import InputError

LOG_EVERY = 10  # steps between two points of the training curves


def train(
    dataset: str | None = None,
    task: str | None = None,
    *,
    config: Config | None = None,
    device: str = "auto",
    workers: int = 0,
    console: Console | None = None,
) -> Path:
    """Train the network of a task on a data set; returns runs/<dataset>/<task>/weights.safetensors.

    ``dataset`` and ``task`` default to params.yaml ``train``. ``device`` is ``auto`` or a torch device;
    ``workers`` are processes that load data (0: this one). Neither changes what is trained. A finished run
    whose configuration and data are unchanged is left as it is; an unfinished one goes on; a changed one
    starts anew and says why.

    Raises InputError for unknown names, missing or stale guidance, unusable samples, a loss not finite.
    Ctrl-C writes a checkpoint after the current step and raises KeyboardInterrupt.
    """
    config = config or load_config()
    config = config.for_task(task or config.train.task, dataset or config.train.dataset)
    console = console or Console()
    run = prepare(config)
    name = f"{run.config.train.dataset}/{run.config.train.task}"
    if run.finished():
        console.print(f"{name}: up to date ({run.weights})")
        return run.weights
    trainer = Trainer(run, pick_device(device), workers)
    console.print(trainer.resume(name))
    trainer.fit(console)
    return run.weights


def pick_device(name: str) -> torch.device:
    """The torch device of that name; ``auto`` is CUDA where there is one. Raises InputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device '{name}' cannot be used here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return device


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up to ``lr`` over ``warmup_steps``, then half a cosine down to 1 % of it."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def drop_guidance(batch: Batch, step: int, config: TrainConfig) -> Batch:
    """Remove text and masks from the batch, each on its own chance, drawn from (seed, step)."""
    text, masks = np.random.default_rng((config.seed, step, 1)).random(2)
    return batch.without(text=text < config.text_dropout, masks=masks < config.mask_dropout)


class Trainer:
    """Network, optimiser and weight average of one run, from step ``self.step`` on."""

    def __init__(self, run: Run, device: torch.device, workers: int = 0) -> None:
        self.run, self.device, self.workers = run, device, workers
        config = run.config.train
        torch.manual_seed(config.seed)
        self.network = RWKVFusion(run.model).to(device)
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        kept = [p for p in self.network.parameters() if p.ndim <= 1]  # norms, biases, decays: no weight decay
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": kept, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=config.lr)
        self.average = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.step = 0
        self.seconds = 0.0

    def resume(self, name: str) -> str:
        """Take up the last whole checkpoint if it belongs to this run; returns what is going to happen."""
        found = load_checkpoint(self.run.checkpoints)
        size = f"{sum(p.numel() for p in self.network.parameters()) / 1e6:.2f} M parameters"
        steps, samples = self.run.config.train.steps, len(self.run.training)
        plan = f"{name}: training {size} for {steps} steps on {samples} samples"
        changed = self.run.changed(found[1]["facts"] if found else self.run.previous_facts())
        if changed:
            self.run.discard()
            return f"{plan}, anew because {changed}"
        if not found:
            return plan
        state = found[1]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = {name: value.to(self.device) for name, value in state["average"].items()}
        torch.set_rng_state(state["random"])
        self.step, self.seconds = state["step"], state["seconds"]
        return f"{plan}, going on from step {self.step}"

    def save(self) -> Path:
        """Write a checkpoint of everything the next step depends on."""
        state = {
            "facts": self.run.facts,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "random": torch.get_rng_state(),
            "seconds": self.seconds,
        }
        return save_checkpoint(self.run.checkpoints, self.step, state)

    def batches(self) -> Iterator[Batch]:
        """The batches from this step to the last one."""
        config = self.run.config.train
        order = EndlessBatches(len(self.run.training), config.batch, config.seed, self.step, config.steps)
        # A generator of its own: the loader must not draw from the state that a checkpoint restores.
        loader = DataLoader(
            self.run.training,
            batch_sampler=order,
            num_workers=self.workers,
            collate_fn=collate,
            generator=torch.Generator(),
        )
        yield from loader

    def fit(self, console: Console) -> None:
        """Train to the last step, validating and saving on the way, then write the weights."""
        config = self.run.config.train
        started = time.monotonic() - self.seconds
        validation: dict[str, float] = {}
        with Interrupt() as interrupt, Watch(self.run, self.step, console) as watch:
            for batch in self.batches():
                parts = self.update(batch)
                self.seconds = time.monotonic() - started
                watch.step(self.step, parts, config.batch, log=self.step % LOG_EVERY == 0)
                due = self.step % config.validate_every == 0 or self.step == config.steps
                if due and self.run.validation is not None:
                    validation = self.validate(self.run.validation)
                    watch.validation(self.step, validation)
                if due or interrupt.requested:
                    self.save()
                if interrupt.requested:
                    raise KeyboardInterrupt
            if not validation and self.run.validation is not None:  # stopped between the last step and here
                validation = self.validate(self.run.validation)
            self.run.finish(self.average, validation, self.seconds)
        console.print(f"wrote {self.run.weights} after {self.seconds:.0f} s{_listed(validation)}")

    def update(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; returns the loss and its parts. Raises InputError when it is not finite."""
        config = self.run.config.train
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, config)
        batch = drop_guidance(batch, self.step, config).to(self.device)
        self.network.train()
        self.optimiser.zero_grad(set_to_none=True)
        parts = self.losses(batch)
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        if not torch.isfinite(norm + parts["loss"].detach()):
            raise self.diverged(batch)
        self.optimiser.step()
        self.step += 1
        decay = min(config.ema, (1 + self.step) / (10 + self.step))  # a young average follows faster
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)
        return {name: float(value.detach()) for name, value in parts.items()}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Loss of eq. 19 or 20 and its parts for a batch."""
        fused = self.network(batch.sources, batch.text, batch.text_length, batch.masks)
        return fusion_loss(fused, batch.sources, batch.target, self.run.config.loss)

    def diverged(self, batch: Batch) -> InputError:
        last = load_checkpoint(self.run.checkpoints)
        return InputError(
            f"the loss or its gradient is not finite at step {self.step} (samples {', '.join(batch.ids)}); "
            f"last good checkpoint: {last[0] if last else 'none'}; check these samples or lower train.lr"
        )

    @torch.no_grad()
    def validate(self, dataset: FusionDataset) -> dict[str, float]:
        """Mean loss parts and metrics of the averaged weights over whole validation images."""
        with averaged(self.network, self.average):
            rows = [self._validate_one(collate([dataset[index]])) for index in range(len(dataset))]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def _validate_one(self, batch: Batch) -> dict[str, float]:
        batch = batch.to(self.device)
        fused = self.network(batch.sources, batch.text, batch.text_length, batch.masks)
        parts = fusion_loss(fused, batch.sources, batch.target, self.run.config.loss)
        return {name: float(value) for name, value in parts.items()} | quality(batch, fused)


@contextmanager
def averaged(network: nn.Module, average: dict[str, Tensor]) -> Iterator[None]:
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


def _listed(values: dict[str, float]) -> str:
    return "".join(
        f"{', ' if index else '; validation '}{k} {v:.3f}" for index, (k, v) in enumerate(values.items())
    )

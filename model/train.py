"""Train one task's network on cached guidance; stop and go on at any step with the same result.

What step t does depends on (seed, t) and the state after step t - 1 alone: order of samples, crops, flips,
guidance dropout and learning rate are functions of the seed and the step. A run that was killed therefore
goes on from its last checkpoint to the very same weights (bit-identical on the CPU).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from model.batches import Batch
from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import Config, TrainConfig, load_config
from model.data import Batches
from model.devices import within_memory
from model.losses import fusion_loss
from model.network import RWKVFusion
from model.order import EndlessBatches
from model.preparation import prepare
from model.processes import Processes, joined
from model.run import Run
from model.validation import Best, averaged, validate
from model.watch import Interrupt, Watch
from pipeline.errors import InputError

LOG_EVERY = 10  # steps between two points of the training curves
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
FIRST_SCALE = 2.0**10
SMALLEST_SCALE = 2.0**-8  # of a float16 loss; gradients that overflow even then are not finite


def train(
    dataset: str | None = None,
    task: str | None = None,
    *,
    config: Config | None = None,
    device: str = "auto",
    workers: int = 0,
    cache: str = "auto",
    verify: bool = False,
    tensorboard: bool = False,
    console: Console | None = None,
) -> Path:
    """Train the network of a task on a data set; returns runs/<dataset>/<task>/weights.safetensors.

    ``dataset`` and ``task`` default to params.yaml ``train``. ``device`` is ``auto`` or a torch device;
    ``workers`` are processes that load data (0: this one); ``cache`` and ``verify`` are those of
    `preparation.prepare`. None of them changes what is trained. Started by `torchrun`, every process takes
    its share of each batch. A finished run whose configuration and data are unchanged is left as it is; an
    unfinished one goes on; a changed one starts anew and says why.

    Raises InputError for unknown names, missing or stale guidance, unusable samples, a loss not finite.
    Ctrl-C writes a checkpoint after the current step and raises KeyboardInterrupt.
    """
    config = config or load_config()
    config = config.for_task(task or config.train.task, dataset or config.train.dataset)
    with joined(device) as processes:
        console = console or Console(quiet=not processes.main)
        with processes.main_first():
            run = prepare(config, cache=cache, verify=verify, workers=workers, console=console)
        name = f"{run.config.train.dataset}/{run.config.train.task}"
        if processes.agree(run.finished()):
            console.print(f"{name}: up to date ({run.weights})")
            return run.weights
        with within_memory("lower train.batch or train.crop, raise train.accumulate, or shrink the network"):
            trainer = Trainer(run, processes, workers)
            console.print(trainer.resume(name))
            trainer.fit(console, tensorboard)
    return run.weights


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

    def __init__(self, run: Run, processes: Processes, workers: int = 0) -> None:
        self.run, self.processes, self.workers = run, processes, workers
        self.device = processes.device
        config = run.config.train
        share = processes.count * config.accumulate
        if config.batch % share:
            raise InputError(
                f"train.batch {config.batch} cannot be divided among {processes.count} processes in "
                f"{config.accumulate} parts each; make it a multiple of {share}"
            )
        torch.manual_seed(config.seed)
        self.network = RWKVFusion(run.model).to(self.device)
        if run.start is not None:
            self.network.load_state_dict(run.start.state)
        self.parallel = processes.parallel(self.network)
        self.forward: Callable[..., Tensor] = (
            torch.compile(self.parallel) if config.compile else self.parallel
        )
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        kept = [p for p in self.network.parameters() if p.ndim <= 1]  # norms, biases, decays: no weight decay
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": kept, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=config.lr)
        self.scaler = torch.amp.GradScaler(
            self.device.type, init_scale=FIRST_SCALE, enabled=config.precision == "float16"
        )
        self.average = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.best = Best(config.best_metric)
        self.step = 0
        self.seconds = 0.0
        self.waited = 0.0  # seconds of them spent waiting for data

    def resume(self, name: str) -> str:
        """Take up the last whole checkpoint if it belongs to this run; returns what is going to happen."""
        main = self.processes.main
        found = self.processes.agree(load_checkpoint(self.run.checkpoints) if main else None)
        size = f"{sum(p.numel() for p in self.network.parameters()) / 1e6:.2f} M parameters"
        steps, samples = self.run.config.train.steps, sum(map(len, self.run.training))
        start = f" from {self.run.config.train.start}" if self.run.start else ""
        plan = f"{name}: training {size}{start} for {steps} steps on {samples} samples"
        changed = self.processes.agree(
            self.run.changed(found[1]["facts"] if found else self.run.previous_facts())
        )
        if changed:
            if main:
                self.run.discard()
            return f"{plan}, anew because {changed}"
        if not found:
            return plan
        state = found[1]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.average = {name: value.to(self.device) for name, value in state["average"].items()}
        self.best.restore(state["best"])
        torch.set_rng_state(state["random"])
        self.step, self.seconds = state["step"], self.run.seconds_so_far()
        return f"{plan}, going on from step {self.step}"

    def save(self) -> None:
        """Write a checkpoint of everything the next step depends on, and the time apart from it."""
        if not self.processes.main:
            return
        state = {
            "facts": self.run.facts,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average,
            "best": self.best.state(),
            "random": torch.get_rng_state(),
        }
        save_checkpoint(self.run.checkpoints, self.step, state)
        self.run.write_clock(self.seconds)

    def batches(self) -> Iterator[Batch]:
        """This process's share of the batches from this step to the last one."""
        config, training = self.run.config.train, self.run.training
        weights = [1.0, *config.mix.values()] if config.mix else None
        lengths = [len(dataset) for dataset in training]
        order = EndlessBatches(
            lengths, config.batch, config.seed, self.step, config.steps, weights, self._share()
        )
        loader = DataLoader(
            Batches(training),
            batch_size=None,
            sampler=order,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            # Of its own: the loader must not draw from the state that a checkpoint restores.
            generator=torch.Generator(),
        )
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch

    def _share(self) -> slice:
        size = self.run.config.train.batch // self.processes.count
        return slice(self.processes.rank * size, (self.processes.rank + 1) * size)

    def fit(self, console: Console, tensorboard: bool = False) -> None:
        """Train to the last step, validating and saving on the way, then write the weights."""
        config, main = self.run.config.train, self.processes.main
        started = time.monotonic() - self.seconds
        with Interrupt() as interrupt, Watch(self.run, self.step, console, main, tensorboard) as watch:
            batches = self.batches()
            while self.step < config.steps and not self.best.exhausted(config.patience):
                asked = time.monotonic()
                batch = next(batches)
                self.waited += time.monotonic() - asked
                parts, stop = self.update(batch, interrupt.requested)
                self.seconds = time.monotonic() - started
                watch.step(self.step, parts, config.batch, log=self.step % LOG_EVERY == 0)
                if self.step % config.validate_every == 0 or self.step == config.steps:
                    self._validate(watch)
                    self.save()
                elif stop:
                    self.save()
                if stop:
                    raise KeyboardInterrupt
            weights, metrics, step = self.best.chosen(self.average, self.step)
            if main:
                self.run.finish(weights, metrics, step, self.device)
                self.run.write_clock(self.seconds, finished=True)
        stopped = "" if self.step == config.steps else f"; no better {config.best_metric} since step {step}"
        console.print(f"wrote {self.run.weights} after {self.seconds:.0f} s{stopped}{_listed(metrics)}")

    def _validate(self, watch: Watch) -> None:
        """Measure the averaged weights on process 0, and let all know."""
        held_out, values = self.run.validation, {}
        if held_out is None:
            return
        if self.processes.main:
            with averaged(self.network, self.average):
                show = partial(watch.image, self.step)
                values = validate(self.network, held_out, self.run.config.loss, self.device, show)
            watch.validation(self.step, values)
        self.best.take(self.step, self.processes.agree(values), self.average)

    def update(self, batch: Batch, interrupted: bool = False) -> tuple[dict[str, float], bool]:
        """One optimiser step; returns the loss and its parts, and whether any process was interrupted.

        Raises InputError when the loss or its gradient is not finite.
        """
        config = self.run.config.train
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, config)
        batch = batch.to(self.device)
        self.network.train()
        self.optimiser.zero_grad(set_to_none=True)
        means = self._backward(batch)
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        told = torch.stack([*means.values(), norm, norm.new_tensor(float(interrupted))])
        *values, norm_value, stop = self.processes.mean(told).tolist()
        if not math.isfinite(values[0]) or not (math.isfinite(norm_value) or self._overflow()):
            raise self.diverged(batch, means["loss"])
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.step += 1
        decay = min(config.ema, (1 + self.step) / (10 + self.step))  # a young average follows faster
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)
        known = dict(zip(means, values, strict=True))
        if self.scaler.is_enabled():
            known["scale"] = self.scaler.get_scale()  # falls where gradients overflow
        return known, stop > 0

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Add up the gradients of the batch's parts; the mean loss and its parts."""
        parts = self.run.config.train.accumulate
        size = len(batch.ids) // parts
        shown = drop_guidance(batch, self.step, self.run.config.train)
        means: dict[str, Tensor] = {}
        for number in range(parts):
            place = number * size, (number + 1) * size
            with self.processes.exchanging(self.parallel, number == parts - 1):
                # The loss may weigh by masks that the network is not shown.
                losses = self.losses(shown.part(*place), batch.part(*place).masks)
                self.scaler.scale(losses["loss"] / parts).backward()
            for name, value in losses.items():
                means[name] = means.get(name, 0) + value.detach() / parts
        return means

    def _overflow(self) -> bool:
        """Whether a gradient that is not finite is the scaler's doing, which then tries a smaller scale."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > SMALLEST_SCALE

    def losses(self, batch: Batch, masks: Tensor | None) -> dict[str, Tensor]:
        """Loss of eq. 19 or 20 and its parts for a batch, whose objects are in ``masks``."""
        precision = PRECISIONS.get(self.run.config.train.precision)
        with torch.autocast(self.device.type, precision, enabled=precision is not None):
            fused = self.forward(batch.sources, batch.text, batch.text_length, batch.masks)
        return fusion_loss(fused.float(), batch.sources, batch.target, self.run.config.loss, masks)

    def diverged(self, batch: Batch, loss: Tensor) -> InputError:
        """The error that names the samples: those of processes whose own loss is not finite, else all."""
        told = self.processes.gathered((batch.ids, bool(torch.isfinite(loss))))
        bad = [ids for ids, finite in told if not finite] or [ids for ids, _ in told]
        last = load_checkpoint(self.run.checkpoints)
        return InputError(
            f"the loss or its gradient is not finite at step {self.step} "
            f"(samples {', '.join(name for ids in bad for name in ids)}); "
            f"last good checkpoint: {last[0] if last else 'none'}; check these samples or lower train.lr"
        )


def _listed(values: dict[str, float]) -> str:
    return "".join(
        f"{', ' if index else '; validation '}{k} {v:.3f}" for index, (k, v) in enumerate(values.items())
    )

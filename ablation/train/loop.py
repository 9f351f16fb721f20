"""The one training loop, for tokenizers and denoisers alike; what differs between them is an Objective."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ablation.errors import ArtifactError, DivergedError, Interrupted
from ablation.store import CHECKPOINT_PREFIX, CURVE
from ablation.train.checkpoint import load_checkpoint, load_step, save_checkpoint
from ablation.train.distributed import ALONE, GradientSum, Processes
from ablation.train.ema import Ema
from ablation.train.noise import ImageOrder, NoiseSource
from ablation.train.prefetch import ahead


class Objective(Protocol):
    """What is trained, and on which loss; phases run one after the other on the same batch."""

    phases: tuple[str, ...]

    def modules(self) -> dict[str, nn.Module]:
        """Return every module with weights to checkpoint; frozen networks are not among them."""

    def parameters(self, phase: str) -> list[nn.Parameter]:
        """Return the parameters that a phase optimises."""

    def begin_step(self, batch: dict[str, Tensor], noise: NoiseSource, progress: float) -> None:
        """Take a new batch; progress is the share of training done, in [0, 1)."""

    def loss(self, phase: str) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the mean loss over the batch and scalars to log; None skips the phase at this step."""


@runtime_checkable
class GroupedObjective(Protocol):
    """An objective whose layers learn at different rates."""

    def parameter_groups(self, phase: str) -> list[dict[str, Any]]:
        """Return groups of a phase's parameters: "params", "lr_scale" (a factor on the rate), and "weight_decay"."""


class Batches(Protocol):
    """Where batches come from."""

    images: int

    def load(self, indices: np.ndarray, positions: np.ndarray, noise: NoiseSource) -> Any:
        """Read what a batch needs of the given images at the given positions; runs ahead of time, in another thread."""

    def finish(self, loaded: Any, noise: NoiseSource) -> dict[str, Tensor]:
        """Turn what was loaded into the batch's tensors."""


@dataclass(frozen=True)
class Recipe:
    """How long, how fast and how carefully to train; all in steps of one global batch."""

    steps: int
    global_batch: int
    lr: Mapping[str, float]  # by phase
    warmup_steps: int
    betas: tuple[float, float]
    weight_decay: float
    clip_grad: float | None
    ema_decay: Mapping[str, float]  # by module; modules not named have no average
    precision: str
    seed: int
    micro_batch: int  # images per forward pass of a process; gradients are accumulated up to the global batch
    log_every: int = 10
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True)
class Monitor:
    """What the loop reports to and asks: progress, log lines, and whether it should stop."""

    progress: Callable[[int, int, str], None]
    log: Callable[[str], None]
    should_stop: Callable[[], bool]


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Return the share of the peak rate at a step: linear warm-up from 0, then a half-cycle cosine to 0 (paper, recipe)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


class Trainer:
    """State of one training: the objective, its optimizers and averages, and the step reached."""

    def __init__(
        self,
        objective: Objective,
        batches: Batches,
        recipe: Recipe,
        folder: Path,
        monitor: Monitor,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        """processes: who shares the work; the global batch, the numbers drawn and the losses logged are the same for any number."""
        self.processes = processes
        self.objective, self.batches, self.recipe, self.folder, self.monitor, self.device = (
            objective,
            batches,
            recipe,
            folder,
            monitor,
            device,
        )
        self.modules = objective.modules()
        self.averages = {name: Ema(self.modules[name], decay) for name, decay in recipe.ema_decay.items()}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            phase: torch.optim.AdamW(
                _groups(objective, phase), lr=recipe.lr[phase], betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
            )
            for phase in objective.phases
        }
        self.sums = {phase: GradientSum(objective.parameters(phase), processes) for phase in objective.phases}
        self.order = ImageOrder(batches.images, recipe.seed)
        self.step = self._resume()
        self.curve = _Curve(folder / CURVE, self.step) if processes.lead else None
        self.last: dict[str, float] = {}
        self._saved_at = time.monotonic()

    def _resume(self) -> int:
        """Restore the newest checkpoint that the lead can read, in all processes, and return its step."""
        state = self.modules, self.optimizers, self.averages
        step = self.processes.from_lead(load_checkpoint(self.folder, *state, self.monitor.log) if self.processes.lead else 0)
        if step and not self.processes.lead:
            load_step(self.folder, step, *state)
        for module in self.modules.values():
            self.processes.copy_from_lead([*module.parameters(), *module.buffers()])
        for average in self.averages.values():
            self.processes.copy_from_lead(average.average)
        return step

    def fit(self) -> dict[str, float]:
        """Train to the last step and return the last logged scalars.

        Raises, in all processes at the same step, DivergedError at a non-finite loss, naming the step and the last checkpoint,
        and Interrupted after saving a checkpoint where a stop was asked for in any of them.
        """
        recipe, self._saved_at = self.recipe, time.monotonic()
        if self.step:
            self.monitor.log(f"resuming at step {self.step} of {recipe.steps}")
        with contextlib.closing(ahead(self._load, self._schedule())) as feed:
            while self.step < recipe.steps:
                logged = self._one_step(feed)
                self.step += 1
                if self.step % recipe.log_every == 0 or self.step == recipe.steps:
                    self._report(logged)
                if self.step < recipe.steps:
                    self._pause(logged)
        self._check_weights()
        return self.last

    def _pause(self, logged: dict[str, Tensor]) -> None:
        """Save where it is time to or a stop was asked for; a stop then raises Interrupted."""
        due = self.processes.lead and time.monotonic() - self._saved_at > self.recipe.checkpoint_seconds
        stop, save = self.processes.agree(self.monitor.should_stop(), due)
        if stop or save:
            self._check_finite(logged)
            self._save()
            self._saved_at = time.monotonic()
        if stop:
            raise Interrupted(f"stopped at step {self.step} of {self.recipe.steps}; a checkpoint is saved")

    def _micro_batches(self) -> list[tuple[int, int]]:
        """Cut this process's share of the global batch into (first position, images) of each forward pass."""
        first, images = self.processes.share(self.recipe.global_batch)
        size = self.recipe.micro_batch
        return [(first + begin, min(size, images - begin)) for begin in range(0, images, size)]

    def _begins(self, phase: str) -> bool:
        """Say whether a phase fetches its own batches: phases share the forward pass of a single micro-batch."""
        single = self.recipe.global_batch <= self.recipe.micro_batch  # the same for any number of processes
        return not single or phase == self.objective.phases[0]

    def _schedule(self) -> Iterator[tuple[int, int]]:
        """Yield the (start, count) of every batch to come, in the order in which the steps ask for them."""
        micro = self._micro_batches()
        for step in range(self.step, self.recipe.steps):
            for phase in self.objective.phases:
                if self._begins(phase):
                    yield from ((step * self.recipe.global_batch + begin, count) for begin, count in micro)

    def _load(self, place: tuple[int, int]) -> tuple[Any, NoiseSource]:
        """Load the images at the given positions, ahead of their step."""
        start, count = place
        noise = NoiseSource(self.recipe.seed, start, count, self.device)
        return self.batches.load(self.order.indices(start, count), np.arange(start, start + count), noise), noise

    def _one_step(self, feed: Generator[tuple[tuple[int, int], tuple[Any, NoiseSource]], None, None]) -> dict[str, Tensor]:
        """Do one optimizer step of every phase on one global batch; returns this process's part of the scalars to log."""
        recipe = self.recipe
        factor = learning_rate_factor(self.step, recipe.steps, recipe.warmup_steps)
        micro = self._micro_batches()
        logged: dict[str, Tensor] = {}
        for phase in self.objective.phases:
            optimizer, stepped = self.optimizers[phase], False
            for number, (_, count) in enumerate(micro):
                if self._begins(phase):
                    _, (loaded, noise) = next(feed)
                    self._begin(loaded, noise)
                loss, scalars = self._loss(phase)
                share = count / recipe.global_batch
                if loss is not None:
                    scalars = {**scalars, "loss" if phase == self.objective.phases[0] else f"{phase}_loss": loss}
                for name, value in scalars.items():
                    logged[name] = logged.get(name, torch.zeros((), device=self.device)) + value.detach().float() * share
                if loss is None:
                    continue
                if not stepped:
                    optimizer.zero_grad(set_to_none=True)
                    stepped = True
                self.sums[phase].backward(loss * share if share < 1 else loss, last=number == len(micro) - 1)
            if stepped:
                self.sums[phase].finish()
                self._update(phase, optimizer, factor)
        return logged

    def _begin(self, loaded: Any, noise: NoiseSource) -> None:
        """Hand a loaded batch to the objective."""
        batch = self.batches.finish(loaded, noise)
        with self._autocast():
            self.objective.begin_step(batch, noise, self.step / self.recipe.steps)

    def _loss(self, phase: str) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Compute a phase's loss in the recipe's precision."""
        with self._autocast():
            return self.objective.loss(phase)

    def _autocast(self) -> torch.autocast:
        """Return the context of mixed precision; off for fp32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _update(self, phase: str, optimizer: torch.optim.Optimizer, factor: float) -> None:
        """Clip, step and average."""
        if self.recipe.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.objective.parameters(phase), self.recipe.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = self.recipe.lr[phase] * factor * group["lr_scale"]
        optimizer.step()
        if phase == self.objective.phases[0]:
            for average in self.averages.values():
                average.update()

    def _report(self, logged: dict[str, Tensor]) -> None:
        """Log the step's scalars."""
        self.last = self._check_finite(logged)
        if self.curve is not None:
            self.curve.write(self.step, self.last)
        self.monitor.progress(self.step, self.recipe.steps, f"loss {self.last.get('loss', float('nan')):.4f}")

    def _check_finite(self, logged: dict[str, Tensor]) -> dict[str, float]:
        """Return the step's scalars, over all processes, as numbers; a non-finite one stops the training in all of them."""
        scalars = {name: float(value) for name, value in self.processes.total(logged).items()}
        for name, value in scalars.items():
            if not math.isfinite(value):
                raise self._diverged(f"{name} became {value} at step {self.step} of {self.recipe.steps}")
        return scalars

    def _diverged(self, what: str) -> DivergedError:
        """Say what went wrong, and from where one could go on."""
        newest = max((path.name for path in self.folder.glob(f"{CHECKPOINT_PREFIX}*.safetensors")), default="none")
        fix = "Lower the learning rate or clip the gradient (train.base_lr, train.clip_grad, tokenizer.base_lr)."
        return DivergedError(f"{what}; last good checkpoint: {newest}", fix)

    def _check_weights(self) -> None:
        """Stop the training where a weight is no number any more, which the loss shows only at the next step."""
        if not all(torch.isfinite(weight).all() for phase in self.objective.phases for weight in self.objective.parameters(phase)):
            raise self._diverged(f"a weight became infinite or NaN at step {self.step} of {self.recipe.steps}")

    def _save(self) -> None:
        """Write a checkpoint, never one with non-finite weights."""
        self._check_weights()
        if self.processes.lead:
            save_checkpoint(self.folder, self.step, self.modules, self.optimizers, self.averages)


def _groups(objective: Objective, phase: str) -> list[dict[str, Any]]:
    """Return a phase's parameters as the optimizer's groups: one, or those of an objective that gives layers their own rates."""
    if isinstance(objective, GroupedObjective):
        return [{"lr_scale": 1.0, **group} for group in objective.parameter_groups(phase)]
    return [{"params": objective.parameters(phase), "lr_scale": 1.0}]


class _Curve:
    """The learning curve on disk, one JSON line per logged step; a resumed training drops lines beyond its checkpoint."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept: list[str] = []
        if path.exists() and step:
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # a line cut short by a kill
                    continue
                if entry["step"] <= step:
                    kept.append(line)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror}", "Free some space or check the permissions.") from error

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one logged step, unless it is there already."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **{name: round(value, 6) for name, value in scalars.items()}}) + "\n")
        except OSError as error:
            raise ArtifactError(f"cannot write {self.path}: {error.strerror}", "Free some space; the last checkpoint is kept.") from error

"""Build a configuration at the smallest size on this machine, and write down what can be seen of it on one fixed batch.

The real jobs are run: tokenizer and encoding in a run folder of their own, then the training's first steps. Nothing is
taken from what a stage says about itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablation.config import Config, apply
from ablation.data.latents import to_tensor
from ablation.design import make_cell
from ablation.diffusion.feasible import undefined_reason
from ablation.diffusion.objective import DenoisingObjective
from ablation.diffusion.process import Process
from ablation.diffusion.sampling import needs_statistics, sampling_timesteps
from ablation.effects.compare import Facts
from ablation.errors import AblationError, ArtifactError
from ablation.evaluation.features import FeatureExtractor
from ablation.jobs.context import JobIO
from ablation.jobs.fid import generate
from ablation.jobs.parts import Setting, images_of, load_setting, load_tokenizer
from ablation.jobs.train import make_trainer
from ablation.keys import reads
from ablation.launch.worker import job_view, run_job
from ablation.plan import JobSpec, build_plan
from ablation.stage import StageTree
from ablation.store import Store
from ablation.study import code_version
from ablation.train.loop import Trainer
from ablation.train.noise import NoiseSource

SIZE = {"data.image_size": 16, "tokenizer.patch_size": 4, "tokenizer.block_channels": (8, 16), "denoiser.size": "tiny"}
"""Laid under the path: what a stage changes of these stays changed."""
SHORT = {
    "data.train_images": 64,
    "data.test_images": 32,
    "tokenizer.steps": 4,
    "tokenizer.global_batch": 8,
    "train.steps": 4,
    "train.global_batch": 16,
    "fid.samples": 2,
    "fid.sampler_steps": 2,
}
"""Laid over the path: how long and how much. A change of these is seen in the configuration alone, not in what is built."""
BATCH = 32
SEED = 0
SAMPLING = ("sampler", "sampler_steps", "guidance", "weights", "precision")
"""Settings of `fid` that say how images are sampled; the others say how they are compared."""


@dataclass(frozen=True)
class Observation:
    """What was seen of one configuration, its jobs at the smallest size, and the losses of its first steps."""

    config: Config
    facts: Facts
    jobs: Mapping[str, str]
    losses: tuple[float, ...]
    problems: tuple[str, ...]


class Workshop:
    """Builds configurations in one run folder, so that stages share tokenizers as they do in a study."""

    def __init__(self, tree: StageTree, store: Store) -> None:
        """tree: over the scale to look at; store: an empty run folder, to be thrown away."""
        self.tree, self.store = tree, store
        self.small = tree.with_root(apply(tree.root, SIZE))
        self._seen: dict[str, Observation] = {}

    def observe(self, stage: str) -> Observation:
        """Look at a stage's configuration; raises ConfigError where it cannot be resolved, ArtifactError where a job fails."""
        if stage not in self._seen:
            self._seen[stage] = self._observe(stage)
        return self._seen[stage]

    def _observe(self, stage: str) -> Observation:
        """Run the jobs up to the training's first steps and look at everything on the way."""
        cell = make_cell(self.small, stage, SEED, {}, SHORT)
        plan = build_plan(self.small, [cell], self.store.cache)
        specs = {spec.kind: spec for spec in plan.jobs.values()}
        for kind in ("tokenizer", "encode"):
            self._run(specs[kind])
        config = self.tree.resolve(stage)
        io = self._view(specs["train"])
        trainer = make_trainer(io)
        facts = look(io, trainer, config, cell.config)
        problems: list[str] = []
        losses = _first_steps(trainer, problems)
        _use(io, trainer, problems)
        return Observation(config, facts, {kind: spec.id for kind, spec in specs.items()}, losses, tuple(problems))

    def _run(self, spec: JobSpec) -> None:
        """Run one job, if it is not done yet."""
        self._prepare(spec)
        if run_job(self.store, spec.id, lambda *_: None, lambda: False) != "done":
            raise ArtifactError(f"its {spec.kind} job fails at the smallest size: {self.store.state(spec.id).reason}", "Mend the stage.")

    def _view(self, spec: JobSpec) -> JobIO:
        """Return what a job would see, without running it."""
        self._prepare(spec)
        return job_view(self.store, spec.id)[1]

    def _prepare(self, spec: JobSpec) -> None:
        """Write a job's specification as a study does."""
        if self.store.state(spec.id).name != "done":
            self.store.prepare(spec.id, {**asdict(spec), "code": code_version()})


def look(io: JobIO, trainer: Trainer, config: Config, small: Config) -> dict[str, dict[str, Any]]:
    """Write down the facts of one configuration, by effect; config is the one at its true size."""
    objective = trainer.objective
    assert isinstance(objective, DenoisingObjective)
    setting = load_setting(io, io.inputs["encode"], io.ancestor("encode", "tokenizer"))
    process = setting.process
    seen = _one_batch(trainer, objective)
    return {
        "data": _data(io, config),
        "tokenizer": _tokenizer(io, config),
        "input": {"tokens": seen["tokens"]},
        "conditioning": {"time": seen["time"], "labels": seen["labels"]},
        "target": {"target": objective.target},
        "loss": _loss(objective, process, tuple(seen["terms"])),
        "parameters": {name: tuple(value.shape) for name, value in objective.denoiser.named_parameters()},
        "training": _read(config, "train", "train"),
        "evaluation": _evaluation(io, setting, objective.denoiser, config),
        "sampling": _sampling(process, config, small.denoiser.class_conditional),
    }


def _one_batch(trainer: Trainer, objective: DenoisingObjective) -> dict[str, Any]:
    """Put the fixed batch through the untrained network, and keep what the network was called with."""
    seen: dict[str, Any] = {}

    def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
        seen["tokens"], seen["time"], seen["labels"] = given

    indices = np.arange(BATCH)
    noise = NoiseSource(SEED, 0, BATCH, trainer.device)
    objective.begin_step(trainer.batches.finish(trainer.batches.load(indices, indices, noise), noise), noise, 0.0)
    handle = objective.denoiser.register_forward_pre_hook(keep)
    with torch.no_grad():
        seen["terms"] = objective.loss("denoiser")[1]
    handle.remove()
    return seen


def _read(config: Config, section: str, kind: str) -> dict[str, Any]:
    """Return the settings of a section that a job kind reads."""
    read = set(reads(kind, config))
    values = getattr(config, section).model_dump()
    return {f"{section}.{name}": value for name, value in values.items() if f"{section}.{name}" in read}


def _data(io: JobIO, config: Config) -> dict[str, Any]:
    """Return the first training images and labels, and the settings that only show over a whole training."""
    images = images_of(io, "train")
    settings = {f"data.{name}": getattr(config.data, name) for name in ("train_images", "test_images", "augmentation", "horizontal_flip")}
    return {"images": to_tensor(images.batch(np.arange(BATCH))), "labels": torch.from_numpy(np.asarray(images.labels[:BATCH])), **settings}


def _tokenizer(io: JobIO, config: Config) -> dict[str, Any]:
    """Return the tokenizer's weights after its short fit, and how long the true one would be."""
    tokenizer = load_tokenizer(io, io.ancestor("encode", "tokenizer"))
    read = set(reads("tokenizer", config))
    length: dict[str, Any] = {
        name: getattr(config.tokenizer, name.partition(".")[2]) for name in ("tokenizer.steps", "tokenizer.global_batch") if name in read
    }
    return {"kind": config.tokenizer.kind, **dict(tokenizer.state_dict()), **length}


def _loss(objective: DenoisingObjective, process: Process, terms: tuple[str, ...]) -> dict[str, Any]:
    """Return the weight of every level, what an error of mean square 1 costs, and the loss's terms."""
    levels = torch.arange(1, process.num_timesteps + 1, device=process.gamma.device)
    error = NoiseSource(SEED, 0, BATCH).normal("a fixed error", tuple(objective.target.shape[1:])).to(objective.target)  # (B, N, out)
    error = error / error.square().flatten(1).mean(dim=1).sqrt()[:, None, None]  # (B, N, out)
    costs = objective.squared_errors(error)  # (B,)
    # One number, not (B,): with other shapes the fixed error is another one, and its rotation leaves the mean alone.
    return {"weight of each level": process.weight(levels), "cost of a unit error": round(float(costs.mean()), 4), "terms": terms}


def _evaluation(io: JobIO, setting: Setting, denoiser: nn.Module, config: Config) -> dict[str, Any]:
    """Return the protocol of the probe, the noise level it uses, and what the network is given there."""
    process, t = setting.process, config.probe.timestep
    small: Any = denoiser
    extractor = FeatureExtractor(small, process, setting.scaler, setting.space, config.probe, io.device)
    told = process.network_time(torch.full((1,), t, device=process.gamma.device))
    return {
        **{f"fid.{name}": value for name, value in config.fid.model_dump().items() if name not in (*SAMPLING, "extractor_path")},
        **_read(config, "probe", "probe"),
        "gamma at the probed level": round(float(process.gamma[t]), 6),
        "sigma at the probed level": round(float(process.sigma[t]), 6),
        "time told": float(told),
        "sees": "images" if extractor.needs_images else "latents",
    }


def _sampling(process: Process, config: Config, conditional: bool) -> dict[str, Any]:
    """Return how images are sampled: levels visited, where it starts, what comes out."""
    facts: dict[str, Any] = {"defined": undefined_reason(process) or "yes"}
    if undefined_reason(process):
        return facts
    levels = sampling_timesteps(process, config.fid.sampler_steps)
    return {
        **facts,
        **{f"fid.{name}": getattr(config.fid, name) for name in SAMPLING},
        "first level": levels[0],
        "gamma of the levels": process.gamma[levels],
        "sigma of the levels": process.sigma[levels],
        "starts from": "the latents' own statistics" if needs_statistics(process) else "plain noise",
        "gives": process.output_space,
        "labels": "given" if conditional else "none",
    }


def _first_steps(trainer: Trainer, problems: list[str]) -> tuple[float, ...]:
    """Train a few steps; note what goes wrong, and weights that do not move."""
    network = trainer.modules["denoiser"]
    before = [value.detach().clone() for value in network.parameters()]
    trainer.recipe = replace(trainer.recipe, log_every=1)
    losses: list[float] = []
    try:
        while trainer.step < trainer.recipe.steps:
            trainer.recipe, whole = replace(trainer.recipe, steps=trainer.step + 1), trainer.recipe
            losses.append(trainer.fit()["loss"])
            trainer.recipe = whole
    except (AblationError, RuntimeError, ValueError, TypeError) as error:
        problems.append(f"its training fails at step {trainer.step}: {error}")
        return tuple(losses)
    if not all(math.isfinite(loss) for loss in losses):
        problems.append(f"its training loss is not finite: {losses}")
    if all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)):
        problems.append("its training moves no weight")
    return tuple(losses)


def _use(io: JobIO, trainer: Trainer, problems: list[str]) -> None:
    """Take features of a few images and, where sampling is defined, sample two; note what goes wrong."""
    config, network = io.config, trainer.modules["denoiser"].eval()
    setting = load_setting(io, io.inputs["encode"], io.ancestor("encode", "tokenizer"))
    denoiser: Any = network
    try:
        extractor = FeatureExtractor(denoiser, setting.process, setting.scaler, setting.space, config.probe, io.device)
        test = images_of(io, "test")
        raw = torch.from_numpy(np.array(setting.latents.means("test")[:BATCH])).to(io.device).float()
        pixels = to_tensor(test.batch(np.arange(len(raw))), io.device) if extractor.needs_images else None
        _insist_finite("features", extractor(raw, pixels, NoiseSource(SEED, 0, len(raw), io.device)))
        if undefined_reason(setting.process) is None:
            _insist_finite("samples", generate(io, setting, denoiser, np.arange(2), test.num_classes))
    except (AblationError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        problems.append(f"its trained network cannot be used: {error}")


def _insist_finite(what: str, values: Tensor) -> None:
    """Raise ValueError unless all numbers are finite."""
    if not torch.isfinite(values).all():
        raise ValueError(f"its {what} are not finite")

"""Short measurements of this machine at a configuration's own sizes, from which plans are priced."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablation import cost
from ablation.compute import bf16_is_fast, choose_device, matmul_rate, wait_for
from ablation.config import Config, apply
from ablation.data.images import open_images
from ablation.denoiser.dit import build_denoiser
from ablation.diffusion.objective import DenoisingObjective
from ablation.diffusion.process import Process
from ablation.errors import ConfigError, DataError
from ablation.evaluation.extractors import build_extractor
from ablation.rates import Rates, today
from ablation.tokenizers import build_tokenizer
from ablation.tokenizers.losses import training_objective
from ablation.train.loop import Monitor, Objective, Recipe, Trainer
from ablation.train.noise import NoiseSource

STEPS = 6
"""Timed repetitions of each measurement, after two that warm up."""
MOST_IMAGES = {"cpu": 64, "cuda": 256}
JOB_SECONDS = 0.5
"""What a job takes beside its work in a worker that has loaded torch: opening files, checks, writing results."""
ENOUGH_SECONDS = 1.0
"""A measurement's batch is cut so that one repetition takes about this long at most."""


def calibrate(config: Config, name: str, machine: str, classes: int, cache: Path, log: Callable[[str], None]) -> Rates:
    """Measure this machine at the sizes of a configuration; takes a minute or so.

    Measured: the peak of matrix products, a denoiser's training step and forward pass, a conv tokenizer's training step and
    encoding, the network of the Frechet distance, and the reading of images; what cannot run here (weights or images that are
    missing) is left to its assumed share of the peak, and said so in the log.
    """
    device = choose_device()
    precisions = ["fp32", "bf16"] if bf16_is_fast(device) else ["fp32"]
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    size = 8192 if device.type == "cuda" else 1536
    peak = {precision: matmul_rate(device, dtypes[precision], size) for precision in precisions}
    flops: dict[str, float] = {}
    for work, measure in _measurements(config, classes, device, peak["fp32"]):
        for precision in precisions if work != "features" else ["fp32"]:
            try:
                flops[f"{work}, {precision}"] = rate = measure(precision)
            except (ConfigError, DataError) as error:
                log(f"{work}: not measured ({error})")
                break
            log(f"{work}, {precision}: {rate / 1e9:,.1f} GFLOP/s, {100 * rate / peak[precision]:.0f} % of the peak")
    images = _reading(config, cache, log)
    basis = f"measured on {machine}, {today()}, at {config.denoiser.size}, {config.tokens} tokens, {config.data.image_size} px"
    return Rates(name, basis, True, peak, flops, images, JOB_SECONDS)


def _measurements(config: Config, classes: int, device: torch.device, peak: float) -> Iterator[tuple[str, Callable[[str], float]]]:
    """Yield each kind of work with the function that measures its operations a second in a precision."""
    conv = config
    if config.tokenizer.kind != "conv":
        conv = apply(
            config, {"tokenizer.kind": "conv", "tokenizer.latent_dim": 4 * (config.tokenizer.patch_size // config.tokenizer.stride) ** 2}
        )
    yield "denoiser training", lambda precision: _denoiser_training(config, classes, device, precision, peak)
    yield "denoiser forward", lambda precision: _denoiser_forward(config, classes, device, precision, peak)
    yield "tokenizer training", lambda precision: _tokenizer_training(conv, device, precision, peak)
    yield "tokenizer forward", lambda precision: _tokenizer_forward(conv, device, precision, peak)
    yield "features", lambda _: _features(config, peak)


def _batch(flops_per_image: float, device: torch.device, peak: float, wanted: int) -> int:
    """Return how many images a repetition takes: as many as wanted, but not so many that it takes long."""
    affordable = int(0.3 * peak * ENOUGH_SECONDS / flops_per_image)
    return max(1, min(wanted, MOST_IMAGES[device.type], affordable))


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the median time of a repetition."""
    times = []
    for number in range(STEPS + 2):
        wait_for(device)
        began = time.perf_counter()
        work()
        wait_for(device)
        if number >= 2:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


class _Fixed:
    """Batches of the same random tensors, whatever is asked for."""

    images = 1 << 20

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def load(self, indices: np.ndarray, positions: np.ndarray, noise: NoiseSource) -> None:
        """Read nothing: reading is measured by itself."""

    def finish(self, loaded: None, noise: NoiseSource) -> dict[str, Tensor]:
        """Return the tensors."""
        return self.tensors


def _training(objective: Objective, tensors: dict[str, Tensor], batch: int, device: torch.device, precision: str, average: bool) -> float:
    """Return the median time of a step of the training loop itself, optimizer and average included."""
    moments: list[float] = []

    def progress(*_: object) -> None:
        wait_for(device)
        moments.append(time.perf_counter())

    phases = objective.phases
    recipe = Recipe(
        steps=STEPS + 2,
        global_batch=batch,
        lr=dict.fromkeys(phases, 1e-5),
        warmup_steps=1,
        betas=(0.9, 0.999),
        weight_decay=0.0,
        clip_grad=None,
        ema_decay={phases[0]: 0.999} if average else {},
        precision=precision,
        seed=0,
        micro_batch=batch,
        log_every=1,
        checkpoint_seconds=1e9,
    )
    monitor = Monitor(progress, lambda _: None, lambda: False)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(objective, _Fixed(tensors), recipe, Path(folder), monitor, device).fit()
    return statistics.median([after - before for before, after in pairwise(moments[1:])])


def _denoiser(config: Config, classes: int, device: torch.device) -> Any:
    """Build the network that the configuration asks for."""
    return build_denoiser(config.denoiser, *cost.denoiser_dims(config), round(config.tokens**0.5), classes).to(device)


def _denoiser_training(config: Config, classes: int, device: torch.device, precision: str, peak: float) -> float:
    """Measure a training step in latent space; image space adds products that the count includes."""
    latent = apply(config, {"process.input_space": "latent", "process.output_space": "latent", "process.target": "noise"})
    latent = apply(latent, {"process.loss_weight": "uniform", "process.learned_variance": False})
    flops = cost.denoiser_step(latent, classes)
    batch = _batch(flops, device, peak, config.train.global_batch)
    num_classes = classes if latent.denoiser.class_conditional else 0
    process = Process.from_config(latent.process).to(device)
    objective = DenoisingObjective(_denoiser(latent, classes, device), process, num_classes=num_classes, class_dropout=0.1)
    tensors = {
        "latents": torch.randn(batch, latent.tokens, latent.tokenizer.latent_dim, device=device),
        "labels": torch.zeros(batch, dtype=torch.int64, device=device),
    }
    return batch * flops / _training(objective, tensors, batch, device, precision, average=True)


def _denoiser_forward(config: Config, classes: int, device: torch.device, precision: str, peak: float) -> float:
    """Measure a forward pass, as sampling and features need it."""
    flops = cost.denoiser(config, classes).forward
    batch = _batch(flops, device, peak, MOST_IMAGES[device.type])
    network = _denoiser(config, classes, device).eval()
    tokens = torch.randn(batch, config.tokens, cost.denoiser_dims(config)[0], device=device)
    moment = torch.ones(batch, device=device)

    @torch.no_grad()
    def forward() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            network(tokens, moment)

    return batch * flops / _timed(forward, device)


def _pixels(batch: int, size: int, device: torch.device) -> Tensor:
    """Return random images (B, 3, H, W) in [-1, 1]."""
    return torch.rand(batch, 3, size, size, device=device) * 2 - 1


def _tokenizer_training(config: Config, device: torch.device, precision: str, peak: float) -> float:
    """Measure a training step of the conv tokenizer with all its losses, the adversarial one included."""
    config = apply(config, {"tokenizer.adversarial_start": 0.0})
    cfg, size = config.tokenizer, config.data.image_size
    flops = cost.tokenizer_step(config, adversarial=cfg.adversarial_weight > 0)
    batch = _batch(flops, device, peak, cfg.global_batch)
    objective = training_objective(build_tokenizer(cfg, size, {}).to(device), cfg, 0, {})
    return batch * flops / _training(objective, {"images": _pixels(batch, size, device)}, batch, device, precision, average=False)


def _tokenizer_forward(config: Config, device: torch.device, precision: str, peak: float) -> float:
    """Measure encoding, which jobs do in float32."""
    size = config.data.image_size
    flops = cost.encoder(config.tokenizer, size).forward
    batch = _batch(flops, device, peak, MOST_IMAGES[device.type])
    tokenizer, images = build_tokenizer(config.tokenizer, size, {}).to(device).eval(), _pixels(batch, size, device)

    @torch.no_grad()
    def encode() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            tokenizer.encode(images)

    return batch * flops / _timed(encode, device)


def _features(config: Config, peak: float) -> float:
    """Measure the network of the Frechet distance, which runs on the CPU in float32 whatever else is there."""
    flops = cost.extractor(config.fid.extractor, config.data.image_size)
    batch = _batch(flops, torch.device("cpu"), peak, MOST_IMAGES["cpu"])
    network = build_extractor(config.fid.extractor, config.fid.extractor_path)
    images = torch.zeros(batch, 3, config.data.image_size, config.data.image_size, dtype=torch.uint8)
    return batch * flops / _timed(lambda: network(images), torch.device("cpu"))


def _reading(config: Config, cache: Path, log: Callable[[str], None]) -> float:
    """Measure how many images a second come from the data as it lies there; a stated assumption where it cannot be opened."""
    try:
        images = open_images(config.data, "train", cache)
    except DataError as error:
        log(f"reading: not measured ({error}); assumed {Rates.images:.0f} images a second")
        return Rates.images
    chunk = np.arange(min(len(images), 256))
    rate = len(chunk) / _timed(lambda: images.batch(chunk), torch.device("cpu"))
    log(f"reading: {rate:,.0f} images a second")
    return rate

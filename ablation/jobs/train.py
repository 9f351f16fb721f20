"""Train the denoiser of one cell."""

from __future__ import annotations

import json
from typing import Any

import torch

from ablation import cost
from ablation.config import Config, TrainConfig
from ablation.data.latents import LatentBatches
from ablation.diffusion.objective import DenoisingObjective
from ablation.jobs.context import JobIO
from ablation.jobs.parts import images_of, load_setting, save_network
from ablation.store import CURVE, DENOISER, DENOISER_AVERAGE
from ablation.train.loop import Recipe, Trainer
from ablation.train.noise import stream_seed

CPU_MICRO_BATCH, LARGEST_MICRO_BATCH = 64, 1024
USABLE_MEMORY = 0.8  # share of a GPU's memory; the rest is the allocator's and the libraries'
TEMPORARY = 1.25  # what a backward pass needs beside what the forward pass left
STATE_BYTES = 20  # per parameter: weight, gradient, AdamW's two moments, and the average


def total_steps(train: TrainConfig, images: int) -> int:
    """Return the number of optimizer steps: train.steps, or as many whole batches as the epochs hold (at least one)."""
    return train.steps if train.steps is not None else max(1, round(train.epochs * images / train.global_batch))


def make_recipe(io: JobIO, images: int) -> Recipe:
    """Turn the configured recipe into steps: lr = base_lr x global_batch / 256, warm-up as a share of the steps (paper, recipe)."""
    train = io.config.train
    steps = total_steps(train, images)
    return Recipe(
        steps=steps,
        global_batch=train.global_batch,
        lr={"denoiser": train.base_lr * train.global_batch / 256},
        warmup_steps=int(train.warmup_fraction * steps),
        betas=(train.beta1, train.beta2),
        weight_decay=train.weight_decay,
        clip_grad=train.clip_grad,
        ema_decay={"denoiser": train.ema_decay},
        precision=train.precision,
        seed=stream_seed(io.seed, "training"),
        micro_batch=min(train.global_batch, micro_batch(io.config, io.device)),
        checkpoint_seconds=io.checkpoint_seconds,
    )


def micro_batch(config: Config, device: torch.device) -> int:
    """Return how many images go through the network at once: on a GPU as many as its memory holds, a power of two.

    Results do not depend on it beyond rounding: noise belongs to the image's position in training.
    """
    if device.type == "cpu":
        return CPU_MICRO_BATCH
    return fitting_batch(config, torch.cuda.get_device_properties(device).total_memory)


def fitting_batch(config: Config, memory_bytes: int) -> int:
    """Return the largest power of two of images whose training step fits a GPU's memory, at least 1."""
    state = STATE_BYTES * cost.denoiser(config, 0).parameters
    images = (USABLE_MEMORY * memory_bytes - state) / (TEMPORARY * cost.activation_bytes(config, config.train.precision))
    return min(LARGEST_MICRO_BATCH, 2 ** max(0, int(images).bit_length() - 1)) if images >= 1 else 1


def make_trainer(io: JobIO) -> Trainer:
    """Build the cell's network, objective and batches, and a trainer at the step its last checkpoint reached."""
    config = io.config
    setting = load_setting(io, io.inputs["encode"], io.ancestor("encode", "tokenizer"))
    images = io.processes.lead_first("images", lambda: images_of(io, "train"))
    if (random_crops := config.data.augmentation == "random_resized_crop") or config.process.target == "original":
        io.log(images.where_from(random_crops))
    denoiser = setting.fresh_denoiser(images.num_classes, io.seed).to(io.device)
    if config.train.compile:
        denoiser.compile()  # in place: names of weights, checkpoints and files stay what they are
    num_classes = images.num_classes if config.denoiser.class_conditional else 0
    objective = DenoisingObjective(
        denoiser, setting.process, setting.space, num_classes=num_classes, class_dropout=config.denoiser.class_dropout
    )
    batches = LatentBatches(
        setting.latents,
        setting.scaler,
        images,
        sample_posterior=config.tokenizer.sample_posterior,
        horizontal_flip=config.data.horizontal_flip,
        with_images=config.process.target == "original",
        tokenizer=setting.tokenizer if random_crops else None,
        device=io.device,
    )
    return Trainer(objective, batches, make_recipe(io, len(images)), io.folder, io.monitor, io.device, io.processes)


def run(io: JobIO) -> dict[str, Any]:
    """Train; write the last weights and their moving average; return the mean loss over the last tenth of training."""
    trainer = make_trainer(io)
    trainer.fit()
    io.processes.part()
    if not io.processes.lead:
        return {}
    denoiser = trainer.modules["denoiser"]
    save_network(denoiser, io.folder / DENOISER)
    live = {name: value.clone() for name, value in denoiser.state_dict().items()}
    denoiser.load_state_dict({**live, **trainer.averages["denoiser"].state()})
    save_network(denoiser, io.folder / DENOISER_AVERAGE)
    losses = [json.loads(line)["loss"] for line in (io.folder / CURVE).read_text().splitlines()]
    tail = losses[-max(1, len(losses) // 10) :]
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    final = {"final_loss": sum(tail) / len(tail)} if tail else {}  # no step, no loss
    return {"metrics": {**final, "steps": trainer.step, "parameters": parameters}}

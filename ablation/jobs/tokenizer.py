"""Fit a tokenizer and measure how well it reconstructs."""

from __future__ import annotations

import math
from typing import Any

import torch

from ablation.data.images import ImageSet
from ablation.data.latents import ImageBatches, to_tensor
from ablation.errors import Interrupted
from ablation.jobs.context import JobIO
from ablation.jobs.parts import batches_of, images_of
from ablation.store import TOKENIZER
from ablation.tokenizers import build_tokenizer
from ablation.tokenizers.base import Tokenizer
from ablation.tokenizers.losses import reconstruction_psnr, training_objective
from ablation.train.checkpoint import save_tensors
from ablation.train.loop import Recipe, Trainer
from ablation.train.noise import stream_seed

PSNR_IMAGES = 1024
MICRO_BATCH = 64
TOKENIZER_WARMUP = 0.05


def run(io: JobIO) -> dict[str, Any]:
    """Fit the tokenizer on the training images; write its weights; return PSNR on test images, in dB."""
    config = io.config
    images = io.processes.lead_first("images", lambda: images_of(io, "train"))
    tokenizer = fresh_tokenizer(io)
    scalars: dict[str, float] = {}
    if tokenizer.fit_kind == "closed_form":
        io.processes.lead_first("fit", lambda: _fit_closed_form(io, tokenizer, images) if io.processes.lead else None)
    elif tokenizer.fit_kind == "gradient" and config.tokenizer.steps:
        scalars = make_trainer(io, tokenizer, images).fit()
    io.processes.part()
    if not io.processes.lead:
        return {}
    tokenizer.eval()
    save_tensors(io.folder / TOKENIZER, tokenizer.state_dict())
    return {"metrics": {"tokenizer_psnr": _psnr(io, tokenizer), **{f"tokenizer_{name}": value for name, value in scalars.items()}}}


def fresh_tokenizer(io: JobIO) -> Tokenizer:
    """Build the tokenizer with weights drawn from the seed; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(io.seed, "tokenizer"))
        return build_tokenizer(io.config.tokenizer, io.config.data.image_size, io.parts).to(io.device)


def _fit_closed_form(io: JobIO, tokenizer: Tokenizer, images: ImageSet) -> None:
    """Stream all training images once through the tokenizer's own fit."""
    chunks = batches_of(len(images), 256)

    def stream() -> Any:
        for number, indices in enumerate(chunks):
            if io.should_stop():
                raise Interrupted("stopped while fitting; nothing to resume, it starts over")
            io.progress(number, len(chunks), "patches")
            yield to_tensor(images.batch(indices), io.device)

    tokenizer.fit(stream())


def make_trainer(io: JobIO, tokenizer: Tokenizer, images: ImageSet) -> Trainer:
    """Build the trainer of a gradient-fitted tokenizer with its losses, at the step its last checkpoint reached."""
    cfg = io.config.tokenizer
    # The adversarial balance is of one micro-batch, as a process on its own would cut it: those that share one average over it.
    balance = io.processes.mean_over(max(1, io.processes.size // math.ceil(cfg.global_batch / MICRO_BATCH)))
    objective = training_objective(tokenizer, cfg, stream_seed(io.seed, "discriminator"), io.parts, balance)
    lr = cfg.base_lr * cfg.global_batch * (cfg.linear_lr_ratio if cfg.kind in ("patch_vae", "patch_ae") else 1.0)
    recipe = Recipe(
        steps=cfg.steps,
        global_batch=cfg.global_batch,
        lr={"tokenizer": lr, "discriminator": lr * cfg.discriminator_lr_ratio},
        warmup_steps=int(TOKENIZER_WARMUP * cfg.steps),
        betas=(0.9, 0.99),
        weight_decay=0.0,
        clip_grad=None,
        ema_decay={},
        precision=cfg.precision,
        seed=stream_seed(io.seed, "tokenizer training"),
        micro_batch=min(cfg.global_batch, MICRO_BATCH),
        checkpoint_seconds=io.checkpoint_seconds,
    )
    batches = ImageBatches(images, horizontal_flip=io.config.data.horizontal_flip, device=io.device)
    return Trainer(objective, batches, recipe, io.folder, io.monitor, io.device, io.processes)


@torch.no_grad()
def _psnr(io: JobIO, tokenizer: Tokenizer) -> float:
    """Return the mean PSNR over test images, reconstructed from latent means, in dB."""
    images = images_of(io, "test")
    scores = []
    for indices in batches_of(min(len(images), PSNR_IMAGES), 128):
        batch = to_tensor(images.batch(indices), io.device)
        scores.append(reconstruction_psnr(batch, tokenizer.decode(tokenizer.encode(batch)[0])))
    return float(torch.cat(scores).mean())

"""Fit a tokenizer and measure how well it reconstructs."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablation.data.images import ImageSet
from ablation.data.latents import ImageBatches, to_tensor
from ablation.errors import Interrupted
from ablation.jobs.context import JobIO
from ablation.jobs.parts import batches_of, images_of, read_progress, save_progress
from ablation.store import CHECKPOINT_PREFIX, TOKENIZER
from ablation.tokenizers import build_tokenizer
from ablation.tokenizers.base import Tokenizer
from ablation.tokenizers.losses import reconstruction_psnr, training_objective
from ablation.tokenizers.patch_pca import PatchPCA
from ablation.tokenizers.pca import PatchCovariance
from ablation.train.checkpoint import save_tensors
from ablation.train.loop import Recipe, Trainer
from ablation.train.noise import stream_seed
from ablation.train.prefetch import ahead

PSNR_IMAGES = 1024
MICRO_BATCH = 64
TOKENIZER_WARMUP = 0.05
FIT_BATCH = 256
PCA_CHECKPOINT = f"{CHECKPOINT_PREFIX}pca.safetensors"


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
    """Stream all training images once through the tokenizer's own fit; a PCA goes on where it was interrupted."""
    chunks = batches_of(len(images), FIT_BATCH)
    if isinstance(tokenizer, PatchPCA):
        tokenizer.fit_statistics(_pca_statistics(io, tokenizer, images, chunks))
        return

    def stream() -> Iterator[Tensor]:
        for number, (_, pixels) in enumerate(ahead(images.batch, chunks)):
            if io.should_stop():
                raise Interrupted("stopped while fitting; nothing to resume, it starts over")
            io.progress(number, len(chunks), "patches")
            yield to_tensor(pixels, io.device)

    tokenizer.fit(stream())


def _pca_statistics(io: JobIO, tokenizer: PatchPCA, images: ImageSet, chunks: list[np.ndarray]) -> PatchCovariance:
    """Accumulate the covariance of all patches in order, saving the sums from time to time, which go on bit for bit."""
    statistics, done, saved_at = tokenizer.statistics(), 0, time.monotonic()
    if (found := read_progress(io, PCA_CHECKPOINT)) is not None:
        done = found[1]
        statistics.load(found[0])
        io.log(f"going on after {done} of {len(chunks)} batches")
    with contextlib.closing(ahead(images.batch, chunks[done:])) as stream:
        for _, pixels in stream:
            statistics.update(to_tensor(pixels, io.device))
            done += 1
            io.progress(done, len(chunks), "patches")
            stop = io.should_stop() and done < len(chunks)
            if stop or time.monotonic() - saved_at > io.checkpoint_seconds:
                save_progress(io, PCA_CHECKPOINT, statistics.state(), done)
                saved_at = time.monotonic()
            if stop:
                raise Interrupted(f"stopped after {done} of {len(chunks)} batches; the sums are saved")
    return statistics


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

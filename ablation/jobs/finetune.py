"""Fine-tune a trained encoder end to end and measure it on the test images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ablation.config import FinetuneConfig
from ablation.data.augmentations import FinetuneBatches, seeded
from ablation.denoiser.exchange import load_denoiser
from ablation.denoiser.export import export_classifier
from ablation.errors import Interrupted
from ablation.evaluation.features import FeatureExtractor
from ablation.evaluation.finetune import FinetuneObjective, FrontEnd, classify
from ablation.jobs.context import JobIO
from ablation.jobs.parts import images_of, load_setting
from ablation.jobs.protocol import data_protocol
from ablation.store import CLASSIFIER, DENOISER, DENOISER_AVERAGE, PREDICTIONS, atomic_path
from ablation.train.checkpoint import save_tensors
from ablation.train.loop import Recipe, Trainer
from ablation.train.noise import stream_seed

CPU_MICRO_BATCH, GPU_MICRO_BATCH = 64, 256  # whole blocks of images that are mixed with each other


def run(io: JobIO) -> dict[str, Any]:
    """Fine-tune; write the averaged weights and which test images they get right; return accuracies in percent."""
    trainer = make_trainer(io)
    trainer.fit()
    io.processes.part()
    if not io.processes.lead:
        return {}
    objective, test = trainer.objective, images_of(io, "test")
    assert isinstance(objective, FinetuneObjective)

    def stopped() -> None:
        if io.should_stop():
            raise Interrupted("stopped after the last step; it goes on from its last checkpoint")

    classifier = objective.classifier
    online, _ = classify(classifier, objective.front_end, test, io.device, stopped)
    live = {name: value.clone() for name, value in classifier.state_dict().items()}
    classifier.load_state_dict({**live, **trainer.averages["classifier"].state()})
    average, correct = classify(classifier, objective.front_end, test, io.device, stopped)
    save_tensors(io.folder / CLASSIFIER, classifier.state_dict())
    with atomic_path(io.folder / PREDICTIONS) as path, path.open("wb") as file:
        np.save(file, correct.numpy()[None])
    metrics = {"finetune_top1": average, "finetune_online_top1": online, "finetune_steps": trainer.step}
    return {"metrics": metrics, "protocol": {**data_protocol(io, images_of(io, "train")), "test_images": len(test), **protocol(io)}}


def make_trainer(io: JobIO) -> Trainer:
    """Build the classifier on the trained encoder, its front end and batches, and a trainer at the step its last checkpoint reached."""
    config, cfg = io.config, io.config.finetune
    setting = load_setting(io, io.ancestor("train", "encode"), io.ancestor("train", "encode", "tokenizer"))
    denoiser = load_denoiser(io.input("train", DENOISER_AVERAGE if config.probe.weights == "ema" else DENOISER))
    images = io.processes.lead_first("images", lambda: images_of(io, "train"))
    time = float(setting.process.network_time(torch.tensor([config.probe.timestep])))
    with seeded(stream_seed(io.seed, "finetune head")):
        classifier = export_classifier(denoiser, time, images.num_classes, cfg.drop_path, config.probe.block).to(io.device)
    extractor = FeatureExtractor(denoiser.to(io.device), setting.process, setting.scaler, setting.space, config.probe, io.device)
    objective = FinetuneObjective(
        classifier, FrontEnd(setting.tokenizer, extractor), weight_decay=cfg.weight_decay, layer_decay=cfg.layer_decay
    )
    batches = FinetuneBatches(images, cfg, horizontal_flip=config.data.horizontal_flip, device=io.device)
    return Trainer(objective, batches, make_recipe(io, len(images)), io.folder, io.monitor, io.device, io.processes)


def total_steps(cfg: FinetuneConfig, images: int) -> int:
    """Return the number of optimizer steps: finetune.steps, or as many whole batches as the epochs hold (at least one)."""
    return cfg.steps if cfg.steps is not None else max(1, round(cfg.epochs * images / cfg.global_batch))


def make_recipe(io: JobIO, images: int) -> Recipe:
    """Turn the configured recipe into steps: lr = base_lr x global_batch / 256, linear warm-up, cosine to zero."""
    cfg = io.config.finetune
    steps = total_steps(cfg, images)
    return Recipe(
        steps=steps,
        global_batch=cfg.global_batch,
        lr={"classifier": cfg.base_lr * cfg.global_batch / 256},
        warmup_steps=int(cfg.warmup_fraction * steps),
        betas=(cfg.beta1, cfg.beta2),
        weight_decay=cfg.weight_decay,
        clip_grad=cfg.clip_grad,
        ema_decay={"classifier": cfg.ema_decay},
        precision=cfg.precision,
        seed=stream_seed(io.seed, "finetune"),
        micro_batch=min(cfg.global_batch, CPU_MICRO_BATCH if io.device.type == "cpu" else GPU_MICRO_BATCH),
        checkpoint_seconds=io.checkpoint_seconds,
    )


def protocol(io: JobIO) -> dict[str, Any]:
    """Say how the encoder was fine-tuned and measured."""
    cfg, probe = io.config.finetune, io.config.probe
    length = f"{cfg.steps} steps" if cfg.steps is not None else f"{cfg.epochs:g} epochs"
    mixing = f"MixUp {cfg.mixup:g}, CutMix {cfg.cutmix:g}, RandAugment {cfg.rand_augment or 'off'}, erasing {cfg.random_erasing:g}"
    return {
        "finetune": f"{length}, batch {cfg.global_batch}, AdamW, base_lr {cfg.base_lr:g}, weight decay {cfg.weight_decay:g}, "
        f"layer decay {cfg.layer_decay:g}, drop path {cfg.drop_path:g}, label smoothing {cfg.label_smoothing:g}, {mixing}, "
        f"average of decay {cfg.ema_decay:g} measured",
        "finetune_encoder": f"{'encoder half' if probe.block is None else f'{probe.block} blocks'} at t = {probe.timestep}, clean input, "
        f"average pooling, {probe.weights} weights",
    }

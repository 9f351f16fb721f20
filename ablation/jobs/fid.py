"""Sample from a denoiser and measure the Frechet distance to real images; and that of the tokenizer's reconstructions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ablation.data.latents import to_tensor, to_uint8
from ablation.denoiser.dit import DiT
from ablation.diffusion.sampling import Sampler, sample
from ablation.errors import Interrupted
from ablation.evaluation.extractors import build_extractor, frechet_protocol
from ablation.evaluation.frechet import FeatureStatistics, frechet_distance
from ablation.jobs.context import JobIO
from ablation.jobs.parts import Setting, batches_of, images_of, load_network, load_setting
from ablation.jobs.protocol import data_protocol
from ablation.keys import digest
from ablation.store import REFERENCE, SAMPLES, atomic_path
from ablation.train.checkpoint import load_tensors
from ablation.train.noise import stream_seed

BATCH = 128
GRID = 8
"""Rows and columns of the picture of samples."""


def run(io: JobIO) -> dict[str, Any]:
    """Generate images with the configured sampler; write a picture of some; return the Frechet distances."""
    config = io.config
    tokenizer_job = io.ancestor("train", "encode", "tokenizer")
    setting = load_setting(io, io.ancestor("train", "encode"), tokenizer_job)
    tensors, _ = load_tensors(io.input("reference", REFERENCE))
    reference = FeatureStatistics.from_tensors(tensors)
    extractor = build_extractor(config.fid.extractor, config.fid.extractor_path)
    images = images_of(io, "train")
    denoiser = load_network(io, setting, images.num_classes, config.fid.weights)
    generated = FeatureStatistics.empty(extractor.dim)
    shown: list[Tensor] = []
    chunks = batches_of(config.fid.samples, BATCH)
    for number, indices in enumerate(chunks):
        if io.should_stop():
            raise Interrupted("stopped while sampling; it starts over")
        batch = to_uint8(generate(io, setting, denoiser, indices, images.num_classes)).cpu()
        generated = generated.updated(extractor(batch))
        if sum(map(len, shown)) < GRID**2:
            shown.append(batch)
        io.progress(number + 1, len(chunks), "samples")
    _save_grid(io, torch.cat(shown)[: GRID**2])
    name = f"rfid-{digest([tokenizer_job, io.inputs['reference'], config.fid.samples, config.data.test_images])}"
    metrics = {"fid": frechet_distance(generated, reference), "tokenizer_rfid": io.store.memo(name, lambda: _reconstruction(io, setting))}
    how = {"sampler": config.fid.sampler, "sampler_steps": config.fid.sampler_steps, "guidance": config.fid.guidance}
    return {"metrics": metrics, "protocol": {**data_protocol(io, images), **frechet_protocol(config), **how}}


def generate(io: JobIO, setting: Setting, denoiser: DiT, indices: np.ndarray, num_classes: int) -> Tensor:
    """Sample the images of the given numbers; labels are drawn evenly. -> (B, 3, H, W), not clipped."""
    config = io.config
    generator = torch.Generator(io.device).manual_seed(stream_seed(io.seed, "samples", int(indices[0])))
    conditional = config.denoiser.class_conditional
    labels = torch.from_numpy(indices % num_classes).to(io.device) if conditional else None

    def network(tokens: Tensor, time: Tensor, given: Tensor | None) -> Tensor:
        with torch.autocast(io.device.type, dtype=torch.bfloat16, enabled=config.fid.precision == "bf16"):
            output: Tensor = denoiser(tokens, time, given)
        return output.float()

    output = sample(
        network,
        setting.process,
        setting.space,
        Sampler(config.fid.sampler, config.fid.sampler_steps, config.fid.guidance),
        (len(indices), setting.tokenizer.tokens, setting.tokenizer.latent_dim),
        generator,
        statistics=setting.scaler.statistics(setting.latents.raw_statistics),
        labels=labels,
        num_classes=num_classes if conditional else 0,
    )
    if setting.process.output_space == "image":
        assert setting.space is not None
        return setting.space.denormalise(output)
    with torch.no_grad():
        return setting.tokenizer.decode(setting.scaler.inverse(output))


@torch.no_grad()
def _reconstruction(io: JobIO, setting: Setting) -> float:
    """Return the Frechet distance between test images and their reconstructions (the tokenizer's own rFID)."""
    images = images_of(io, "test")
    extractor = build_extractor(io.config.fid.extractor, io.config.fid.extractor_path)
    real, rebuilt = FeatureStatistics.empty(extractor.dim), FeatureStatistics.empty(extractor.dim)
    for indices in batches_of(min(len(images), io.config.fid.samples), BATCH):
        pixels = images.batch(indices)
        decoded = setting.tokenizer.decode(setting.tokenizer.encode(to_tensor(pixels, io.device))[0])
        real = real.updated(extractor(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
        rebuilt = rebuilt.updated(extractor(to_uint8(decoded).cpu()))
    return frechet_distance(rebuilt, real)


def _save_grid(io: JobIO, images: Tensor) -> None:
    """Write a square picture of samples as PNG. images: (up to GRID^2, 3, H, W) uint8."""
    side, size = GRID, images.shape[-1]
    canvas = np.full((side * size, side * size, 3), 255, dtype=np.uint8)
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()):  # (B, 3, H, W) -> (B, H, W, 3)
        row, column = divmod(number, side)
        canvas[row * size : (row + 1) * size, column * size : (column + 1) * size] = image
    with atomic_path(io.folder / SAMPLES) as path:
        Image.fromarray(canvas).save(path, format="PNG")

"""The identity card of a number: what it was measured on and how. Numbers are compared only where their cards agree."""

from __future__ import annotations

from typing import Any

from ablation.data.images import ImageSet
from ablation.jobs.context import JobIO


def data_protocol(io: JobIO, images: ImageSet) -> dict[str, Any]:
    """Say which images were used, at which size."""
    denoiser = io.config.denoiser
    return {
        "dataset": images.name,
        "composite": images.composite,
        "classes": images.num_classes,
        "image_size": io.config.data.image_size,
        "train_images": len(images),
        "network": f"{'DiT' if denoiser.kind == 'dit' else denoiser.kind}-{denoiser.size}",
    }


def probe_protocol(io: JobIO) -> dict[str, Any]:
    """Say how features were taken and classified."""
    probe = io.config.probe
    return {
        "probe": "linear, cached features, L-BFGS, L2 chosen on held-out training images"
        if probe.mode == "cached"
        else f"linear, {probe.epochs} epochs, {probe.optimizer}, base_lr {probe.base_lr:g}, random resized crops",
        "probe_block": "end of the encoder half" if probe.block is None else f"block {probe.block}",
        "probe_timestep": probe.timestep,
        "probe_input": ("noisy" if probe.noisy_input else "clean") + f", {probe.input} image",
        "probe_weights": probe.weights,
        "knn": f"k = {probe.neighbours}, cosine, temperature {probe.knn_temperature:g}",
    }

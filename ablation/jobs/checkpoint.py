"""Probe a network from elsewhere by the same protocol: the same images, the same probe, the same nearest neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablation.data.images import ImageSet
from ablation.data.latents import to_tensor
from ablation.errors import Interrupted
from ablation.evaluation.checkpoints import open_checkpoint
from ablation.jobs.context import JobIO
from ablation.jobs.parts import batches_of, images_of
from ablation.jobs.probe import classified
from ablation.train.noise import NoiseSource, stream_seed

BATCH = 64


def run(io: JobIO) -> dict[str, Any]:
    """Extract the network's features of both splits and classify them; return accuracies in percent."""
    spec = io.store.spec(io.job_id)
    assert spec is not None, "the command wrote it"
    asked = spec["extra"]
    seed = stream_seed(io.seed, "random checkpoint") if asked["random"] else None
    network = open_checkpoint(asked["name"], asked["weights"], seed, io.config.data.image_size, asked["input_size"])
    network.network.to(io.device)
    train, test = images_of(io, "train"), images_of(io, "test")
    mirrors = (False, True) if io.config.data.horizontal_flip and io.config.probe.mode == "cached" else (False,)

    def extracted(images: ImageSet, mirrored: bool, words: str) -> Tensor:
        found, chunks = [], batches_of(len(images), BATCH)
        for number, indices in enumerate(chunks):
            if io.should_stop():
                raise Interrupted("stopped in the features; it starts over")
            pixels = images.batch(indices)
            found.append(network(to_tensor(np.ascontiguousarray(pixels[:, :, ::-1]) if mirrored else pixels, io.device)).cpu())
            io.progress(number + 1, len(chunks), f"features, {words}")
        return torch.cat(found)

    views = torch.stack([extracted(train, mirrored, "mirrored" if mirrored else "training") for mirrored in mirrors])
    queries = extracted(test, False, "test")

    def features(images: Tensor, _: NoiseSource) -> Tensor:
        return network(images)

    result = classified(io, features, views, queries, train, test)
    kept = {name: value for name, value in result["protocol"].items() if not name.startswith("probe_")}
    weights = "random weights" if asked["random"] else f"weights of {asked['weights'] or 'the model'}"
    said = {"network": f"{asked['title']}, {network.parameters / 1e6:.1f}M parameters", "features": f"{network.words}; {weights}"}
    return {**result, "protocol": {**kept, **said}}

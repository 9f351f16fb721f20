"""Small tokenizers, images with the structure of natural ones, and a training loop of a few lines for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ablation.config import TokenizerConfig
from ablation.tokenizers.losses import TokenizerObjective
from ablation.train.noise import NoiseSource

SIZE = 16


def settings(kind: str, **changes: Any) -> TokenizerConfig:
    """Return settings of a tokenizer of 4-pixel patches: D = 48; conv has two resolutions of 8 channels."""
    small: dict[str, Any] = {
        "patch_size": 4,
        "stride": 2,
        "latent_dim": 48 if kind == "pixels" else 8,
        "block_channels": (8, 8),
        "layers_per_block": 1,
        "perceptual_weight": 0.0,
        "adversarial_weight": 0.0,
        "perceptual_network": "efficientnet_lite0",
    }
    return TokenizerConfig(kind=kind, **{**small, **changes})


def smooth_images(count: int, size: int = SIZE, seed: int = 0) -> Tensor:
    """Return random images (B, 3, size, size) in [-1, 1] whose variance falls with frequency, as in photographs."""
    noise = np.random.default_rng(seed).standard_normal((count, 3, size, size))
    blurred = sum(weight * gaussian_filter(noise, (0, 0, s, s)) for s, weight in ((3.0, 6.0), (1.0, 1.0), (0.3, 0.03)))
    shared = blurred.mean(1, keepdims=True) * 2  # colour channels of photographs are correlated
    return torch.from_numpy(np.clip((blurred + shared) * 0.5 + 0.1, -1, 1)).float()


def train(
    objective: TokenizerObjective, images: Tensor, steps: int, lr: float, start: int = 0, total: int | None = None
) -> list[dict[str, float]]:
    """Train on one batch for some steps with Adam, as the training loop would; return what was logged."""
    optimizers = {phase: torch.optim.Adam(objective.parameters(phase), lr=lr) for phase in objective.phases}
    history = []
    for step in range(start, start + steps):
        objective.begin_step({"images": images}, NoiseSource(0, step * len(images), len(images)), step / (total or steps))
        logged: dict[str, float] = {}
        for phase, optimizer in optimizers.items():
            loss, scalars = objective.loss(phase)
            logged |= {name: float(value) for name, value in scalars.items()}
            if loss is None:
                continue
            logged[phase + "_loss"] = float(loss.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        history.append(logged)
    return history

"""The parts: one schedule, two targets, one loss weight; every function is a page of mathematics and a line of code."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ablation.config import ProcessConfig


def straight(cfg: ProcessConfig) -> tuple[Tensor, Tensor]:
    """Return gamma = 1 - t/T and sigma = t/T: z_t moves on a straight line (Lipman et al. 2023, Eq. 20, sigma_min = 0)."""
    share = torch.arange(cfg.num_timesteps + 1, dtype=torch.float64) / cfg.num_timesteps
    return 1 - share, share


def velocity(gamma: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mixture noise - z_0, which is dz_t / d(t/T) on the straight line; a DDIM step is then an Euler step."""
    return -torch.ones_like(gamma), torch.ones_like(sigma)


def v(gamma: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mixture gamma noise - sigma z_0 (Salimans & Ho 2022, section 4)."""
    return -sigma, gamma


def logit_normal(gamma: Tensor, sigma: Tensor) -> Tensor:
    """Return the density of s = sigma / (gamma + sigma) when logit(s) is standard normal, scaled to mean 1 over the levels.

    On the straight line s = t/T. The density is 0 at both ends (Esser et al. 2024, Eq. 19 with m = 0, s = 1).
    """
    share = sigma / (gamma + sigma)
    inside = (share > 0) & (share < 1)
    safe = torch.where(inside, share, 0.5)
    density = torch.exp(-0.5 * torch.logit(safe) ** 2) / (safe * (1 - safe) * math.sqrt(2 * math.pi))
    density = torch.where(inside, density, 0.0)
    return density / density[1:].mean()

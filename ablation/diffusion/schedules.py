"""Noise schedules: how much of the clean latent and how much noise each level holds."""

from __future__ import annotations

import torch
from torch import Tensor

from ablation.config import ProcessConfig
from ablation.diffusion.feasible import beta_range


def coefficients(cfg: ProcessConfig) -> tuple[Tensor, Tensor]:
    """Return gamma and sigma of z_t = gamma_t z_0 + sigma_t noise (Eq. 1) for t = 0 (clean) to T.

    Both are float64 of shape (T+1,); index 0 is (1, 0). ddpm_linear_beta with T other than 1000 scales the betas by 1000/T,
    which keeps the shape of gamma over t/T.
    """
    steps = cfg.num_timesteps
    share = torch.arange(steps + 1, dtype=torch.float64) / steps
    if cfg.schedule == "ddpm_linear_beta":
        first, last = beta_range(cfg)
        betas = torch.linspace(first, last, steps, dtype=torch.float64)
        kept = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, dim=0)])
        return kept.sqrt(), (1 - kept).sqrt()
    if cfg.schedule == "linear_gamma_squared":
        return (1 - share).sqrt(), share.sqrt()
    gamma = torch.ones(steps + 1, dtype=torch.float64)
    if cfg.schedule == "linear_sigma":
        return gamma, cfg.sigma_max * share
    sigma = torch.full_like(gamma, cfg.sigma_constant)
    sigma[0] = 0.0
    return gamma, sigma

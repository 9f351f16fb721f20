"""Noise schedules: how much of the clean latent and how much noise each level holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ablation.config import BUILT_IN_NAMES, ProcessConfig
from ablation.diffusion.feasible import beta_range
from ablation.errors import ConfigError


def coefficients(cfg: ProcessConfig, parts: Mapping[str, Any] | None = None) -> tuple[Tensor, Tensor]:
    """Return gamma and sigma of z_t = gamma_t z_0 + sigma_t noise (Eq. 1) for t = 0 (clean) to T.

    Both are float64 of shape (T+1,); index 0 is (1, 0). ddpm_linear_beta with T other than 1000 scales the betas by 1000/T,
    which keeps the shape of gamma over t/T. `parts` may hold the schedule, as "schedule:NAME"; what it returns is checked.
    """
    if cfg.schedule not in BUILT_IN_NAMES["process.schedule"]:
        return _provided(cfg, (parts or {})[f"schedule:{cfg.schedule}"])
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


def _provided(cfg: ProcessConfig, schedule: Any) -> tuple[Tensor, Tensor]:
    """Return the coefficients of a plugin's schedule. Raises ConfigError, naming it, where they are not those of a process."""
    who, steps = f"schedule '{cfg.schedule}'", cfg.num_timesteps
    returned = schedule(cfg)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ConfigError(f"{who} returns {type(returned).__name__}", "Return a tuple of two tensors, gamma and sigma.")
    gamma, sigma = (torch.as_tensor(part, dtype=torch.float64) for part in returned)
    for name, values in (("gamma", gamma), ("sigma", sigma)):
        if values.shape != (steps + 1,):
            raise ConfigError(f"{who}: {name} has shape {tuple(values.shape)}", f"Return one number for each t from 0 to {steps}.")
        if not torch.isfinite(values).all() or (values < 0).any():
            raise ConfigError(f"{who}: {name} has numbers that are not finite or below 0", "Mend the formula.")
    if gamma[0] != 1 or sigma[0] != 0 or (sigma[1:] <= 0).any():
        raise ConfigError(f"{who}: gamma_0 must be 1, sigma_0 must be 0 and all other sigma above 0", "Mend the formula.")
    if ((gamma / sigma)[1:].diff() > 0).any():
        raise ConfigError(f"{who}: gamma / sigma rises from one level to the next", "Later levels must be noisier.")
    return gamma, sigma

"""The corruption process: every coefficient under study, as one frozen object of pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ablation.config import BUILT_IN_NAMES, ProcessConfig, Space
from ablation.diffusion.feasible import multi_level
from ablation.diffusion.schedules import coefficients
from ablation.errors import ConfigError

MIN_GAMMA = 1e-3
"""Below this gamma a latent is taken to hold nothing of the clean data: noise prediction does not determine it."""


@dataclass(frozen=True, eq=False)
class Process:
    """The schedule, the target and the loss weight of one configuration.

    gamma, sigma: (T+1,) float64, index 0 clean. mixture: (2, T+1), a and b of a plugin's target a z_0 + b noise; weights:
    (T+1,), a plugin's loss weight. The other fields are those of ProcessConfig.
    """

    schedule: str
    gamma: Tensor
    sigma: Tensor
    target: str
    loss_weight: str
    input_space: Space
    output_space: Space
    residual_weight: float
    image_loss_units: Literal["pixel", "latent"]
    learned_variance: bool
    variational_weight: float
    mixture: Tensor | None = None
    weights: Tensor | None = None

    @classmethod
    def from_config(cls, cfg: ProcessConfig, parts: Mapping[str, Any] | None = None) -> Process:
        """Build the process of a configuration (checked by `feasible.check_process`); parts: by "KIND:NAME"."""
        gamma, sigma = coefficients(cfg, parts)
        return cls(
            schedule=cfg.schedule,
            gamma=gamma,
            sigma=sigma,
            target=cfg.target,
            loss_weight=cfg.loss_weight,
            input_space=cfg.input_space,
            output_space=cfg.output_space,
            residual_weight=cfg.residual_weight,
            image_loss_units=cfg.image_loss_units,
            learned_variance=cfg.learned_variance,
            variational_weight=cfg.variational_weight,
            mixture=_mixture(cfg, gamma, sigma, parts or {}),
            weights=_weights(cfg, gamma, sigma, parts or {}),
        )

    def to(self, device: torch.device | str) -> Process:
        """Return a copy with the coefficients on a device."""
        mixture = None if self.mixture is None else self.mixture.to(device)
        weights = None if self.weights is None else self.weights.to(device)
        return replace(self, gamma=self.gamma.to(device), sigma=self.sigma.to(device), mixture=mixture, weights=weights)

    @property
    def num_timesteps(self) -> int:
        """T, the number of noise levels."""
        return len(self.gamma) - 1

    @property
    def multi_level(self) -> bool:
        """Whether there is more than one noise level."""
        return multi_level(self)

    @property
    def needs_space(self) -> bool:
        """Whether the network reads or writes image patches, so that a PatchSpace is needed."""
        return "image" in (self.input_space, self.output_space)

    def network_time(self, t: Tensor) -> Tensor:
        """Return what the network is told about the level: t as float32, or 0 for the constant schedule. (B,) -> (B,)."""
        return torch.zeros_like(t, dtype=torch.float32) if self.schedule == "constant" else t.float()

    def draw_timesteps(self, uniform: Tensor) -> Tensor:
        """Turn uniform numbers in [0, 1) into timesteps 1..T, all equally likely. (B,) -> (B,) int64."""
        t = (uniform.double() * self.num_timesteps).long() + 1
        return t.clamp(max=self.num_timesteps)

    def corrupt(self, z0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return z_t = gamma_t z_0 + sigma_t noise (Eq. 1). z0, noise: (B, ...); t: (B,) int64."""
        return at(self.gamma, t, z0) * z0 + at(self.sigma, t, z0) * noise

    def weight(self, t: Tensor) -> Tensor:
        """Return the loss weight lambda_t (Eq. 3 and the text below it). (B,) -> (B,) float32, finite for every t.

        snr is gamma^2/sigma^2; at t = 0, where sigma is 0, it takes its value at t = 1.
        """
        if self.weights is not None:
            return self.weights[t].float()
        gamma2, sigma2 = self.gamma[t] ** 2, self.sigma[t] ** 2
        if self.loss_weight == "gamma_squared":
            return gamma2.float()
        if self.loss_weight == "snr":
            return torch.where(t > 0, gamma2 / sigma2.clamp(min=1e-30), self.gamma[1] ** 2 / self.sigma[1] ** 2).float()
        if self.loss_weight == "inverse_variance":
            return (1 / (1 + sigma2)).float()
        return torch.ones_like(gamma2, dtype=torch.float32)

    @property
    def divisor(self) -> Tensor:
        """gamma_t b_t - sigma_t a_t, (T+1,): what the clean latent is divided by when a target a z_0 + b noise is solved for it."""
        if self.mixture is not None:
            return self.gamma * self.mixture[1] - self.sigma * self.mixture[0]
        return self.gamma if self.target == "noise" else -self.sigma

    def mix(self, z0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return a plugin's target, a_t z_0 + b_t noise. z0, noise: (B, ...); t: (B,) int64."""
        assert self.mixture is not None
        return at(self.mixture[0], t, z0) * z0 + at(self.mixture[1], t, z0) * noise

    def clean_from_mixture(self, z_t: Tensor, t: Tensor, target: Tensor) -> Tensor:
        """Solve Eq. 1 and target = a z_0 + b noise for z_0; zero where the divisor is below MIN_GAMMA. (B, N, d), t (B,)."""
        assert self.mixture is not None
        divisor = self.divisor[t]
        inverse = torch.where(divisor.abs() < MIN_GAMMA, 0.0, 1 / torch.where(divisor.abs() < MIN_GAMMA, 1.0, divisor))
        return (at(self.mixture[1], t, z_t) * z_t - at(self.sigma, t, z_t) * target) * expand(inverse, z_t)

    def clean_from_noise(self, z_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Solve Eq. 1 for z_0; zero where gamma_t < MIN_GAMMA, since there the noise says nothing of z_0. (B, N, d), t (B,)."""
        gamma = self.gamma[t]
        inverse = torch.where(gamma < MIN_GAMMA, 0.0, 1 / gamma.clamp(min=MIN_GAMMA))
        return (z_t - at(self.sigma, t, z_t) * noise) * expand(inverse, z_t)

    def noise_from_clean(self, z_t: Tensor, t: Tensor, z0: Tensor) -> Tensor:
        """Solve Eq. 1 for the noise; zero where sigma_t = 0, that is at t = 0, which holds no noise. (B, N, d), t (B,)."""
        sigma = self.sigma[t]
        inverse = torch.where(sigma > 0, 1 / sigma.clamp(min=1e-30), 0.0)
        return (z_t - at(self.gamma, t, z_t) * z0) * expand(inverse, z_t)


def _mixture(cfg: ProcessConfig, gamma: Tensor, sigma: Tensor, parts: Mapping[str, Any]) -> Tensor | None:
    """Return a and b of a plugin's target, (2, T+1) float64; None for a built-in one. Raises ConfigError naming the target."""
    if cfg.target in BUILT_IN_NAMES["process.target"]:
        return None
    returned = parts[f"target:{cfg.target}"](gamma, sigma)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ConfigError(f"target '{cfg.target}' returns {type(returned).__name__}", "Return a tuple of two tensors, a and b.")
    mixture = torch.stack([_per_level(f"target '{cfg.target}'", part, gamma) for part in returned])  # (2, T+1)
    if ((gamma * mixture[1] - sigma * mixture[0])[1].abs() < MIN_GAMMA).any():
        raise ConfigError(f"target '{cfg.target}': the clean latent cannot be solved for at t = 1", "gamma b - sigma a must not vanish.")
    return mixture


def _weights(cfg: ProcessConfig, gamma: Tensor, sigma: Tensor, parts: Mapping[str, Any]) -> Tensor | None:
    """Return a plugin's loss weight of each level, (T+1,) float64; None for a built-in one. Raises ConfigError naming it."""
    if cfg.loss_weight in BUILT_IN_NAMES["process.loss_weight"]:
        return None
    weights = _per_level(f"weight '{cfg.loss_weight}'", parts[f"weight:{cfg.loss_weight}"](gamma, sigma), gamma)
    if (weights < 0).any() or not (weights > 0).any():
        raise ConfigError(f"weight '{cfg.loss_weight}' is below 0 somewhere, or 0 everywhere", "Mend the formula.")
    return weights


def _per_level(who: str, values: Any, gamma: Tensor) -> Tensor:
    """Insist on one finite number for each level. -> (T+1,) float64."""
    found = torch.as_tensor(values, dtype=torch.float64)
    if found.ndim == 0:
        found = found.expand_as(gamma)
    if found.shape != gamma.shape or not torch.isfinite(found).all():
        raise ConfigError(
            f"{who} gives {tuple(found.shape)} numbers, or some that are not finite", f"Give one for each t from 0 to {len(gamma) - 1}."
        )
    return found


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Give per-image numbers the type of a tensor and singleton axes for its others. (B,), (B, ...) -> (B, 1, ...)."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))  # (B,) -> (B, 1, ...)


def at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Look up a coefficient for each image, ready to multiply a tensor. (T+1,), (B,), (B, ...) -> (B, 1, ...)."""
    return expand(values[t], like)


@dataclass(frozen=True)
class Posterior:
    """q(z_s | z_t, z_0) = N(from_noisy z_t + from_clean z_0, variance) and the variance of q(z_t | z_s); tensors or scalars."""

    from_noisy: Tensor
    from_clean: Tensor
    variance: Tensor
    forward_variance: Tensor


def posterior(process: Process, t: Tensor, s: Tensor) -> Posterior:
    """Return the coefficients of q(z_s | z_t, z_0) for s < t, for any gamma and sigma; shapes follow t and s.

    Derived from z_t = a z_s + N(0, sigma_t^2 - a^2 sigma_s^2), a = gamma_t / gamma_s, by the product of two Gaussians; with
    gamma^2 + sigma^2 = 1 and s = t - 1 it is the posterior of DDPM (Ho et al. 2020, Eq. 6-7). gamma_t = 0 is allowed.
    """
    gamma_t, sigma_t, gamma_s, sigma_s = process.gamma[t], process.sigma[t], process.gamma[s], process.sigma[s]
    a = gamma_t / gamma_s
    forward_variance = sigma_t**2 - a**2 * sigma_s**2
    return Posterior(
        from_noisy=a * sigma_s**2 / sigma_t**2,
        from_clean=gamma_s * forward_variance / sigma_t**2,
        variance=forward_variance * sigma_s**2 / sigma_t**2,
        forward_variance=forward_variance,
    )

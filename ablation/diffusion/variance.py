"""A learned reverse variance and its variational bound (Nichol & Dhariwal 2021, sections 3.1 and 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ablation.diffusion.process import Posterior, Process, expand, posterior


def log_variance(process: Process, t: Tensor, s: Tensor, channels: Tensor) -> Tensor:
    """Turn the network's variance channels into the log variance of p(z_s | z_t) (Eq. 15 there).

    channels: (B, N, d), -1 for the posterior's variance and 1 for the forward one, interpolated in the logarithm; t, s: (B,).
    The posterior's variance is 0 at s = 0; there its value at t = 2, s = 1 stands in, as in that work.
    """
    lower, upper = _log_bounds(process, t, s)
    share = (channels + 1) / 2
    return share * expand(upper, channels) + (1 - share) * expand(lower, channels)


def _log_bounds(process: Process, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of the smallest and the largest reverse variance, float64, shaped like t."""
    step = posterior(process, t, s)
    return torch.where(s > 0, step.variance, _first_variance(process, t)).log(), step.forward_variance.log()


def _first_variance(process: Process, like: Tensor) -> Tensor:
    """Return the posterior's variance of the step from t = 2 to 1, a 0-d tensor."""
    one = torch.ones((), dtype=torch.int64, device=like.device)
    return posterior(process, 2 * one, one).variance


def variational_bound(process: Process, t: Tensor, z0: Tensor, z_t: Tensor, noise: Tensor, channels: Tensor) -> Tensor:
    """Return each image's term of the variational bound, in bits per dimension. (B,).

    The term is KL(q(z_{t-1} | z_t, z_0) || p(z_{t-1} | z_t)), and -log p(z_0 | z_1) at t = 1: a density, since latents have
    no bins to integrate over. z0, z_t, channels: (B, N, d); noise: the prediction, which should be detached so that the
    bound trains the variance only.
    """
    step = posterior(process, t, t - 1)
    clean = process.clean_from_noise(z_t, t, noise)
    error = expand(step.from_clean, z0) * (z0 - clean)  # both means share the z_t term; from_clean is 1 at t = 1
    log_p = log_variance(process, t, t - 1, channels)
    kl = _gaussian_kl(step, t, error, log_p)
    likelihood = 0.5 * (math.log(2 * math.pi) + log_p + error**2 * torch.exp(-log_p))
    term = torch.where(expand(t, z0) == 1, likelihood, kl)
    return term.flatten(1).mean(dim=1) / math.log(2)  # (B, N, d) -> (B,)


def _gaussian_kl(step: Posterior, t: Tensor, error: Tensor, log_p: Tensor) -> Tensor:
    """Return KL(N(m + error, variance) || N(m, exp(log_p))) per number; meaningless, but finite, at t = 1. Like error."""
    variance = torch.where(t > 1, step.variance, torch.ones_like(step.variance))
    log_q = expand(variance.log(), error)
    return 0.5 * (log_p - log_q + torch.exp(log_q - log_p) + error**2 * torch.exp(-log_p) - 1)

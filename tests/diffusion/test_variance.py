"""The learned variance and its bound against hand-computed divergences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ablation.config import ProcessConfig
from ablation.diffusion.process import Process, posterior
from ablation.diffusion.variance import log_variance, variational_bound


def process(**settings: Any) -> Process:
    return Process.from_config(ProcessConfig(learned_variance=True, **settings))


def test_channels_interpolate_between_both_variances() -> None:
    built = process()
    t = torch.tensor([700])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.cumprod(1 - betas, 0)
    upper = betas[699].item()
    lower = upper * (1 - kept[698].item()) / (1 - kept[699].item())
    channels = torch.tensor([[[-1.0, 0.0, 1.0]]])
    found = log_variance(built, t, t - 1, channels).flatten().tolist()
    assert found == pytest.approx([math.log(lower), (math.log(lower) + math.log(upper)) / 2, math.log(upper)], rel=1e-5)


def test_last_step_borrows_the_variance_of_the_one_before() -> None:
    built = process()
    t = torch.tensor([1])
    found = log_variance(built, t, t - 1, torch.tensor([[[-1.0, 1.0]]])).flatten().exp()
    second = posterior(built, torch.tensor(2), torch.tensor(1)).variance.item()
    assert found.tolist() == pytest.approx([second, 1e-4], rel=1e-4)


def test_bound_is_the_hand_computed_divergence() -> None:
    """Three timesteps, one number per image: KL of two Gaussians, written out, in bits."""
    built = process(schedule="linear_gamma_squared", num_timesteps=4)
    gamma, sigma = built.gamma.tolist(), built.sigma.tolist()
    z0, noise, predicted, channel = 0.7, -1.2, -0.9, 0.4
    for t in (2, 3):
        a = gamma[t] / gamma[t - 1]
        beta = sigma[t] ** 2 - a**2 * sigma[t - 1] ** 2
        tilde = beta * sigma[t - 1] ** 2 / sigma[t] ** 2
        z_t = gamma[t] * z0 + sigma[t] * noise
        clean = (z_t - sigma[t] * predicted) / gamma[t]
        q_mean = a * sigma[t - 1] ** 2 / sigma[t] ** 2 * z_t + gamma[t - 1] * beta / sigma[t] ** 2 * z0
        p_mean = a * sigma[t - 1] ** 2 / sigma[t] ** 2 * z_t + gamma[t - 1] * beta / sigma[t] ** 2 * clean
        variance = beta ** ((channel + 1) / 2) * tilde ** ((1 - channel) / 2)
        kl = math.log(math.sqrt(variance / tilde)) + (tilde + (q_mean - p_mean) ** 2) / (2 * variance) - 0.5
        parts = (torch.full((1, 1, 1), value) for value in (z0, z_t, predicted, channel))
        assert variational_bound(built, torch.tensor([t]), *parts).item() == pytest.approx(kl / math.log(2), rel=1e-4)


def test_first_level_is_a_log_density() -> None:
    built = process()
    z0, noise, predicted = torch.randn(3, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1])
    z_t = built.corrupt(z0, t, noise)
    clean = (z_t - 0.01 * predicted) / math.sqrt(1 - 1e-4)
    density = torch.distributions.Normal(clean, 0.01).log_prob(z0).mean() / math.log(2)
    found = variational_bound(built, t, z0, z_t, predicted, torch.ones_like(z0))
    assert found.item() == pytest.approx(-density.item(), rel=1e-3)


@pytest.mark.parametrize("schedule", ["ddpm_linear_beta", "linear_gamma_squared"])
def test_bound_and_its_gradient_are_finite_at_every_level(schedule: str) -> None:
    built = process(schedule=schedule)
    t = torch.arange(1, 1001)
    generator = torch.Generator().manual_seed(0)
    z0, noise, channels = torch.randn(3, 1000, 2, 3, generator=generator)
    channels.requires_grad_()
    terms = variational_bound(built, t, z0, built.corrupt(z0, t, noise), noise + 0.1, channels)
    assert terms.shape == (1000,)
    terms.sum().backward()
    assert channels.grad is not None
    assert torch.isfinite(terms).all()
    assert torch.isfinite(channels.grad).all()
    assert (channels.grad.abs().sum(dim=(1, 2)) > 0).all()


def test_divergence_is_zero_only_for_the_true_posterior() -> None:
    built = process()
    t = torch.arange(2, 1001, 37)
    z0, noise = torch.randn(2, len(t), 2, 3)
    z_t = built.corrupt(z0, t, noise)
    exact = variational_bound(built, t, z0, z_t, noise, torch.full_like(z0, -1.0))
    assert exact.abs().max() < 1e-3
    assert (variational_bound(built, t, z0, z_t, noise + 0.5, torch.full_like(z0, -1.0)) > exact + 1e-4).all()

"""Schedules against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation.config import ProcessConfig
from ablation.diffusion.schedules import coefficients

SCHEDULES = ("ddpm_linear_beta", "linear_gamma_squared", "linear_sigma", "constant")


def test_ddpm_at_1000_steps_follows_the_product_of_alphas() -> None:
    gamma, sigma = coefficients(ProcessConfig(schedule="ddpm_linear_beta"))
    kept = 1.0
    for t in range(1, 1001):
        kept *= 1 - (1e-4 + (0.02 - 1e-4) * (t - 1) / 999)
        if t in (1, 2, 500, 1000):
            assert gamma[t].item() == pytest.approx(math.sqrt(kept), rel=1e-10)
            assert sigma[t].item() == pytest.approx(math.sqrt(1 - kept), rel=1e-10)
    assert gamma[1000].item() ** 2 == pytest.approx(4.0358e-5, rel=1e-4)  # the widely quoted end value


@pytest.mark.parametrize("steps", [100, 250, 4000])
def test_ddpm_with_other_step_counts_keeps_the_curve(steps: int) -> None:
    gamma, _ = coefficients(ProcessConfig(num_timesteps=steps))
    reference, _ = coefficients(ProcessConfig(num_timesteps=1000))
    for share in (0.2, 0.5, 0.8):
        assert gamma[int(share * steps)].item() == pytest.approx(reference[int(share * 1000)].item(), abs=0.03)


def test_linear_gamma_squared_ends_in_pure_noise() -> None:
    gamma, sigma = coefficients(ProcessConfig(schedule="linear_gamma_squared"))
    assert torch.allclose(gamma**2, 1 - torch.arange(1001, dtype=torch.float64) / 1000, atol=1e-14)
    assert gamma[1000] == 0
    assert sigma[1000] == 1


def test_linear_sigma_runs_to_sigma_max_with_unscaled_input() -> None:
    gamma, sigma = coefficients(ProcessConfig(schedule="linear_sigma"))
    assert torch.equal(gamma, torch.ones(1001, dtype=torch.float64))
    assert sigma[1000].item() == pytest.approx(math.sqrt(2))
    assert sigma[408].item() == pytest.approx(math.sqrt(1 / 3), abs=1e-3)
    assert (sigma[1:] ** 2).mean().item() == pytest.approx(2 / 3, abs=2e-3)


def test_constant_has_one_level() -> None:
    gamma, sigma = coefficients(ProcessConfig(schedule="constant", num_timesteps=7))
    assert torch.equal(gamma, torch.ones(8, dtype=torch.float64))
    assert sigma.tolist() == [0.0] + [math.sqrt(1 / 3)] * 7


@settings(max_examples=40)
@given(schedule=st.sampled_from(SCHEDULES), steps=st.integers(21, 1500))
def test_every_schedule_starts_clean_and_loses_signal(schedule: str, steps: int) -> None:
    gamma, sigma = coefficients(ProcessConfig(schedule=schedule, num_timesteps=steps))  # type: ignore[arg-type]
    assert gamma.shape == sigma.shape == (steps + 1,)
    assert gamma.dtype == sigma.dtype == torch.float64
    assert (gamma[0], sigma[0]) == (1, 0)
    assert (sigma[1:] > 0).all()
    snr = gamma[1:] ** 2 / sigma[1:] ** 2
    change = snr.diff()
    assert (change == 0).all() if schedule == "constant" else (change < 0).all()


@settings(max_examples=40)
@given(schedule=st.sampled_from(SCHEDULES), steps=st.integers(21, 1500))
def test_variance_is_preserved_exactly_where_promised(schedule: str, steps: int) -> None:
    gamma, sigma = coefficients(ProcessConfig(schedule=schedule, num_timesteps=steps))  # type: ignore[arg-type]
    total = gamma[1:] ** 2 + sigma[1:] ** 2
    if schedule in ("ddpm_linear_beta", "linear_gamma_squared"):
        assert torch.allclose(total, torch.ones_like(total), atol=1e-12)
    else:
        assert (total > 1 + 1e-7).all()

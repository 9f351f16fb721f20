"""The corruption, the conversions, the weights and the posterior of a process."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablation.config import ProcessConfig
from ablation.diffusion.process import MIN_GAMMA, Process, posterior

SCHEDULES = ("ddpm_linear_beta", "linear_gamma_squared", "linear_sigma", "constant")


def process(**settings: object) -> Process:
    return Process.from_config(ProcessConfig(**settings))  # type: ignore[arg-type]


def test_is_frozen_and_holds_the_settings() -> None:
    built = process(schedule="linear_sigma", target="clean", residual_weight=0.5, variational_weight=0.25)
    assert (built.num_timesteps, built.target, built.residual_weight, built.variational_weight) == (1000, "clean", 0.5, 0.25)
    with pytest.raises(dataclasses.FrozenInstanceError):
        built.target = "noise"  # type: ignore[misc]


def test_levels_and_network_time() -> None:
    t = torch.tensor([1, 10, 1000])
    single = process(schedule="constant")
    assert not single.multi_level
    assert not process(schedule="linear_sigma", num_timesteps=1).multi_level
    assert torch.equal(single.network_time(t), torch.zeros(3))
    for schedule in SCHEDULES[:3]:
        built = process(schedule=schedule)
        assert built.multi_level
        assert torch.equal(built.network_time(t), torch.tensor([1.0, 10.0, 1000.0]))


def test_timesteps_cover_1_to_T_evenly() -> None:
    built = process(num_timesteps=50)
    t = built.draw_timesteps((torch.arange(5000) + 0.5) / 5000)
    assert torch.equal(torch.bincount(t), torch.tensor([0] + [100] * 50))
    last = torch.nextafter(torch.tensor([1.0]), torch.tensor([0.0]))
    assert built.draw_timesteps(last).item() == 50
    assert built.draw_timesteps(torch.zeros(1)).item() == 1


def test_corrupt_is_equation_1() -> None:
    built = process(schedule="linear_gamma_squared")
    z0, noise = torch.tensor([[[2.0]], [[2.0]]]), torch.tensor([[[10.0]], [[10.0]]])
    expected = [2 * math.sqrt(0.75) + 10 * 0.5, 10.0]  # t = 250: gamma^2 = 3/4; t = T: only noise
    assert built.corrupt(z0, torch.tensor([250, 1000]), noise).flatten().tolist() == pytest.approx(expected)


@given(schedule=st.sampled_from(SCHEDULES), t=st.integers(1, 1000), seed=st.integers(0, 99))
def test_clean_and_noise_convert_into_each_other(schedule: str, t: int, seed: int) -> None:
    built = process(schedule=schedule)
    generator = torch.Generator().manual_seed(seed)
    z0, noise = torch.randn(2, 1, 3, 4, dtype=torch.float64, generator=generator)
    steps = torch.tensor([t])
    z_t = built.corrupt(z0, steps, noise)
    assert torch.allclose(built.noise_from_clean(z_t, steps, z0), noise, atol=1e-9)
    clean = built.clean_from_noise(z_t, steps, noise)
    assert torch.allclose(clean, z0 if built.gamma[t] >= MIN_GAMMA else torch.zeros_like(z0), atol=1e-9)


def test_conversions_are_zero_where_nothing_can_be_known() -> None:
    built = process(schedule="linear_gamma_squared")
    z = torch.randn(1, 2, 3)
    assert torch.equal(built.clean_from_noise(z, torch.tensor([1000]), z + 1), torch.zeros_like(z))
    assert torch.equal(built.noise_from_clean(z, torch.tensor([0]), z + 1), torch.zeros_like(z))


def test_weights_by_hand() -> None:
    weight = process(schedule="linear_sigma", loss_weight="inverse_variance").weight
    assert weight(torch.tensor([0, 500, 1000])).tolist() == pytest.approx([1, 1 / 1.5, 1 / 3])
    single = process(schedule="constant", loss_weight="inverse_variance").weight
    assert single(torch.tensor([1, 77, 1000])).tolist() == pytest.approx([0.75] * 3)
    squared = process(schedule="linear_gamma_squared", loss_weight="gamma_squared").weight
    assert squared(torch.tensor([0, 100, 750, 1000])).tolist() == pytest.approx([1, 0.9, 0.25, 0])
    snr = process(schedule="linear_gamma_squared", target="clean", loss_weight="snr").weight
    assert snr(torch.tensor([0, 1, 500, 1000])).tolist() == pytest.approx([999, 999, 1, 0], rel=1e-5)
    assert process().weight(torch.tensor([1, 1000])).tolist() == [1, 1]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("loss_weight", ["uniform", "gamma_squared", "snr", "inverse_variance"])
def test_every_weight_is_finite_at_every_level(schedule: str, loss_weight: str) -> None:
    weight = process(schedule=schedule, loss_weight=loss_weight).weight(torch.arange(1001))
    assert weight.dtype == torch.float32
    assert torch.isfinite(weight).all()
    assert (weight >= 0).all()


def test_posterior_of_one_step_is_ddpms() -> None:
    """Ho et al. 2020, Eq. 7, written with alphas and betas as there."""
    built = process()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas = 1 - betas
    kept = torch.cumprod(alphas, 0)
    kept_before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    t = torch.arange(1, 1001)
    step = posterior(built, t, t - 1)
    assert torch.allclose(step.from_clean, kept_before.sqrt() * betas / (1 - kept), rtol=1e-8)
    assert torch.allclose(step.from_noisy, alphas.sqrt() * (1 - kept_before) / (1 - kept), rtol=1e-8)
    assert torch.allclose(step.variance, betas * (1 - kept_before) / (1 - kept), rtol=1e-8, atol=1e-15)
    assert torch.allclose(step.forward_variance, betas, rtol=1e-8)


@given(schedule=st.sampled_from(SCHEDULES[:3]), levels=st.sets(st.integers(0, 1000), min_size=2, max_size=2))
def test_posterior_after_the_forward_process_gives_the_marginal(schedule: str, levels: set[int]) -> None:
    """Drawing z_t from z_0 and then z_s from both must give z_s = gamma_s z_0 + sigma_s noise."""
    built = process(schedule=schedule)
    s, t = (torch.tensor(level) for level in sorted(levels))
    step = posterior(built, t, s)
    assert step.from_noisy * built.gamma[t] + step.from_clean == pytest.approx(built.gamma[s].item(), abs=1e-9)
    total = step.from_noisy**2 * built.sigma[t] ** 2 + step.variance
    assert total.item() == pytest.approx(built.sigma[s].item() ** 2, abs=1e-9)
    assert step.variance >= 0
    assert step.forward_variance > 0


def test_to_moves_the_coefficients() -> None:
    moved = process().to("meta")
    assert moved.gamma.device.type == moved.sigma.device.type == "meta"
    assert moved.target == "noise"

"""The reverse process recovers Gaussians it was never told, for every process that has one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from ablation.config import ProcessConfig
from ablation.diffusion.process import Process
from ablation.diffusion.sampling import (
    Sampler,
    ancestral_step,
    deterministic_step,
    first_level,
    initial_state,
    needs_statistics,
    sample,
    sampling_timesteps,
)
from ablation.diffusion.statistics import LatentStatistics, StatisticsAccumulator
from ablation.errors import ConfigError

COUNT = 5000


def process(**settings: Any) -> Process:
    return Process.from_config(ProcessConfig(**settings))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same_law(z: Tensor, expected: LatentStatistics, tolerance: float = 0.08) -> None:
    """Compare mean and covariance in units of the standard deviation.

    The tolerance covers two standard errors and the bias of 250 steps, up to 4 percent of the variance (see the exact test below).
    """
    accumulator = StatisticsAccumulator()
    accumulator.update(z)
    found = accumulator.result()
    spread = expected.token_covariance.diagonal(dim1=1, dim2=2).sqrt()  # (d, N)
    assert ((found.mean - expected.mean).abs() / spread.T).max() < tolerance
    scale = spread[:, :, None] * spread[:, None, :]  # (d, N, N)
    assert ((found.token_covariance - expected.token_covariance).abs() / scale).max() < tolerance


@pytest.mark.parametrize("kind", ["deterministic", "ancestral"])
def test_recovers_a_gaussian_with_its_optimal_denoiser(
    gaussian: Callable[..., Any], multi_level_settings: dict[str, Any], kind: Literal["deterministic", "ancestral"]
) -> None:
    data = gaussian(**multi_level_settings)
    sampler = Sampler(kind, steps=250, guidance=1.0)
    out = sample(data, data.process, data.space, sampler, (COUNT, 2, 2), seeded(), statistics=data.statistics)
    if data.process.output_space == "image":
        assert out.shape == (COUNT, 2, 12)
        off = out - data.space.project(out)
        expected = data.off_subspace if data.process.target == "original" else torch.zeros(12)
        assert torch.allclose(off, expected.expand_as(off), atol=1e-3)
        out = data.space.to_latent(out)
    assert out.dtype == torch.float32
    assert_same_law(out, data.statistics)


@pytest.mark.parametrize("schedule", ["ddpm_linear_beta", "linear_gamma_squared", "linear_sigma"])
@pytest.mark.parametrize("kind", ["deterministic", "ancestral"])
def test_variance_is_exact_in_the_limit_of_many_steps(schedule: str, kind: str) -> None:
    """Carry the variance of Gaussian data through every step without sampling: the error falls as 1/T, to under 1.5 percent."""

    def error(num_timesteps: int, variance: float = 0.5) -> float:
        built = process(schedule=schedule, num_timesteps=num_timesteps)
        levels = sampling_timesteps(built, num_timesteps)
        first = levels[0]
        current = (built.gamma[first] ** 2 * variance + built.sigma[first] ** 2).item()
        for t, s in pairwise(levels):
            gamma, sigma = built.gamma[t], built.sigma[t]
            z_t, standard = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)[:, None, None, :]  # probes of the step
            z0 = gamma * variance / (gamma**2 * variance + sigma**2) * z_t
            steps = torch.tensor([t]), torch.tensor([s])
            if kind == "deterministic":
                gain, spread = deterministic_step(built, z_t, z0, *steps).flatten().tolist()
            else:
                gain, spread = ancestral_step(built, z_t, z0, *steps, standard).flatten().tolist()
            current = gain**2 * current + spread**2
        return current / variance - 1

    coarse, fine = error(150), error(900)
    assert abs(fine) < 0.015
    assert abs(fine) < abs(coarse) / 4


@pytest.mark.parametrize("kind", ["deterministic", "ancestral"])
def test_few_evenly_spaced_steps_come_close(gaussian: Callable[..., Any], kind: Literal["deterministic", "ancestral"]) -> None:
    data = gaussian(num_timesteps=1000, schedule="linear_sigma", target="clean")
    sampler = Sampler(kind, steps=60, guidance=1.0)
    out = sample(data, data.process, None, sampler, (COUNT, 2, 2), seeded(), statistics=data.statistics)
    assert_same_law(out, data.statistics, tolerance=0.09)


def test_starting_from_plain_noise_at_gamma_1_would_be_wrong(gaussian: Callable[..., Any]) -> None:
    """Why LatentStatistics are needed: from N(0, sigma^2 + 1) the same sampler misses the mean."""
    data = gaussian(schedule="linear_sigma", target="clean")
    plain = LatentStatistics(torch.zeros(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64).expand(2, 2, 2))
    sampler = Sampler("deterministic", steps=250, guidance=1.0)
    out = sample(data, data.process, None, sampler, (COUNT, 2, 2), seeded(), statistics=plain)
    shortfall = (out.mean(dim=0) - data.statistics.mean).abs()
    assert shortfall.max() > 0.2
    assert needs_statistics(data.process)
    with pytest.raises(ValueError, match="LatentStatistics"):
        sample(data, data.process, None, sampler, (4, 2, 2), seeded(), statistics=None)


def test_initial_state_follows_the_first_levels_law(gaussian: Callable[..., Any]) -> None:
    data = gaussian(schedule="linear_sigma")
    z = initial_state(data.process, data.statistics, torch.randn(COUNT, 2, 2, generator=seeded()))
    eye = torch.eye(2, dtype=torch.float64)
    assert_same_law(z, LatentStatistics(data.statistics.mean, data.statistics.token_covariance + 2 * eye))


def test_pure_noise_needs_no_statistics(gaussian: Callable[..., Any]) -> None:
    noise = torch.randn(5, 2, 2, generator=seeded())
    ddpm = process()
    assert not needs_statistics(ddpm)
    assert torch.allclose(initial_state(ddpm, None, noise), noise, atol=1e-6)
    clean = gaussian(schedule="linear_gamma_squared", target="clean")
    assert torch.allclose(initial_state(clean.process, clean.statistics, noise), noise, atol=1e-6)  # gamma_T = 0


def test_first_level_avoids_what_noise_prediction_cannot_tell() -> None:
    assert first_level(process()) == 1000
    assert first_level(process(schedule="linear_gamma_squared")) == 999
    assert first_level(process(schedule="linear_gamma_squared", target="clean")) == 1000
    assert first_level(process(schedule="linear_sigma")) == 1000


def test_levels_are_evenly_spaced_and_end_clean() -> None:
    assert sampling_timesteps(process(), 1000) == list(range(1000, -1, -1))
    assert sampling_timesteps(process(), 4) == [1000, 667, 334, 1, 0]
    assert sampling_timesteps(process(), 1) == [1000, 0]
    assert sampling_timesteps(process(num_timesteps=30), 250) == list(range(30, -1, -1))
    levels = sampling_timesteps(process(schedule="linear_gamma_squared"), 250)
    assert len(levels) == 251
    assert levels[0] == 999
    assert {a - b for a, b in pairwise(levels[:-1])} <= {4, 5}


def test_ancestral_on_full_steps_is_textbook_ddpm() -> None:
    """x_{t-1} = (x_t - beta_t / sqrt(1 - abar_t) eps) / sqrt(alpha_t) + sqrt(betatilde_t) z (Ho et al. 2020, Algorithm 2)."""
    built = process()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.cumprod(1 - betas, 0)
    z_t, noise, standard = torch.randn(3, 1, 4, 2, dtype=torch.float64, generator=seeded())
    for t in (2, 300, 1000):
        beta, alpha = betas[t - 1], 1 - betas[t - 1]
        mean = (z_t - beta / (1 - kept[t - 1]).sqrt() * noise) / alpha.sqrt()
        variance = beta * (1 - kept[t - 2]) / (1 - kept[t - 1])
        steps = torch.tensor([t])
        z0 = built.clean_from_noise(z_t, steps, noise)
        found = ancestral_step(built, z_t, z0, steps, steps - 1, standard)
        assert torch.allclose(found, mean + variance.sqrt() * standard, atol=1e-9)


def test_deterministic_step_keeps_the_noise() -> None:
    for schedule in ("ddpm_linear_beta", "linear_gamma_squared", "linear_sigma"):
        built = process(schedule=schedule)
        z0, noise = torch.randn(2, 1, 4, 2, dtype=torch.float64, generator=seeded())
        t, s = torch.tensor([1000]), torch.tensor([300])
        found = deterministic_step(built, built.corrupt(z0, t, noise), z0, t, s)
        assert torch.allclose(found, built.corrupt(z0, s, noise), atol=1e-9)


def test_one_step_returns_the_prediction(gaussian: Callable[..., Any]) -> None:
    data = gaussian(schedule="linear_gamma_squared", target="clean")
    out = sample(data, data.process, None, Sampler("ancestral", 1, 1.0), (6, 2, 2), seeded(), statistics=data.statistics)
    assert torch.allclose(out, data.statistics.mean.float().expand(6, 2, 2), atol=1e-5)  # from pure noise: the mean


@pytest.mark.parametrize("kind", ["deterministic", "ancestral"])
def test_same_generator_same_samples(gaussian: Callable[..., Any], kind: Literal["deterministic", "ancestral"]) -> None:
    data = gaussian(num_timesteps=30)

    def draw(seed: int) -> Tensor:
        return sample(data, data.process, None, Sampler(kind, 10, 1.0), (5, 2, 2), seeded(seed), statistics=data.statistics)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("learned", [False, True])
def test_guidance_extrapolates_from_the_null_label(learned: bool) -> None:
    """A denoiser that answers with its label: the guided clean estimate is null + w (label - null), 2 classes, null = 2."""
    built = process(schedule="linear_gamma_squared", target="noise" if learned else "clean", learned_variance=learned)

    def denoiser(tokens: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        value = labels.float()[:, None, None].expand_as(tokens)
        if not learned:
            return value
        noise = (tokens - built.gamma[time.long()].float()[:, None, None] * value) / built.sigma[time.long()].float()[:, None, None]
        return torch.cat([noise, value], dim=-1)

    def draw(guidance: float) -> Tensor:
        labels = torch.tensor([0, 1])
        sampler = Sampler("deterministic", 5, guidance)
        return sample(denoiser, built, None, sampler, (2, 3, 2), seeded(), statistics=None, labels=labels, num_classes=2)

    for guidance, expected in ((1.0, [0.0, 1.0]), (3.0, [-4.0, -1.0]), (0.0, [2.0, 2.0])):
        assert torch.allclose(draw(guidance), torch.tensor(expected)[:, None, None].expand(2, 3, 2), atol=1e-3)


def test_learned_variance_is_used_by_the_ancestral_sampler(gaussian: Callable[..., Any]) -> None:
    """At channel -1 the variance is the posterior's, which is what the fixed-variance sampler uses."""
    learned = gaussian(num_timesteps=50, learned_variance=True)
    fixed = gaussian(num_timesteps=50)

    def draw(data: Any) -> Tensor:
        return sample(data, data.process, None, Sampler("ancestral", 50, 1.0), (9, 2, 2), seeded(), statistics=data.statistics)

    lowest = type(learned)(learned.statistics, learned.process, learned.space, learned.off_subspace, variance_channel=-1.0)
    assert torch.allclose(draw(lowest), draw(fixed), atol=1e-4)
    assert not torch.allclose(draw(learned), draw(fixed), atol=1e-2)


def test_undefined_cases_say_why(gaussian: Callable[..., Any]) -> None:
    data = gaussian(schedule="constant", target="clean")
    with pytest.raises(ConfigError, match="not defined: a single noise level has no reverse process"):
        sample(data, data.process, None, Sampler("ancestral", 10, 1.0), (1, 2, 2), seeded(), statistics=data.statistics)
    with pytest.raises(ConfigError, match="guidance = 4 needs class labels"):
        sample(data, process(), None, Sampler("ancestral", 10, 4.0), (1, 2, 2), seeded(), statistics=data.statistics)


def test_statistics_in_batches_equal_numpys() -> None:
    z = torch.randn(50, 4, 3, generator=seeded()) * 2 + 5
    accumulator = StatisticsAccumulator()
    for part in z.split(17):
        accumulator.update(part)
    found = accumulator.result()
    assert found.mean.dtype == torch.float64
    assert torch.allclose(found.mean, z.double().mean(0))
    for dim in range(3):
        assert torch.allclose(found.token_covariance[dim], torch.cov(z[:, :, dim].double().T, correction=0), atol=1e-10)
    with pytest.raises(ValueError, match="no latents"):
        StatisticsAccumulator().result()

"""The mathematics of the parts, and the stages held to what they declare."""

from __future__ import annotations

import pytest
import torch
from ablation_flow_matching import STAGES
from ablation_flow_matching.process import logit_normal, straight, v, velocity

import ablation
from ablation.config import ProcessConfig
from ablation.diffusion.prediction import clean_latents
from ablation.diffusion.process import Process
from ablation.diffusion.sampling import Sampler, deterministic_step, sample

PARTS = {"schedule:straight": straight, "target:velocity": velocity, "target:v": v, "weight:logit_normal": logit_normal}


def process(**changes):
    return Process.from_config(ProcessConfig(**changes), PARTS)


FLOW = {"schedule": "straight", "target": "velocity"}
V = {"schedule": "linear_gamma_squared", "target": "v"}


def batch(seed=0, count=64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 4, 8, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("changes", [FLOW, V])
def test_the_target_gives_the_clean_latent_back_at_every_level(changes):
    made = process(**changes)
    clean, noise = batch()
    for level in (1, 10, 500, 999, 1000):
        t = torch.full((len(clean),), level)
        z_t = made.corrupt(clean, t, noise)
        assert torch.allclose(made.clean_from_mixture(z_t, t, made.mix(clean, t, noise)), clean, atol=1e-9)


def test_velocity_is_the_derivative_of_the_line():
    made = process(**FLOW)
    clean, noise = batch()
    t = torch.full((len(clean),), 400)
    slope = (made.corrupt(clean, t + 1, noise) - made.corrupt(clean, t, noise)) * 1000
    assert torch.allclose(slope, made.mix(clean, t, noise), atol=1e-9)


def test_a_deterministic_step_of_flow_matching_is_eulers():
    made = process(**FLOW)
    clean, noise = batch()
    t, s = torch.full((len(clean),), 700), torch.full((len(clean),), 650)
    z_t, predicted = made.corrupt(clean, t, noise), torch.randn_like(clean)
    stepped = deterministic_step(made, z_t, made.clean_from_mixture(z_t, t, predicted), t, s)
    assert torch.allclose(stepped, z_t - (0.7 - 0.65) * predicted, atol=1e-9)


@pytest.mark.parametrize("changes", [FLOW, V])
def test_an_error_of_the_target_is_a_weighted_error_of_the_clean_latent(changes):
    """With gamma + sigma = 1, or gamma^2 + sigma^2 = 1, uniform weight here is 1 / sigma^2 (SNR + 1) for clean prediction."""
    made = process(**changes)
    clean, noise = batch()
    t = torch.full((len(clean),), 300)
    z_t, error = made.corrupt(clean, t, noise), torch.randn_like(clean)
    wrong = made.clean_from_mixture(z_t, t, made.mix(clean, t, noise) + error)
    assert torch.allclose((wrong - clean).square().mean() / made.sigma[300] ** 2, error.square().mean())


@pytest.mark.parametrize("kind", ["deterministic", "ancestral"])
@pytest.mark.parametrize("changes", [FLOW, V])
def test_the_best_network_for_gaussian_data_samples_that_gaussian(changes, kind):
    """Data N(0, 0.25): the conditional mean of the target is linear in z_t, and sampling with it must give 0.25 back."""
    made, variance = process(**changes), 0.25
    a, b = made.mixture

    def best(tokens, time, _labels):
        level = time.long()
        gamma, sigma = made.gamma[level][:, None, None], made.sigma[level][:, None, None]
        total = gamma**2 * variance + sigma**2
        slope = (a[level][:, None, None] * gamma * variance + b[level][:, None, None] * sigma) / total
        return (slope * tokens.double()).float()

    generator = torch.Generator().manual_seed(0)
    drawn = sample(best, made, None, Sampler(kind, 250, 1.0), (4000, 1, 2), generator, statistics=None)
    assert float(drawn.var()) == pytest.approx(variance, rel=0.06)
    assert abs(float(drawn.mean())) < 0.03


def test_the_estimate_of_the_clean_latent_goes_through_the_package():
    made = process(**FLOW)
    clean, noise = batch()
    t = torch.full((len(clean),), 250)
    z_t = made.corrupt(clean, t, noise)
    found = clean_latents(made, None, made.mix(clean, t, noise).float(), z_t, t)
    assert torch.allclose(found.double(), clean, atol=1e-4)


def test_the_logit_normal_weight_has_mean_one_its_peak_in_the_middle_and_nothing_at_the_ends():
    made = process(**FLOW, loss_weight="logit_normal")
    weights = made.weight(torch.arange(1001))
    assert float(weights[1:].mean()) == pytest.approx(1.0, abs=1e-6)
    assert int(weights.argmax()) == 500
    assert weights[0] == weights[1000] == 0
    assert torch.allclose(weights, weights.flip(0))


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES])
def test_every_stage_does_what_it_declares(stage):
    verdict = ablation.check(stage)
    assert verdict.passed, verdict.problems

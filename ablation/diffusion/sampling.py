"""Sampling by the reverse process, for every process with more than one noise level.

The state is always the latent z_t, which is where the noise lives; image-space networks are reached through the PatchSpace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ablation.diffusion.feasible import undefined_reason
from ablation.diffusion.prediction import Denoiser, clean_latents, clean_output, network_input, split_output
from ablation.diffusion.process import MIN_GAMMA, Process, expand, posterior
from ablation.diffusion.space import PatchSpace
from ablation.diffusion.statistics import LatentStatistics
from ablation.diffusion.variance import log_variance
from ablation.errors import ConfigError

NEGLIGIBLE_SNR = 1e-2
"""Below this gamma^2/sigma^2 at the first level, N(0, I sigma^2 + gamma^2 I) may stand in for the true law of z_t."""


@dataclass(frozen=True)
class Sampler:
    """How to run the reverse process; the fields are those of FidConfig."""

    kind: Literal["deterministic", "ancestral"]
    steps: int
    guidance: float


def first_level(process: Process) -> int:
    """Return the timestep that sampling starts from: T, or for noise prediction the last t with gamma_t >= MIN_GAMMA.

    At gamma_t = 0 (linear_gamma_squared at T) a noise prediction does not determine z_0 and the update would divide by zero.
    The initial state is drawn from the law of that very level, so nothing is lost by starting below T. For a plugin's target it
    is the last t at which the target can be solved for z_0.
    """
    if process.target != "noise" and process.mixture is None:
        return process.num_timesteps
    return int((process.divisor.abs() >= MIN_GAMMA).nonzero().max())


def needs_statistics(process: Process) -> bool:
    """Say whether the first level still holds enough of the image for LatentStatistics to be needed."""
    t = first_level(process)
    return bool((process.gamma[t] / process.sigma[t]) ** 2 > NEGLIGIBLE_SNR)


def sampling_timesteps(process: Process, steps: int) -> list[int]:
    """Return the levels visited: `steps` of them evenly spaced from the first level to 1, then 0.

    At most as many as there are levels. Raises ConfigError where the process has a single level.
    """
    if reason := undefined_reason(process):
        raise ConfigError(f"sampling is {reason}", "Use a process.schedule other than constant.")
    start = first_level(process)
    count = min(steps, start)
    if count == 1:
        return [start, 0]
    visited = [round(start + (1 - start) * index / (count - 1)) for index in range(count)]
    return [*visited, 0]


def initial_state(process: Process, statistics: LatentStatistics | None, standard: Tensor) -> Tensor:
    """Turn standard normal numbers into z_t of the first level. (B, N, d) -> (B, N, d).

    At gamma = 1 the last level still holds the image (signal-to-noise ratio 1/2 for sigma^2 = 2), so its law is
    N(mean, C + sigma^2 I), not plain noise. statistics None takes mean 0 and C = I and is refused (ValueError) where
    `needs_statistics` says so.
    """
    t = first_level(process)
    gamma, sigma = float(process.gamma[t]), float(process.sigma[t])
    if statistics is not None:
        return statistics.sample_level(gamma, sigma, standard)
    if needs_statistics(process):
        raise ValueError("the first level still holds the image: pass LatentStatistics")
    return standard * math.sqrt(gamma**2 + sigma**2)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    process: Process,
    space: PatchSpace | None,
    sampler: Sampler,
    shape: tuple[int, int, int],
    generator: torch.Generator,
    *,
    statistics: LatentStatistics | None,
    labels: Tensor | None = None,
    num_classes: int = 0,
) -> Tensor:
    """Draw samples; returns latents (B, N, d) for latent output, image tokens (B, N, D) for image output, float32.

    shape: (B, N, d); noise is drawn on the generator's device and moved to the process's, where the rest must lie.
    labels: (B,) int64 for a class-conditional denoiser, whose null label is num_classes. The same generator state gives the
    same samples. Only the denoiser should run under autocast: wrap that alone. Raises ConfigError for a single-level process
    and for guidance without labels.
    """
    if sampler.guidance != 1 and (labels is None or not num_classes):
        raise ConfigError(f"fid.guidance = {sampler.guidance:g} needs class labels", "Use fid.guidance = 1.")
    levels = sampling_timesteps(process, sampler.steps)

    def standard() -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device).to(process.gamma.device)

    z_t = initial_state(process, statistics, standard())
    for level, below in pairwise(levels):
        t = torch.full(shape[:1], level, dtype=torch.int64, device=z_t.device)
        s = torch.full_like(t, below)
        output = _guided(denoiser, process, space, z_t, t, labels, sampler.guidance, num_classes)
        if below == 0:  # gamma_0 = 1 and sigma_0 = 0: both samplers return the prediction itself
            return clean_output(process, space, output, z_t, t)
        z0 = clean_latents(process, space, output, z_t, t)
        if sampler.kind == "deterministic":
            z_t = deterministic_step(process, z_t, z0, t, s)
        else:
            channels = split_output(process, output)[1]
            z_t = ancestral_step(process, z_t, z0, t, s, standard(), channels)
    raise AssertionError("the levels end with 0")


def deterministic_step(process: Process, z_t: Tensor, z0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return z_s = gamma_s z_0 + sigma_s noise with the noise that z_t and z_0 imply (DDIM, Song et al. 2021, Eq. 12).

    z_t, z0: (B, N, d); t, s: (B,), s < t. Only sigma_t is divided by, which is above 0.
    """
    noise = process.noise_from_clean(z_t, t, z0)
    return process.corrupt(z0, s, noise)


def ancestral_step(
    process: Process, z_t: Tensor, z0: Tensor, t: Tensor, s: Tensor, standard: Tensor, channels: Tensor | None = None
) -> Tensor:
    """Draw z_s from q(z_s | z_t, z_0), with the learned variance if its channels are given.

    z_t, z0, standard, channels: (B, N, d); t, s: (B,), s < t.
    """
    step = posterior(process, t, s)
    mean = expand(step.from_noisy, z_t) * z_t + expand(step.from_clean, z_t) * z0
    if channels is None:
        return mean + expand(step.variance.sqrt(), z_t) * standard
    return mean + torch.exp(0.5 * log_variance(process, t, s, channels)) * standard


def _guided(
    denoiser: Denoiser,
    process: Process,
    space: PatchSpace | None,
    z_t: Tensor,
    t: Tensor,
    labels: Tensor | None,
    guidance: float,
    num_classes: int,
) -> Tensor:
    """Call the network, with classifier-free guidance if asked (Ho & Salimans 2022). (B, N, d) -> (B, N, out_dim).

    guidance is the scale of DiT: null + guidance (conditional - null), 1 is none. Variance channels stay conditional.
    """
    tokens, time = network_input(process, space, z_t), process.network_time(t)
    if guidance == 1 or labels is None:
        return denoiser(tokens, time, labels).float()
    both = torch.cat([labels, torch.full_like(labels, num_classes)])  # (B,) -> (2B,)
    output = denoiser(tokens.repeat(2, 1, 1), time.repeat(2), both).float()  # (2B, N, out_dim)
    conditional, null = output.chunk(2)  # (2B, N, out_dim) -> 2 x (B, N, out_dim)
    guided, _ = split_output(process, null + guidance * (conditional - null))
    _, channels = split_output(process, conditional)
    return guided if channels is None else torch.cat([guided, channels], dim=-1)  # (B, N, out_dim)

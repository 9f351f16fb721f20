"""Which settings of the diffusion process can run together; checked before anything is submitted.

This module is light: it imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from ablation.config import BUILT_IN_NAMES, Config, ProcessConfig
from ablation.errors import ConfigError

ORTHONORMAL_TOKENIZERS = ("patch_pca", "pixels")
"""Built-in tokenizers whose inverse is their transpose, so that image space is reached by the inverse PCA."""

VARIANCE_PRESERVING = ("ddpm_linear_beta", "linear_gamma_squared")
"""Schedules with gamma^2 + sigma^2 = 1 at every level."""


class _Levels(Protocol):
    """What `multi_level` and `undefined_reason` read: a ProcessConfig or a Process."""

    @property
    def schedule(self) -> str: ...

    @property
    def num_timesteps(self) -> int: ...


def beta_range(cfg: ProcessConfig) -> tuple[float, float]:
    """Return the first and last beta for this number of steps: the 1000-step values times 1000 / num_timesteps."""
    factor = 1000 / cfg.num_timesteps
    return cfg.beta_start * factor, cfg.beta_end * factor


def multi_level(process: _Levels) -> bool:
    """Say whether the process has more than one noise level."""
    return process.schedule != "constant" and process.num_timesteps > 1


def undefined_reason(process: _Levels) -> str | None:
    """Say why nothing can be sampled from this process; None when sampling is defined."""
    return None if multi_level(process) else "not defined: a single noise level has no reverse process"


def check_process(config: Config, orthonormal_tokenizers: Collection[str] = ORTHONORMAL_TOKENIZERS) -> None:
    """Raise ConfigError for the first combination of settings that cannot run.

    orthonormal_tokenizers: tokenizer kinds with an orthonormal basis; pass more names when plugins provide some.
    """
    _check_levels(config.process)
    _check_spaces(config, orthonormal_tokenizers)
    _check_target(config.process)
    _check_timesteps(config)


def _check_levels(process: ProcessConfig) -> None:
    """Check that the schedule's coefficients exist for this number of timesteps."""
    if process.schedule == "ddpm_linear_beta":
        first, last = beta_range(process)
        if first > last:
            raise ConfigError(
                f"process.beta_start = {process.beta_start:g} is above process.beta_end = {process.beta_end:g}",
                "The betas must not decrease; swap the two.",
            )
        if last >= 1:
            raise ConfigError(
                f"process.beta_end = {process.beta_end:g} becomes {last:g} with process.num_timesteps = {process.num_timesteps}",
                f"Every beta must stay below 1: use more than {1000 * process.beta_end:g} timesteps or a smaller beta_end.",
            )
    if process.schedule == "linear_gamma_squared" and process.num_timesteps < 2:
        raise ConfigError(
            "process.num_timesteps = 1 leaves the schedule linear_gamma_squared only pure noise",
            "Use 2 or more timesteps, or process.schedule = constant.",
        )


def _check_spaces(config: Config, orthonormal_tokenizers: Collection[str]) -> None:
    """Check that image space is reachable where it is asked for."""
    process, kind = config.process, config.tokenizer.kind
    if process.target not in BUILT_IN_NAMES["process.target"] and process.output_space == "image":
        raise ConfigError(
            f"process.target = {process.target} is a plugin's, which is a mixture of latents and their noise",
            "Use process.output_space = latent.",
        )
    for field, value in (("input_space", process.input_space), ("output_space", process.output_space)):
        if value == "image" and kind not in orthonormal_tokenizers:
            raise ConfigError(
                f"process.{field} = image needs the inverse PCA, which tokenizer.kind = {kind} does not have",
                f"Use process.{field} = latent or tokenizer.kind = {' or '.join(sorted(orthonormal_tokenizers))}.",
            )
    if process.target == "original" and process.output_space != "image":
        raise ConfigError(
            "process.target = original is an image, but process.output_space = latent",
            "Use process.output_space = image or process.target = clean.",
        )


def _check_target(process: ProcessConfig) -> None:
    """Check the loss weight and the learned variance against the target."""
    if process.loss_weight == "snr" and process.target == "noise":
        # gamma^2/sigma^2 turns a clean-target error into a noise-target error; on the latter it grows without bound at low sigma.
        raise ConfigError(
            "process.loss_weight = snr weights a clean-data error, but process.target = noise",
            "Use loss_weight uniform, gamma_squared or inverse_variance, or target clean or original.",
        )
    if not process.learned_variance:
        return
    needed = {
        "target": (process.target, ("noise",)),
        "output_space": (process.output_space, ("latent",)),
        "schedule": (process.schedule, VARIANCE_PRESERVING),
    }
    for field, (value, valid) in needed.items():
        if value not in valid:
            raise ConfigError(
                f"process.learned_variance = true cannot go with process.{field} = {value}",
                f"Use process.{field} = {' or '.join(valid)}, or process.learned_variance = false.",
            )
    if process.num_timesteps < 2:
        raise ConfigError("process.learned_variance = true needs 2 or more timesteps", "Raise process.num_timesteps.")


def _check_timesteps(config: Config) -> None:
    """Check the settings of the evaluation that refer to the process."""
    process = config.process
    if config.probe.timestep > process.num_timesteps:
        raise ConfigError(
            f"probe.timestep = {config.probe.timestep} is beyond process.num_timesteps = {process.num_timesteps}",
            f"Use a timestep from 0 to {process.num_timesteps}.",
        )
    if not multi_level(process):
        return
    if config.fid.sampler_steps > process.num_timesteps:
        raise ConfigError(
            f"fid.sampler_steps = {config.fid.sampler_steps} is beyond process.num_timesteps = {process.num_timesteps}",
            f"Use 1 to {process.num_timesteps} steps.",
        )
    if config.fid.guidance != 1 and not config.denoiser.class_conditional:
        raise ConfigError(
            f"fid.guidance = {config.fid.guidance:g} needs class labels, but denoiser.class_conditional = false",
            "Use fid.guidance = 1.",
        )

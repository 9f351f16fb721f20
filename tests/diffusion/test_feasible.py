"""What cannot run is refused before it runs, with the field and the way out named."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from ablation.config import Config, ProcessConfig, apply
from ablation.diffusion.feasible import check_process, undefined_reason
from ablation.diffusion.process import Process
from ablation.errors import ConfigError


def config(**changes: Any) -> Config:
    return apply(Config(), {name.replace("__", "."): value for name, value in changes.items()})


PCA = {"tokenizer__kind": "patch_pca"}
FEASIBLE = [
    {},
    {"process__learned_variance": True},
    {**PCA, "process__input_space": "image"},
    {**PCA, "process__output_space": "image", "process__target": "original"},
    {"tokenizer__kind": "pixels", "process__output_space": "image", "process__target": "noise"},
    {"process__target": "clean", "process__loss_weight": "snr"},
    {"process__schedule": "constant", "process__num_timesteps": 1, "probe__timestep": 1},
    {"process__num_timesteps": 21, "probe__timestep": 21, "fid__sampler_steps": 21},
    {"fid__guidance": 4.0},
]


@pytest.mark.parametrize("changes", FEASIBLE)
def test_accepts_what_can_run(changes: dict[str, Any]) -> None:
    check_process(config(**changes))


INFEASIBLE = [
    ({"process__input_space": "image"}, "process.input_space = image needs the inverse PCA"),
    ({"process__output_space": "image", "tokenizer__kind": "patch_ae"}, "tokenizer.kind = patch_ae does not have"),
    ({"process__target": "original", **PCA}, "process.target = original is an image, but process.output_space = latent"),
    ({"process__loss_weight": "snr"}, "process.loss_weight = snr weights a clean-data error"),
    ({"process__learned_variance": True, "process__target": "clean"}, "cannot go with process.target = clean"),
    ({"process__learned_variance": True, "process__schedule": "linear_sigma"}, "cannot go with process.schedule = linear_sigma"),
    ({"process__learned_variance": True, "process__output_space": "image", **PCA}, "cannot go with process.output_space = image"),
    (
        {
            "process__learned_variance": True,
            "process__num_timesteps": 1,
            "process__beta_end": 5e-4,
            "probe__timestep": 0,
            "fid__sampler_steps": 1,
        },
        "needs 2 or more timesteps",
    ),
    ({"process__beta_start": 0.5}, "process.beta_start = 0.5 is above process.beta_end"),
    (
        {"process__num_timesteps": 20, "fid__sampler_steps": 5},
        "process.beta_end = 0.02 becomes 1 with process.num_timesteps = 20",
    ),
    ({"process__schedule": "linear_gamma_squared", "process__num_timesteps": 1}, "only pure noise"),
    ({"probe__timestep": 1001}, "probe.timestep = 1001 is beyond process.num_timesteps = 1000"),
    ({"fid__sampler_steps": 1001}, "fid.sampler_steps = 1001 is beyond"),
    ({"fid__guidance": 1.5, "denoiser__class_conditional": False}, "fid.guidance = 1.5 needs class labels"),
]


@pytest.mark.parametrize(("changes", "message"), INFEASIBLE)
def test_refuses_what_cannot_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_process(config(**changes))
    assert message in caught.value.problem
    assert caught.value.fix
    assert "\n" not in str(caught.value)


def test_a_plugins_orthonormal_tokenizer_may_use_image_space() -> None:
    wavelets = config(tokenizer__kind="wavelets", process__input_space="image")
    with pytest.raises(ConfigError, match="wavelets"):
        check_process(wavelets)
    check_process(wavelets, orthonormal_tokenizers=("patch_pca", "pixels", "wavelets"))


def test_sampling_is_defined_for_several_levels_only() -> None:
    single = ProcessConfig(schedule="constant")
    assert undefined_reason(single) == "not defined: a single noise level has no reverse process"
    assert undefined_reason(Process.from_config(single)) == undefined_reason(single)
    assert undefined_reason(ProcessConfig(schedule="linear_sigma")) is None


def test_checking_needs_no_torch() -> None:
    code = "import sys, ablation.diffusion.feasible; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

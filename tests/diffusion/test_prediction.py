"""Every combination of target and space reads and writes what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ablation.config import ProcessConfig
from ablation.diffusion.prediction import clean_latents, clean_output, denoise, input_dim, network_input, output_dim
from ablation.diffusion.process import Process
from ablation.diffusion.space import PatchSpace

BuildSpace = Callable[..., PatchSpace]


def process(**settings: Any) -> Process:
    return Process.from_config(ProcessConfig(**settings))


def test_dimensions(build_space: BuildSpace) -> None:
    space = build_space(latent_dim=5)
    assert (input_dim(process(), None, 5), output_dim(process(), None, 5)) == (5, 5)
    assert output_dim(process(learned_variance=True), None, 5) == 10
    image = process(input_space="image", output_space="image")
    assert (input_dim(image, space, 5), output_dim(image, space, 5)) == (12, 12)
    with pytest.raises(ValueError, match="PatchSpace"):
        input_dim(image, None, 5)


def perfect_output(process: Process, space: PatchSpace, z0: Tensor, noise: Tensor, original: Tensor) -> Tensor:
    """Return the target itself, from its definition in the paper's notation."""
    if process.output_space == "latent":
        return noise if process.target == "noise" else z0
    kept = space.basis[: space.latent_dim]
    if process.target == "noise":
        return (noise * space.scale) @ kept / space.unit
    return original if process.target == "original" else (z0 * space.scale + space.shift) @ kept / space.unit


@pytest.mark.parametrize("schedule", ["ddpm_linear_beta", "linear_gamma_squared", "linear_sigma", "constant"])
@pytest.mark.parametrize(
    ("target", "output_space"),
    [("noise", "latent"), ("clean", "latent"), ("noise", "image"), ("clean", "image"), ("original", "image")],
)
def test_a_perfect_output_gives_back_the_clean_latents(build_space: BuildSpace, schedule: str, target: str, output_space: str) -> None:
    space = build_space(latent_dim=5)
    built = process(schedule=schedule, target=target, output_space=output_space)
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    original = space.normalise(images)
    z0 = space.to_latent(original)
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([1, 400, 900])
    z_t = built.corrupt(z0, t, noise)
    output = perfect_output(built, space, z0, noise, original)
    assert torch.allclose(clean_latents(built, space, output, z_t, t), z0, atol=2e-4)
    final = clean_output(built, space, output, z_t, t)
    if output_space == "latent":
        assert torch.allclose(final, z0, atol=2e-4)
    elif target == "original":
        assert torch.allclose(space.denormalise(final), images, atol=1e-5)
    else:
        assert torch.allclose(final, space.project(original), atol=2e-4)


def test_variance_channels_are_not_part_of_the_prediction() -> None:
    built = process(learned_variance=True)
    z0, noise, channels = torch.randn(3, 2, 4, 5)
    t = torch.tensor([3, 200])
    output = torch.cat([noise, channels], dim=-1)
    assert torch.allclose(clean_latents(built, None, output, built.corrupt(z0, t, noise), t), z0, atol=1e-4)


def test_image_input_is_the_inverse_pca_of_the_noisy_latent(build_space: BuildSpace) -> None:
    """x_t = V^T (V x_0 + sigma noise), in pixels."""
    space = build_space(latent_dim=5, scale=torch.ones(5))
    built = process(schedule="linear_sigma", input_space="image")
    z0, noise = torch.randn(2, 2, 4, 5)
    t = torch.tensor([100, 1000])
    tokens = network_input(built, space, built.corrupt(z0, t, noise))
    kept, sigma = space.basis[:5], built.sigma[t].float()[:, None, None]
    expected = (z0 + space.shift) @ kept + sigma * (noise @ kept)
    assert torch.allclose(tokens * space.unit, expected, atol=1e-5)
    assert network_input(process(), None, z0) is z0


def test_denoise_tells_the_network_the_time_it_should_know(build_space: BuildSpace) -> None:
    seen = []

    def denoiser(tokens: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        seen.append((time.tolist(), labels))
        return tokens

    z_t, t = torch.randn(2, 4, 5), torch.tensor([7, 9])
    for schedule in ("linear_sigma", "constant"):
        assert torch.equal(denoise(denoiser, process(schedule=schedule, target="clean"), None, z_t, t), z_t)
    assert seen == [([7.0, 9.0], None), ([0.0, 0.0], None)]

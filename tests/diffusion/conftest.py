"""Parts that the diffusion tests share: processes by settings, a small patch space, Gaussian data with its exact denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ablation.config import ProcessConfig
from ablation.diffusion.process import Process
from ablation.diffusion.space import PatchSpace
from ablation.diffusion.statistics import LatentStatistics


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Tensors here are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


LINEAR = {"schedule": "linear_gamma_squared"}
SIGMA = {"schedule": "linear_sigma", "target": "clean", "loss_weight": "inverse_variance"}
MULTI_LEVEL = {
    "baseline": {},
    "linear_gamma_schedule": LINEAR,
    "predict_clean": {**LINEAR, "target": "clean", "loss_weight": "gamma_squared"},
    "drop_input_scaling": SIGMA,
    "inverse_pca_input": {**SIGMA, "input_space": "image"},
    "inverse_pca_output": {**SIGMA, "input_space": "image", "output_space": "image"},
    "predict_original": {**SIGMA, "input_space": "image", "output_space": "image", "target": "original"},
    "predict_noise_again": {**SIGMA, "input_space": "image", "output_space": "image", "target": "noise"},
    "learned_variance": {"learned_variance": True},
}
"""The process of every stage with more than one level, and two variations, as changes of ProcessConfig's defaults."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `multi_level_settings` once for each of them."""
    if "multi_level_settings" in metafunc.fixturenames:
        metafunc.parametrize("multi_level_settings", MULTI_LEVEL.values(), ids=MULTI_LEVEL.keys())


@pytest.fixture
def build_space() -> Callable[..., PatchSpace]:
    """Return a factory of patch spaces with a random orthonormal basis; scale None draws one scale per dimension."""

    def build(latent_dim: int, patch_size: int = 2, scale: Tensor | None = None, seed: int = 0) -> PatchSpace:
        generator = torch.Generator().manual_seed(seed)
        dim = 3 * patch_size**2
        basis, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
        scale = 0.2 + torch.rand(latent_dim, generator=generator) * 2 if scale is None else scale
        shift = 0.3 * torch.randn(latent_dim, generator=generator)
        return PatchSpace.build(basis, 0.2 * torch.randn(dim, generator=generator), shift, scale, patch_size)

    return build


@dataclass(frozen=True)
class GaussianData:
    """Gaussian latents of known mean and covariance, and the denoiser that is optimal for them."""

    statistics: LatentStatistics
    process: Process
    space: PatchSpace
    off_subspace: Tensor
    """(D,) what the original image always holds beyond the latents' subspace, in image-token units."""
    variance_channel: float = 0.3

    def clean_mean(self, z_t: Tensor, t: int) -> Tensor:
        """Return E[z_0 | z_t]. (B, N, d) -> (B, N, d)."""
        gamma, sigma = float(self.process.gamma[t]), float(self.process.sigma[t])
        mean, covariance = self.statistics.mean, self.statistics.token_covariance
        total = gamma**2 * covariance + sigma**2 * torch.eye(len(mean), dtype=torch.float64)
        gain = gamma * torch.linalg.solve(total, covariance).mT.float()  # (d, N, N); both factors are symmetric
        centred = z_t - (gamma * mean).float()
        return mean.float() + torch.einsum("dnm,bmd->bnd", gain, centred)

    def __call__(self, tokens: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        """Denoise as a network would: tokens and a time in, the configured target out."""
        process, space, t = self.process, self.space, int(time[0])
        z_t = space.to_latent(tokens) if process.input_space == "image" else tokens
        clean = self.clean_mean(z_t, t)
        noise = (z_t - float(process.gamma[t]) * clean) / float(process.sigma[t])
        if process.output_space == "latent":
            output = noise if process.target == "noise" else clean
            return torch.cat([output, torch.full_like(output, self.variance_channel)], -1) if process.learned_variance else output
        if process.target == "noise":
            return space.noise_to_image(noise)
        image = space.to_image(clean)
        return image + self.off_subspace if process.target == "original" else image


@pytest.fixture
def gaussian(build_space: Callable[..., PatchSpace]) -> Callable[..., GaussianData]:
    """Return a factory of Gaussian data of 2 tokens x 2 dimensions, far from standard, for a process's settings."""

    def build(num_timesteps: int = 250, **settings: object) -> GaussianData:
        mean = torch.tensor([[0.8, -0.5], [-0.3, 1.0]], dtype=torch.float64)  # (N, d)
        covariance = torch.tensor([[[1.5, 0.9], [0.9, 1.0]], [[0.7, -0.2], [-0.2, 0.9]]], dtype=torch.float64)  # (d, N, N)
        space = build_space(latent_dim=2)
        process = Process.from_config(ProcessConfig(num_timesteps=num_timesteps, **settings))  # type: ignore[arg-type]
        off = space.basis[2] * 0.7 - space.basis[5] * 0.4
        return GaussianData(LatentStatistics(mean, covariance), process, space, off)

    return build

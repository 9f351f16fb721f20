"""What the network reads and what its output means, for every target and space."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ablation.diffusion.process import Process
from ablation.diffusion.space import PatchSpace

Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""tokens (B, N, in_dim), time (B,) float, labels (B,) int64 or None -> (B, N, out_dim)."""


def input_dim(process: Process, space: PatchSpace | None, latent_dim: int) -> int:
    """Return the numbers per token that the network reads: d, or D for image input."""
    return _space(space).patch_dim if process.input_space == "image" else latent_dim


def output_dim(process: Process, space: PatchSpace | None, latent_dim: int) -> int:
    """Return the numbers per token that the network writes: d, D for image output, 2d with a learned variance."""
    if process.output_space == "image":
        return _space(space).patch_dim
    return 2 * latent_dim if process.learned_variance else latent_dim


def network_input(process: Process, space: PatchSpace | None, z_t: Tensor) -> Tensor:
    """Return what the network reads: z_t, or z_t mapped to image tokens by the inverse PCA. (B, N, d) -> (B, N, in_dim)."""
    return _space(space).to_image(z_t) if process.input_space == "image" else z_t


def split_output(process: Process, output: Tensor) -> tuple[Tensor, Tensor | None]:
    """Split the output into the prediction and the variance channels (None unless learned); float32. (B, N, out_dim)."""
    output = output.float()
    if not process.learned_variance:
        return output, None
    prediction, variance = output.chunk(2, dim=-1)  # (B, N, 2d) -> 2 x (B, N, d)
    return prediction, variance


def clean_latents(process: Process, space: PatchSpace | None, output: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
    """Estimate z_0 from the network's output, whatever its target and space.

    output: (B, N, out_dim), variance channels ignored; z_t: (B, N, d); t: (B,). Returns (B, N, d). For target noise at
    gamma_t < MIN_GAMMA the estimate is zero (`Process.clean_from_noise`).
    """
    prediction, _ = split_output(process, output)
    if process.mixture is not None:
        return process.clean_from_mixture(z_t, t, prediction)
    if process.target == "noise":
        noise = _space(space).noise_to_latent(prediction) if process.output_space == "image" else prediction
        return process.clean_from_noise(z_t, t, noise)
    return _space(space).to_latent(prediction) if process.output_space == "image" else prediction


def clean_output(process: Process, space: PatchSpace | None, output: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
    """Return the estimate of the clean data in the output's own space.

    (B, N, d) latents for latent output, to be decoded by the tokenizer; (B, N, D) image tokens for image output, to be
    given to `PatchSpace.denormalise`. Target original keeps what the network predicts off the latents' subspace.
    """
    if process.output_space == "image" and process.target != "noise":
        return output.float()
    z0 = clean_latents(process, space, output, z_t, t)
    return _space(space).to_image(z0) if process.output_space == "image" else z0


def denoise(denoiser: Denoiser, process: Process, space: PatchSpace | None, z_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
    """Denoise z_t in one network call; returns clean_output's value. z_t: (B, N, d); t: (B,) int64."""
    output = denoiser(network_input(process, space, z_t), process.network_time(t), labels)
    return clean_output(process, space, output, z_t, t)


def _space(space: PatchSpace | None) -> PatchSpace:
    """Insist on the patch space where image input or output is configured."""
    if space is None:
        raise ValueError("image input or output needs a PatchSpace")
    return space

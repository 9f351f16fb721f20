"""The denoiser's training loss: noise prediction (Eq. 2), clean data (Eq. 3) or the original image (Eq. 4)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ablation.diffusion.prediction import network_input, split_output
from ablation.diffusion.process import Process
from ablation.diffusion.space import PatchSpace
from ablation.diffusion.variance import variational_bound


class Noise(Protocol):
    """A deterministic source of random numbers for the images of one batch (the training loop's NoiseSource)."""

    def normal(self, name: str, shape_per_image: tuple[int, ...]) -> Tensor:
        """Return standard normal numbers, (B, *shape_per_image)."""

    def uniform(self, name: str, shape_per_image: tuple[int, ...]) -> Tensor:
        """Return uniform numbers in [0, 1), (B, *shape_per_image)."""


class DenoisingObjective:
    """Corrupt, denoise, compare; the loss of every multi-level and single-level process.

    The process and the space must lie on the batch's device. A batch holds "latents" (B, N, d), scaled and sampled; "images"
    (B, 3, H, W) in [-1, 1] when the target is original; "labels" (B,) int64 when num_classes > 0.
    """

    phases: tuple[str, ...] = ("denoiser",)

    def __init__(
        self, denoiser: nn.Module, process: Process, space: PatchSpace | None = None, *, num_classes: int, class_dropout: float
    ) -> None:
        """num_classes: 0 for an unconditional denoiser; class_dropout: share of labels replaced by the null label."""
        if process.needs_space and space is None:
            raise ValueError("image input or output needs a PatchSpace")
        self.denoiser = denoiser
        self.process = process
        self.space = space
        self.num_classes = num_classes
        self.class_dropout = class_dropout
        self._component_weights = _component_weights(process, space)

    def modules(self) -> dict[str, nn.Module]:
        """Return everything with weights."""
        return {"denoiser": self.denoiser}

    def parameters(self, phase: str) -> list[nn.Parameter]:
        """Return the parameters optimised in a phase; there is one phase."""
        return list(self.denoiser.parameters())

    def begin_step(self, batch: dict[str, Tensor], noise: Noise, progress: float) -> None:
        """Draw timesteps, noise and dropped labels for a batch, and corrupt it. `progress` is not used."""
        process = self.process
        self._z0 = batch["latents"].float()
        self._t = process.draw_timesteps(noise.uniform("timestep", ()))
        self._noise = noise.normal("noise", tuple(self._z0.shape[1:]))
        self._z_t = process.corrupt(self._z0, self._t, self._noise)
        self._labels = self._drop_labels(batch["labels"], noise) if self.num_classes else None
        self.target = _target(process, self.space, self._z0, self._t, self._noise, batch)

    def loss(self, phase: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean over images of lambda_t x the mean squared error over tokens and numbers, and logged scalars.

        With a learned variance, variational_weight x T x the bound's term is added, which is an unbiased estimate of
        variational_weight x the whole bound (L_hybrid of Nichol & Dhariwal 2021, Eq. 16).
        """
        process = self.process
        tokens = network_input(process, self.space, self._z_t)
        output = self.denoiser(tokens, process.network_time(self._t), self._labels)
        prediction, channels = split_output(process, output)
        errors = self.squared_errors(prediction - self.target)  # (B,)
        loss = (process.weight(self._t) * errors).mean()
        logged = {"unweighted_loss": errors.detach().mean()}
        if channels is not None:
            bound = variational_bound(process, self._t, self._z0, self._z_t, prediction.detach(), channels).mean()
            loss = loss + process.variational_weight * process.num_timesteps * bound
            logged["variational_bound"] = bound.detach() * process.num_timesteps
        return loss, {"loss": loss.detach(), **logged}

    def squared_errors(self, difference: Tensor) -> Tensor:
        """Return each image's mean squared error, in the PCA basis and weighted for image output. (B, N, out) -> (B,)."""
        if self._component_weights is not None and self.space is not None:
            squares = self.space.residual(difference) ** 2 * self._component_weights
        else:
            squares = difference**2
        return squares.flatten(1).mean(dim=1)  # (B, N, out) -> (B,)

    def _drop_labels(self, labels: Tensor, noise: Noise) -> Tensor:
        """Replace a share of the labels by the null label, num_classes. (B,) -> (B,)."""
        dropped = noise.uniform("label_dropout", ()) < self.class_dropout
        return torch.where(dropped, self.num_classes, labels)


def _component_weights(process: Process, space: PatchSpace | None) -> Tensor | None:
    """Return the weights of the squared residual's components, (D,); None where the plain squared error is meant."""
    if process.output_space == "latent" or space is None:
        return None
    residual_weight = process.residual_weight if process.target == "original" else 1.0
    weights = space.residual_weights(residual_weight, process.image_loss_units)
    # The basis is orthonormal: with equal weights the squared error is the same without turning into it.
    return None if bool((weights == 1).all()) else weights


def _target(process: Process, space: PatchSpace | None, z0: Tensor, t: Tensor, noise: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return what the network should output, without variance channels. (B, N, d) or (B, N, D)."""
    if process.mixture is not None:
        return process.mix(z0, t, noise)
    if process.output_space == "latent" or space is None:
        return noise if process.target == "noise" else z0
    if process.target == "noise":
        return space.noise_to_image(noise)
    return space.normalise(batch["images"]) if process.target == "original" else space.to_image(z0)

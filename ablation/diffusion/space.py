"""Between latents and image patches: the inverse PCA, and the loss measured in its basis (Eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ablation.tokenizers.base import patchify, unpatchify


@dataclass(frozen=True, eq=False)
class PatchSpace:
    """An orthonormal basis of image patches whose first d components, shifted and scaled, are the latents.

    A flattened patch p in [-1, 1] has raw latents V_d (p - center) and latents z = (raw - shift) / scale. An image token is
    (p - center) / unit, where `unit` is the root mean square of scale: so image tokens have about the latents' unit scale,
    and image-space and latent-space losses agree when d = D and scale is one number.
    """

    basis: Tensor
    """V, (D, D) float32, orthonormal rows in order of variance."""
    center: Tensor
    """(D,) mean patch."""
    shift: Tensor
    """(d,) subtracted from the raw latents."""
    scale: Tensor
    """(d,) divides the raw latents."""
    unit: Tensor
    """() root mean square of scale, in pixel units."""
    patch_size: int

    @classmethod
    def build(cls, basis: Tensor, center: Tensor, shift: Tensor, scale: Tensor, patch_size: int) -> PatchSpace:
        """Build the space of an orthonormal tokenizer. basis: (D, D); center: (D,); shift, scale: (d,), scale > 0."""
        if basis.shape != (3 * patch_size**2,) * 2 or shift.shape != scale.shape or len(scale) > len(basis):
            raise ValueError(f"basis {tuple(basis.shape)} and scale {tuple(scale.shape)} do not fit patch size {patch_size}")
        unit = scale.detach().double().square().mean().sqrt().float()
        basis, center, shift, scale = (part.detach().float() for part in (basis, center, shift, scale))
        return cls(basis=basis, center=center, shift=shift, scale=scale, unit=unit, patch_size=patch_size)

    def to(self, device: torch.device | str) -> PatchSpace:
        """Return a copy on a device."""
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in ("basis", "center", "shift", "scale", "unit")}
        return replace(self, **moved)

    @property
    def latent_dim(self) -> int:
        """d, the components that the latents keep."""
        return len(self.scale)

    @property
    def patch_dim(self) -> int:
        """D, the numbers in one patch."""
        return len(self.basis)

    def to_image(self, z: Tensor) -> Tensor:
        """Map latents to image tokens, V_d^T (z scale + shift) / unit. (B, N, d) -> (B, N, D)."""
        return _multiply(z * self.scale + self.shift, self.basis[: self.latent_dim]) / self.unit  # (B, N, d) -> (B, N, D)

    def to_latent(self, tokens: Tensor) -> Tensor:
        """Map image tokens to latents; inverts to_image, and drops what lies off the subspace. (B, N, D) -> (B, N, d)."""
        raw = _multiply(tokens, self.basis[: self.latent_dim].T) * self.unit  # (B, N, D) -> (B, N, d)
        return (raw - self.shift) / self.scale

    def noise_to_image(self, noise: Tensor) -> Tensor:
        """Map latent noise to what it adds to image tokens: to_image without the shift. (B, N, d) -> (B, N, D)."""
        return _multiply(noise * self.scale, self.basis[: self.latent_dim]) / self.unit  # (B, N, d) -> (B, N, D)

    def noise_to_latent(self, tokens: Tensor) -> Tensor:
        """Invert noise_to_image. (B, N, D) -> (B, N, d)."""
        return _multiply(tokens, self.basis[: self.latent_dim].T) * self.unit / self.scale  # (B, N, D) -> (B, N, d)

    def project(self, tokens: Tensor) -> Tensor:
        """Project image tokens onto the latents' subspace, V_d^T V_d tokens. (B, N, D) -> (B, N, D)."""
        kept = self.basis[: self.latent_dim]
        return _multiply(_multiply(tokens, kept.T), kept)

    def normalise(self, images: Tensor) -> Tensor:
        """Cut images into image tokens, (p - center) / unit. (B, 3, H, W) in [-1, 1] -> (B, N, D)."""
        return (patchify(images, self.patch_size) - self.center) / self.unit  # (B, 3, H, W) -> (B, N, D)

    def denormalise(self, tokens: Tensor) -> Tensor:
        """Assemble image tokens to images; not clipped. (B, N, D) -> (B, 3, H, W)."""
        return unpatchify(tokens * self.unit + self.center, self.patch_size)  # (B, N, D) -> (B, 3, H, W)

    def residual(self, difference: Tensor) -> Tensor:
        """Return r = V (prediction - target) over all D components (Eq. 4). (B, N, D) -> (B, N, D)."""
        return _multiply(difference, self.basis.T)

    def residual_weights(self, residual_weight: float, units: Literal["pixel", "latent"]) -> Tensor:
        """Return the weight of each squared component of the residual, (D,) (Eq. 4).

        It is 1 for i <= d and residual_weight for i > d. With units "latent" the first d are also multiplied by
        (unit / scale_i)^2, so that r_i is measured as the latents are; the others have no scale and stay in image-token units.
        """
        weights = torch.full((self.patch_dim,), residual_weight, dtype=torch.float32, device=self.scale.device)
        weights[: self.latent_dim] = (self.unit / self.scale) ** 2 if units == "latent" else 1.0
        return weights


def _multiply(values: Tensor, matrix: Tensor) -> Tensor:
    """Multiply in float32 even inside autocast: in bfloat16 the basis would no longer be orthonormal."""
    with torch.autocast(values.device.type, enabled=False):
        return values.float() @ matrix

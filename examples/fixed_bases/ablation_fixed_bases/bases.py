"""The tokenizers: an orthonormal basis that no data chose, with the mean patch taken off."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from ablation.config import TokenizerConfig
from ablation.errors import ArtifactError
from ablation.tokenizers.base import Tokenizer, patchify, unpatchify
from ablation.tokenizers.pca import PatchCovariance

RANDOM_SEED = 20240125
"""The random basis is part of the method, not of the luck of a run."""


class FixedBasis(Tokenizer):
    """z = V (x - mean) and x' = V^T z + mean with fixed orthonormal rows V; only the mean, and where wanted the order, are fitted.

    Buffers: basis (D, D), center (D,), eigenvalues (D,), the variance along each row; with them image-space stages work too.
    """

    fit_kind = "closed_form"
    orthonormal = True
    by_variance: bool
    basis: Tensor
    center: Tensor
    eigenvalues: Tensor

    def __init__(self, cfg: TokenizerConfig, image_size: int) -> None:
        super().__init__(cfg, image_size)
        self.register_buffer("basis", self.rows(cfg.patch_size).float())
        self.register_buffer("center", torch.full((self.patch_dim,), math.nan))  # not fitted yet
        self.register_buffer("eigenvalues", torch.zeros(self.patch_dim))

    @abstractmethod
    def rows(self, patch_size: int) -> Tensor:
        """Return the orthonormal basis of patches flattened as (row, column, channel), (D, D) float64."""

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Measure mean and variance of the patches of images (B, 3, H, W)."""
        statistics = PatchCovariance(self.patch_size)
        for images in batches:
            statistics.update(images)
        rows = self.rows(self.patch_size)  # (D, D)
        variances = torch.einsum("kd,de,ke->k", rows, torch.from_numpy(statistics.covariance()), rows)  # (D,)
        order = variances.argsort(descending=True, stable=True) if self.by_variance else torch.arange(self.patch_dim)
        self.basis.copy_(rows[order])
        self.eigenvalues.copy_(variances[order])
        self.center.copy_(torch.from_numpy(statistics.mean()))

    def encode(self, images: Tensor) -> tuple[Tensor, None]:
        """Project images (B, 3, H, W) on the first d rows: (B, N, d)."""
        self._check_fitted()
        return (patchify(images, self.patch_size) - self.center) @ self.basis[: self.latent_dim].T, None  # (B, N, D) -> (B, N, d)

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents (B, N, d) back to images (B, 3, H, W)."""
        self._check_fitted()
        return unpatchify(latents @ self.basis[: self.latent_dim] + self.center, self.patch_size)  # (B, N, d) -> (B, 3, H, W)

    def _check_fitted(self) -> None:
        """Refuse to work without the mean patch."""
        if self.center.isnan().any():
            raise ArtifactError("the tokenizer has no mean patch yet", "Fit it, or load a fitted one, before encoding.")


class DCT(FixedBasis):
    """Products of the orthonormal DCT-II in rows, columns and the three channels, in order of variance."""

    by_variance = True

    def rows(self, patch_size: int) -> Tensor:
        """Return the basis as a Kronecker product: the flattened order is (row, column, channel)."""
        line, colour = cosines(patch_size), cosines(3)
        return torch.kron(torch.kron(line, line), colour)  # (p p 3, p p 3)


class RandomBasis(FixedBasis):
    """A rotation drawn once, uniformly from all of them."""

    by_variance = False

    def rows(self, patch_size: int) -> Tensor:
        """Return Q of the QR decomposition of a Gaussian matrix, with the signs that make it uniform (Mezzadri 2007)."""
        dim = 3 * patch_size**2
        drawn = torch.randn(dim, dim, generator=torch.Generator().manual_seed(RANDOM_SEED), dtype=torch.float64)
        q, r = torch.linalg.qr(drawn)
        return (q * r.diagonal().sign()).T


def cosines(size: int) -> Tensor:
    """Return the orthonormal DCT-II, rows by frequency, (size, size) float64."""
    place, frequency = torch.arange(size, dtype=torch.float64) + 0.5, torch.arange(size, dtype=torch.float64)[:, None]
    rows = torch.cos(math.pi / size * frequency * place) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows

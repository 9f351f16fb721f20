"""Patch-wise PCA: an orthonormal basis of image patches, found in closed form."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ablation.config import TokenizerConfig
from ablation.errors import ArtifactError, DataError
from ablation.tokenizers.base import Tokenizer, patchify, unpatchify
from ablation.tokenizers.checks import check_settings
from ablation.tokenizers.pca import PatchCovariance, principal_components


class PatchPCA(Tokenizer):
    """Project each patch on its first d principal components: z = V (x - mean), x' = V^T z + mean, V V^T = I (section 4.2).

    All D components are kept, because the loss on the original image (Eq. 4) weighs the dropped ones too. Patches are
    centred; the paper does not say whether its are.
    Buffers: basis (D, D), rows in order of variance; center (D,); eigenvalues (D,); patches, how many were seen.
    Raises (constructor): ConfigError if d > D or the patch size does not divide the image size.
    """

    fit_kind = "closed_form"
    orthonormal = True
    basis: Tensor
    center: Tensor
    eigenvalues: Tensor
    patches: Tensor

    def __init__(self, cfg: TokenizerConfig, image_size: int) -> None:
        check_settings(cfg, image_size)
        super().__init__(cfg, image_size)
        self.register_buffer("basis", torch.eye(self.patch_dim))
        self.register_buffer("center", torch.zeros(self.patch_dim))
        self.register_buffer("eigenvalues", torch.zeros(self.patch_dim))
        self.register_buffer("patches", torch.zeros((), dtype=torch.int64))

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit on every patch of the batches of images (B, 3, H, W), read once.

        Raises: DataError if there are no more patches than latent dimensions, or a number is not finite.
        """
        statistics = self.statistics()
        for images in batches:
            statistics.update(images)
        self.fit_statistics(statistics)

    def statistics(self) -> PatchCovariance:
        """Return an empty accumulator for `fit_statistics`; several, of different images, can be merged."""
        return PatchCovariance(self.patch_size)

    def fit_statistics(self, statistics: PatchCovariance) -> None:
        """Fit on accumulated statistics, for instance merged from several workers."""
        if statistics.count <= self.latent_dim:
            raise DataError(
                f"{statistics.count} patches cannot determine {self.latent_dim} principal components",
                "Use more training images, or a smaller tokenizer.latent_dim.",
            )
        components = principal_components(statistics)
        self.basis.copy_(torch.from_numpy(components.basis))
        self.center.copy_(torch.from_numpy(components.mean))
        self.eigenvalues.copy_(torch.from_numpy(components.eigenvalues))
        self.patches.fill_(statistics.count)

    def encode(self, images: Tensor) -> tuple[Tensor, None]:
        """Project images (B, 3, H, W) on the first d components: (B, N, d); not stochastic.

        Raises: ArtifactError if the basis was neither fitted nor loaded.
        """
        self._check_fitted()
        centred = patchify(images, self.patch_size) - self.center  # (B, N, D)
        return centred @ self.basis[: self.latent_dim].T, None  # (B, N, d)

    def decode(self, latents: Tensor) -> Tensor:
        """Map raw latents (B, N, d) back to images (B, 3, H, W): the inverse on the span of the components."""
        self._check_fitted()
        patches = latents @ self.basis[: self.latent_dim] + self.center  # (B, N, D)
        return unpatchify(patches, self.patch_size)  # (B, 3, H, W)

    def _check_fitted(self) -> None:
        """Refuse to use a basis that is only a placeholder."""
        if not self.patches:
            raise ArtifactError("the patch PCA has no basis yet", "Fit it, or load a fitted tokenizer, before encoding.")

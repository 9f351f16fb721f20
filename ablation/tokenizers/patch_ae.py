"""Patch-wise autoencoder: one linear map down and one up, trained by gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ablation.config import TokenizerConfig
from ablation.tokenizers.base import Tokenizer, patchify, unpatchify
from ablation.tokenizers.checks import check_settings


class PatchAE(Tokenizer):
    """Encode each patch as z = V x and decode it as x' = U^T z, without biases: loss ||x - U^T V x||^2 (section 4.2).

    Both maps start as the same random orthonormal rows, so training starts from a projection instead of from noise.
    Parameters: encoder V (d, D), decoder U (d, D).
    Raises (constructor): ConfigError if d > D or the patch size does not divide the image size.
    """

    fit_kind = "gradient"

    def __init__(self, cfg: TokenizerConfig, image_size: int) -> None:
        check_settings(cfg, image_size)
        super().__init__(cfg, image_size)
        rows = nn.init.orthogonal_(torch.empty(self.latent_dim, self.patch_dim))  # (d, D)
        self.encoder = nn.Parameter(rows)
        self.decoder = nn.Parameter(rows.clone())

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map images (B, 3, H, W) to latents (B, N, d); not stochastic."""
        return patchify(images, self.patch_size) @ self.encoder.T, None  # (B, N, d)

    def decode(self, latents: Tensor) -> Tensor:
        """Map raw latents (B, N, d) to images (B, 3, H, W)."""
        return unpatchify(latents @ self.decoder, self.patch_size)  # (B, 3, H, W)

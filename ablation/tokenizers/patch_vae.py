"""Patch-wise variational autoencoder: the linear autoencoder with a KL-regularised latent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ablation.config import TokenizerConfig
from ablation.tokenizers.patch_ae import PatchAE

INITIAL_LOG_VARIANCE = -6.0  # sd 0.05: small beside latents of pixels in [-1, 1], so that reconstruction is learned first
LOG_VARIANCE_RANGE = (-30.0, 20.0)  # as in LDM: keeps exp() finite


class PatchVAE(PatchAE):
    """Encode each patch as N(V x, diag(s^2)): loss ||x - U^T V x||^2 + KL[V x | N(0, I)] (section 4.2).

    The paper does not say where the variance comes from. Here log s^2 is one learned number per latent dimension: with a
    linear decoder and Gaussian noise the exact posterior's covariance does not depend on x, so a network for it could learn
    nothing more (the linear VAE of Lucas et al. 2019, arXiv 1911.02469).
    Parameters: encoder V (d, D), decoder U (d, D), log_variance (d,).
    Raises (constructor): ConfigError if d > D or the patch size does not divide the image size.
    """

    stochastic = True

    def __init__(self, cfg: TokenizerConfig, image_size: int) -> None:
        super().__init__(cfg, image_size)
        self.log_variance = nn.Parameter(torch.full((self.latent_dim,), INITIAL_LOG_VARIANCE))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) to the posterior's mean and standard deviation, each (B, N, d)."""
        mean, _ = super().encode(images)  # (B, N, d)
        std = (0.5 * self.log_variance.clamp(*LOG_VARIANCE_RANGE)).exp()  # (d,)
        return mean, std.expand_as(mean)  # (B, N, d)

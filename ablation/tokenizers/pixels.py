"""The identity tokenizer: a token is a patch of pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from ablation.config import TokenizerConfig
from ablation.tokenizers.base import Tokenizer, patchify, unpatchify
from ablation.tokenizers.checks import check_settings


class Pixels(Tokenizer):
    """Use the pixels of each patch as its token, d = D (Fig. 5).

    Buffers, so that it can stand where an orthonormal basis is asked for: basis = I (D, D), center = 0 (D,) and eigenvalues
    = 1 (D,), which are no measured variances.
    Raises (constructor): ConfigError if d is not D or the patch size does not divide the image size.
    """

    fit_kind = "none"
    orthonormal = True
    basis: Tensor
    center: Tensor
    eigenvalues: Tensor

    def __init__(self, cfg: TokenizerConfig, image_size: int) -> None:
        check_settings(cfg, image_size)
        super().__init__(cfg, image_size)
        self.register_buffer("basis", torch.eye(self.patch_dim))
        self.register_buffer("center", torch.zeros(self.patch_dim))
        self.register_buffer("eigenvalues", torch.ones(self.patch_dim))

    def encode(self, images: Tensor) -> tuple[Tensor, None]:
        """Cut images (B, 3, H, W) into flattened patches (B, N, D); not stochastic."""
        return patchify(images, self.patch_size), None  # (B, N, D)

    def decode(self, latents: Tensor) -> Tensor:
        """Put patches (B, N, D) back together: (B, 3, H, W)."""
        return unpatchify(latents, self.patch_size)  # (B, 3, H, W)

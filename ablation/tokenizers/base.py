"""What every tokenizer offers: images in, a sequence of raw latents out, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Literal

from torch import Tensor, nn

from ablation.config import TokenizerConfig
from ablation.tokenizers.checks import check_grid


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images, or maps of any number of channels, into patches flattened in the order (row, column, channel).

    Shapes: (B, C, H, W) -> (B, N, C p^2) with N = H W / p^2 patches in raster order.
    """
    batch, channels, height, width = images.shape
    p = patch_size
    cut = images.reshape(batch, channels, height // p, p, width // p, p)  # (B, C, H/p, p, W/p, p)
    cut = cut.permute(0, 2, 4, 3, 5, 1)  # (B, H/p, W/p, p, p, C)
    return cut.reshape(batch, (height // p) * (width // p), p * p * channels)  # (B, N, C p^2)


def unpatchify(tokens: Tensor, patch_size: int) -> Tensor:
    """Put the patches of a square image back together; the exact inverse of `patchify`.

    Shapes: (B, N, C p^2) -> (B, C, p sqrt(N), p sqrt(N)).
    """
    batch, count, dim = tokens.shape
    p, grid = patch_size, round(count**0.5)
    cut = tokens.reshape(batch, grid, grid, p, p, dim // (p * p))  # (B, H/p, W/p, p, p, C)
    cut = cut.permute(0, 5, 1, 3, 2, 4)  # (B, C, H/p, p, W/p, p)
    return cut.reshape(batch, dim // (p * p), grid * p, grid * p)  # (B, C, H, W)


class Tokenizer(nn.Module, ABC):
    """A map from an image to N tokens of d numbers and back.

    Raw latents are what `encode` emits and `decode` takes: no scaling, no sampling. Images are (B, 3, H, W) in [-1, 1].
    Raises (constructor): ConfigError if the patch size does not divide the image size.
    """

    fit_kind: ClassVar[Literal["gradient", "closed_form", "none"]]
    stochastic: ClassVar[bool] = False  # whether encode returns a standard deviation
    orthonormal: ClassVar[bool] = False  # whether encode is an orthonormal basis; then basis, center, eigenvalues exist
    image_losses: ClassVar[bool] = False  # whether the perceptual and adversarial losses of the configuration apply

    def __init__(self, cfg: TokenizerConfig, image_size: int) -> None:
        super().__init__()
        check_grid(cfg, image_size)
        self.patch_size = cfg.patch_size
        self.latent_dim = cfg.latent_dim
        self.grid = image_size // cfg.patch_size
        self.tokens = self.grid**2
        self.patch_dim = 3 * cfg.patch_size**2

    @abstractmethod
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map images to raw latents: (B, 3, H, W) -> mean (B, N, d), and std (B, N, d) if stochastic, else None."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Map raw latents to images: (B, N, d) -> (B, 3, H, W), not clipped."""

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit in one pass over batches of images (B, 3, H, W); only tokenizers of fit_kind closed_form have it."""
        raise TypeError(f"{type(self).__name__} has fit_kind '{self.fit_kind}': there is no closed form to fit")

    def last_layer(self) -> nn.Parameter:
        """Return the weight of the decoder's last layer, where the adversarial loss is balanced; needs image_losses."""
        raise TypeError(f"{type(self).__name__} has no image losses, so no last layer to balance them at")

"""Checks of the tokenizer's settings against each other and the image size; light, so planning can run them.

This module imports no torch: a bad combination is refused before anything is submitted.
"""

from __future__ import annotations

from ablation.config import BUILT_IN_NAMES, TokenizerConfig
from ablation.errors import ConfigError, nearest

BUILT_IN = BUILT_IN_NAMES["tokenizer.kind"]
WITHOUT_POSTERIOR = ("patch_ae", "patch_pca", "pixels")
"""Kinds whose encoder has no standard deviation."""
PERCEPTUAL_NETWORKS = ("lpips_vgg", "efficientnet_lite0", "st_lpips")


def check_settings(cfg: TokenizerConfig, image_size: int) -> None:
    """Refuse tokenizer settings that contradict each other; kinds that a plugin provides are only checked for the patch grid.

    Raises: ConfigError, which names the field, its valid values and the fix.
    """
    check_grid(cfg, image_size)
    if cfg.kind == "conv":
        _check_conv(cfg)
    elif cfg.kind in BUILT_IN:
        _check_patchwise(cfg)


def check_grid(cfg: TokenizerConfig, image_size: int) -> None:
    """Refuse a patch size that does not divide the image size."""
    if image_size % cfg.patch_size:
        divisors = [size for size in range(1, image_size + 1) if image_size % size == 0]
        raise ConfigError(
            f"tokenizer.patch_size = {cfg.patch_size} does not divide data.image_size = {image_size}",
            f"Valid patch sizes here: {', '.join(map(str, divisors))}.",
        )


def check_kind(kind: str, provided: tuple[str, ...]) -> None:
    """Refuse a kind that is neither built in nor provided by a plugin."""
    if kind not in BUILT_IN + provided:
        raise ConfigError(f"unknown tokenizer.kind '{kind}'", nearest(kind, BUILT_IN + provided))


def check_perceptual_network(name: str, provided: tuple[str, ...]) -> None:
    """Refuse a perceptual network that is neither built in nor provided by a plugin."""
    if name not in PERCEPTUAL_NETWORKS + provided:
        raise ConfigError(f"unknown tokenizer.perceptual_network '{name}'", nearest(name, PERCEPTUAL_NETWORKS + provided))


def _check_patchwise(cfg: TokenizerConfig) -> None:
    """Refuse more latent numbers than a patch has, and a pixel tokenizer that would drop some."""
    patch_dim = 3 * cfg.patch_size**2
    if cfg.latent_dim > patch_dim:
        raise ConfigError(
            f"tokenizer.latent_dim = {cfg.latent_dim} is larger than the {patch_dim} numbers of a patch (3 x patch_size^2)",
            f"Set tokenizer.latent_dim to at most {patch_dim}.",
        )
    if cfg.kind == "pixels" and cfg.latent_dim != patch_dim:
        raise ConfigError(
            f"tokenizer.kind 'pixels' keeps all {patch_dim} numbers of a patch, but tokenizer.latent_dim = {cfg.latent_dim}",
            f"Set tokenizer.latent_dim to {patch_dim}, or choose patch_pca to keep fewer.",
        )


def _check_conv(cfg: TokenizerConfig) -> None:
    """Refuse a stride that the network's depth does not give, or latents that do not group into whole tokens."""
    depth_stride = 2 ** (len(cfg.block_channels) - 1)
    if cfg.stride != depth_stride:
        raise ConfigError(
            f"tokenizer.stride = {cfg.stride}, but the {len(cfg.block_channels)} resolutions of tokenizer.block_channels "
            f"give stride {depth_stride}",
            "The stride is 2^(resolutions - 1): change the stride or the number of block_channels.",
        )
    if cfg.patch_size % cfg.stride:
        raise ConfigError(
            f"tokenizer.stride = {cfg.stride} does not divide tokenizer.patch_size = {cfg.patch_size}",
            "A token is a square of whole latent pixels: choose a patch_size that is a multiple of the stride.",
        )
    pixels = (cfg.patch_size // cfg.stride) ** 2
    if cfg.latent_dim % pixels:
        raise ConfigError(
            f"tokenizer.latent_dim = {cfg.latent_dim} cannot be shared by the {pixels} latent pixels of a token",
            f"Set tokenizer.latent_dim to a multiple of {pixels} (latent channels = latent_dim / (patch_size / stride)^2).",
        )
    if min(cfg.block_channels) < 1:
        raise ConfigError(f"tokenizer.block_channels = {cfg.block_channels} has an empty resolution", "Use counts of at least 1.")

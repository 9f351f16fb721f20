"""Tokenizers: how an image becomes a sequence of latents, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ablation.config import TokenizerConfig
from ablation.tokenizers.checks import check_kind, check_settings

if TYPE_CHECKING:
    from ablation.tokenizers.base import Tokenizer

_PART = "tokenizer:"


def build_tokenizer(cfg: TokenizerConfig, image_size: int, parts: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that a configuration names, with fresh weights.

    `parts` maps "tokenizer:NAME" to a class that a plugin provides; it is called as Class(cfg, image_size).
    Raises: ConfigError for an unknown kind or settings that do not fit together.
    """
    check_kind(cfg.kind, tuple(name.removeprefix(_PART) for name in parts if name.startswith(_PART)))
    check_settings(cfg, image_size)
    provided = parts.get(_PART + cfg.kind)
    built: Tokenizer = (provided or _built_in(cfg.kind))(cfg, image_size)
    return built


def _built_in(kind: str) -> Any:
    """Import the class of a built-in kind only when asked for: the convolutional one needs a heavy library."""
    if kind == "conv":
        from ablation.tokenizers.conv_vae import ConvVAE

        return ConvVAE
    if kind == "patch_vae":
        from ablation.tokenizers.patch_vae import PatchVAE

        return PatchVAE
    if kind == "patch_ae":
        from ablation.tokenizers.patch_ae import PatchAE

        return PatchAE
    if kind == "patch_pca":
        from ablation.tokenizers.patch_pca import PatchPCA

        return PatchPCA
    from ablation.tokenizers.pixels import Pixels

    return Pixels

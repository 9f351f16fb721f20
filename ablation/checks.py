"""Checks that involve several settings at once; run on every resolved configuration before anything is planned. Light."""

from __future__ import annotations

from collections.abc import Iterable

from ablation.config import Config
from ablation.diffusion.feasible import ORTHONORMAL_TOKENIZERS, check_process
from ablation.errors import ConfigError
from ablation.tokenizers.checks import check_kind, check_perceptual_network, check_settings


def check_config(config: Config, parts: Iterable[str]) -> None:
    """Raise ConfigError where settings, each valid alone, cannot work together.

    `parts` are the names of the parts that stages on the path provide, as "tokenizer:NAME".
    """
    data, tokenizer = config.data, config.tokenizer
    provided = tuple(part.partition(":")[2] for part in parts)
    check_kind(tokenizer.kind, provided)
    if data.image_size < tokenizer.patch_size:
        raise ConfigError(
            f"data.image_size = {data.image_size} is smaller than a patch (tokenizer.patch_size = {tokenizer.patch_size})",
            "Use larger images or a smaller patch.",
        )
    check_settings(tokenizer, data.image_size)
    if tokenizer.kind == "conv" and tokenizer.perceptual_weight > 0:
        check_perceptual_network(tokenizer.perceptual_network, ())
    check_process(config, (*ORTHONORMAL_TOKENIZERS, *provided))

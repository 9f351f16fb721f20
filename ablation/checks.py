"""Checks that involve several settings at once; run on every resolved configuration before anything is planned. Light."""

from __future__ import annotations

from collections.abc import Collection

from ablation.config import Config, get_value
from ablation.diffusion.feasible import ORTHONORMAL_TOKENIZERS, check_process
from ablation.errors import ConfigError
from ablation.parts import KINDS, check_names
from ablation.tokenizers.checks import check_perceptual_network, check_settings


def check_config(config: Config, parts: Collection[str]) -> None:
    """Raise ConfigError where settings, each valid alone, cannot work together.

    `parts` are the names of the parts that can be used, as "KIND:NAME".
    """
    data, tokenizer = config.data, config.tokenizer
    provided = tuple(part.partition(":")[2] for part in parts if part.startswith("tokenizer:"))
    check_names({about.setting: get_value(config, about.setting) for about in KINDS.values() if about.setting}, dict.fromkeys(parts))
    if data.image_size < tokenizer.patch_size:
        raise ConfigError(
            f"data.image_size = {data.image_size} is smaller than a patch (tokenizer.patch_size = {tokenizer.patch_size})",
            "Use larger images or a smaller patch.",
        )
    check_settings(tokenizer, data.image_size)
    if tokenizer.kind == "conv" and tokenizer.perceptual_weight > 0:
        check_perceptual_network(tokenizer.perceptual_network, ())
    if config.denoiser.kind != "dit":
        for path, of_dit in (("denoiser.init_path", config.denoiser.init_path is not None), ("finetune.enabled", config.finetune.enabled)):
            if of_dit:
                raise ConfigError(
                    f"{path} = {get_value(config, path)} is for the DiT, but denoiser.kind = {config.denoiser.kind}",
                    f"Leave {path} alone, or use denoiser.kind = dit.",
                )
    check_process(config, (*ORTHONORMAL_TOKENIZERS, *provided))

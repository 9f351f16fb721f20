"""Convolutional variational autoencoder: LDM's KL-regularised tokenizer at any size."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ablation import torchvision_compat  # noqa: F401  (must come before diffusers)
from ablation.config import TokenizerConfig
from ablation.tokenizers.base import Tokenizer, patchify, unpatchify
from ablation.tokenizers.checks import check_settings

from diffusers import AutoencoderKL  # isort: skip
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0  # isort: skip
from diffusers.models.resnet import ResnetBlock2D  # isort: skip

INITIAL_LOG_VARIANCE = -6.0  # sd 0.05: a latent of sd 1, where torch's initialisation starts, drowns the image for long


class ConvVAE(Tokenizer):
    """Encode an image with LDM's convolutional autoencoder and group its latent pixels into tokens (section 3, Table 2).

    A token holds the (patch_size / stride)^2 latent pixels under one patch, flattened as (row, column, channel), so that it
    covers what a patch-wise token covers. At paper scale this is LDM's KL-f8: 4 channels, 256 tokens of 16 numbers. As in
    LDM the middle block has self-attention ("attn_resolutions: []" only removes it from the other blocks). Unlike LDM every
    residual block starts as the identity and the posterior starts narrow: short trainings get much further.
    Raises (constructor): ConfigError if stride, depth, patch size and latent_dim do not fit together.
    """

    fit_kind = "gradient"
    stochastic = True
    image_losses = True
    network: Any

    def __init__(self, cfg: TokenizerConfig, image_size: int) -> None:
        check_settings(cfg, image_size)
        super().__init__(cfg, image_size)
        self.side = cfg.patch_size // cfg.stride  # latent pixels per token side
        levels = len(cfg.block_channels)
        network = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=cfg.block_channels,
            layers_per_block=cfg.layers_per_block,
            latent_channels=cfg.latent_dim // self.side**2,
            norm_num_groups=_groups(cfg.block_channels),
            sample_size=image_size,
        )
        self.network = network
        _start_near_identity(network)
        for half in (network.encoder, network.decoder):
            half.mid_block.attentions[0].set_processor(_Attention())

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) to the posterior's mean and standard deviation, each (B, N, d), float32.

        The log-variance is clamped to [-30, 20], as in LDM.
        """
        posterior = self.network.encode(images).latent_dist  # (B, C, h, w)
        mean = patchify(posterior.mean.float(), self.side)  # (B, N, d)
        return mean, patchify(posterior.std.float(), self.side)  # (B, N, d)

    def decode(self, latents: Tensor) -> Tensor:
        """Map raw latents (B, N, d) to images (B, 3, H, W), float32, not clipped."""
        maps = unpatchify(latents, self.side)  # (B, C, h, w)
        return self.network.decode(maps).sample.float()  # (B, 3, H, W)

    def last_layer(self) -> nn.Parameter:
        """Return the weight of the decoder's last convolution."""
        return self.network.decoder.conv_out.weight


class _Attention:
    """Attend with plain products on a CPU, where they are faster than the fused kernel at these lengths."""

    def __init__(self) -> None:
        self.plain, self.fused = AttnProcessor(), AttnProcessor2_0()

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Apply a self-attention layer of diffusers, which fixes the arguments' names, to (B, C, h, w)."""
        processor = self.plain if hidden_states.device.type == "cpu" else self.fused
        return processor(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


@torch.no_grad()
def _start_near_identity(network: Any) -> None:
    """Zero the last convolution of every residual block, let the 1x1 maps around the latent pass, narrow the posterior."""
    for block in network.modules():
        if isinstance(block, ResnetBlock2D):
            nn.init.zeros_(block.conv2.weight)
            nn.init.zeros_(block.conv2.bias)
    channels = network.post_quant_conv.weight.shape[0]
    nn.init.dirac_(network.quant_conv.weight[:channels])
    nn.init.dirac_(network.post_quant_conv.weight)
    network.quant_conv.weight[channels:] *= 0.1
    network.quant_conv.bias[channels:] = INITIAL_LOG_VARIANCE


def _groups(channels: tuple[int, ...]) -> int:
    """Choose how many groups to normalise over: 32 as in LDM, fewer where channels are few (about 4 a group as at 128)."""
    common = math.gcd(*channels)
    return math.gcd(32, common // 4 if common % 4 == 0 else common)

"""A plain DiT to measure ours against, written from the paper with timm's transformer parts, as most reimplementations do.

Peebles & Xie, "Scalable Diffusion Models with Transformers", section 3.2: patches embedded by a convolution, a frequency
embedding of t and a label embedding, one adaLN-Zero modulation per block, a final modulated layer, Xavier initialisation with
zeroed modulations and output. No attempt at speed: this is the form that is copied.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ablation import torchvision_compat  # noqa: F401  (must come before timm)

from timm.layers import Mlp  # isort: skip
from timm.models.vision_transformer import Attention  # isort: skip


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift tokens (B, N, C) by (B, C) each."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TimestepEmbedder(nn.Module):
    """Sinusoids of t and a two-layer MLP, (B,) -> (B, width)."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times (B,)."""
        half = self.frequencies // 2
        wavelengths = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - 1))
        angles = t[:, None].float() * wavelengths[None]
        return self.mlp(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))


class ReferenceBlock(nn.Module):
    """One block with adaLN-Zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, 4 * width, act_layer=lambda: nn.GELU(approximate="tanh"), drop=0)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map tokens (B, N, C) under the condition (B, C)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(modulated(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulated(self.norm2(x), shift2, scale2))


class ReferenceDiT(nn.Module):
    """A DiT on latent maps (B, C, H, W), patch size 1, with class labels; predicts (B, C, H, W)."""

    def __init__(self, grid: int, channels: int, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.grid, self.channels = grid, channels
        self.embed = nn.Conv2d(channels, width, 1)
        self.position = nn.Parameter(torch.zeros(1, grid**2, width), requires_grad=False)
        self.time_embed = TimestepEmbedder(width)
        self.label_embed = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(ReferenceBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, channels)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Predict (B, C, H, W) from latents (B, C, H, W) at times (B,) with labels (B,)."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position  # (B, N, width)
        c = self.time_embed(t) + self.label_embed(labels)
        for block in self.blocks:
            tokens = block(tokens, c)
        shift, scale = self.modulation(c).chunk(2, dim=1)
        tokens = self.out(modulated(self.norm(tokens), shift, scale))  # (B, N, C)
        return tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))

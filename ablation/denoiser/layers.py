"""The parts of the diffusion transformer: embeddings of position and time, and the adaLN-Zero block."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablation.denoiser.sizes import FREQUENCIES

MAX_PERIOD = 10_000.0
"""Longest wavelength of the sinusoids of time and position, over 2 pi."""

PLAIN_ATTENTION_TOKENS = 256
"""Up to this many tokens, plain products and a softmax beat the fused attention on a CPU (1.5-2.8x, forward and backward)."""

NORM_EPS = 1e-6
"""Epsilon of the norms that have no setting of their own."""


def position_embedding(width: int, grid: int) -> Tensor:
    """Return the fixed 2D sine-cosine position embedding, (grid^2, width), tokens in row-major order.

    The first half of the width encodes the column, the second half the row; each half holds sines, then cosines.
    """
    wavelengths = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    angles = torch.outer(torch.arange(grid, dtype=torch.float64), MAX_PERIOD**-wavelengths)  # (grid, width/4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, width/2)
    columns = axis[None, :, :].expand(grid, grid, -1)
    rows = axis[:, None, :].expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=2).reshape(grid * grid, width).float()  # (grid^2, width)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Normalise each token of x (B, N, width) without learned affine, then scale by 1 + scale and add shift (B, 1, width)."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


class TimeEmbedding(nn.Module):
    """Embed times (B,) by sinusoids and a two-layer MLP: (B, width)."""

    def __init__(self, width: int, frequency_shift: int) -> None:
        super().__init__()
        self.frequency_shift = frequency_shift
        self.fc1 = nn.Linear(FREQUENCIES, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """Map times (B,), not necessarily whole, to embeddings (B, width)."""
        half = FREQUENCIES // 2
        # Computed anew in float32: a stored table would be rounded when the model is cast to bfloat16, and t runs to 1000.
        exponents = -math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=time.device)
        angles = time.float()[:, None] * torch.exp(exponents / (half - self.frequency_shift))  # (B, 128)
        features = torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, 256)
        return self.fc2(F.silu(self.fc1(features.to(self.fc1.weight.dtype))))  # (B, width)


class Attention(nn.Module):
    """Multi-head self-attention with biases, over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, width) to (B, N, width)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)  # (B, N, 3, heads, head width)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, heads, N, head width)
        if x.device.type == "cpu" and tokens <= PLAIN_ATTENTION_TOKENS:
            mixed = plain_attention(*qkv.contiguous().unbind(0))  # one copy here saves one in each product and its gradient
        else:
            mixed = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))  # (B, N, width)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend by two matrix products and a softmax: q, k, v (B, heads, N, head width) to (B, heads, N, head width)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # (B, heads, N, N)
    return scores.softmax(dim=-1) @ v  # (B, heads, N, head width)


class Mlp(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, width) to (B, N, width)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """One adaLN-Zero transformer block; with all six modulation vectors at zero it is the identity."""

    def __init__(self, width: int, heads: int, mlp_norm_eps: float) -> None:
        super().__init__()
        self.mlp_norm_eps = mlp_norm_eps
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, shift1: Tensor, scale1: Tensor, gate1: Tensor, shift2: Tensor, scale2: Tensor, gate2: Tensor) -> Tensor:
        """Map tokens (B, N, width) to (B, N, width); shift, scale and gate (B, 1, width) of attention (1) and MLP (2)."""
        x = torch.addcmul(x, gate1, self.attn(modulate(x, shift1, scale1, NORM_EPS)))
        return torch.addcmul(x, gate2, self.mlp(modulate(x, shift2, scale2, self.mlp_norm_eps)))

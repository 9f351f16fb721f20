"""The denoiser: a diffusion transformer (DiT) with adaLN-Zero conditioning, tokens in and tokens out.

Written from Peebles & Xie, "Scalable Diffusion Models with Transformers" (section 3.2), with the narrower conditioning of
Chen et al., "Deconstructing Denoising Diffusion Models for Self-Supervised Learning" (section 3). The network knows
nothing of diffusion: it sees tokens, a time and a label. The first `encoder_depth` blocks are the encoder half, whose
output is the representation; the rest are the decoder half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ablation.config import DenoiserConfig
from ablation.denoiser.layers import NORM_EPS, Block, TimeEmbedding, modulate, position_embedding
from ablation.denoiser.sizes import SIZES
from ablation.errors import ConfigError


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build a DiT again; it is saved beside the weights."""

    in_dim: int
    out_dim: int
    grid: int
    width: int
    depth: int
    heads: int
    modulation_ratio: float
    encoder_depth: int
    num_classes: int
    frequency_shift: int
    mlp_norm_eps: float

    def __post_init__(self) -> None:
        """Refuse sizes that no network can have; raise ConfigError naming the field."""
        for name in ("in_dim", "out_dim", "grid", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"denoiser {name} is {getattr(self, name)}", "It must be at least 1.")
        if self.width % self.heads or self.width % 4:
            raise ConfigError(
                f"denoiser width {self.width} does not fit {self.heads} heads",
                "The width must be a multiple of the number of heads, and of 4 for the position embedding.",
            )
        if not 1 <= self.encoder_depth <= self.depth:
            raise ConfigError(
                f"denoiser.encoder_depth is {self.encoder_depth}",
                f"It takes 1 to {self.depth}, the number of blocks, or none for half.",
            )
        if not 0 < self.modulation_ratio <= 1:
            raise ConfigError(f"denoiser.modulation_ratio is {self.modulation_ratio}", "It takes a number above 0, up to 1.")

    @property
    def conditioning_width(self) -> int:
        """Width of the conditioning vector, the hidden width of the two-layer MLP of t."""
        return max(1, round(self.modulation_ratio * self.width))


class DiT(nn.Module):
    """A diffusion transformer on token sequences.

    in_dim, out_dim: numbers per input and output token. grid: tokens per image side, so N = grid^2 in row-major order.
    modulation_ratio: conditioning width over width (1 in DiT, 1/4 in the study). encoder_depth: blocks of the encoder half
    (None: half). num_classes: 0 for a network without class conditioning; else the embedding has one more row, the null label.
    frequency_shift: 1 spaces the sinusoids of t as the diffusers library does, 0 as DiT's paper code; only 1 can be exported.
    mlp_norm_eps: epsilon of the norm before each MLP; files published in diffusers' format may use 1e-5 there.
    checkpoint_activations: recompute each block in the backward pass to save memory.
    Errors: ConfigError for sizes that do not fit together. Source: Peebles & Xie, section 3.2.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        grid: int,
        width: int,
        depth: int,
        heads: int,
        modulation_ratio: float,
        encoder_depth: int | None = None,
        num_classes: int = 0,
        frequency_shift: int = 1,
        mlp_norm_eps: float = 1e-6,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        half = depth // 2 if depth > 1 else 1
        arch = Architecture(
            in_dim=in_dim,
            out_dim=out_dim,
            grid=grid,
            width=width,
            depth=depth,
            heads=heads,
            modulation_ratio=float(modulation_ratio),
            encoder_depth=half if encoder_depth is None else encoder_depth,
            num_classes=num_classes,
            frequency_shift=frequency_shift,
            mlp_norm_eps=mlp_norm_eps,
        )
        self.architecture = arch
        self.checkpoint_activations = checkpoint_activations
        self.width, self.depth, self.encoder_depth, self.num_classes = width, depth, arch.encoder_depth, num_classes

        self.embed = nn.Linear(in_dim, width)
        self.register_buffer("position", position_embedding(width, grid)[None], persistent=False)  # (1, N, width)
        self.time_embed = TimeEmbedding(arch.conditioning_width, frequency_shift)
        self.class_embed = nn.Embedding(num_classes + 1, arch.conditioning_width) if num_classes else None
        # One product serves all modulations. Rows [6*width*i, 6*width*(i+1)) belong to block i, in the order shift, scale, gate
        # of attention, then shift, scale, gate of the MLP; the last 2*width rows are the final norm's shift and scale.
        self.modulation = nn.Linear(arch.conditioning_width, (6 * depth + 2) * width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_norm_eps) for _ in range(depth))
        self.out = nn.Linear(width, out_dim)
        self._initialise()

    position: Tensor

    @property
    def null_label(self) -> int:
        """The label that stands for no class, for class-free guidance and label dropout."""
        return self.num_classes

    def forward(self, tokens: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map noisy tokens (B, N, in_dim) at times (B,) to predictions (B, N, out_dim).

        time: (B,) float, or (1,) shared by the batch. labels: (B,) or (1,) int64 in [0, num_classes], num_classes being the null
        label; None means the null label. A network with num_classes = 0 has nowhere to put labels: they are ignored.
        """
        modulation = self._modulate(self._condition(time, labels), 6 * self.depth + 2)  # (B, 6*depth+2, 1, width)
        x = self._embed(tokens)  # (B, N, width)
        rows = modulation.unbind(1)  # (6*depth+2) x (B, 1, width)
        for i, block in enumerate(self.blocks):
            x = self._run(block, x, rows[6 * i : 6 * i + 6])
        return self.out(modulate(x, rows[-2], rows[-1], NORM_EPS))  # (B, N, out_dim)

    @overload
    def encode(self, tokens: Tensor, time: Tensor, labels: Tensor | None = None, blocks: None = None) -> Tensor: ...

    @overload
    def encode(self, tokens: Tensor, time: Tensor, labels: Tensor | None, blocks: Sequence[int]) -> list[Tensor]: ...

    @overload
    def encode(self, tokens: Tensor, time: Tensor, labels: Tensor | None = None, *, blocks: Sequence[int]) -> list[Tensor]: ...

    def encode(
        self, tokens: Tensor, time: Tensor, labels: Tensor | None = None, blocks: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Return the token features (B, N, width) after the encoder half, or after each of the given blocks.

        blocks: 1-based numbers of blocks, decoder blocks included; then a list in the order given. Nothing beyond the last
        block asked for is computed. Arguments otherwise as in forward. Errors: ConfigError for a block that does not exist.
        """
        wanted = (self.encoder_depth,) if blocks is None else tuple(blocks)
        if not wanted or min(wanted) < 1 or max(wanted) > self.depth:
            raise ConfigError(f"blocks {list(wanted)} of the denoiser", f"Blocks are numbered 1 to {self.depth}; name at least one.")
        last = max(wanted)
        rows = self._modulate(self._condition(time, labels), 6 * last).unbind(1)  # (6*last) x (B, 1, width)
        x = self._embed(tokens)  # (B, N, width)
        outputs: dict[int, Tensor] = {}
        for i in range(last):
            x = self._run(self.blocks[i], x, rows[6 * i : 6 * i + 6])
            if i + 1 in wanted:
                outputs[i + 1] = x
        return outputs[last] if blocks is None else [outputs[number] for number in wanted]

    def block_modulation(self, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the six modulation vectors of every block, (B, depth, 6, width), for a given time (B,) and label."""
        return self._modulate(self._condition(time, labels), 6 * self.depth).unflatten(1, (self.depth, 6)).squeeze(3)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Project tokens (B, N, in_dim) to the width and add positions; autocast keeps the sum in float32."""
        return self.embed(tokens) + self.position  # (B, N, width)

    def _condition(self, time: Tensor, labels: Tensor | None) -> Tensor:
        """Add the embeddings of time and label: (B, conditioning_width), or (1, conditioning_width) where both are shared."""
        conditioning = self.time_embed(time)  # (B, conditioning_width)
        if self.class_embed is None:
            return conditioning
        if labels is None:
            return conditioning + self.class_embed.weight[self.null_label]
        return conditioning + self.class_embed(labels)

    def _modulate(self, conditioning: Tensor, count: int) -> Tensor:
        """Compute the first `count` modulation vectors in one product: (B, count, 1, width)."""
        weight = self.modulation.weight[: count * self.width]
        bias = self.modulation.bias[: count * self.width]
        flat = F.linear(F.silu(conditioning), weight, bias)  # (B, count*width)
        return flat.to(self.position.dtype).view(-1, count, 1, self.width)  # (B, count, 1, width)

    def _run(self, block: nn.Module, x: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """Run one block, recomputing it in the backward pass if asked to."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(block, x, *rows, use_reentrant=False)
        return block(x, *rows)

    def _initialise(self) -> None:
        """Initialise as DiT does: Xavier for linear layers, zero for every modulation and for the output (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for linear in (self.time_embed.fc1, self.time_embed.fc2):
            nn.init.normal_(linear.weight, std=0.02)
        if self.class_embed is not None:
            nn.init.normal_(self.class_embed.weight, std=0.02)
        for zeroed in (self.modulation, self.out):
            nn.init.zeros_(zeroed.weight)
            nn.init.zeros_(zeroed.bias)


def build_denoiser(cfg: DenoiserConfig, in_dim: int, out_dim: int, grid: int, num_classes: int) -> DiT:
    """Build the denoiser that a configuration asks for.

    in_dim, out_dim: numbers per token in and out. grid: tokens per image side. num_classes: classes of the data; used only
    where cfg.class_conditional. Errors: ConfigError for an unknown size, a split that does not fit, or missing classes.
    """
    if cfg.size not in SIZES:
        raise ConfigError(f"unknown denoiser.size '{cfg.size}'", "It takes one of " + ", ".join(SIZES) + ".")
    if cfg.class_conditional and num_classes < 1:
        raise ConfigError("denoiser.class_conditional is on, but the images have no classes", "Set denoiser.class_conditional: false.")
    size = SIZES[cfg.size]
    return DiT(
        in_dim=in_dim,
        out_dim=out_dim,
        grid=grid,
        width=size.width,
        depth=size.depth,
        heads=size.heads,
        modulation_ratio=cfg.modulation_ratio,
        encoder_depth=cfg.encoder_depth,
        num_classes=num_classes if cfg.class_conditional else 0,
        checkpoint_activations=cfg.activation_checkpointing,
    )

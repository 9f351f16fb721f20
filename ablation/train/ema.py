"""Exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """A moving average of a module's parameters; buffers are not averaged."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.names = [name for name, _ in module.named_parameters()]
        self.live = [parameter.data for _, parameter in module.named_parameters()]
        self.average = [value.clone() for value in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live weights: average <- decay * average + (1 - decay) * live."""
        torch._foreach_lerp_(self.average, self.live, 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """Return the averaged weights by parameter name."""
        return dict(zip(self.names, self.average, strict=True))

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Restore averaged weights by parameter name."""
        for name, value in zip(self.names, self.average, strict=True):
            value.copy_(state[name])

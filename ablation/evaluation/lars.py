"""Layer-wise adaptive rate scaling, the optimiser of MAE's linear probe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Stochastic gradient descent with momentum and a step per layer in proportion to the layer's norm.

    Weights: v <- momentum v + lr trust |w| / |g| g, then w <- w - v; vectors (biases) take plain momentum steps, and so does
    a layer whose weights or gradient are all zero. Without weight decay, which the probe does not use.
    Source: You, Gitman & Ginsburg 2017 (arXiv 1708.03888), algorithm 1, trust coefficient eta = 0.001.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.9, trust: float = 0.001) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; a closure is not supported."""
        if closure is not None:
            raise ValueError("LARS takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], group["momentum"], group["trust"])

    def _move(self, parameter: Tensor, gradient: Tensor, lr: float, momentum: float, trust: float) -> None:
        """Apply one step to one parameter."""
        rate = torch.as_tensor(lr, dtype=parameter.dtype, device=parameter.device)
        if parameter.ndim > 1:
            norm, gradient_norm = parameter.norm(), gradient.norm()
            rate = rate * torch.where((norm > 0) & (gradient_norm > 0), trust * norm / gradient_norm, torch.ones_like(norm))
        velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
        parameter.sub_(velocity.mul_(momentum).add_(gradient * rate))

"""Second-order statistics of latents: what the reverse process starts from where the last level still holds the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Mean and covariance of scaled latents over images; covariance between tokens, separately for each latent dimension."""

    mean: Tensor
    """(N, d) float64."""
    token_covariance: Tensor
    """(d, N, N) float64."""

    def sample_level(self, gamma: float, sigma: float, standard: Tensor) -> Tensor:
        """Turn standard normal numbers into z_t ~ N(gamma mean, gamma^2 covariance + sigma^2 I). (B, N, d) -> (B, N, d).

        Exact to second order within each latent dimension; dimensions are taken as uncorrelated. sigma must be above 0.
        """
        tokens, _ = self.mean.shape
        identity = torch.eye(tokens, dtype=torch.float64, device=self.mean.device)
        root = torch.linalg.cholesky(gamma**2 * self.token_covariance + sigma**2 * identity)  # (d, N, N)
        columns = standard.to(self.mean).permute(2, 1, 0)  # (B, N, d) -> (d, N, B)
        z_t: Tensor = (root @ columns).permute(2, 1, 0) + gamma * self.mean  # (d, N, B) -> (B, N, d)
        return z_t.to(standard.dtype)


class StatisticsAccumulator:
    """Gather LatentStatistics in one pass, in float64; d N^2 numbers are held."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def update(self, z: Tensor) -> None:
        """Add the latents of a batch of images. z: (B, N, d)."""
        columns = z.double().permute(2, 1, 0)  # (B, N, d) -> (d, N, B)
        products = columns @ columns.mT  # (d, N, B) -> (d, N, N)
        total = columns.sum(dim=2)  # (d, N, B) -> (d, N)
        self._sum = total if self._sum is None else self._sum + total
        self._products = products if self._products is None else self._products.add_(products)
        self._count += len(z)

    def result(self) -> LatentStatistics:
        """Return the statistics of everything added; the covariance divides by the count. Raises ValueError on no images."""
        if self._sum is None or self._products is None or self._count == 0:
            raise ValueError("no latents were added")
        mean = self._sum / self._count  # (d, N)
        covariance = self._products / self._count - mean[:, :, None] * mean[:, None, :]  # (d, N, N)
        return LatentStatistics(mean=mean.T.contiguous(), token_covariance=(covariance + covariance.mT) / 2)

    def state(self) -> dict[str, Tensor]:
        """Return everything added so far as tensors, from which `load` goes on bit for bit; empty before the first update."""
        if self._sum is None or self._products is None:
            return {}
        return {"count": torch.tensor(self._count), "sum": self._sum, "products": self._products}

    def load(self, state: dict[str, Tensor], device: torch.device | str) -> None:
        """Take up what `state` returned."""
        if state:
            self._count = int(state["count"])
            self._sum, self._products = state["sum"].to(device), state["products"].to(device)

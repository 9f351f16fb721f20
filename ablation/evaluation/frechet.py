"""The Frechet distance between two sets of features, and the statistics it is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from ablation.errors import DataError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FeatureStatistics:
    """Count, mean and scatter of a set of features; grows by `updated` and `merged`, which leave the original alone.

    Everything is float64. Partial statistics are combined by the pairwise update of Chan, Golub & LeVeque (1979), so that
    neither the order nor the size of the batches matters beyond round-off, and a large mean costs no accuracy.
    """

    count: int
    mean: Array  # (C,)
    scatter: Array  # (C, C), the sum over images of (x - mean)(x - mean)^T

    @classmethod
    def empty(cls, dim: int) -> Self:
        """Return the statistics of no image at all, for features of dimension `dim`."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, features: Tensor | NDArray[np.floating]) -> Self:
        """Compute the statistics of features (n, C); a value that is not finite raises DataError."""
        x = torch.as_tensor(features).to(torch.float64)
        if x.ndim != 2 or len(x) == 0:
            raise ValueError(f"features must have shape (n, C) with n > 0, not {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x).all(dim=1)).sum())
            raise DataError(
                f"the extractor's features of {bad} of {len(x)} images are not finite (NaN or infinity)",
                "The images to compare are probably NaN: check that the model behind them did not diverge.",
            )
        mean = x.mean(dim=0)  # (C,)
        shifted = x - mean
        return cls(len(x), mean.cpu().numpy(), (shifted.T @ shifted).cpu().numpy())

    def merged(self, other: FeatureStatistics) -> FeatureStatistics:
        """Return the statistics of both sets together."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"features of {len(self.mean)} and of {len(other.mean)} dimensions cannot be merged")
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        between = np.outer(delta, delta * (self.count * other.count / count))  # (C, C)
        return FeatureStatistics(count, mean, self.scatter + other.scatter + between)

    def updated(self, features: Tensor | NDArray[np.floating]) -> FeatureStatistics:
        """Return the statistics with a batch of features (n, C) added."""
        return self.merged(FeatureStatistics.of(features))

    @property
    def covariance(self) -> Array:
        """The unbiased covariance (C, C); fewer than two images raise DataError."""
        if self.count < 2:
            raise DataError(f"a covariance of {self.count} image(s) is not defined", "Use at least two images (fid.samples).")
        return self.scatter / (self.count - 1)

    def tensors(self) -> dict[str, Tensor]:
        """Return the statistics as named tensors, to be stored."""
        return {"count": torch.tensor(self.count), "mean": torch.from_numpy(self.mean), "scatter": torch.from_numpy(self.scatter)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """Rebuild what `tensors` returned."""
        return cls(int(tensors["count"]), tensors["mean"].numpy(), tensors["scatter"].numpy())


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Compute the Frechet distance between the Gaussians of two sets of features.

    |mu_a - mu_b|^2 + tr(A) + tr(B) - 2 tr (A B)^(1/2)  (Dowson & Landau 1982; Heusel et al. 2017), in squared feature
    units. Singular covariances, as of fewer images than dimensions, are allowed and lose no accuracy.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions cannot be compared")
    cov_a, cov_b = a.covariance, b.covariance
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * _trace_of_root(cov_a, a.count, cov_b, b.count)
    return max(0.0, float(distance))  # the exact value is never negative; equal sets can give -1e-13


def _trace_of_root(cov_a: Array, count_a: int, cov_b: Array, count_b: int) -> float:
    """Compute tr (A B)^(1/2), the nuclear norm of F_a^T F_b where A = F_a F_a^T and B = F_b F_b^T.

    With both of full rank the eigenvalues of F_a^T B F_a are fastest. Otherwise the singular values of F_a^T F_b are taken:
    a square root would blow the round-off of every zero eigenvalue up to its root, 1e-16 to 1e-8.
    """
    factor_a = _factor(cov_a, count_a)  # (C, rank)
    if factor_a.shape[1] == len(cov_a) and count_b > len(cov_b):
        inner = factor_a.T @ cov_b @ factor_a  # (C, C)
        eigenvalues = scipy.linalg.eigvalsh(inner, overwrite_a=True, check_finite=False)
        return float(np.sqrt(np.clip(eigenvalues, 0, None)).sum())
    cross = factor_a.T @ _factor(cov_b, count_b)  # (rank_a, rank_b)
    return float(scipy.linalg.svdvals(cross, overwrite_a=True, check_finite=False).sum()) if cross.size else 0.0


def _factor(covariance: Array, count: int) -> Array:
    """Return F (C, rank) with F F^T = covariance: Cholesky, or pivoted Cholesky where that breaks down.

    The rank of a covariance of n images is at most n - 1, whatever round-off makes of the remaining pivots.
    """
    if count > len(covariance):
        try:
            return scipy.linalg.cholesky(covariance, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            pass
    packed, pivots, rank, _ = scipy.linalg.lapack.dpstrf(covariance, lower=1)
    rank = min(rank, count - 1)
    factor = np.empty((len(covariance), rank))
    factor[pivots - 1] = np.tril(packed)[:, :rank]  # rows back in their original order
    return factor

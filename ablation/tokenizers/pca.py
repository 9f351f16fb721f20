"""Principal components of image patches, from one streaming pass over any number of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ablation.errors import DataError
from ablation.tokenizers.base import patchify

_CHUNK = 8192  # rows per product: bounds memory, and the rounding error of one float32 partial sum
_EXACT_BELOW = 256  # for smaller patches float64 products cost too little to save on
_NEAR_LARGEST = 0.9


class PatchCovariance:
    """Mean and covariance of patches, accumulated batch by batch and mergeable over workers.

    Sums are kept in float64. Products of patches of 256 numbers and more are taken in float32, on data shifted by the first
    batch's mean, at less than half the cost of float64. NumPy multiplies, so torch's matmul precision setting cannot lower
    the accuracy; on a CUDA device products are float64. Up to rounding the result does not depend on the cut into batches.
    """

    def __init__(self, patch_size: int) -> None:
        self.patch_size = patch_size
        self.count = 0
        dim = 3 * patch_size**2
        self.shift = np.zeros(dim)  # (D,) subtracted from every patch before anything is summed
        self.total = np.zeros(dim)  # (D,) sum of shifted patches
        self.scatter = np.zeros((dim, dim))  # (D, D) sum of outer products of shifted patches

    def update(self, images: Tensor) -> None:
        """Add every patch of a batch of images (B, 3, H, W) in [-1, 1]."""
        patches = patchify(images, self.patch_size).flatten(0, 1)  # (B N, D)
        if not len(patches):
            return
        if not self.count:
            self.shift = patches.mean(0).float().cpu().double().numpy()  # any value near the mean will do
        self.count += len(patches)
        if patches.is_cuda:
            self._add_on_device(patches)
            return
        rows = patches.float().numpy()
        shift = self.shift.astype(np.float64 if rows.shape[1] < _EXACT_BELOW else np.float32)  # exact: it was float32
        for start in range(0, len(rows), _CHUNK):
            shifted = rows[start : start + _CHUNK] - shift  # (n, D) in the shift's precision
            self.total += shifted.sum(0, dtype=np.float64)
            self.scatter += shifted.T @ shifted  # (D, D)

    def _add_on_device(self, patches: Tensor) -> None:
        """Add patches (n, D) with float64 products on their own device."""
        shifted = patches.double() - torch.from_numpy(self.shift).to(patches.device)
        self.total += shifted.sum(0).cpu().numpy()
        self.scatter += (shifted.T @ shifted).cpu().numpy()  # (D, D)

    def merge(self, other: PatchCovariance) -> None:
        """Add another accumulator's patches to this one's, as if all had been seen here."""
        if other.patch_size != self.patch_size:
            raise ValueError(f"cannot merge patches of size {other.patch_size} into patches of size {self.patch_size}")
        if not other.count:
            return
        if not self.count:
            self.shift = other.shift.copy()
        move = other.shift - self.shift  # (D,) what other's shifted patches lack here
        cross = np.outer(other.total, move)  # (D, D)
        self.scatter += other.scatter + cross + cross.T + other.count * np.outer(move, move)
        self.total += other.total + other.count * move
        self.count += other.count

    def state(self) -> dict[str, Tensor]:
        """Return everything added so far as tensors, from which `load` goes on bit for bit."""
        arrays = {"count": np.array(self.count), "shift": self.shift, "total": self.total, "scatter": self.scatter}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        self.count = int(state["count"])
        self.shift, self.total, self.scatter = (state[name].numpy().copy() for name in ("shift", "total", "scatter"))

    def mean(self) -> np.ndarray:
        """Return the mean patch (D,), float64."""
        return self.shift + self.total / max(self.count, 1)

    def covariance(self) -> np.ndarray:
        """Return the covariance (D, D) with divisor count - 1, float64.

        Raises: DataError with fewer than two patches.
        """
        if self.count < 2:
            raise DataError(f"{self.count} patches have no covariance", "Give at least two patches: more or larger images.")
        mean = self.total / self.count  # of the shifted patches
        return (self.scatter - self.count * np.outer(mean, mean)) / (self.count - 1)


@dataclass(frozen=True)
class PrincipalComponents:
    """All D components of a set of patches, in order of falling variance; float64."""

    basis: np.ndarray  # (D, D), rows are components
    eigenvalues: np.ndarray  # (D,) variances
    mean: np.ndarray  # (D,)


def principal_components(statistics: PatchCovariance) -> PrincipalComponents:
    """Decompose the covariance of patches in float64, signs fixed by `fix_signs`.

    Raises: DataError if a patch held a non-finite number, or there are fewer than two patches.
    """
    covariance = statistics.covariance()
    if not np.isfinite(covariance).all():
        raise DataError("the images hold a non-finite number", "Check the image files and the normalisation to [-1, 1].")
    values, vectors = np.linalg.eigh(covariance)  # ascending; columns are components
    basis = fix_signs(vectors.T[::-1])  # (D, D) rows, descending
    return PrincipalComponents(basis, values[::-1].clip(min=0.0), statistics.mean())


def fix_signs(basis: np.ndarray) -> np.ndarray:
    """Give each component (a row of (k, D)) the sign that makes its first near-largest entry positive.

    Near-largest means at least 0.9 of the largest magnitude: the plain largest entry is a tie in every odd-symmetric
    component once mirrored images are in the set, and rounding would pick the sign.
    """
    size = np.abs(basis)
    first = np.argmax(size >= _NEAR_LARGEST * size.max(1, keepdims=True), axis=1)  # (k,)
    signs = np.sign(np.take_along_axis(basis, first[:, None], axis=1))  # (k, 1)
    return basis * np.where(signs == 0, 1.0, signs)

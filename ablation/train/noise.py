"""Random numbers that depend on the seed and on how many images were seen, and on nothing else.

Not on the rank, the micro-batch or an interruption: a training that resumes, or runs on more devices, draws the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

BLOCK = 32
"""Images that share one generator; numbers are drawn for whole blocks and cut to the positions asked for."""


def stream_seed(*parts: object) -> int:
    """Derive a 63-bit seed from any printable parts."""
    return int.from_bytes(hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest(), "big") >> 1


class NoiseSource:
    """Named random streams for the images at positions start, start + 1, ... start + count - 1 of a training."""

    def __init__(self, seed: int, start: int, count: int, device: torch.device | str = "cpu") -> None:
        self.seed, self.start, self.count, self.device = seed, start, count, torch.device(device)

    def _draw(self, name: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Draw every block that overlaps the positions and cut to them."""
        first, last = self.start // BLOCK, (self.start + self.count - 1) // BLOCK
        blocks = []
        for block in range(first, last + 1):
            generator = torch.Generator(self.device)
            generator.manual_seed(stream_seed(self.seed, name, block))
            blocks.append(draw(generator))
        offset = self.start - first * BLOCK
        return torch.cat(blocks)[offset : offset + self.count]

    def normal(self, name: str, shape_per_image: tuple[int, ...]) -> Tensor:
        """Return standard normal numbers, (count, *shape_per_image)."""
        return self._draw(name, lambda g: torch.randn((BLOCK, *shape_per_image), generator=g, device=self.device))

    def uniform(self, name: str, shape_per_image: tuple[int, ...] = ()) -> Tensor:
        """Return numbers uniform in [0, 1), (count, *shape_per_image)."""
        return self._draw(name, lambda g: torch.rand((BLOCK, *shape_per_image), generator=g, device=self.device))

    def integers(self, name: str, low: int, high: int) -> Tensor:
        """Return whole numbers in [low, high), (count,)."""
        return self._draw(name, lambda g: torch.randint(low, high, (BLOCK,), generator=g, device=self.device))


class ImageOrder:
    """The order in which a training sees its images: one permutation per epoch, derived from the seed."""

    def __init__(self, images: int, seed: int) -> None:
        self.images, self.seed = images, seed
        self._permutations: dict[int, np.ndarray] = {}

    def indices(self, start: int, count: int) -> np.ndarray:
        """Return the images at positions start ... start + count - 1, (count,) int64; positions run over all epochs."""
        positions = np.arange(start, start + count)
        epochs = positions // self.images
        chosen = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            where = epochs == epoch
            chosen[where] = self._permutation(int(epoch))[positions[where] % self.images]
        return chosen

    def _permutation(self, epoch: int) -> np.ndarray:
        """Return an epoch's permutation; the last two epochs are kept."""
        if epoch not in self._permutations:
            generator = np.random.Generator(np.random.PCG64(stream_seed(self.seed, "order", epoch)))
            self._permutations = {key: value for key, value in self._permutations.items() if key == epoch - 1}
            self._permutations[epoch] = generator.permutation(self.images)
        return self._permutations[epoch]

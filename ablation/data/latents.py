"""Raw latents on disk, the scale that turns them into what the denoiser sees, and the batches of its training.

Stored once per tokenizer: means (and standard deviations where the tokenizer has a posterior) of every image, plain and
mirrored. Scaling and sampling happen here, at reading, so that neither ever needs another encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ablation.config import LatentScale
from ablation.data.images import ImageSet
from ablation.data.shards import ShardedArray, open_array, verify
from ablation.diffusion.statistics import LatentStatistics
from ablation.store import LATENTS, STATISTICS, latents_name, read_json
from ablation.tokenizers.base import Tokenizer
from ablation.train.checkpoint import load_tensors
from ablation.train.noise import NoiseSource, stream_seed

STORED = np.float16
"""Precision of raw latents on disk: at 11 bits the rounding lies far below every noise level in use."""


LEAST_SCALE = 1e-4
"""Smallest divisor of a whitened dimension, over the largest: below it there is only rounding, which must not be blown up."""


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Turn uint8 images into network input. (B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Turn network output into images, clipped and rounded. (B, 3, H, W) in [-1, 1] -> uint8."""
    return images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


@dataclass(frozen=True)
class LatentScaler:
    """z = (raw - shift) / scale, per latent dimension; shift and scale are (d,)."""

    shift: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, kind: LatentScale, mean: Tensor, variance: Tensor) -> LatentScaler:
        """Build the scaler from per-dimension mean and variance of raw latents, both (d,).

        none leaves them alone; global divides by one standard deviation over all numbers, as LDM does; whitened gives every
        dimension mean 0 and variance 1, but for dimensions without variance (grey images in three channels have them).
        """
        mean, variance = mean.double(), variance.double()
        if kind == "none":
            shift, scale = torch.zeros_like(mean), torch.ones_like(mean)
        elif kind == "global":
            overall = (variance.mean() + mean.square().mean() - mean.mean() ** 2).sqrt()
            shift, scale = torch.zeros_like(mean), overall.expand_as(mean).clone()
        else:
            shift, scale = mean, variance.sqrt()
        floor = LEAST_SCALE * float(scale.max()) if float(scale.max()) > 0 else 1.0
        return cls(shift.float(), scale.clamp(min=floor).float())

    def to(self, device: torch.device | str) -> LatentScaler:
        """Return a copy on a device."""
        return LatentScaler(self.shift.to(device), self.scale.to(device))

    def __call__(self, raw: Tensor) -> Tensor:
        """Scale raw latents, (B, N, d)."""
        return (raw - self.shift) / self.scale

    def inverse(self, latents: Tensor) -> Tensor:
        """Return raw latents, (B, N, d)."""
        return latents * self.scale + self.shift

    def statistics(self, raw: LatentStatistics) -> LatentStatistics:
        """Return the statistics of scaled latents from those of raw ones."""
        shift, scale = self.shift.double(), self.scale.double()
        return LatentStatistics(mean=(raw.mean - shift) / scale, token_covariance=raw.token_covariance / scale[:, None, None] ** 2)


class LatentStore:
    """The latents that an encode job left in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tensors, _ = load_tensors(folder / STATISTICS)
        self.mean, self.variance = tensors["mean"], tensors["variance"]
        self.raw_statistics = LatentStatistics(mean=tensors["token_mean"], token_covariance=tensors["token_covariance"])
        self.manifest = read_json(folder / LATENTS)["arrays"] if (folder / LATENTS).exists() else None  # older folders have none
        self.stochastic = self._has("train", False, "std")
        self.has_mirror = self._has("train", True, "mean")

    def _has(self, split: str, mirrored: bool, statistic: str) -> bool:
        """Say whether an array was stored."""
        name = latents_name(split, mirrored, statistic)
        return name in self.manifest if self.manifest is not None else (self.folder / name).exists()

    def _array(self, split: str, mirrored: bool, statistic: str) -> ShardedArray:
        """Open a stored array without reading it, (images, N, d); the first to open a file compares its checksum."""
        name = latents_name(split, mirrored, statistic)
        if self.manifest is None:
            return ShardedArray([open_array(self.folder / name)])
        verify(self.folder, self.manifest[name])
        return ShardedArray([open_array(self.folder / entry["file"]) for entry in self.manifest[name]])

    def means(self, split: str, mirrored: bool = False) -> ShardedArray:
        """Return the stored means of a split, (images, N, d), memory-mapped."""
        return self._array(split, mirrored, "mean")

    def deviations(self, split: str, mirrored: bool = False) -> ShardedArray:
        """Return the stored posterior standard deviations of a split, (images, N, d), memory-mapped."""
        return self._array(split, mirrored, "std")

    def scaler(self, kind: LatentScale) -> LatentScaler:
        """Return the scaler of a kind, fitted to the training latents."""
        return LatentScaler.fit(kind, self.mean, self.variance)


@dataclass(frozen=True)
class LoadedLatents:
    """What one batch of training needs from the disk: latents (B, N, d) as stored, or pixels (B, H, W, 3) to encode, or both."""

    indices: np.ndarray
    mean: np.ndarray | None
    deviation: np.ndarray | None
    pixels: np.ndarray | None


def _mirrored(images: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Mirror the chosen images (B, H, W, 3) left to right, in place."""
    images[mirrored] = images[mirrored, :, ::-1]
    return images


class LatentBatches:
    """Batches of the denoiser's training: latents, and what else the objective needs.

    With a centre crop the stored latents are read; with random resized crops every image is cropped and encoded anew.
    """

    def __init__(
        self,
        store: LatentStore,
        scaler: LatentScaler,
        images: ImageSet,
        *,
        sample_posterior: bool,
        horizontal_flip: bool,
        with_images: bool,
        tokenizer: Tokenizer | None,
        device: torch.device,
    ) -> None:
        """with_images: also deliver the pixels (target original). tokenizer: given only for random resized crops."""
        self.scaler, self.image_set, self.device = scaler.to(device), images, device
        self.sample_posterior, self.horizontal_flip, self.with_images, self.tokenizer = (
            sample_posterior,
            horizontal_flip,
            with_images,
            tokenizer,
        )
        self.images = len(images)
        self.labels = torch.from_numpy(np.asarray(images.labels)).to(device)
        mirrors = (False, True) if horizontal_flip and tokenizer is None else (False,)
        self.means = [store.means("train", mirrored) for mirrored in mirrors] if tokenizer is None else []
        self.deviations = [store.deviations("train", mirrored) for mirrored in mirrors] if store.stochastic and tokenizer is None else []

    def load(self, indices: np.ndarray, positions: np.ndarray, noise: NoiseSource) -> LoadedLatents:
        """Read latents, or decode and crop pixels, of the given images."""
        mirrored = (noise.uniform("mirror") < 0.5).cpu().numpy() if self.horizontal_flip else np.zeros(len(indices), dtype=bool)
        if self.tokenizer is not None:
            seeds = np.array([stream_seed(noise.seed, "crop", position) for position in positions], dtype=np.int64)
            return LoadedLatents(indices, None, None, _mirrored(self.image_set.batch(indices, seeds), mirrored))
        pixels = _mirrored(self.image_set.batch(indices), mirrored) if self.with_images else None
        deviation = self._read(self.deviations, indices, mirrored) if self.deviations else None
        return LoadedLatents(indices, self._read(self.means, indices, mirrored), deviation, pixels)

    def finish(self, loaded: LoadedLatents, noise: NoiseSource) -> dict[str, Tensor]:
        """Return "latents" (B, N, d), "labels" (B,), and "images" (B, 3, H, W) where asked for."""
        images = None if loaded.pixels is None else to_tensor(loaded.pixels, self.device)
        if loaded.mean is None:
            assert images is not None
            mean, deviation = self._encode(images)
        else:
            mean = torch.from_numpy(loaded.mean).to(self.device).float()
            deviation = None if loaded.deviation is None else torch.from_numpy(loaded.deviation).to(self.device).float()
        raw = mean
        if deviation is not None and self.sample_posterior:
            raw = mean + deviation * noise.normal("posterior", tuple(mean.shape[1:]))
        found = {"latents": self.scaler(raw), "labels": self.labels[torch.from_numpy(loaded.indices).to(self.device)]}
        return found | ({"images": images} if images is not None and self.with_images else {})

    def _read(self, arrays: list[ShardedArray], indices: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """Read rows of the plain or the mirrored array. -> (B, N, d) as stored."""
        rows = arrays[0][indices]
        if mirrored.any():
            rows[mirrored] = arrays[1][indices[mirrored]]
        return rows

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode a batch on the fly. -> mean (B, N, d), and std where there is a posterior."""
        assert self.tokenizer is not None
        return self.tokenizer.encode(pixels)


class ImageBatches:
    """Batches of the tokenizer's training: images, mirrored at random where the recipe says so."""

    def __init__(self, images: ImageSet, *, horizontal_flip: bool, device: torch.device) -> None:
        self.image_set, self.horizontal_flip, self.device = images, horizontal_flip, device
        self.images = len(images)

    def load(self, indices: np.ndarray, positions: np.ndarray, noise: NoiseSource) -> np.ndarray:
        """Read the given images, mirrored at random, (B, H, W, 3) uint8."""
        images = self.image_set.batch(indices)
        return _mirrored(images, (noise.uniform("mirror") < 0.5).cpu().numpy()) if self.horizontal_flip else images

    def finish(self, loaded: np.ndarray, noise: NoiseSource) -> dict[str, Tensor]:
        """Return "images" (B, 3, H, W)."""
        return {"images": to_tensor(loaded, self.device)}

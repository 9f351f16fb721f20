"""Batches of fine-tuning: random resized crops, RandAugment, random erasing, MixUp and CutMix, through timm.

timm draws from the global random states of Python, numpy and torch. They are seeded for each image, or block of images, by its
position in the training and put back afterwards, so that a training that resumes draws the same.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

import ablation.torchvision_compat  # noqa: F401  before timm, which imports torchvision
from ablation.config import FinetuneConfig
from ablation.data.images import ImageSet
from ablation.data.latents import to_tensor
from ablation.errors import ConfigError
from ablation.train.noise import BLOCK, NoiseSource, stream_seed

from timm.data.auto_augment import rand_augment_transform  # isort: skip
from timm.data.mixup import Mixup  # isort: skip
from timm.data.random_erasing import RandomErasing  # isort: skip

TRANSLATION = 0.45  # largest shift of RandAugment, as a share of the image, as timm's own pipeline sets it
GREY = (128, 128, 128)  # what RandAugment fills with
SMALLEST_ERASED = 0.02  # share of the image's area, timm's


_ONE_AT_A_TIME = threading.Lock()
"""The states are the process's, not a thread's."""


@contextlib.contextmanager
def seeded(seed: int, devices: tuple[torch.device, ...] = ()) -> Iterator[None]:
    """Seed the global random states of Python, numpy and torch (CPU and the given devices), and put them back at the end.

    One thread at a time: batches are made ahead in one thread while another one trains.
    """
    with _ONE_AT_A_TIME:
        yield from _seeded(seed, devices)


def _seeded(seed: int, devices: tuple[torch.device, ...]) -> Iterator[None]:
    """Do what `seeded` says, while no other thread does."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class FinetuneBatches:
    """Augmented images and soft targets of the fine-tuning.

    A mixed image shares its batch's ratio with the images of its block of 32 positions, so batches should hold whole blocks.
    """

    def __init__(self, images: ImageSet, cfg: FinetuneConfig, *, horizontal_flip: bool, device: torch.device) -> None:
        self.image_set, self.cfg, self.horizontal_flip, self.device = images, cfg, horizontal_flip, device
        self.images, self.num_classes = len(images), images.num_classes
        self.labels = torch.from_numpy(np.asarray(images.labels))

    def load(self, indices: np.ndarray, positions: np.ndarray, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) in about [-1, 1] and targets (B, classes), rows that sum to 1, on the CPU."""
        seeds = np.array([stream_seed(noise.seed, "crop", position) for position in positions], dtype=np.int64)
        pixels = self.image_set.batch(indices, seeds).copy()
        if self.horizontal_flip:
            mirrored = (noise.uniform("mirror") < 0.5).cpu().numpy()
            pixels[mirrored] = pixels[mirrored, :, ::-1]
        images = to_tensor(self._rand_augment(pixels, positions, noise.seed))
        self._erase(images, positions, noise.seed)
        return self._mix(images, self.labels[indices], positions, noise.seed)

    def finish(self, loaded: tuple[Tensor, Tensor], noise: NoiseSource) -> dict[str, Tensor]:
        """Return "images" and "targets" on the device."""
        images, targets = loaded
        return {"images": images.to(self.device), "targets": targets.to(self.device)}

    def _rand_augment(self, pixels: np.ndarray, positions: np.ndarray, seed: int) -> np.ndarray:
        """Apply RandAugment to each image, (B, H, W, 3) uint8."""
        if self.cfg.rand_augment is None:
            return pixels
        transform = _rand_augment(self.cfg.rand_augment, pixels.shape[1])
        done = []
        for image, position in zip(pixels, positions, strict=True):
            with seeded(stream_seed(seed, "rand augment", position)):
                done.append(np.asarray(transform(Image.fromarray(image))))
        return np.stack(done)

    def _erase(self, images: Tensor, positions: np.ndarray, seed: int) -> None:
        """Replace a rectangle of some images by noise, in place. (B, 3, H, W)."""
        if self.cfg.random_erasing == 0:
            return
        erase = RandomErasing(self.cfg.random_erasing, min_area=SMALLEST_ERASED, mode="pixel", max_count=1, device="cpu")
        for image, position in zip(images, positions, strict=True):
            with seeded(stream_seed(seed, "erase", position)):
                erase(image)

    def _mix(self, images: Tensor, labels: Tensor, positions: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
        """Mix images (B, 3, H, W) within blocks of positions and return them with soft targets (B, classes)."""
        smooth = self.cfg.label_smoothing
        targets = torch.full((len(labels), self.num_classes), smooth / self.num_classes)
        targets.scatter_(1, labels[:, None], 1 - smooth + smooth / self.num_classes)
        if self.cfg.mixup == 0 and self.cfg.cutmix == 0:
            return images, targets
        mix = Mixup(self.cfg.mixup, self.cfg.cutmix, label_smoothing=smooth, num_classes=self.num_classes)
        for block in np.unique(positions // BLOCK):
            where = np.flatnonzero(positions // BLOCK == block)
            first, last = int(where[0]), int(where[0]) + len(where) // 2 * 2  # an odd one out stays as it is
            with seeded(stream_seed(seed, "mix", block)):
                if last > first:  # timm mixes the images in place
                    _, targets[first:last] = mix(images[first:last], labels[first:last])
        return images, targets


def _rand_augment(text: str, size: int) -> Any:
    """Build timm's RandAugment for images of `size` pixels; its posterising keeps at least one bit, as Pillow refuses none.

    Raises ConfigError where timm cannot read the text.
    """
    try:
        transform = rand_augment_transform(text, {"translate_const": int(TRANSLATION * size), "img_mean": GREY})
    except (AssertionError, ValueError, KeyError) as error:
        raise ConfigError(
            f"finetune.rand_augment = '{text}' cannot be read by timm: {error}", "Write it as rand-m9-mstd0.5-inc1."
        ) from None
    for operation in transform.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest bits of every channel, at least one."""
    return image if bits >= 8 else ImageOps.posterize(image, max(1, bits))

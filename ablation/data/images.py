"""Labelled images of every source behind one protocol."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ablation.config import DataConfig
from ablation.data import crops, sources
from ablation.data.array_cache import cached_array
from ablation.data.array_files import read_arrays
from ablation.data.fingerprint import fingerprint
from ablation.data.folder_index import FolderIndex, open_index
from ablation.data.scenes import NAME as SCENES_NAME
from ablation.data.scenes import Scenes
from ablation.data.shards import ShardedArray, open_array
from ablation.data.sources import Split
from ablation.errors import ArtifactError, ConfigError, DataError
from ablation.store import IMAGE_CACHE, read_json

MEMORY_LIMIT = 2**30
"""Without a cache folder, scenes of more bytes than this are rendered when asked for instead of kept."""
CACHE_LIMIT = 4 * 2**30
"""Centre crops of image files are kept in the cache folder up to this many bytes a split; beyond, they are decoded each time."""
DECODING_THREADS = 16
LIMIT_SEED = 0  # which images data.train_images keeps is the same in every run


class ImageSet(Protocol):
    """One split of a labelled data set; labels are int64 (n,), composite is true for generated scenes."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def composite(self) -> bool: ...
    @property
    def labels(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, crop_seeds: np.ndarray | None = None) -> np.ndarray:
        """Return images (B, H, W, 3) uint8: the centre crop, or with crop_seeds (B,) the random resized crop of each seed."""

    def where_from(self, random_crops: bool) -> str:
        """Say in words whether pixels are read from a store or decoded each time, and why."""


class Originals(Protocol):
    """Images at their own size, one by one, before any crop; labels are int64 (n,)."""

    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> np.ndarray: ...

    def load(self, index: int) -> Image.Image:
        """Decode one image; DataError names a file that cannot be decoded or is too small."""


def _decoding_threads() -> int:
    """Return how many threads decode a batch."""
    return min(DECODING_THREADS, len(os.sched_getaffinity(0)))


@dataclass(frozen=True, eq=False)
class Images:
    """The image set of every source: originals, the kept ones' indices, and their centre crops where they are stored.

    kept: indices (n,) into originals; labels: int64 (n,); stored: uint8 (n, H, W, 3), or None to crop each time;
    crop_source: the same images at the size that random crops are cut from, or None for the whole files.
    """

    name: str
    split: Split
    image_size: int
    class_names: tuple[str, ...]
    labels: np.ndarray
    originals: Originals = field(repr=False)
    kept: np.ndarray = field(repr=False)
    stored: np.ndarray | ShardedArray | None = field(repr=False)
    composite: bool = False
    crop_source: Images | None = field(default=None, repr=False)
    threads: int = field(default_factory=_decoding_threads)

    @property
    def num_classes(self) -> int:
        """Number of classes, also of those without an image in this split."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray, crop_seeds: np.ndarray | None = None) -> np.ndarray:
        """Return images (B, H, W, 3) uint8; crop_seeds (B,) switch from the centre crop to seeded random resized crops.

        Raises IndexError for an index outside the set, DataError for an image that cannot be decoded.
        """
        indices = np.asarray(indices, np.int64)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"image index outside 0..{len(self) - 1}")
        if crop_seeds is None:
            return self._centre(indices) if self.stored is None else np.asarray(self.stored[indices])  # a copy, not the map
        if len(crop_seeds) != len(indices):
            raise ValueError(f"{len(indices)} images but {len(crop_seeds)} crop seeds")
        seeds = dict(enumerate(np.asarray(crop_seeds).tolist()))
        return self._stack(indices, lambda image, place: crops.random_resized_crop(image, self.image_size, seeds[place]))

    def _original(self, index: int) -> Image.Image:
        """Load one image before its crop; a stored scene is its own original."""
        if self.crop_source is not None:
            return self.crop_source._square(index)
        if self.composite and self.stored is not None:
            return Image.fromarray(self.stored[np.array([index])][0])
        return self.originals.load(int(self.kept[index]))

    def _square(self, index: int) -> Image.Image:
        """Return one image's centre crop."""
        if self.stored is not None:
            return Image.fromarray(self.stored[np.array([index])][0])
        return crops.centre_crop(self.originals.load(int(self.kept[index])), self.image_size)

    def where_from(self, random_crops: bool) -> str:
        """Say where pixels come from, and why not from a cache where they do not."""
        source = self.crop_source if random_crops else self
        if source is not None and source.stored is not None:
            return f"images are read as {source.image_size} px crops that are stored"
        if random_crops and source is None:
            return (
                "random crops are decoded from the image files: they cannot be cut from stored centre crops without changing them; "
                "data.crop_source_size allows that, and `ablate cache` then stores what they are cut from"
            )
        return "images are decoded from their files each time; `ablate cache` stores them"

    def _centre(self, indices: np.ndarray) -> np.ndarray:
        """Cut the centre crops (B, H, W, 3) anew."""
        if isinstance(self.originals, _SceneOriginals):
            return self.originals.scenes.render(self.kept[indices])
        return self._stack(indices, lambda image, _: crops.centre_crop(image, self.image_size))

    def _stack(self, indices: np.ndarray, crop: Callable[[Image.Image, int], Image.Image]) -> np.ndarray:
        """Load and crop images, in threads where they come from files, and stack them to (B, H, W, 3)."""
        batch = np.empty((len(indices), self.image_size, self.image_size, 3), np.uint8)

        def place(position: int) -> None:
            batch[position] = np.asarray(crop(self._original(int(indices[position])), position))

        if isinstance(self.originals, _ArrayOriginals | _SceneOriginals):
            for position in range(len(indices)):
                place(position)
        else:
            with ThreadPoolExecutor(self.threads) as pool:  # Pillow decodes without the lock
                list(pool.map(place, range(len(indices))))
        return batch


def open_images(data: DataConfig, split: Split, cache: Path | None = None, *, store: bool = True, threads: int | None = None) -> Images:
    """Open one split of the configured data; cache is a folder for generated, decoded and downloaded data.

    data.train_images and data.test_images keep a fixed, class-balanced choice, in the order of the files. Crops that
    `ablate cache` has stored are read; without them, few images are stored here (unless store is off) and many are decoded
    each time, by so many threads. Raises DataError with the fix for data that is missing, damaged, too small, or of one class.
    """
    sources.check_source(data)
    if sources.declared(data):
        raise DataError(f"data.source '{data.source}' has no images: it is for planning", "Give the folder of images with --data.")
    wanted = data.train_images if split == "train" else data.test_images
    if data.source == "scenes":
        images = _open_scenes(data, split, wanted if wanted is not None else sources.SCENE_COUNTS[split], cache)
    else:
        originals = _open_originals(data, split, wanted, cache)
        kept = _limit(data, split, originals.labels, wanted)
        images = Images(data.source, split, data.image_size, originals.class_names, originals.labels[kept], originals, kept, None)
        images = replace(images, stored=_stored_crops(data, images, cache, store))
    if data.crop_source_size is not None and split == "train":
        images = replace(images, crop_source=_crop_source(data, images, cache))
    return images if threads is None else replace(images, threads=threads)


def _stored_crops(data: DataConfig, images: Images, cache: Path | None, store: bool) -> np.ndarray | ShardedArray | None:
    """Find the centre crops in memory or in the cache, or make them there if they are few; nothing where they are decoded each time."""
    shape = (len(images), data.image_size, data.image_size, 3)
    if isinstance(images.originals, _ArrayOriginals):
        same = images.originals.images.shape[1:] == shape[1:]
        return images.originals.images[images.kept] if same else cached_array(None, "", shape, images._centre)
    if cache is None:
        return None
    name = cache_name(data, images.split, len(images), cache)
    if (found := read_stored(cache / name, len(images), data.image_size)) is not None:
        return found
    if not store or int(np.prod(shape)) > CACHE_LIMIT:
        return None
    return cached_array(cache, name, shape, images._centre)


def _crop_source(data: DataConfig, images: Images, cache: Path | None) -> Images:
    """Return the same images at the size that random crops are cut from, stored if `ablate cache` has stored them."""
    assert data.crop_source_size is not None
    if data.crop_source_size < data.image_size:
        problem = f"data.crop_source_size is {data.crop_source_size}, smaller than data.image_size, {data.image_size}"
        raise ConfigError(problem, f"Set it to {data.image_size} or more.")
    source = replace(images, image_size=data.crop_source_size, stored=None)
    if cache is None:
        return source
    larger = data.model_copy(update={"image_size": data.crop_source_size})
    return replace(source, stored=read_stored(cache / cache_name(larger, images.split, len(images), cache), len(images), source.image_size))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read what `ablate cache` says of a folder of shards; nothing where there is none."""
    try:
        manifest: dict[str, Any] = read_json(folder / IMAGE_CACHE)
    except ArtifactError:
        return None
    return manifest


def read_stored(folder: Path, images: int, image_size: int) -> ShardedArray | None:
    """Map the shards of a finished image cache (n, H, W, 3); nothing where it is unfinished or a file is missing or cut short.

    Only sizes are compared: reading every byte of a set of millions takes as long as an epoch. `ablate verify --files` does.
    """
    manifest = read_manifest(folder)
    if manifest is None or not manifest["complete"]:
        return None
    try:
        if any((folder / shard["file"]).stat().st_size != shard["bytes"] for shard in manifest["shards"]):
            return None
    except OSError:
        return None
    array = ShardedArray([open_array(folder / shard["file"]) for shard in manifest["shards"]])
    return array if array.shape == (images, image_size, image_size, 3) else None


def _open_originals(data: DataConfig, split: Split, wanted: int | None, cache: Path | None) -> Originals:
    """Open the uncropped images of a source."""
    if data.source == "folder":
        path = sources.existing_path(data)
        return _FileOriginals(path, open_index(path, cache), split, data.image_size)
    if data.source.startswith(sources.TIMM_PREFIX):
        sources.existing_path(data)  # before the slow import
        from ablation.data.timm_images import TimmOriginals  # slow: timm imports torchvision

        return TimmOriginals.open(data, split, wanted)
    arrays = read_arrays(data, split, cache)
    return _ArrayOriginals(arrays.images, arrays.labels, arrays.class_names)


def _open_scenes(data: DataConfig, split: Split, count: int, cache: Path | None) -> Images:
    """Generate scenes, or map them from the cache; large sets without a cache are rendered when asked for."""
    scenes = Scenes(split, count, data.image_size, data.scene_seed)
    shape = (count, data.image_size, data.image_size, 3)
    images = Images(SCENES_NAME, split, data.image_size, scenes.class_names, scenes.labels, _SceneOriginals(scenes),
                    np.arange(count), None, composite=True)  # fmt: skip
    if cache is None and int(np.prod(shape)) > MEMORY_LIMIT:
        return images
    name = "" if cache is None else cache_name(data, split, count, cache)
    return replace(images, stored=cached_array(cache, name, shape, scenes.render))


def cache_name(data: DataConfig, split: Split, count: int, cache: Path | None) -> str:
    """Name a cache file by everything its pixels depend on."""
    content = fingerprint(data, cache)[split]
    text = f"{data.source} {content} {split} {data.image_size} {count}"
    return f"{data.source.split(':')[0]}-{split}-{data.image_size}px-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _limit(data: DataConfig, split: Split, labels: np.ndarray, wanted: int | None) -> np.ndarray:
    """Choose the images to keep, (n,) sorted: in turn one of every class, in a fixed random order, until there are enough.

    labels: int64 (all,). A limit above the number of images keeps them all. Raises DataError when the kept ones are of one class.
    """
    if wanted is None or wanted >= len(labels):
        kept = np.arange(len(labels))
    else:
        shuffle = np.random.default_rng(LIMIT_SEED).random(len(labels))
        order = np.lexsort((shuffle, labels))  # by class, shuffled within
        sorted_labels = labels[order]
        first = np.searchsorted(sorted_labels, sorted_labels)  # where each one's class begins
        turn = np.empty(len(labels), np.int64)
        turn[order] = np.arange(len(labels)) - first
        kept = np.sort(np.lexsort((shuffle, turn))[:wanted])  # (wanted,)
    if len(np.unique(labels[kept])) < 2:
        raise DataError(f"the {split} split of {data.source} has images of one class only", "A probe needs two classes or more.")
    return kept


@dataclass(frozen=True, eq=False)
class _ArrayOriginals:
    """Images that are in memory, uint8 (n, H, W, 3)."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def load(self, index: int) -> Image.Image:
        """Wrap one image."""
        return Image.fromarray(self.images[index])


@dataclass(frozen=True, eq=False)
class _SceneOriginals:
    """Scenes, rendered one by one at the size of the set."""

    scenes: Scenes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the 16 classes."""
        return self.scenes.class_names

    @property
    def labels(self) -> np.ndarray:
        """Class of each scene."""
        return self.scenes.labels

    def load(self, index: int) -> Image.Image:
        """Render one scene."""
        return Image.fromarray(self.scenes.render(np.array([index]))[0])


class _FileOriginals:
    """Images in a folder, decoded when asked for."""

    def __init__(self, root: Path, index: FolderIndex, split: Split, image_size: int) -> None:
        self.class_names: tuple[str, ...] = index.class_names
        self.labels = np.repeat(np.arange(len(index.class_names)), index.class_counts(split))  # (n,) int64
        self._root, self._index, self._split, self._image_size = root, index, split, image_size

    def load(self, index: int) -> Image.Image:
        """Decode one file."""
        path = self._root / self._index.name(self._split, index)
        image = crops.decode(path, str(path))
        crops.check_size(image, self._image_size, str(path))
        return image

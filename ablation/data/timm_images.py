"""Images through timm.data.create_dataset: its folders, tars, WebDataset shards and Hugging Face data sets."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

import ablation.torchvision_compat  # noqa: F401  (before timm)
from ablation.config import DataConfig
from ablation.data import crops, sources
from ablation.data.sources import Split
from ablation.errors import DataError

TIMM_SPLITS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("validation", "val", "test")}
IDENTITY_IMAGES = 16
STREAM_LIMIT = 4 * 2**30
"""Bytes of decoded images of a stream (WebDataset) that are kept in memory."""


class TimmOriginals:
    """Images of one timm data set at their own size; labels int64 (n,)."""

    def __init__(self, labels: np.ndarray, class_names: tuple[str, ...], load: Callable[[int], Image.Image]) -> None:
        self.labels, self.class_names, self._load = labels, class_names, load

    def load(self, index: int) -> Image.Image:
        """Decode one image."""
        return self._load(index)

    def identity(self) -> str:
        """Hash the class names, the labels and IDENTITY_IMAGES images spread over the set."""
        state = hashlib.sha256("\n".join(self.class_names).encode() + self.labels.tobytes())
        for index in np.linspace(0, len(self.labels) - 1, min(IDENTITY_IMAGES, len(self.labels))).astype(int).tolist():
            state.update(self.load(index).tobytes())
        return state.hexdigest()

    @classmethod
    def open(cls, data: DataConfig, split: Split, wanted: int | None) -> TimmOriginals:
        """Open timm:NAME at data.path; a stream is read into memory, up to the images wanted.

        Names are timm's: timm:folder (a folder, or a tar of images), timm:hfds/NAME, timm:wds/NAME, timm:torch/NAME.
        Where a folder or tar has no split of its own, a fixed fifth of every class is the test split.
        Raises DataError where timm or the library behind it cannot open the data.
        """
        dataset = _create(data, split)
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or hasattr(dataset, "__iter__"):
            return _read_stream(dataset, data, split, wanted)
        labels, names = _labels(dataset), _class_names(dataset)
        chosen = np.arange(len(labels))
        if _is_folder(data):
            other = _create(data, "test" if split == "train" else "train")
            if _class_names(other) != names:
                raise DataError(f"train and test of '{data.source}' at '{data.path}' have different classes", "Make them equal.")
            if other.reader.root == dataset.reader.root:
                chosen = _divide(labels, [dataset.filename(i) for i in range(len(labels))], split)
        load = _Loader(dataset, chosen, data.image_size)
        return cls(labels[chosen], names or _numbered(labels), load)


class _Loader:
    """Decodes one image through the data set's reader: timm's own __getitem__ replaces a broken image by its neighbour."""

    def __init__(self, dataset: Any, chosen: np.ndarray, image_size: int) -> None:
        self._dataset, self._chosen, self._image_size = dataset, chosen, image_size
        self._lock = Lock()  # a tar has one read position

    def __call__(self, index: int) -> Image.Image:
        """Decode the image of one index."""
        position = int(self._chosen[index])
        if not hasattr(self._dataset, "reader"):  # torchvision's data sets
            with self._lock:
                image = self._dataset[position][0].convert("RGB")
            name = f"image {position}"
        else:
            name = str(self._dataset.filename(position))
            with self._lock, self._dataset.reader[position][0] as file:
                content = file.read()
            image = crops.decode(io.BytesIO(content), name)
        crops.check_size(image, self._image_size, name)
        return image


def _is_folder(data: DataConfig) -> bool:
    """Say whether timm reads a plain folder or tar."""
    return "/" not in data.source.removeprefix(sources.TIMM_PREFIX)


def _create(data: DataConfig, split: Split) -> Any:
    """Create timm's data set, trying its names for the split in turn."""
    from timm.data import create_dataset

    name = data.source.removeprefix(sources.TIMM_PREFIX)
    root = sources.existing_path(data)
    reason = ""
    for candidate in TIMM_SPLITS[split]:
        tar = root / f"{candidate}.tar"
        try:
            return create_dataset(name, root=str(tar if tar.is_file() else root), split=candidate)
        except (ImportError, AssertionError, RuntimeError, OSError, ValueError, LookupError, TypeError) as error:
            reason = reason or " ".join(f"{type(error).__name__}: {error}".split())[:200]
    fix = "Check NAME in timm:NAME and data.path; hfds needs the package datasets, wds the package webdataset."
    raise DataError(f"timm cannot open the {split} split of '{name}' at '{root}' ({reason})", fix)


def _labels(dataset: Any) -> np.ndarray:
    """Collect the labels (n,) int64 without decoding where the data set allows it."""
    reader = getattr(dataset, "reader", dataset)
    if hasattr(reader, "iter_targets"):
        return np.array(list(reader.iter_targets()), np.int64)
    if hasattr(reader, "targets"):  # tars, and torchvision's data sets
        return np.array(reader.targets, np.int64)
    if hasattr(reader, "samples"):
        return np.array([sample[1] for sample in reader.samples], np.int64)
    return np.array([dataset[i][1] for i in range(len(dataset))], np.int64)


def _class_names(dataset: Any) -> tuple[str, ...]:
    """Return the class names in the order of their numbers; nothing where the data set has none."""
    reader = getattr(dataset, "reader", dataset)
    mapping = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}  # the latter: tars
    return tuple(str(name) for name, _ in sorted(mapping.items(), key=lambda item: item[1]))


def _numbered(labels: np.ndarray) -> tuple[str, ...]:
    """Name classes by their numbers."""
    return tuple(str(label) for label in range(int(labels.max(initial=-1)) + 1))


def _divide(labels: np.ndarray, names: list[str], split: Split) -> np.ndarray:
    """Choose the images of a split by the hash of their names, a fixed fifth of every class for test; (n,) sorted."""
    hashes = np.array([hashlib.sha256(name.encode()).hexdigest() for name in names])
    test: list[int] = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = max(1, round(sources.FLAT_TEST_SHARE * len(own)))
        test.extend(own[np.argsort(hashes[own])][:count].tolist())
    in_test = np.isin(np.arange(len(labels)), test)
    return np.flatnonzero(in_test if split == "test" else ~in_test)


def _read_stream(dataset: Any, data: DataConfig, split: Split, wanted: int | None) -> TimmOriginals:
    """Read a stream from its start into memory, up to the images wanted."""
    images: list[Image.Image] = []
    labels: list[int] = []
    total = 0
    for image, label in dataset:
        images.append(image.convert("RGB"))
        labels.append(int(label))
        crops.check_size(images[-1], data.image_size, f"image {len(images) - 1} of {data.source}")
        total += 3 * images[-1].width * images[-1].height
        if total > STREAM_LIMIT:
            problem = f"'{data.source}' holds more than {STREAM_LIMIT >> 30} GiB of pixels"
            raise DataError(problem, f"Set data.{split}_images, or unpack it and use data.source folder.")
        if wanted is not None and len(images) == wanted:
            break
    collected = np.array(labels, np.int64)
    return TimmOriginals(collected, _class_names(dataset) or _numbered(collected), images.__getitem__)

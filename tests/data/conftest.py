"""Small made-up image folders and IDX files, written for real."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _write_image(path: Path, width: int = 40, height: int = 30, colour: int = 0) -> None:
    """Write a smooth image whose pixels depend on its colour number."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 255 // height, columns * 255 // width, np.full_like(rows, colour * 37 % 256)], -1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _write_idx(path: Path, array: np.ndarray) -> None:
    """Write unsigned bytes as an IDX file, gzipped if its name says so."""
    content = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def write_image() -> Callable[..., None]:
    """Write one image: path, width, height, colour."""
    return _write_image


@pytest.fixture
def write_idx() -> Callable[..., None]:
    """Write one IDX file: path, array."""
    return _write_idx


@pytest.fixture
def flat_folder(tmp_path: Path) -> Path:
    """Two classes of ten images each, PNG and JPEG, without train and val folders."""
    for label, name in enumerate(("cat", "dog")):
        for number in range(10):
            _write_image(tmp_path / "flat" / name / f"{number}.{'png' if number % 2 else 'jpg'}", colour=10 * label + number)
    return tmp_path / "flat"


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    """Three classes with train and val folders; sizes differ between images."""
    for split, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("ant", "bee", "cow")):
            for number in range(count):
                width, height = 40 + 7 * number, 64 - 5 * number
                _write_image(tmp_path / "split" / split / name / f"{number}.png", width, height, colour=10 * label + number)
    return tmp_path / "split"


@pytest.fixture
def write_fashion(tmp_path: Path) -> Callable[..., Path]:
    """Write a made-up Fashion-MNIST of 20 training and 10 test images into a folder."""

    def write(folder: str = "fashion", suffix: str = ".gz", seed: int = 0) -> Path:
        draws = np.random.default_rng(seed)
        for stem, count in (("train", 20), ("t10k", 10)):
            _write_idx(tmp_path / folder / f"{stem}-images-idx3-ubyte{suffix}", draws.integers(0, 256, (count, 28, 28)))
            _write_idx(tmp_path / folder / f"{stem}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
        return tmp_path / folder

    return write

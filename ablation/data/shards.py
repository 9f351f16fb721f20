"""Arrays on disk in one or several .npy files: written with a checksum, read through memory maps as if they were one."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ablation.errors import ArtifactError
from ablation.store import atomic_path, read_json, write_json

VERIFIED = ".verified.json"  # hidden: not among a job's artifacts
_BLOCK = 2**22


class ShardFile:
    """One .npy file under construction; rows are appended in order and hashed on the way."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...], dtype: type) -> None:
        self.shape, self.dtype, self.rows = shape, np.dtype(dtype), 0
        self._file, self._hash = file, hashlib.sha256()
        # plain writes, not a memory map: a full disk then raises instead of killing the process
        np.lib.format.write_array_header_1_0(
            _Tee(file, self._hash), {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        )  # fmt: skip

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows, (B, *shape[1:]), converted to the file's type."""
        content: np.ndarray = np.ascontiguousarray(rows, self.dtype)
        if content.shape[1:] != self.shape[1:] or self.rows + len(content) > self.shape[0]:
            raise ValueError(f"rows {content.shape} do not fit after row {self.rows} of {self.shape}")
        view = content.data.cast("B") if content.size else b""
        self._file.write(view)
        self._hash.update(view)
        self.rows += len(content)

    def entry(self, name: str) -> dict[str, Any]:
        """Return what a manifest says of the finished file."""
        if self.rows != self.shape[0]:
            raise ValueError(f"{self.rows} rows were written of {self.shape[0]}")
        return {"file": name, "rows": self.rows, "sha256": self._hash.hexdigest()}


class _Tee:
    """Passes what is written to a file on to its checksum."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self._file, self._digest = file, digest

    def write(self, content: bytes) -> None:
        """Write and hash."""
        self._file.write(content)
        self._digest.update(content)


@contextlib.contextmanager
def write_shard(path: Path, shape: tuple[int, ...], dtype: type) -> Iterator[ShardFile]:
    """Yield a file to append rows to; it gets its name only when it is whole and on the disk."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield ShardFile(file, shape, dtype)


class ShardedArray:
    """Several arrays, one after the other along the first axis, read by index as if they were one."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = tuple(arrays)
        self.starts = np.cumsum([0, *(len(array) for array in arrays)])
        self.shape = (int(self.starts[-1]), *arrays[0].shape[1:])
        self.dtype = arrays[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray | slice) -> np.ndarray:
        """Copy the rows of some indices (B,) or of a slice -> (B, ...)."""
        if len(self.arrays) == 1:
            found = self.arrays[0][indices]
            return np.array(found) if isinstance(indices, slice) else found.view(np.ndarray)  # indices have copied already
        indices = np.arange(*indices.indices(len(self))) if isinstance(indices, slice) else np.asarray(indices)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"row outside 0..{len(self) - 1}")
        found = np.empty((len(indices), *self.shape[1:]), self.dtype)
        shards = np.searchsorted(self.starts, indices, side="right") - 1  # (B,)
        for shard in np.unique(shards):
            where = shards == shard
            found[where] = self.arrays[shard][indices[where] - self.starts[shard]]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read everything into memory."""
        whole = np.concatenate(self.arrays) if len(self.arrays) > 1 else np.array(self.arrays[0])
        return whole if dtype is None else whole.astype(dtype)


def open_array(path: Path) -> np.ndarray:
    """Map one .npy file without reading it; an unreadable one raises with its name."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        fix = "Remove the file and run the same command again; only what is missing is made anew."
        raise ArtifactError(f"{path} is unreadable: {error}", fix) from None
    return array


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror})", "Run the same command again to make it.") from None
    return digest.hexdigest()


def verify(folder: Path, entries: Sequence[dict[str, Any]], *, again: bool = False) -> None:
    """Compare files with the checksums of their manifest, and remember that they were right.

    A file is read once: while its size and modification time are those of the last time it was right, it is taken to be
    right still, unless `again`. Raises ArtifactError, naming the file, where a byte has changed.
    """
    marks: dict[str, Any] = {}
    with contextlib.suppress(ArtifactError):
        marks = read_json(folder / VERIFIED)
    fresh: dict[str, Any] = {}
    for entry in entries:
        path = folder / entry["file"]
        try:
            stat = path.stat()
        except OSError:
            raise ArtifactError(f"{path} is missing", "Run the same command again: only what is missing is made anew.") from None
        mark = [stat.st_size, stat.st_mtime_ns, entry["sha256"]]
        if not again and marks.get(entry["file"]) == mark:
            continue
        if checksum(path) != entry["sha256"]:
            fix = "Delete that file and run the same command again: only what is missing is made anew."
            raise ArtifactError(f"{path} is damaged: its checksum is not the one it was written with", fix)
        fresh[entry["file"]] = mark
    if fresh:
        with contextlib.suppress(ArtifactError):  # a folder that is read-only keeps no marks
            write_json(folder / VERIFIED, {**marks, **fresh})

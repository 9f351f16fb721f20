"""Image arrays that are made once and then read from a .npy file in a cache folder."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from ablation.errors import DataError

CHUNK_BYTES = 2**26
"""Bytes made and written at a time."""

Fill = Callable[[np.ndarray], np.ndarray]
"""From indices (B,) to images uint8 (B, H, W, 3)."""


def cached_array(cache: Path | None, name: str, shape: tuple[int, int, int, int], fill: Fill) -> np.ndarray:
    """Return images uint8 of a shape: read from cache/name.npy if it is there, else made by fill, and stored if cache is set.

    Safe with several writers: each writes its own temporary file and renames it over the final name.
    Raises DataError when the cache cannot be written.
    """
    if cache is None:
        return np.concatenate([fill(indices) for indices in _chunks(shape)])  # (n, H, W, 3)
    path = cache / f"{name}.npy"
    if (stored := _read(path, shape)) is not None:
        return stored
    temporary = cache / f".{name}.{os.getpid()}.{uuid.uuid4().hex}.tmp"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            _write(file, shape, fill)
        os.replace(temporary, path)
        _sync_folder(cache)
    except OSError as error:
        raise DataError(f"image cache '{path}' cannot be written ({error})", "Free space or choose another folder.") from None
    finally:
        with contextlib.suppress(OSError):  # gone after the rename, or never made
            temporary.unlink()
    stored = _read(path, shape)
    if stored is None:
        raise DataError(f"image cache '{path}' was changed while it was written", "Run the command again.")
    return stored


def _chunks(shape: tuple[int, int, int, int]) -> list[np.ndarray]:
    """Divide the indices 0..n-1 into runs of about CHUNK_BYTES of images."""
    per_chunk = max(1, CHUNK_BYTES // int(np.prod(shape[1:])))
    return [np.arange(start, min(start + per_chunk, shape[0])) for start in range(0, shape[0], per_chunk)]


def _write(file: IO[bytes], shape: tuple[int, int, int, int], fill: Fill) -> None:
    """Write header and images, and push them to the disk."""
    # plain writes, not a memory map: a full disk then raises instead of killing the process
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    for indices in _chunks(shape):
        file.write(np.ascontiguousarray(fill(indices), dtype=np.uint8).data)
    file.flush()
    os.fsync(file.fileno())


def _read(path: Path, shape: tuple[int, int, int, int]) -> np.ndarray | None:
    """Map a stored array; nothing when it is missing, cut short or of another shape."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _sync_folder(folder: Path) -> None:
    """Push a rename to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Centre crops of a whole data set, decoded and resized once by several processes, and read as memory-mapped uint8 afterwards.

CACHE/NAME/shard-00000.npy ... and images.json, which lists the finished shards with their checksums. NAME follows from the
content, the split, the size and the number of images, so a cache can be out of date only by not being found.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ablation.config import DataConfig
from ablation.data.images import Images, cache_name, open_images, read_manifest, read_stored
from ablation.data.shards import write_shard
from ablation.data.sources import Split
from ablation.data.storage import IMAGE_SHARD_BYTES, image_cache_bytes, require_space, shard_ranges
from ablation.errors import DataError, Interrupted
from ablation.store import IMAGE_CACHE, UNFINISHED, write_json

BATCH = 64
MOST_NAMED = 20
"""Unreadable files that an error lists by name."""


@dataclass(frozen=True)
class CachePlan:
    """What a cache of one split will be: where, of how many images, how large, and whether it is there."""

    data: DataConfig
    split: Split
    folder: Path
    images: int
    total_bytes: int
    finished: bool


def plan_cache(data: DataConfig, split: Split, cache: Path) -> CachePlan:
    """Look at a data set and say what its cache would be."""
    images = open_images(data, split, cache, store=False)
    folder = cache / cache_name(data, split, len(images), cache)
    finished = read_stored(folder, len(images), data.image_size) is not None
    return CachePlan(data, split, folder, len(images), image_cache_bytes(data.image_size, len(images)), finished)


def build_cache(plan: CachePlan, cache: Path, workers: int, progress: Callable[[int, int], None], should_stop: Callable[[], bool]) -> None:
    """Fill a cache; shards that are there and whole are kept, so the same call goes on after an interruption.

    progress(images done, images in all). Raises ArtifactError where the disk has no room, DataError with the names of all
    images that cannot be decoded (the shards without such an image are kept), Interrupted where a stop was asked for.
    """
    with _only_one(plan.folder):
        for leftover in plan.folder.glob(f".*{UNFINISHED}"):
            leftover.unlink(missing_ok=True)
        entries = _finished(plan.folder)
        image_bytes = 3 * plan.data.image_size**2
        ranges = dict(enumerate(shard_ranges(plan.images, image_bytes, IMAGE_SHARD_BYTES)))
        missing = {number: place for number, place in ranges.items() if _shard_name(number) not in entries}
        require_space(plan.folder, sum(image_bytes * (last - first) for first, last in missing.values()), "cached images")
        done = plan.images - sum(last - first for first, last in missing.values())
        progress(done, plan.images)
        problems: list[str] = []
        for number, entry, found in _shards(plan, cache, workers, missing, should_stop):
            done += missing[number][1] - missing[number][0]
            problems += found
            if entry is not None:
                entries[entry["file"]] = entry
                _write_manifest(plan, entries, complete=False)
            progress(done, plan.images)
        if problems:
            raise _unreadable(problems)
        _write_manifest(plan, entries, complete=True)


def _shards(
    plan: CachePlan, cache: Path, workers: int, missing: dict[int, tuple[int, int]], should_stop: Callable[[], bool]
) -> Iterator[tuple[int, dict[str, Any] | None, list[str]]]:
    """Write the missing shards in worker processes and yield each one's number, manifest entry and unreadable images."""
    if not missing:
        return
    context = multiprocessing.get_context("spawn")  # threads of this process may hold locks
    count = min(workers, len(missing))
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        waiting: dict[Future[tuple[dict[str, Any] | None, list[str]]], int] = {}
        ahead = iter(missing.items())
        try:
            while True:
                while len(waiting) < count and (following := next(ahead, None)) is not None:
                    waiting[pool.submit(_write, plan, cache, os.getpid(), _shard_name(following[0]), *following[1])] = following[0]
                if not waiting:
                    return
                finished, _ = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield waiting.pop(future), *future.result()
                if should_stop():
                    raise Interrupted("stopped while caching images; the same command goes on with the shards that are missing")
        except BaseException:
            for process in list(pool._processes.values()):  # a shard takes minutes: end it, its temporary file is removed next time
                process.terminate()
            raise


def _write(plan: CachePlan, cache: Path, parent: int, name: str, first: int, last: int) -> tuple[dict[str, Any] | None, list[str]]:
    """Write one shard in a worker process; returns its entry, or none and the problems with images that cannot be decoded.

    One thread decodes, as there is a process for every core. Opening the images anew costs nothing beside a shard.
    """
    images = open_images(plan.data, plan.split, cache, store=False, threads=1)
    problems: list[str] = []
    entry: dict[str, Any] | None = None
    with contextlib.suppress(_Unreadable), write_shard(plan.folder / name, (last - first, *_shape(images)), np.uint8) as file:
        for start in range(first, last, BATCH):
            if os.getppid() != parent:
                raise Interrupted("the command has ended")
            rows, found = _decode(images, np.arange(start, min(start + BATCH, last)))
            problems += found
            file.append(rows)
        if problems:
            raise _Unreadable
        entry = file.entry(name)
    return entry, problems


class _Unreadable(Exception):
    """Leaves a shard unwritten."""


def _decode(images: Images, indices: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return a batch's crops (B, H, W, 3), and what is wrong with those that cannot be decoded, which stay black."""
    try:
        return images.batch(indices), []
    except DataError:
        rows, problems = np.zeros((len(indices), *_shape(images)), np.uint8), []
        for place, index in enumerate(indices):
            try:
                rows[place] = images.batch(np.array([index]))[0]
            except DataError as error:
                problems.append(error.problem)
        return rows, problems


def _shape(images: Images) -> tuple[int, int, int]:
    """Return the shape of one crop."""
    return images.image_size, images.image_size, 3


def _unreadable(problems: list[str]) -> DataError:
    """Name the images that cannot be used, all together, so that a million files are not decoded again for each."""
    more = f"; and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
    fix = "Replace or remove them and run the same command again (a changed set of files is cached anew)."
    return DataError(f"{len(problems)} images cannot be used: {'; '.join(problems[:MOST_NAMED])}{more}", fix)


def _shard_name(number: int) -> str:
    """Name a shard's file."""
    return f"shard-{number:05d}.npy"


def _finished(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest's entries whose files are there at their full size."""
    manifest = read_manifest(folder)
    if manifest is None:
        return {}
    return {entry["file"]: entry for entry in manifest["shards"] if _has_size(folder / entry["file"], entry["bytes"])}


def _has_size(path: Path, size: int) -> bool:
    """Say whether a file is there and whole."""
    return path.exists() and path.stat().st_size == size


def _write_manifest(plan: CachePlan, entries: dict[str, dict[str, Any]], complete: bool) -> None:
    """Write down which shards are finished."""
    shards = [{**entries[name], "bytes": (plan.folder / name).stat().st_size} for name in sorted(entries)]
    document = {"complete": complete, "images": plan.images, "image_size": plan.data.image_size, "split": plan.split, "shards": shards}
    write_json(plan.folder / IMAGE_CACHE, document)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keep a second command from filling the same cache at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another command is filling {folder}", "Wait for it, or end it first.") from None
        except OSError:  # a file system without locks goes without
            pass
        yield

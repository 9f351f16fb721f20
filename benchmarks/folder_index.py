"""A folder of very many files: found, fingerprinted and opened, with its time and its memory."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness import Measure, Row, main

NAME = "folder_index"
TITLE = "A folder of very many images"
ABOUT = """
Tiny JPEG files in 1,000 class folders, with a twenty-fifth as many for testing. Planning scans names and sizes once; later jobs
map the index. Memory is the peak of a process that fingerprints the folder, less that of one that only imports. `python -m
benchmarks.folder_index FOLDER [FILES]` makes the folder if it is not there and measures that one alone.
"""

CLASSES = 1000


def make(root: Path, images: int) -> None:
    """Write the files; the same few hundred small JPEG images again and again."""
    draws = np.random.default_rng(0)
    contents = []
    for number in range(200):
        buffer = io.BytesIO()
        pixels = draws.integers(0, 256, (16 + number % 7, 16 + number % 5, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=60 + number % 30)
        contents.append(buffer.getvalue())
    for split, count in (("train", images), ("val", images // 25)):
        for label in range(CLASSES):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(count * label // CLASSES, count * (label + 1) // CLASSES):
                (folder / f"n{label:08d}_{number}.JPEG").write_bytes(contents[number % len(contents)])


PROGRAM = """
import json, resource, sys, time
from pathlib import Path
from ablation.config import DataConfig
from ablation.data import folder_index
from ablation.data.fingerprint import fingerprint
data, cache = DataConfig(source="folder", path=sys.argv[1], image_size=16), Path(sys.argv[2])
folder_index.TRUSTED_FILES = int(sys.argv[3])
folder_index.SETTLED_NS = 0
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
found = {"imports": peak()}
for name in ("scan", "again"):
    began = time.perf_counter()
    fingerprint(data, cache)
    found[name] = time.perf_counter() - began
found["peak"] = peak() - found["imports"]
import numpy as np
from ablation.data.images import open_images
before = peak()
began = time.perf_counter()
images = open_images(data, "train", cache, store=False)
found["open"] = time.perf_counter() - began
order = np.random.default_rng(0).permutation(len(images))[:5000]
began = time.perf_counter()
for start in range(0, len(order), 250):
    images.batch(order[start : start + 250])
found["rate"] = len(order) / (time.perf_counter() - began)
found["images"] = len(images)
found["opened"] = peak() - before
print(json.dumps(found))
"""


def measured(root: Path, cache: Path) -> Iterator[Row]:
    """Yield the figures of one folder."""
    import json

    shutil.rmtree(cache, ignore_errors=True)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(root), str(cache), "1000"], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    case = f"{found['images']:,} images"
    yield Measure(f"{case}: first fingerprint", found["scan"], "s", note=f"{1e6 * found['scan'] / found['images']:.0f} us an image")
    yield Measure(f"{case}: fingerprint again", found["again"], "s")
    yield Measure(f"{case}: memory of the scan", found["peak"], "MiB", at_most=64)
    yield Measure(f"{case}: opened by a job", found["open"], "s")
    yield Measure(f"{case}: memory to open and read 5,000 at random", found["opened"], "MiB")
    yield Measure(f"{case}: decoded at random", found["rate"], "images/s", note="tiny files")
    size = sum(path.stat().st_size for path in (cache / "index").iterdir())
    yield Measure(f"{case}: index on disk", size / 2**20, "MiB")


def run(quick: bool) -> Iterator[Row]:
    """Yield the figures of two sizes, one four times the other."""
    for images in (2_000,) if quick else (50_000, 200_000):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder) / "data", images)
            yield from measured(Path(folder) / "data", Path(folder) / "cache")


def _one(root: Path, images: int) -> None:
    """Measure one folder, made if need be, and print its figures."""
    if not root.exists():
        began = time.perf_counter()
        make(root, images)
        print(f"made in {time.perf_counter() - began:.0f} s")
    with tempfile.TemporaryDirectory() as cache:
        for row in measured(root, Path(cache)):
            assert isinstance(row, Measure)
            print(f"{row.case}: {row.value:.4g} {row.unit} {row.note}")


if __name__ == "__main__":
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        _one(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 1_281_167)
    else:
        os.nice(5)
        main(run, NAME)

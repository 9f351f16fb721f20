"""Centre crops of photograph-sized files: decoded each time, and read from the cache that `ablate cache` makes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import Measure, Row, alternate, compare, main

NAME = "data_loading"
TITLE = "Loading images"
ABOUT = """
JPEG files of 500 x 375 pixels to 256 px crops, one process and one decoding thread for every way; files and cache are in the page
cache. The crop is DiT's: halved by box averages while twice too large, then bicubic, then cut.
"""

SIZE, WIDTH, HEIGHT = 256, 500, 375


def photographs(folder: Path, count: int) -> None:
    """Write smooth images with some detail, two classes, as train and val."""
    draws = np.random.default_rng(0)
    for split, share in (("train", count), ("val", 4)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for number in range(share // 2):
                small = draws.integers(0, 256, (25, 33, 3)).astype(np.uint8)
                image = np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
                image = (image + draws.integers(-12, 13, image.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(image).save(folder / split / name / f"{number:05}.jpg", quality=92)


def run(quick: bool) -> Iterator[Row]:
    """Yield our cache against ImageFolder with DiT's crop and against our own decoding, and images per second of each."""
    count = 16 if quick else 128
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "data", Path(folder) / "cache"
        photographs(root, count)
        yield from _compared(root, cache, count, 1 if quick else 5)


def _compared(root: Path, cache: Path, count: int, rounds: int) -> Iterator[Row]:
    """Time a pass over all images in random order."""
    import ablation.torchvision_compat  # noqa: F401, I001  (before torchvision)
    from torchvision.datasets import ImageFolder

    from ablation.config import DataConfig
    from ablation.data.crops import centre_crop
    from ablation.data.image_cache import build_cache, plan_cache
    from ablation.data.images import open_images

    data = DataConfig(source="folder", path=str(root), image_size=SIZE)
    fresh = open_images(data, "train", threads=1)
    build_cache(plan_cache(data, "train", cache), cache, len(os.sched_getaffinity(0)), lambda *_: None, lambda: False)
    cached = open_images(data, "train", cache)
    peer = ImageFolder(str(root / "train"), transform=lambda image: np.array(centre_crop(image, SIZE)))
    order = np.random.default_rng(1).permutation(count)
    torch.set_num_threads(1)
    found: dict[str, list[np.ndarray]] = {}
    batches = [order[start : start + 64] for start in range(0, count, 64)]
    ways = {
        "cache": lambda: found.update(cache=[cached.batch(batch) for batch in batches]),
        "decoding": lambda: found.update(decoding=[fresh.batch(batch) for batch in batches]),
        "ImageFolder": lambda: found.update(peer=[np.stack([peer[int(index)][0] for index in batch]) for batch in batches]),
    }
    times = alternate(ways, rounds)
    pixels = {name: np.concatenate(parts).astype(int) for name, parts in found.items()}
    checks = {"largest difference": float(np.abs(pixels["cache"] - pixels["peer"]).max())}
    yield compare(f"{count} images of {SIZE} px", "cache", "ImageFolder", times, 30, checks)
    checks = {"largest difference": float(np.abs(pixels["cache"] - pixels["decoding"]).max())}
    yield compare(f"{count} images of {SIZE} px", "cache", "decoding", times, 30, checks)
    yield compare(f"{count} images of {SIZE} px", "decoding", "ImageFolder", times)
    for name, seconds in times.items():
        yield Measure(f"{name}, one thread", count / float(np.median(seconds)), "images/s")


if __name__ == "__main__":
    main(run, NAME)

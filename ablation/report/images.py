"""Two rows compared on the same test images, from the answers that the records carry: McNemar's test, one seed and pooled.

This is about the test images, not about training: it says whether another test set of the same kind would show these trained
networks in the same order. Whether another seed would is a matter of the seeds' own spread.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablation.report.results import Record, Row


@dataclass(frozen=True)
class Answers:
    """Which test images one record answered correctly: one bit an image, the first image highest, the last byte filled up."""

    packed: bytes
    images: int
    test_set: str


@dataclass(frozen=True)
class Discordance:
    """One seed's images that only the later row (gained) or only the earlier row (lost) answered, with McNemar's p values."""

    gained: int
    lost: int
    exact: float
    middle: float  # mid-p: of what is just as extreme, only half counts


@dataclass(frozen=True)
class ImageTest:
    """What the same images say of two rows: seed by seed, and pooled over seeds with each image as one unit."""

    images: int
    by_seed: Mapping[int, Discordance]
    exact: float
    middle: float


def answers(record: Record, metric: str) -> Answers | str:
    """Read a record's answers, or say why there are none."""
    stored = record.get("correct")
    if not stored:
        return "answers not stored"
    if metric not in stored:
        return str(stored.get("reason", "answers not stored"))
    try:
        packed = base64.b64decode(stored[metric], validate=True)
    except (binascii.Error, ValueError):
        return "answers unreadable"
    images = int(stored["images"])
    if len(packed) != (images + 7) // 8:
        return "answers unreadable"
    return Answers(packed, images, str(stored["test_set"]))


def mcnemar(gained: int, lost: int) -> tuple[float, float]:
    """Return McNemar's exact two-sided p and mid-p of images that only the one or only the other answered correctly."""
    return signed_sum_p({1: gained + lost}, gained - lost)


def signed_sum_p(weights: Mapping[int, int], observed: int) -> tuple[float, float]:
    """Return exact p and mid-p of a sum of whole numbers whose signs are fair coins. weights: size -> how many of that size.

    The distribution comes from its characteristic function, the product of cos(size t)^count, by a discrete Fourier transform,
    so p values below about 1e-12 are only known to be that small.
    """
    import numpy as np

    reach = sum(size * count for size, count in weights.items())
    if reach == 0:
        return 1.0, 1.0
    length = 2 * reach + 1
    angles = 2 * np.pi * np.arange(length) / length
    transform = np.ones(length)
    for size, count in weights.items():
        transform *= np.cos(size * angles) ** count
    chances = np.fft.ifft(transform).real.clip(min=0)  # index: the sum, modulo length
    sums = np.minimum(np.arange(length), length - np.arange(length))  # its size
    at_least, equal = float(chances[sums >= abs(observed)].sum()), float(chances[sums == abs(observed)].sum())
    exact = min(1.0, at_least)
    return exact, max(0.0, exact - equal / 2)


def compare_images(before: Row, after: Row, seeds: Sequence[int], metric: str) -> ImageTest | str:
    """Compare two rows on the same test images over their common seeds, or say why that cannot be done.

    Pooled, an image's difference is summed over the seeds and the signs of the images' sums are flipped: the images are drawn
    independently, the seeds' answers to one image are not, so seeds add no images.
    """
    import numpy as np

    by_seed: dict[int, Discordance] = {}
    total, test_sets, images = None, set(), 0
    for seed in seeds:
        pair = [answers(next(record for record in row.records if record["seed"] == seed), metric) for row in (before, after)]
        if reason := next((one for one in pair if isinstance(one, str)), ""):
            return reason
        first, second = (one for one in pair if isinstance(one, Answers))
        test_sets |= {(first.test_set, first.images), (second.test_set, second.images)}
        if len(test_sets) > 1:
            return "test images differ"
        images = first.images
        old, new = (np.unpackbits(np.frombuffer(one.packed, np.uint8), count=images).astype(int) for one in (first, second))
        change = new - old  # (images,)
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        by_seed[seed] = Discordance(gained, lost, *mcnemar(gained, lost))
        total = change if total is None else total + change
    if total is None:
        return "no common seed"
    sizes, counts = np.unique(np.abs(total[total != 0]), return_counts=True)
    weights = {int(size): int(count) for size, count in zip(sizes, counts, strict=True)}
    return ImageTest(images, by_seed, *signed_sum_p(weights, int(total.sum())))

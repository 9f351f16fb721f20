"""The weighted nearest-neighbour classifier on frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ablation.config import ProbeConfig
from ablation.errors import ConfigError
from ablation.evaluation.scores import check_features, check_labels, top_k_correct

KEYS = 2**18
"""Training images compared with at a time."""


@dataclass(frozen=True)
class KnnResult:
    """Accuracies in percent, and which test images were right."""

    top1: float
    top5: float | None  # None with five classes or fewer
    correct: Tensor  # (n_test,) bool


def knn_classify(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, cfg: ProbeConfig, chunk: int = 1024
) -> KnnResult:
    """Classify each test image by its nearest training images.

    The k = cfg.neighbours training features with the highest cosine similarity s vote with weight exp(s / temperature).
    features (n, C), labels (n,); `chunk` bounds the memory, (chunk, n_train) similarities at a time, never the result.
    Raises ConfigError when there are fewer training images than neighbours, DataError for unusable features or labels.
    """
    check_features("training", train_features, train_labels)
    check_features("test", test_features, test_labels)
    classes = check_labels(train_labels, test_labels)
    if cfg.neighbours > len(train_features):
        raise ConfigError(
            f"probe.neighbours is {cfg.neighbours} but there are only {len(train_features)} training images",
            f"Set it between 1 and {len(train_features)}.",
        )
    nearest, index = _nearest(train_features, test_features, cfg.neighbours, chunk)  # (n_test, k)
    labels = train_labels.to(nearest.device)
    parts = zip(nearest.split(chunk), index.split(chunk), strict=True)
    votes = torch.cat([_votes(some, labels[numbers], classes, cfg) for some, numbers in parts])  # (n_test, classes)
    top1, top5 = top_k_correct(votes, test_labels)
    return KnnResult(100 * float(top1.double().mean()), None if top5 is None else 100 * float(top5.double().mean()), top1)


def _nearest(keys: Tensor, queries: Tensor, count: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Find the `count` most similar keys (n, C) of each query (m, C): cosine similarities and key numbers, (m, count), best first.

    Keys are normalised KEYS at a time, so that features mapped from a file are never copied to memory as a whole.
    """
    best: list[tuple[Tensor, Tensor]] = []
    for first in range(0, len(keys), KEYS):
        part = torch.nn.functional.normalize(keys[first : first + KEYS].float(), dim=1)  # (KEYS, C)
        for number, some in enumerate(queries.split(chunk)):
            similarity = torch.nn.functional.normalize(some.to(part), dim=1) @ part.T  # (chunk, KEYS)
            nearest, index = similarity.topk(min(count, len(part)), dim=1)  # (chunk, k)
            if first == 0:
                best.append((nearest, index))
                continue
            both, numbers = torch.cat([best[number][0], nearest], dim=1), torch.cat([best[number][1], index + first], dim=1)
            nearest, place = both.topk(min(count, both.shape[1]), dim=1)
            best[number] = nearest, numbers.gather(1, place)
    return torch.cat([nearest for nearest, _ in best]), torch.cat([index for _, index in best])


def _votes(nearest: Tensor, labels: Tensor, classes: int, cfg: ProbeConfig) -> Tensor:
    """Sum the neighbours' weights by class: similarities and labels (m, k) to (m, classes)."""
    # (m, k); the nearest one's weight is taken out as a common factor, so that a low temperature cannot over- or underflow
    weights = ((nearest - nearest[:, :1]) / cfg.knn_temperature).exp()
    neighbour_class = torch.nn.functional.one_hot(labels, classes).to(weights)  # (m, k, classes)
    return torch.einsum("mk,mkc->mc", weights, neighbour_class)

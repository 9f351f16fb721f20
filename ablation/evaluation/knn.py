"""The weighted nearest-neighbour classifier on frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ablation.config import ProbeConfig
from ablation.errors import ConfigError
from ablation.evaluation.scores import check_features, check_labels, top_k_correct


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
    keys = torch.nn.functional.normalize(train_features.float(), dim=1)
    targets = train_labels.to(keys.device)
    votes = torch.cat([_votes(queries, keys, targets, classes, cfg) for queries in test_features.split(chunk)])  # (n_test, classes)
    top1, top5 = top_k_correct(votes, test_labels)
    return KnnResult(100 * float(top1.double().mean()), None if top5 is None else 100 * float(top5.double().mean()), top1)


def _votes(queries: Tensor, keys: Tensor, targets: Tensor, classes: int, cfg: ProbeConfig) -> Tensor:
    """Sum the neighbours' weights by class: (B, C) queries to (B, classes)."""
    similarity = torch.nn.functional.normalize(queries.to(keys), dim=1) @ keys.T  # (B, n_train)
    nearest, index = similarity.topk(cfg.neighbours, dim=1)  # (B, k)
    # (B, k); the nearest one's weight is taken out as a common factor, so that a low temperature cannot over- or underflow
    weights = ((nearest - nearest[:, :1]) / cfg.knn_temperature).exp()
    neighbour_class = torch.nn.functional.one_hot(targets[index], classes).to(weights)  # (B, k, classes)
    return torch.einsum("bk,bkc->bc", weights, neighbour_class)

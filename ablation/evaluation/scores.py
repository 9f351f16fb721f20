"""Checks on features and labels, and top-k accuracy: what every classifier on frozen features shares."""

from __future__ import annotations

import torch
from torch import Tensor

from ablation.errors import DataError


def check_features(name: str, features: Tensor, labels: Tensor) -> None:
    """Refuse features (..., n, C) that are not finite, and shapes that do not fit; `name` says which set it is."""
    if features.ndim < 2 or labels.ndim != 1 or features.shape[-2] != len(labels):
        raise ValueError(f"{name} features {tuple(features.shape)} do not fit labels {tuple(labels.shape)}")
    if len(labels) == 0:
        raise DataError(f"there are no {name} images to probe", "Raise data.train_images and data.test_images.")
    # a sum over C is NaN or infinite where an entry is, and needs no mask of the size of the features
    finite = torch.isfinite(features.sum(dim=-1, dtype=torch.float64))
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise DataError(
            f"{bad} of {finite.numel()} {name} features are not finite (NaN or infinity)",
            "The encoder probably diverged: look at the loss of its training run, and at probe.precision.",
        )


def check_labels(train_labels: Tensor, test_labels: Tensor) -> int:
    """Return the number of classes, 1 + the largest training label; one class only, or an unseen test class, is an error."""
    present = torch.unique(train_labels)
    if len(present) < 2:
        raise DataError("the training images to probe all have one class", "A probe needs images of two classes or more.")
    if int(present[0]) < 0:
        raise DataError("the training images have negative labels", "Labels count from 0.")
    unseen = sorted(set(torch.unique(test_labels).tolist()) - set(present.tolist()))
    if unseen:
        raise DataError(
            f"test images have classes without any training image: {unseen[:10]}",
            "Raise data.train_images, or check the two splits' folders.",
        )
    return int(present[-1]) + 1


def top_k_correct(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Say which images are right at top 1, and at top 5 (None with five classes or fewer); scores (n, classes), labels (n,).

    Among equal scores the lower class counts as the higher one, so that a network without any output is not always right.
    """
    labels = labels.to(scores.device)
    own = scores.gather(1, labels[:, None])  # (n, 1)
    before = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]  # (n, classes)
    rank = ((scores > own) | ((scores == own) & before)).sum(dim=1)  # (n,)
    return (rank < 1).cpu(), (rank < 5).cpu() if scores.shape[1] > 5 else None

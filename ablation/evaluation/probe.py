"""The linear probe on cached features: parameter-free batch norm, and one linear layer fitted to its optimum.

The layer is multinomial logistic regression, so its optimum is unique and no learning rate has to be tuned. It minimises
mean cross-entropy + weight_decay / 2 |W|^2 over W (C, classes) and an unpenalised bias. The long augmented schedule of
the paper is in probe_epochs.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ablation.config import ProbeConfig
from ablation.evaluation.lbfgs import minimise
from ablation.evaluation.scores import check_features, check_labels, top_k_correct

VARIANCE_FLOOR = 1e-6  # added to a feature's variance, as in MAE's batch norm
MAX_ITERATIONS = 250  # per weight decay; only weight decay 0 on separable classes, which has no optimum, gets there
CHUNK = 65536  # rows a time: bounds the memory of the (rows, classes) logits
TOLERANCE = 1e-6  # stop when a step lowers the objective by less than this (or this share of it, above 1)


@dataclass(frozen=True)
class ProbeResult:
    """Accuracies in percent, the setting that was chosen and why, and which test images were right."""

    top1: float
    top5: float | None  # None with five classes or fewer
    correct: Tensor  # (n_test,) bool
    logits: Tensor  # (n_test, classes) float32
    held_out_accuracy: float | None  # percent, of the chosen setting; None if there was nothing to choose
    chosen_weight_decay: float
    chosen_base_lr: float | None = None  # epochs mode only


@dataclass(frozen=True)
class LinearFit:
    """A fitted layer on standardised features, and the value of its objective."""

    weight: Tensor  # (C, classes)
    bias: Tensor  # (classes,)
    objective: float


@dataclass(frozen=True)
class Standardiser:
    """Batch norm without parameters, with fixed statistics."""

    mean: Tensor  # (C,)
    scale: Tensor  # (C,)

    @classmethod
    def of(cls, features: Tensor) -> Standardiser:
        """Take mean and standard deviation of features (n, C), in float64."""
        mean = features.mean(dim=0, dtype=torch.float64)  # (C,)
        square = sum(((rows.double() - mean).square().sum(dim=0) for rows in features.split(CHUNK)), torch.zeros_like(mean))  # (C,)
        return cls(mean.float(), (square / len(features) + VARIANCE_FLOOR).sqrt().float())

    def __call__(self, features: Tensor) -> Tensor:
        """Standardise features (n, C)."""
        return (features.float() - self.mean) / self.scale


def fit_cached_probe(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, cfg: ProbeConfig, seed: int
) -> ProbeResult:
    """Fit the probe on frozen features and score it on the test images.

    train_features (n, C), or (views, n, C) for several views of each image, of which the first is the plain one;
    test_features (n_test, C). The weight decay with the best accuracy on held-out training images (a tie goes to the
    larger one) is refitted on all of them; test images choose nothing. The same seed holds the same images out.
    Raises DataError for features that are not finite and for a single class.
    """
    check_features("training", train_features, train_labels)
    check_features("test", test_features, test_labels)
    classes = check_labels(train_labels, test_labels)
    views = (train_features if train_features.ndim == 3 else train_features[None]).float()  # (views, n, C)
    labels = train_labels.to(views.device)
    decays = sorted(set(cfg.weight_decays), reverse=True)
    held_out_accuracy, chosen = None, decays[0]
    start: LinearFit | None = None
    if len(decays) > 1:
        kept, held_out = split_held_out(len(labels), cfg.held_out, seed)
        rows, targets = _as_rows(views[:, kept], labels[kept])
        norm = Standardiser.of(rows)
        validation, answers = norm(views[0, held_out]), labels[held_out]
        best = -1.0
        for fit, decay in zip(fit_path(norm(rows), targets, classes, decays), decays, strict=True):
            accuracy = float(top_k_correct(validation @ fit.weight + fit.bias, answers)[0].double().mean())
            if accuracy > best:
                best, chosen, start = accuracy, decay, fit
        held_out_accuracy = 100 * best
    rows, targets = _as_rows(views, labels)
    norm = Standardiser.of(rows)
    (fit,) = fit_path(norm(rows), targets, classes, [chosen], start)
    logits = norm(test_features.to(rows.device)) @ fit.weight + fit.bias  # (n_test, classes)
    top1, top5 = top_k_correct(logits, test_labels)
    return ProbeResult(
        100 * float(top1.double().mean()),
        None if top5 is None else 100 * float(top5.double().mean()),
        top1,
        logits.cpu(),
        held_out_accuracy,
        chosen,
    )


def split_held_out(images: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split image numbers into kept and held-out ones, at least one of each, by the seed."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(images))
    size = min(max(1, round(share * images)), images - 1)
    return order[size:].sort().values, order[:size].sort().values


def _as_rows(views: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Turn views (V, n, C) and labels (n,) into training rows (V n, C) and their labels (V n,)."""
    return views.flatten(0, 1), labels.repeat(len(views))


def fit_path(features: Tensor, labels: Tensor, classes: int, weight_decays: list[float], start: LinearFit | None = None) -> list[LinearFit]:
    """Fit multinomial logistic regression for each weight decay, each from the previous one's solution.

    features (n, C), centred; labels (n,). L-BFGS runs in coordinates in which the features are nearly uncorrelated (a
    change of variables W = P U, P symmetric), where it needs several times fewer steps; the optimum is the same.
    """
    objective = _Objective(features, labels, classes, max(min(weight_decays), 1e-6))
    point = objective.zero() if start is None else objective.pack(start.weight, start.bias)
    fits = []
    for decay in weight_decays:
        point, value = minimise(partial(objective, weight_decay=decay), point, TOLERANCE, MAX_ITERATIONS)
        fits.append(LinearFit(*objective.unpack(point), value))
    return fits


class _Objective:
    """Mean cross-entropy + weight_decay / 2 |W|^2 and its gradient, over the preconditioned weights and the bias."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int, floor: float) -> None:
        count, dim = features.shape
        self.shape = (classes, dim + 1)
        covariance = torch.zeros(dim, dim, dtype=torch.float64, device=features.device)
        for rows in features.split(CHUNK):
            covariance += (rows.T @ rows).double() / count
        # The Hessian of the cross-entropy over W is close to covariance / classes; adding the floor keeps null directions finite.
        values, vectors = torch.linalg.eigh(covariance)
        roots = (values.clamp(min=0) + classes * floor + 1e-4 * values.max()).rsqrt()
        self.precondition = ((vectors * roots) @ vectors.T).float()  # (C, C)
        ones = torch.ones(count, 1, device=features.device)
        self.features = torch.cat([features @ self.precondition, ones], dim=1)  # (n, C + 1); the last column is the bias's
        self.labels = labels
        self.count = count

    def __call__(self, point: Tensor, weight_decay: float) -> tuple[float, Tensor]:
        # Classes come first throughout: with ten or so classes a (rows, classes) layout is several times slower on a CPU.
        weight = point.to(self.features).view(self.shape)  # (classes, C + 1)
        loss, gradient = torch.zeros((), dtype=torch.float64, device=weight.device), torch.zeros_like(weight)
        for rows, targets in zip(self.features.split(CHUNK), self.labels.split(CHUNK), strict=True):
            log_p = torch.log_softmax(weight @ rows.T, dim=0)  # (classes, rows)
            loss -= log_p.gather(0, targets[None]).sum(dtype=torch.float64)
            # Beware: without the clamp the probabilities of easy images are denormal numbers, which slow products down.
            error = log_p.clamp_(min=-60).exp_()
            error[targets, torch.arange(len(targets), device=targets.device)] -= 1
            gradient += error @ rows  # (classes, C + 1)
        gradient /= self.count
        plain = weight[:, :-1] @ self.precondition  # (classes, C), W itself
        gradient[:, :-1] += weight_decay * (plain @ self.precondition)
        value = float(loss) / self.count + weight_decay / 2 * float(plain.double().square().sum())
        return value, gradient.double().flatten()

    def zero(self) -> Tensor:
        """Return the point where W and the bias are zero."""
        return torch.zeros(self.shape, dtype=torch.float64, device=self.features.device).flatten()

    def pack(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Turn W (C, classes) and the bias into a point of the search."""
        inner = torch.linalg.solve(self.precondition.double(), weight.double())  # (C, classes)
        return torch.cat([inner, bias.double()[None]]).T.flatten()

    def unpack(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Turn a point of the search into W (C, classes) and the bias (classes,)."""
        weight = point.view(self.shape).to(self.features)  # (classes, C + 1)
        return self.precondition @ weight[:, :-1].T, weight[:, -1]

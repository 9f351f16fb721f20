"""Few-shot accuracy of the frozen encoder: how far five labelled images of each class go.

Features are taken as the linear probe takes them. SHOTS training images of each class are drawn, DRAWS times; all test
images are classified by the nearest class mean (cosine) and by ridge regression on one-hot labels. torch is imported only
when something runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ablation.protocols import EvaluationContext

SHOTS, DRAWS, RIDGE = 5, 20, 1.0


def few_shot(context: EvaluationContext) -> tuple[Mapping[str, float], Mapping[str, Any]]:
    """Return both accuracies in percent, averaged over draws, and their protocol."""
    import torch

    train, test = standardised(context.features("train"), context.features("test"))  # (n, C), (m, C)
    labels, answers = context.labels("train"), context.labels("test")
    classes = [number for number in range(len(context.classes)) if (labels == number).sum() >= SHOTS]
    kept = torch.isin(answers, torch.tensor(classes))
    generator = torch.Generator().manual_seed(context.seed)
    scores = []
    for draw in range(DRAWS):
        context.progress(draw, DRAWS, "few-shot draws")
        chosen = torch.cat([drawn(labels, number, generator) for number in classes])
        scores.append(accuracies(train[chosen], labels[chosen], test[kept], answers[kept], classes))
    nearest, linear = (sum(values) / DRAWS for values in zip(*scores, strict=True))
    protocol = {"shots": SHOTS, "draws": DRAWS, "ridge": RIDGE, "classes": len(classes)}
    return {"nearest_mean_top1": nearest, "linear_top1": linear}, protocol


few_shot.titles = {  # type: ignore[attr-defined]  # the words above the columns of the report
    "nearest_mean_top1": f"{SHOTS}-shot nearest mean (%) ↑",
    "linear_top1": f"{SHOTS}-shot linear (%) ↑",
}


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Give every feature mean 0 and variance 1 over the training images, whose labels are not used here."""
    mean, scale = train.mean(dim=0), train.std(dim=0).clamp(min=1e-6)
    return (train - mean) / scale, (test - mean) / scale


def drawn(labels: Tensor, number: int, generator: Any) -> Tensor:
    """Draw SHOTS images of one class, without repetition."""
    import torch

    found = (labels == number).nonzero().flatten()
    return found[torch.randperm(len(found), generator=generator)[:SHOTS]]


def accuracies(support: Tensor, labels: Tensor, queries: Tensor, answers: Tensor, classes: list[int]) -> tuple[float, float]:
    """Classify queries (m, C) from the support (k, C) in both ways; return two accuracies in percent."""
    import torch
    from torch.nn.functional import normalize

    numbers = torch.tensor(classes)
    means = torch.stack([support[labels == number].mean(dim=0) for number in classes])  # (classes, C)
    nearest = numbers[(normalize(queries, dim=1) @ normalize(means, dim=1).T).argmax(dim=1)]  # (m,)
    targets = (labels[:, None] == numbers).double() - 1 / len(classes)  # (k, classes)
    rows = support.double()
    # The dual form: k images are fewer than C features.
    weights = rows.T @ torch.linalg.solve(rows @ rows.T + RIDGE * torch.eye(len(rows), dtype=torch.float64), targets)  # (C, classes)
    linear = numbers[(queries.double() @ weights).argmax(dim=1)]  # (m,)
    return 100 * float((nearest == answers).double().mean()), 100 * float((linear == answers).double().mean())

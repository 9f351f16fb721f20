"""The linear probe with the paper's long schedule: new random crops each epoch, batch norm and one linear layer.

Follows MAE's recipe as the paper says: batch norm without parameters, LARS or AdamW, learning rate
base_lr x batch / 256 with linear warm-up and a cosine to zero, no weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ablation.config import ProbeConfig
from ablation.errors import ConfigError, DataError, DivergedError
from ablation.evaluation.lars import LARS
from ablation.evaluation.probe import VARIANCE_FLOOR, ProbeResult
from ablation.evaluation.scores import check_features, top_k_correct

Batches = Iterable[tuple[Tensor, Tensor]]
INITIAL_STD = 0.01  # of the linear layer's weights, as in MAE


def fit_epochs_probe(
    epoch_batches: Callable[[int], Batches],
    train_images: int,
    num_classes: int,
    test_features: Tensor,
    test_labels: Tensor,
    cfg: ProbeConfig,
    seed: int,
    base_lrs: Sequence[float] | None = None,
    held_out: tuple[Tensor, Tensor] | None = None,
) -> ProbeResult:
    """Train the linear layer for cfg.epochs passes and score it on the test images' centre crops.

    epoch_batches(epoch) yields (features (B, C), labels (B,)) once for each of `train_images` images, shuffled and augmented
    by the caller, in batches of any size; they are regrouped into cfg.global_batch (or all images, if there are fewer; the
    learning rate follows the actual size). An incomplete last batch is dropped. Several learning rates are trained at once
    on the same batches when `base_lrs` names them (None: cfg.base_lr alone); then `held_out` (features, labels) of training
    images chooses. Raises ConfigError for an impossible schedule, DataError for features that are not finite,
    DivergedError for a loss that is not.
    """
    rates = tuple(base_lrs) if base_lrs is not None else (cfg.base_lr,)
    if len(rates) > 1 and held_out is None:
        raise ValueError("several learning rates need held-out training images to choose among them")
    if cfg.warmup_epochs >= cfg.epochs:
        raise ConfigError(
            f"probe.warmup_epochs ({cfg.warmup_epochs}) leaves nothing of probe.epochs ({cfg.epochs})",
            f"Set it between 0 and {cfg.epochs - 1}.",
        )
    check_features("test", test_features, test_labels)
    probe = _Probe(test_features.shape[1], num_classes, rates, cfg, seed, test_features.device)
    size = min(cfg.global_batch, train_images)
    steps = train_images // size  # per epoch
    for epoch in range(cfg.epochs):
        taken = 0
        for features, labels in _regroup(epoch_batches(epoch), size):
            probe.step(features, labels, size, epoch + taken / steps)
            taken += 1
        if taken != steps:
            raise ValueError(f"epoch {epoch} gave {taken} batches of {size} images, expected {steps} from {train_images} images")
    chosen, held_out_accuracy = 0, None
    if held_out is not None:
        accuracies = [100 * float(top_k_correct(logits, held_out[1])[0].double().mean()) for logits in probe.logits(held_out[0])]
        chosen = max(range(len(rates)), key=lambda index: accuracies[index])
        held_out_accuracy = accuracies[chosen]
    logits = probe.logits(test_features)[chosen]  # (n_test, classes)
    top1, top5 = top_k_correct(logits, test_labels)
    return ProbeResult(
        100 * float(top1.double().mean()),
        None if top5 is None else 100 * float(top5.double().mean()),
        top1,
        logits.cpu(),
        held_out_accuracy,
        0.0,
        rates[chosen],
    )


class _Probe:
    """One batch norm, and a linear layer with its optimiser for each learning rate."""

    def __init__(self, dim: int, classes: int, rates: Sequence[float], cfg: ProbeConfig, seed: int, device: torch.device) -> None:
        self.cfg, self.rates, self.classes = cfg, rates, classes
        self.norm = nn.BatchNorm1d(dim, eps=VARIANCE_FLOOR, affine=False).to(device)
        generator = torch.Generator().manual_seed(seed)
        start = torch.empty(classes, dim)
        nn.init.trunc_normal_(start, std=INITIAL_STD, generator=generator)
        self.heads = nn.ModuleList(nn.Linear(dim, classes) for _ in rates).to(device)
        for head in self.heads:
            assert isinstance(head, nn.Linear)
            with torch.no_grad():  # the same start for every learning rate
                head.weight.copy_(start)
                head.bias.zero_()
        groups = [{"params": list(head.parameters()), "lr": 0.0} for head in self.heads]
        self.optimizer: torch.optim.Optimizer
        self.optimizer = LARS(groups, lr=0.0) if cfg.optimizer == "lars" else torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0)

    def step(self, features: Tensor, labels: Tensor, batch: int, epoch: float) -> None:
        """Take one step on features (B, C) and labels (B,), `epoch` epochs after the start."""
        check_features("training", features, labels)
        if int(labels.min()) < 0 or int(labels.max()) >= self.classes:
            raise DataError(f"a training label lies outside 0 to {self.classes - 1}", "Check the training folder's classes.")
        device = self.norm.running_mean.device if self.norm.running_mean is not None else features.device
        normal, targets = self.norm(features.to(device, torch.float32)), labels.to(device)
        losses = torch.stack([nn.functional.cross_entropy(head(normal), targets) for head in self.heads])  # (heads,)
        if not bool(torch.isfinite(losses).all()):
            raise DivergedError(f"the linear probe's loss is not finite in epoch {int(epoch)}", "Lower probe.base_lr.")
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * batch / 256 * schedule(epoch, self.cfg.warmup_epochs, self.cfg.epochs)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # the heads share no parameter, so each one's gradient is its own loss's
        self.optimizer.step()

    @torch.no_grad()
    def logits(self, features: Tensor) -> list[Tensor]:
        """Return each head's logits (n, classes) of features (n, C), with the running statistics."""
        self.norm.eval()
        normal = self.norm(features.float())
        self.norm.train()
        return [head(normal) for head in self.heads]


def schedule(epoch: float, warmup: int, epochs: int) -> float:
    """Return the share of the peak learning rate after `epoch` epochs: linear warm-up, then half a cosine to zero."""
    if epoch < warmup:
        return epoch / warmup
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


def _regroup(batches: Batches, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut batches of any size into batches of `size`, in order; what is left over at the end is dropped."""
    features: list[Tensor] = []
    labels: list[Tensor] = []
    held = 0
    for x, y in batches:
        features.append(x)
        labels.append(y)
        held += len(y)
        if held >= size:
            all_x, all_y = torch.cat(features), torch.cat(labels)
            for start in range(0, held - size + 1, size):
                yield all_x[start : start + size], all_y[start : start + size]
            rest = held - held % size
            features, labels, held = [all_x[rest:]], [all_y[rest:]], held % size

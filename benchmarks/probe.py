"""The linear probe: features extracted once, against MAE's loop, which runs the frozen network again in every epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ablation.config import ProbeConfig
from ablation.data.scenes import Scenes
from ablation.denoiser.dit import DiT
from ablation.evaluation.lars import LARS
from ablation.evaluation.probe import fit_cached_probe
from ablation.evaluation.probe_epochs import schedule
from ablation.tokenizers.base import patchify
from benchmarks.harness import Comparison, Measure, Row, main, use_fast_products

NAME = "probe"
TITLE = "Linear probe"
ABOUT = """
The same frozen network, the same centre crops, one linear layer behind a batch norm without parameters. The other way is MAE's loop
at one learning rate (LARS, 90 epochs, warm-up of 10, cosine): every epoch runs the frozen network on all training images, and once on
the test images. Its time is that of a few whole epochs, times 90; its accuracy is that of the full 90 epochs on the same features,
which are the same numbers every time because nothing is augmented. Ours extracts features once and fits the layer to its optimum,
five weight decays included. The accuracy loop is run with ten learning rates, and the best of them is compared.
"""

EPOCHS, WARMUP = 90, 10
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
CLASSES, SIDE, PATCH = 16, 32, 4
TIMED_EPOCHS = 2


def run(quick: bool) -> Iterator[Row]:
    """Yield the comparison of times, and both accuracies."""
    use_fast_products()
    train, test = (64, 32) if quick else (4000, 1000)
    epochs, batch = (4, 32) if quick else (EPOCHS, 1024)
    images, labels = _scenes("train", train)
    queries, answers = _scenes("test", test)
    network = _network(quick)
    features: list[Tensor] = []
    ratios, ours_times, their_times = [], [], []
    for _ in range(1 if quick else TIMED_EPOCHS):  # one epoch of theirs, then all of ours, in turns
        theirs = epochs * _timed(lambda: _mae_epoch(network, images, labels, queries, batch))
        ours = _timed(lambda: features.extend([_features(network, images), _features(network, queries)]))
        train_features, test_features = features[-2:]
        began = time.perf_counter()
        mine = _ours(train_features, labels, test_features, answers)
        ours += time.perf_counter() - began
        ratios.append(theirs / ours)
        ours_times.append(ours)
        their_times.append(theirs)
    accuracies = {
        rate: _mae_accuracy(train_features, labels, test_features, answers, rate, epochs, batch) for rate in RATES[:: 5 if quick else 1]
    }
    best = max(accuracies, key=lambda rate: accuracies[rate])
    middle = sorted(ratios)[len(ratios) // 2]
    yield Comparison(
        f"{train} + {test} images, 64 tokens",
        "ours, 5 weight decays",
        f"MAE's loop, {epochs} epochs, 1 learning rate",
        float(np.median(ours_times)),
        float(np.median(their_times)),
        middle,
        min(ratios),
        max(ratios),
        len(ratios),
        100.0,
        {"top-1 of ours": mine, "top-1 of the loop at its best rate": accuracies[best]},
    )
    yield Measure("top-1, ours less the loop's best", mine - accuracies[best], "points", at_least=-0.3, note=f"best base rate {best:g}")
    yield Measure("top-1, ours less the loop's at MAE's rate", mine - accuracies.get(0.1, accuracies[best]), "points", note="base rate 0.1")


def _scenes(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Return generated scenes as network input (n, 3, H, W), and their labels."""
    scenes = Scenes(split, count, SIDE, 0)  # type: ignore[arg-type]
    pixels = torch.from_numpy(scenes.render(np.arange(count)))
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1), torch.from_numpy(np.asarray(scenes.labels))


def _network(quick: bool) -> DiT:
    """Return an untrained encoder whose blocks are not the identity: good enough to take time and to give features."""
    torch.manual_seed(0)
    network = DiT(3 * PATCH**2, 3 * PATCH**2, SIDE // PATCH, *((32, 2, 2) if quick else (256, 6, 4)), modulation_ratio=0.25)
    with torch.no_grad():
        network.modulation.bias.fill_(0.5)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def _features(network: DiT, images: Tensor) -> Tensor:
    """Return pooled features of all images (n, width)."""
    found = []
    for chunk in images.split(256):
        found.append(network.encode(patchify(chunk, PATCH), torch.ones(1)).mean(1))
    return torch.cat(found)


def _ours(features: Tensor, labels: Tensor, queries: Tensor, answers: Tensor) -> float:
    """Fit the layer to its optimum and return its top-1 accuracy, in percent."""
    return fit_cached_probe(features, labels, queries, answers, ProbeConfig(mode="cached"), 0).top1


class _Head:
    """MAE's probing layer and its optimiser."""

    def __init__(self, dim: int, rate: float, epochs: int, batch: int) -> None:
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.BatchNorm1d(dim, eps=1e-6, affine=False), nn.Linear(dim, CLASSES))
        nn.init.trunc_normal_(self.layer[1].weight, std=0.01)  # type: ignore[arg-type]
        self.optimizer = LARS(self.layer[1].parameters(), lr=0.0)
        self.rate, self.epochs, self.batch = rate * batch / 256, epochs, batch

    def step(self, features: Tensor, labels: Tensor, epoch: float) -> None:
        """Take one step."""
        self.optimizer.param_groups[0]["lr"] = self.rate * schedule(epoch, min(WARMUP, self.epochs // 4), self.epochs)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.layer(features), labels).backward()
        self.optimizer.step()


def _mae_epoch(network: DiT, images: Tensor, labels: Tensor, queries: Tensor, batch: int) -> None:
    """Run one epoch of MAE's loop: the frozen network on every training image, a step a batch, then the test images."""
    head = _Head(network.width, 0.1, EPOCHS, batch)
    order = torch.randperm(len(images))
    for chosen in order.split(batch):
        head.step(_features(network, images[chosen]), labels[chosen], 10.0)
    head.layer.eval()
    with torch.no_grad():
        head.layer(_features(network, queries))


def _mae_accuracy(features: Tensor, labels: Tensor, queries: Tensor, answers: Tensor, rate: float, epochs: int, batch: int) -> float:
    """Return the top-1 accuracy, in percent, of the whole loop on features that are the same in every epoch."""
    head = _Head(features.shape[1], rate, epochs, min(batch, len(features)))
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        chunks = [part for part in torch.randperm(len(features), generator=generator).split(head.batch) if len(part) == head.batch]
        for number, chosen in enumerate(chunks):
            head.step(features[chosen], labels[chosen], epoch + number / len(chunks))
    head.layer.eval()
    with torch.no_grad():
        return 100 * float((head.layer(queries).argmax(1) == answers).double().mean())


def _timed(work: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(run, NAME)

"""The long linear probe: its parts by hand, and its agreement with the cached one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ablation.config import ProbeConfig
from ablation.errors import ConfigError, DataError, DivergedError
from ablation.evaluation.lars import LARS
from ablation.evaluation.probe import fit_cached_probe
from ablation.evaluation.probe_epochs import fit_epochs_probe, schedule

Data = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> Data:
    """Make weak features of scikit-learn's digits: rectified random projections of noisy images."""
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(np.tile(np.arange(len(x)), 4))  # four times, with other noise
    noisy = x[order] / 16 + 0.3 * rng.normal(size=(len(order), 64))
    features = torch.tensor(np.maximum(0, noisy @ rng.normal(size=(64, 64))), dtype=torch.float32)
    labels = torch.tensor(y[order])
    return features[:5000], labels[:5000], features[5000:], labels[5000:]


def shuffled(features: Tensor, labels: Tensor, batch: int) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    """Yield all rows in batches, in another order each epoch."""

    def epoch_batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(batch):
            yield features[rows], labels[rows]

    return epoch_batches


@pytest.mark.parametrize(("optimizer", "base_lrs"), [("lars", (0.3, 1.0, 3.0)), ("adamw", (1e-3, 3e-3, 1e-2))])
def test_agrees_with_the_cached_probe(digits: Data, optimizer: str, base_lrs: tuple[float, ...]) -> None:
    train, labels, test, test_labels = digits
    cached = fit_cached_probe(*digits, ProbeConfig(), seed=0)
    cfg = ProbeConfig.model_validate({"optimizer": optimizer, "global_batch": 500})
    batches, held_out = shuffled(train[:4500], labels[:4500], 100), (train[4500:], labels[4500:])
    result = fit_epochs_probe(batches, 4500, 10, test, test_labels, cfg, 0, base_lrs, held_out)
    assert 60 < cached.top1 < 95  # neither chance nor saturated
    assert result.top1 == pytest.approx(cached.top1, abs=1.0)
    assert torch.equal(result.correct, result.logits.argmax(dim=1) == test_labels)


def test_several_learning_rates_at_once_are_independent(digits: Data) -> None:
    train, labels, test, test_labels = digits
    cfg = ProbeConfig(epochs=6, warmup_epochs=1, global_batch=256)
    batches, held_out = shuffled(train[:1800], labels[:1800], 256), (train[1800:], labels[1800:])
    both = fit_epochs_probe(batches, 1800, 10, test, test_labels, cfg, 0, base_lrs=(0.001, 1.0), held_out=held_out)
    alone = fit_epochs_probe(batches, 1800, 10, test, test_labels, cfg.model_copy(update={"base_lr": 1.0}), 0, held_out=held_out)
    assert both.chosen_base_lr == 1.0
    assert both.held_out_accuracy == pytest.approx(alone.held_out_accuracy)
    torch.testing.assert_close(both.logits, alone.logits)
    with pytest.raises(ValueError, match="need held-out"):
        fit_epochs_probe(batches, 1800, 10, test, test_labels, cfg, 0, base_lrs=(0.1, 1.0))


def test_the_size_of_the_callers_batches_does_not_matter(digits: Data) -> None:
    train, labels, test, test_labels = (part[:2400] for part in digits)
    cfg = ProbeConfig(epochs=3, warmup_epochs=1, global_batch=700)
    results = [fit_epochs_probe(shuffled(train, labels, size), 2400, 10, test, test_labels, cfg, 0) for size in (1, 96, 700, 2400)]
    for result in results[1:]:
        assert torch.equal(result.logits, results[0].logits)


def test_a_batch_larger_than_the_data_is_the_data(digits: Data) -> None:
    train, labels, test, test_labels = (part[:2400] for part in digits)
    results = [
        fit_epochs_probe(
            shuffled(train, labels, 512), 2400, 10, test, test_labels, ProbeConfig(epochs=3, warmup_epochs=1, global_batch=size), 0
        )
        for size in (2400, 16384)
    ]
    assert torch.equal(results[0].logits, results[1].logits)


def test_schedule() -> None:
    assert [schedule(e, 10, 90) for e in (0, 5, 10, 50, 90)] == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-12)
    assert schedule(0, 0, 4) == 1
    assert schedule(30, 10, 90) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_lars_steps_by_hand() -> None:
    """|w| = 5 and |g| = 2, so the rate is 0.5 x 0.01 x 5 / 2 = 0.0125; the second step adds 0.9 of the first."""
    weight, bias = torch.nn.Parameter(torch.tensor([[3.0, 4.0]])), torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = LARS([weight, bias], lr=0.5, momentum=0.9, trust=0.01)
    weight.grad, bias.grad = torch.tensor([[0.0, 2.0]]), torch.tensor([0.2])
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([[3.0, 3.975]]))
    torch.testing.assert_close(bias.data, torch.tensor([0.9]))
    optimizer.step()
    second = 0.9 * 0.025 + 0.005 * math.hypot(3, 3.975)  # momentum x v + lr trust |w| / |g| g
    torch.testing.assert_close(weight.data, torch.tensor([[3.0, 3.975 - second]]))
    torch.testing.assert_close(bias.data, torch.tensor([0.9 - 0.19]))
    zero = torch.nn.Parameter(torch.zeros(1, 2))
    zero.grad = torch.tensor([[1.0, 0.0]])
    LARS([zero], lr=0.5).step()
    torch.testing.assert_close(zero.data, torch.tensor([[-0.5, 0.0]]))  # a zero layer can still leave zero


def test_unusable_inputs_are_refused(digits: Data) -> None:
    train, labels, test, test_labels = (part[:2400] for part in digits)
    cfg = ProbeConfig(epochs=2, warmup_epochs=1, global_batch=256)
    with pytest.raises(ConfigError, match=r"probe\.warmup_epochs \(5\).*between 0 and 1"):
        fit_epochs_probe(shuffled(train, labels, 256), 2400, 10, test, test_labels, cfg.model_copy(update={"warmup_epochs": 5}), 0)
    with pytest.raises(DataError, match="256 of 256 training features are not finite"):
        fit_epochs_probe(shuffled(train * torch.nan, labels, 256), 2400, 10, test, test_labels, cfg, 0)
    with pytest.raises(DataError, match="outside 0 to 4"):
        fit_epochs_probe(shuffled(train, labels, 256), 2400, 5, test, test_labels, cfg, 0)
    with pytest.raises(DivergedError, match=r"not finite in epoch 0.*probe\.base_lr"):
        fit_epochs_probe(
            shuffled(train, labels, 256), 2400, 10, test, test_labels, cfg.model_copy(update={"base_lr": 1e38, "warmup_epochs": 0}), 0
        )
    with pytest.raises(ValueError, match="expected 9 from 2400"):
        fit_epochs_probe(shuffled(train[:300], labels[:300], 256), 2400, 10, test, test_labels, cfg, 0)

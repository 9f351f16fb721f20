"""The cached linear probe against scikit-learn, and what it must never do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ablation.config import ProbeConfig
from ablation.errors import DataError
from ablation.evaluation.probe import Standardiser, fit_cached_probe, fit_path, split_held_out
from ablation.evaluation.scores import top_k_correct


def problem(images: int = 1500, tests: int = 1000, dim: int = 32, classes: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw overlapping classes in correlated, rectified features of very different scales, as a network's are."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dim, dim)) * (np.arange(1, dim + 1) ** -0.7)[:, None]
    centres = 0.6 * rng.normal(size=(classes, dim))
    sets: list[Tensor] = []
    for count in (images, tests):
        labels = rng.integers(classes, size=count)
        features = np.maximum(0, (centres[labels] + rng.normal(size=(count, dim))) @ mixing) * np.logspace(-2, 2, dim)
        sets += [torch.tensor(features, dtype=torch.float32), torch.tensor(labels)]
    return sets[0], sets[1], sets[2], sets[3]


@pytest.mark.parametrize("decay", [1e-2, 1e-3, 1e-4])
def test_reaches_scikit_learns_optimum(decay: float) -> None:
    train, labels, test, test_labels = problem()
    norm = Standardiser.of(train)
    rows = norm(train).double().numpy()
    theirs = LogisticRegression(C=1 / (len(rows) * decay), tol=1e-7, max_iter=5000).fit(rows, labels.numpy())
    logits = rows @ theirs.coef_.T + theirs.intercept_
    expected = float(torch.nn.functional.cross_entropy(torch.from_numpy(logits), labels)) + decay / 2 * (theirs.coef_**2).sum()
    (fit,) = fit_path(norm(train), labels, 8, [decay])
    assert fit.objective == pytest.approx(expected, rel=1e-3)
    accuracy = 100 * float(((norm(test) @ fit.weight + fit.bias).argmax(dim=1) == test_labels).double().mean())
    assert accuracy == pytest.approx(100 * theirs.score(norm(test).double().numpy(), test_labels.numpy()), abs=0.5)


def test_a_warm_start_ends_at_the_same_optimum() -> None:
    train, labels, *_ = problem()
    rows = Standardiser.of(train)(train)
    path = fit_path(rows, labels, 8, [1e-1, 1e-2, 1e-3])
    (again,) = fit_path(rows, labels, 8, [1e-2], start=path[2])
    assert again.objective == pytest.approx(path[1].objective, rel=1e-4)
    assert path[0].objective > path[1].objective > path[2].objective


def test_scores_what_it_returns() -> None:
    train, labels, test, test_labels = problem()
    result = fit_cached_probe(train, labels, test, test_labels, ProbeConfig(), seed=0)
    assert torch.equal(result.correct, result.logits.argmax(dim=1) == test_labels)
    assert result.top1 == pytest.approx(100 * float(result.correct.double().mean()))
    in_five = (result.logits.topk(5).indices == test_labels[:, None]).any(dim=1)
    assert result.top5 == pytest.approx(100 * float(in_five.double().mean()))
    assert result.chosen_weight_decay in ProbeConfig().weight_decays
    assert 60 < result.top1 < 99
    assert result.held_out_accuracy == pytest.approx(result.top1, abs=8)


def test_the_same_seed_gives_the_same_result() -> None:
    data = problem()
    first, second = (fit_cached_probe(*data, ProbeConfig(), seed=3) for _ in range(2))
    assert torch.equal(first.logits, second.logits)
    assert first.held_out_accuracy == second.held_out_accuracy


def test_test_images_choose_nothing() -> None:
    train, labels, test, test_labels = problem()
    result = fit_cached_probe(train, labels, test, test_labels, ProbeConfig(), seed=0)
    wrong = fit_cached_probe(train, labels, -test[:10], (test_labels[:10] + 1) % 8, ProbeConfig(), seed=0)
    assert (wrong.chosen_weight_decay, wrong.held_out_accuracy) == (result.chosen_weight_decay, result.held_out_accuracy)
    plain = fit_cached_probe(train, labels, test, test_labels, ProbeConfig(weight_decays=(result.chosen_weight_decay,)), seed=0)
    assert plain.held_out_accuracy is None
    assert plain.top1 == pytest.approx(result.top1, abs=0.3)  # refitted on all training images, not on the kept ones


def test_the_useful_weight_decay_is_chosen() -> None:
    """With half of the training labels drawn at random and few images, hardly any decay overfits."""
    train, labels, test, test_labels = problem(images=400, dim=150, classes=4)
    labels[:200] = torch.randint(4, (200,), generator=torch.Generator().manual_seed(0))
    result = fit_cached_probe(train, labels, test, test_labels, ProbeConfig(weight_decays=(1e-6, 1.0), held_out=0.3), seed=0)
    top1 = {
        decay: fit_cached_probe(train, labels, test, test_labels, ProbeConfig(weight_decays=(decay,)), seed=0).top1 for decay in (1e-6, 1.0)
    }
    assert top1[1.0] > top1[1e-6] + 1
    assert result.chosen_weight_decay == 1.0


def test_views_are_more_training_rows() -> None:
    train, labels, test, test_labels = problem(images=400)
    mirrored = train + 0.1 * train.std(dim=0) * torch.randn(train.shape, generator=torch.Generator().manual_seed(0))
    cfg = ProbeConfig(weight_decays=(1e-3,))
    views = fit_cached_probe(torch.stack([train, mirrored]), labels, test, test_labels, cfg, seed=0)
    rows = fit_cached_probe(torch.cat([train, mirrored]), labels.repeat(2), test, test_labels, cfg, seed=0)
    single = fit_cached_probe(train, labels, test, test_labels, cfg, seed=0)
    assert torch.equal(views.logits, rows.logits)
    assert not torch.allclose(views.logits, single.logits, atol=1e-2)


def test_a_held_out_image_is_held_out_in_all_views() -> None:
    """With random labels and twice the same view, a leak would show as held-out accuracy near 100 %."""
    generator = torch.Generator().manual_seed(0)
    train, labels = torch.randn(150, 300, generator=generator), torch.randint(2, (150,), generator=generator)
    cfg = ProbeConfig(weight_decays=(1e-4, 1e-3), held_out=0.4)
    result = fit_cached_probe(torch.stack([train, train]), labels, train, labels, cfg, seed=0)
    assert result.held_out_accuracy is not None
    assert result.held_out_accuracy < 75
    assert result.top1 == 100  # of the training images themselves: these it does fit


def test_the_split_covers_all_images_once() -> None:
    kept, held_out = split_held_out(103, 0.1, seed=0)
    assert len(held_out) == 10
    assert sorted(torch.cat([kept, held_out]).tolist()) == list(range(103))
    assert not torch.equal(held_out, split_held_out(103, 0.1, seed=1)[1])
    assert [len(part) for part in split_held_out(2, 0.01, seed=0)] == [1, 1]


def test_collapsed_features_score_chance() -> None:
    labels = torch.arange(10).repeat(20)
    train = torch.ones(200, 16)
    result = fit_cached_probe(train, labels, train, labels, ProbeConfig(), seed=0)
    assert result.top1 == pytest.approx(10)
    assert result.top5 == pytest.approx(50)


def test_equal_scores_are_not_all_right() -> None:
    top1, top5 = top_k_correct(torch.zeros(10, 10), torch.arange(10))
    assert int(top1.sum()) == 1
    assert top5 is not None
    assert int(top5.sum()) == 5
    assert top_k_correct(torch.zeros(5, 5), torch.arange(5))[1] is None


def test_unusable_inputs_are_refused() -> None:
    train, labels, test, test_labels = problem(images=60, tests=20)
    cfg = ProbeConfig()
    with pytest.raises(DataError, match="all have one class"):
        fit_cached_probe(train, torch.full_like(labels, 3), test, test_labels, cfg, seed=0)
    with pytest.raises(DataError, match=r"classes without any training image: \[9\]"):
        fit_cached_probe(train, labels, test, torch.full_like(test_labels, 9), cfg, seed=0)
    broken = test.clone()
    broken[3, 0] = torch.nan
    with pytest.raises(DataError, match="1 of 20 test features are not finite"):
        fit_cached_probe(train, labels, broken, test_labels, cfg, seed=0)
    with pytest.raises(DataError, match="no test images"):
        fit_cached_probe(train, labels, test[:0], test_labels[:0], cfg, seed=0)
    with pytest.raises(ValueError, match="do not fit labels"):
        fit_cached_probe(train, labels[:-1], test, test_labels, cfg, seed=0)

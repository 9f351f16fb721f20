"""The weighted nearest-neighbour classifier by hand and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from ablation.config import ProbeConfig
from ablation.errors import ConfigError, DataError
from ablation.evaluation import knn
from ablation.evaluation.knn import knn_classify


def angle(*degrees: float) -> torch.Tensor:
    """Make unit vectors in the plane at these angles."""
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split scikit-learn's digits into 1,200 training and 597 test images."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    features, labels = torch.tensor(x[order], dtype=torch.float32), torch.tensor(y[order])
    return features[:1200], labels[:1200], features[1200:], labels[1200:]


def test_two_weak_votes_against_a_strong_one() -> None:
    """The query at 0 degrees sees class 1 at 10 degrees, and class 0 at 30 and 31 degrees; class 2 is out of reach.

    cos 10 = 0.9848, cos 30 = 0.8660, cos 31 = 0.8572. At temperature 1 the two win (e^0.866 + e^0.857 > e^0.985), at 0.05
    the near one does (e^19.70 > e^17.32 + e^17.14).
    """
    train, labels = angle(10, 30, 31, 180), torch.tensor([1, 0, 0, 2])
    query = 7.0 * angle(0)  # length does not matter
    for temperature, predicted in ((1.0, 0), (0.05, 1), (1e-4, 1)):
        result = knn_classify(train, labels, query, torch.tensor([predicted]), ProbeConfig(neighbours=3, knn_temperature=temperature))
        assert result.top1 == 100, temperature
        assert result.top5 is None


def test_agrees_with_scikit_learn() -> None:
    train, train_labels, test, test_labels = digits()
    cfg = ProbeConfig(neighbours=15, knn_temperature=0.1)
    result = knn_classify(train, train_labels, test, test_labels, cfg)
    theirs = KNeighborsClassifier(15, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.1))
    theirs.fit(train.double().numpy(), train_labels.numpy())
    expected = theirs.predict(test.double().numpy()) == test_labels.numpy()
    assert (result.correct.numpy() == expected).mean() > 0.998
    assert result.top1 == pytest.approx(100 * expected.mean(), abs=0.2)
    assert result.top1 == pytest.approx(100 * float(result.correct.double().mean()))
    assert result.top5 is not None
    assert result.top5 >= result.top1


def test_chunks_and_repetition_change_nothing() -> None:
    train, train_labels, test, test_labels = digits()
    results = [knn_classify(train, train_labels, test, test_labels, ProbeConfig(), chunk) for chunk in (1024, 1024, 37)]
    assert torch.equal(results[0].correct, results[1].correct)
    assert torch.equal(results[0].correct, results[2].correct)


def test_unusable_inputs_are_refused() -> None:
    train, labels = angle(0, 90), torch.tensor([0, 1])
    with pytest.raises(ConfigError, match=r"probe\.neighbours is 20 but there are only 2"):
        knn_classify(train, labels, train, labels, ProbeConfig())
    with pytest.raises(DataError, match="one class"):
        knn_classify(train, torch.zeros(2, dtype=torch.int64), train, labels, ProbeConfig(neighbours=1))
    with pytest.raises(DataError, match="1 of 2 training features are not finite"):
        knn_classify(torch.tensor([[1.0, math.inf], [0, 1]]), labels, train, labels, ProbeConfig(neighbours=1))


def test_keys_taken_in_parts_give_the_same_neighbours(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    train, test = torch.randn(500, 16, generator=generator), torch.randn(70, 16, generator=generator)
    labels, answers = torch.arange(500) % 7, torch.arange(70) % 7
    whole = knn_classify(train, labels, test, answers, ProbeConfig())
    for size in (13, 128, 499):
        monkeypatch.setattr(knn, "KEYS", size)
        parts = knn_classify(train, labels, test, answers, ProbeConfig(), chunk=32)
        assert torch.equal(parts.correct, whole.correct)
        assert (parts.top1, parts.top5) == (whole.top1, whole.top5)

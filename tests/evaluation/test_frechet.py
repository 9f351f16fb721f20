"""The Frechet distance against closed forms, high precision and torch-fidelity; its statistics against numpy."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from ablation.errors import DataError
from ablation.evaluation.frechet import FeatureStatistics, frechet_distance


def correlated(count: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Draw features with a falling spectrum and correlated dimensions; the mixing is the same for every seed."""
    mixing = np.random.default_rng(99).normal(size=(dim, dim)) * (np.arange(1, dim + 1) ** -0.8)[:, None]
    return np.random.default_rng(seed).normal(size=(count, dim)) @ mixing + shift


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int = 10_000) -> FeatureStatistics:
    """Make the statistics of an exact Gaussian."""
    return FeatureStatistics(count, mean, covariance * (count - 1))


def test_diagonal_gaussians_have_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.normal(size=(2, 30))
    var_a, var_b = rng.uniform(0.01, 5, size=(2, 30))
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(var_a) - np.sqrt(var_b)) ** 2).sum()
    assert frechet_distance(gaussian(mean_a, np.diag(var_a)), gaussian(mean_b, np.diag(var_b))) == pytest.approx(expected, rel=1e-10)


def test_a_shift_adds_its_squared_length() -> None:
    x = correlated(500, 20, seed=0)
    shift = np.linspace(-1, 1, 20)
    assert frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(x + shift)) == pytest.approx(shift @ shift, rel=1e-8)


@pytest.mark.parametrize("count", [10, 400])  # singular, and of full rank
def test_equal_sets_are_at_distance_zero(count: int) -> None:
    stats = FeatureStatistics.of(correlated(count, 40, seed=3))
    assert 0 <= frechet_distance(stats, stats) < 1e-9 * np.trace(stats.covariance)


@pytest.mark.parametrize(("count_a", "count_b"), [(400, 300), (400, 30), (30, 400), (30, 50)])
def test_agrees_with_torch_fidelity(count_a: int, count_b: int) -> None:
    x, y = correlated(count_a, 64, seed=1), 1.2 * correlated(count_b, 64, seed=2, shift=0.1)
    theirs = [fid_features_to_statistics(torch.from_numpy(features)) for features in (x, y)]
    expected = fid_statistics_to_metric(*theirs, verbose=False)[KEY_METRIC_FID]
    assert frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("count_a", "count_b"), [(8, 11), (11, 8), (8, 60), (60, 8)])
def test_fewer_images_than_dimensions_lose_no_accuracy(count_a: int, count_b: int) -> None:
    x, y = correlated(count_a, 24, seed=4), correlated(count_b, 24, seed=5, shift=0.05)
    with mpmath.workdps(40):  # tr (A B)^(1/2) is the nuclear norm of the centred sets' product, whatever their ranks
        matrices = [mpmath.matrix(features.tolist()) for features in (x, y)]
        centred = []
        for matrix in matrices:
            means = [mpmath.fsum(matrix[:, j]) / matrix.rows for j in range(matrix.cols)]
            shifted = mpmath.matrix(matrix.rows, matrix.cols)
            for i in range(matrix.rows):
                for j in range(matrix.cols):
                    shifted[i, j] = (matrix[i, j] - means[j]) / mpmath.sqrt(matrix.rows - 1)
            centred.append((means, shifted))
        (mean_a, a), (mean_b, b) = centred
        nuclear = mpmath.fsum(mpmath.svd_r(a * b.T, compute_uv=False))
        difference = mpmath.fsum((p - q) ** 2 for p, q in zip(mean_a, mean_b, strict=True))
        expected = float(difference + mpmath.fsum(v * v for v in a) + mpmath.fsum(v * v for v in b) - 2 * nuclear)
    assert frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y)) == pytest.approx(expected, rel=1e-11)


def test_dead_features_and_disjoint_supports() -> None:
    """Covariances that are singular in spite of many images: the distance of unrelated spaces is the sum of the traces."""
    x, y = np.zeros((50, 12)), np.zeros((70, 12))
    x[:, :4], y[:, 6:9] = correlated(50, 4, seed=0), correlated(70, 3, seed=1)
    a, b = FeatureStatistics.of(x), FeatureStatistics.of(y)
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    constant = FeatureStatistics.of(np.ones((5, 12)))
    assert frechet_distance(constant, constant) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(2, 60), st.integers(1, 25), st.integers(0, 1000))
def test_symmetric_and_not_negative(count_a: int, count_b: int, dim: int, seed: int) -> None:
    a = FeatureStatistics.of(correlated(count_a, dim, seed))
    b = FeatureStatistics.of(correlated(count_b, dim, seed + 1))
    forward, backward = frechet_distance(a, b), frechet_distance(b, a)
    assert forward >= 0
    assert forward == pytest.approx(backward, rel=1e-6, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.floats(-1e4, 1e4))
def test_batches_of_any_size_give_the_same_statistics(sizes: list[int], shift: float) -> None:
    x = correlated(sum(sizes), 7, seed=6, shift=shift)
    stats = FeatureStatistics.empty(7)
    for part in np.split(x, np.cumsum(sizes)[:-1]):
        stats = stats.updated(part)
    assert stats.count == len(x)
    np.testing.assert_allclose(stats.mean, x.mean(axis=0), rtol=1e-12, atol=1e-10)
    if len(x) > 1:
        np.testing.assert_allclose(stats.covariance, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-9)


def test_one_by_one_merged_and_stored() -> None:
    x = torch.from_numpy(correlated(60, 9, seed=7, shift=300)).float()
    whole = FeatureStatistics.of(x)
    single = FeatureStatistics.empty(9)
    for row in x:
        single = single.updated(row[None])
    halves = FeatureStatistics.of(x[:13]).merged(FeatureStatistics.of(x[13:]))
    stored = FeatureStatistics.from_tensors(whole.tensors())
    for other in (single, halves, stored):
        np.testing.assert_allclose(other.covariance, whole.covariance, rtol=1e-9, atol=1e-9)
        assert frechet_distance(other, whole) < 1e-9 * np.trace(whole.covariance)


def test_unusable_features_are_refused() -> None:
    x = torch.ones(5, 3)
    x[2, 1] = torch.nan
    with pytest.raises(DataError, match="features of 1 of 5 images are not finite"):
        FeatureStatistics.of(x)
    with pytest.raises(DataError, match=r"1 image.*fid\.samples"):
        frechet_distance(FeatureStatistics.of(x[:1]), FeatureStatistics.of(x[3:]))
    with pytest.raises(ValueError, match="cannot be compared"):
        frechet_distance(FeatureStatistics.of(x[3:]), FeatureStatistics.of(x[3:, :2]))
    with pytest.raises(ValueError, match="cannot be merged"):
        FeatureStatistics.empty(3).updated(x[3:, :2])

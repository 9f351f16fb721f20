"""The tests of paired differences, against scipy and by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ablation.report.significance import (
    MOST_FLIPPED,
    correlation,
    detection_power,
    equivalence_p,
    equivalence_power,
    holm,
    seeds_needed,
    sign_flip_floor,
    sign_flip_p,
    student_p,
)

SAMPLES = [[0.5, 1.2], [0.5, 1.2, 0.9], [-3.0, 0.1, 0.2, 4.0], [2.1, 2.2, 1.9, 2.0, 2.4, 2.2], [0.1 * k - 0.4 for k in range(10)]]


@pytest.mark.parametrize("sample", SAMPLES, ids=len)
def test_student_p_is_scipys(sample):
    assert student_p(sample) == pytest.approx(stats.ttest_1samp(sample, 0).pvalue, rel=1e-9)


@pytest.mark.parametrize("margin", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("sample", SAMPLES, ids=len)
def test_equivalence_is_the_larger_of_two_one_sided_tests(sample, margin):
    below = stats.ttest_1samp(sample, margin, alternative="less").pvalue
    above = stats.ttest_1samp(sample, -margin, alternative="greater").pvalue
    assert equivalence_p(sample, margin) == pytest.approx(max(below, above), rel=1e-9)


@pytest.mark.parametrize("sample", SAMPLES, ids=len)
def test_sign_flip_is_scipys_permutation_test(sample):
    exact = stats.permutation_test(
        (np.array(sample),),
        lambda x, axis: np.abs(x.mean(axis=axis)),
        permutation_type="samples",
        n_resamples=np.inf,
        alternative="greater",
    )
    assert sign_flip_p(sample) == pytest.approx(exact.pvalue)


def test_sign_flip_cannot_get_below_its_floor():
    for seeds in range(1, 11):
        assert sign_flip_p([1.0 + 0.1 * seed for seed in range(seeds)]) == sign_flip_floor(seeds) == 2 / 2**seeds
    assert sign_flip_p([1.0, -1.0]) == 1.0
    assert sign_flip_p([0.1] * (MOST_FLIPPED + 1)) is None


def test_sign_flip_counts_equal_sums_that_rounding_tears_apart():
    assert sign_flip_p([0.1, 0.2, 0.3]) == 0.25
    assert sign_flip_p([0.3, 0.1, -0.2]) == 1.0 - 2 / 8  # |sum| = 0.2: only +-(0.1 + 0.2 - 0.3) = 0 is smaller


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(values):
    adjusted = holm({str(place): value for place, value in enumerate(values)})
    alive = sorted(range(len(values)), key=lambda place: values[place])
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for step, place in enumerate(alive):
            if values[place] * (len(values) - step) > level:
                break
            rejected.add(place)
        assert {place for place in range(len(values)) if adjusted[str(place)] <= level} == rejected
    assert all(adjusted[str(place)] >= value for place, value in enumerate(values))


def test_correlation_is_scipys():
    noise = random.Random(3)
    before = [noise.gauss(0, 1) for _ in range(6)]
    after = [value + noise.gauss(0, 1) for value in before]
    assert correlation(before, after) == pytest.approx(stats.pearsonr(before, after).statistic)
    assert correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None


@pytest.mark.parametrize("seeds", [2, 3, 5, 8, 30])
@pytest.mark.parametrize("level", [0.05, 0.05 / 13])
def test_power_is_that_of_the_noncentral_t(seeds, level):
    degrees, centre = seeds - 1, 1.0 / 1.3 * math.sqrt(seeds)
    critical = stats.t.ppf(1 - level / 2, degrees)
    expected = stats.nct.sf(critical, degrees, centre) + stats.nct.cdf(-critical, degrees, centre)
    assert detection_power(seeds, 1.0, 1.3, level) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("seeds", [3, 6, 12])
def test_power_of_equivalence_is_what_happens(seeds):
    noise = np.random.default_rng(5).normal(0, 0.8, (20_000, seeds))
    error = noise.std(axis=1, ddof=1) / math.sqrt(seeds)
    critical = stats.t.ppf(0.95, seeds - 1)
    share = (np.abs(noise.mean(axis=1)) + critical * error < 1.0).mean()
    assert equivalence_power(seeds, 1.0, 0.8) == pytest.approx(share, abs=0.012)


def test_seeds_needed_reach_the_power_and_one_fewer_does_not():
    for deviation in (0.3, 1.0, 2.5):
        for level in (0.05, 0.005):
            needed = seeds_needed(1.0, deviation, level)
            powers = [
                min(detection_power(count, 1.0, deviation, level), equivalence_power(count, 1.0, deviation, level))
                for count in range(max(2, needed - 1), needed + 1)
            ]
            assert powers[-1] >= 0.8
            assert len(powers) == 1 or powers[0] < 0.8
    assert seeds_needed(0.01, 5.0) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=8), st.floats(0.1, 10))
def test_every_p_is_a_probability(differences, margin):
    for value in (student_p(differences), sign_flip_p(differences), equivalence_p(differences, margin)):
        assert value is not None
        assert 0 <= value <= 1
    assert student_p([1.0]) is None
    assert equivalence_p([1.0], margin) is None

"""McNemar's test on the answers that records carry: by hand, against scipy, and read back from the records."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ablation.report.images import Answers, ImageTest, answers, compare_images, mcnemar, signed_sum_p
from ablation.report.results import Row

METRIC = "linear_probe_top1"


def packed(bits: Any, test_set: str = "t") -> dict[str, Any]:
    return {METRIC: base64.b64encode(np.packbits(np.asarray(bits, bool)).tobytes()).decode(), "images": len(bits), "test_set": test_set}


def row(stage: str, record: Any, by_seed: dict[int, Any]) -> Row:
    records = tuple(record(stage, seed, 30.0, correct=packed(bits) if bits is not None else {}) for seed, bits in by_seed.items())
    return Row(stage, stage, None, None, records, False, seeds=tuple(by_seed))


def test_mcnemar_by_hand():
    """10 images gained, 2 lost: 2 (C(12,0) + C(12,1) + C(12,2)) / 2^12 = 158 / 4096; the mid-p leaves out C(12,2) / 2^12."""
    exact, middle = mcnemar(10, 2)
    assert exact == pytest.approx(158 / 4096)
    assert middle == pytest.approx((158 - 66) / 4096)
    assert mcnemar(2, 10) == pytest.approx((exact, middle))
    assert mcnemar(3, 3) == pytest.approx((1.0, 1 - 20 / 64 / 2))
    assert mcnemar(0, 0) == (1.0, 1.0)
    assert mcnemar(5, 0) == pytest.approx((2 / 32, 1 / 32))


@pytest.mark.parametrize(("gained", "lost"), [(7, 1), (40, 25), (300, 260), (1200, 1000)])
def test_mcnemar_is_scipys_binomial_test(gained, lost):
    exact, middle = mcnemar(gained, lost)
    assert exact == pytest.approx(stats.binomtest(min(gained, lost), gained + lost, 0.5).pvalue, abs=1e-11)
    assert middle == pytest.approx(exact - stats.binom.pmf(min(gained, lost), gained + lost, 0.5), abs=1e-11)


def test_signed_sum_is_the_enumeration():
    sizes = [1, 1, 2, 2, 3]
    sums = [abs(sum(sign * size for sign, size in zip(signs, sizes, strict=True))) for signs in itertools.product((1, -1), repeat=5)]
    for observed in (1, 3, 5, 7, 9):
        exact, middle = signed_sum_p({1: 2, 2: 2, 3: 1}, observed)
        assert exact == pytest.approx(sum(total >= observed for total in sums) / 32)
        assert middle == pytest.approx((sum(total > observed for total in sums) + sum(total == observed for total in sums) / 2) / 32)


def test_one_seed_is_mcnemar(record):
    before, after = [1, 1, 0, 0, 0, 0, 1, 0, 0, 1, 1], [1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1]  # 5 gained, 1 lost
    found = compare_images(row("a", record, {0: before}), row("b", record, {0: after}), (0,), METRIC)
    assert isinstance(found, ImageTest)
    assert (found.images, found.by_seed[0].gained, found.by_seed[0].lost) == (11, 5, 1)
    assert (found.exact, found.middle) == pytest.approx(mcnemar(5, 1))
    assert (found.by_seed[0].exact, found.by_seed[0].middle) == pytest.approx(mcnemar(5, 1))


def test_seeds_that_answer_alike_add_no_images(record):
    """Three networks that gain and lose the same images are one observation of each image, not three."""
    before, after = [0] * 12 + [1] * 8, [1] * 12 + [0] * 4 + [1] * 4
    one = compare_images(row("a", record, {0: before}), row("b", record, {0: after}), (0,), METRIC)
    three = compare_images(
        row("a", record, dict.fromkeys(range(3), before)), row("b", record, dict.fromkeys(range(3), after)), (0, 1, 2), METRIC
    )
    assert isinstance(one, ImageTest)
    assert isinstance(three, ImageTest)
    assert (three.exact, three.middle) == pytest.approx((one.exact, one.middle))
    assert three.exact > mcnemar(36, 12)[0] * 5, "counting every answer as its own image would claim far more"


def test_pooled_by_hand(record):
    """Images' sums over two seeds: +2, +1, -1, 0. The sum is 2; of 8 sign patterns 6 reach |2| (4 4 2 2 2 2 0 0), so p = 6/8."""
    first = row("a", record, {0: [0, 0, 1, 1], 1: [0, 1, 1, 0]}), row("b", record, {0: [1, 1, 1, 1], 1: [1, 1, 0, 0]})
    found = compare_images(*first, (0, 1), METRIC)
    assert isinstance(found, ImageTest)
    assert found.exact == pytest.approx(6 / 8)
    assert found.middle == pytest.approx(2 / 8 + 4 / 8 / 2)


def test_what_cannot_be_compared_says_why(record):
    full, none = row("a", record, {0: [1, 0, 1]}), row("b", record, {0: None})
    assert compare_images(full, none, (0,), METRIC) == "answers not stored"
    other = Row("b", "b", None, None, (record("b", 0, 30.0, correct=packed([1, 0, 1], "elsewhere")),), False)
    assert compare_images(full, other, (0,), METRIC) == "test images differ"
    fewer = row("b", record, {0: [1, 0]})
    assert compare_images(full, fewer, (0,), METRIC) == "test images differ"
    assert compare_images(full, full, (), METRIC) == "no common seed"


def test_answers_are_read_back_or_named(record):
    bits = [1, 0, 0, 1, 1, 0, 1, 1, 1]
    found = answers(record("baseline", correct=packed(bits)), METRIC)
    assert isinstance(found, Answers)
    assert np.unpackbits(np.frombuffer(found.packed, np.uint8), count=9).tolist() == bits
    assert answers(record("baseline"), METRIC) == "answers not stored"
    assert answers(record("baseline", correct={"reason": "answers unreadable"}), METRIC) == "answers unreadable"
    assert answers(record("baseline", correct=packed(bits) | {METRIC: "%%"}), METRIC) == "answers unreadable"
    assert answers(record("baseline", correct=packed(bits) | {"images": 80}), METRIC) == "answers unreadable"

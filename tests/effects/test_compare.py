import pytest
import torch

from ablation.effects.compare import ABSENT, compare, relative_change, words
from ablation.stage import EFFECTS


def facts(**given):
    return {effect: given.get(effect, {}) for effect in EFFECTS}


def test_equal_facts_have_no_difference():
    one = facts(input={"tokens": torch.ones(2, 3)}, training={"train.beta2": 0.9})
    assert compare(one, facts(input={"tokens": torch.ones(2, 3)}, training={"train.beta2": 0.9})) == {}


def test_differences_come_by_effect_in_the_order_of_the_vocabulary():
    before = facts(sampling={"levels": 3}, input={"tokens": torch.zeros(2)})
    after = facts(sampling={"levels": 4}, input={"tokens": torch.ones(2)})
    assert list(compare(before, after)) == ["input", "sampling"]
    assert str(compare(before, after)["sampling"][0]) == "levels: 3 -> 4"


def test_tensors_of_one_shape_differ_by_an_amount_and_others_by_their_shape():
    before = facts(input={"tokens": torch.ones(4)}, target={"target": torch.ones(2, 3)})
    after = facts(input={"tokens": torch.full((4,), 1.01)}, target={"target": torch.ones(2, 5)})
    found = compare(before, after)
    assert found["input"][0].amount == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert str(found["target"][0]) == "target: (2, 3) -> (2, 5)"


def test_rounding_is_no_difference_and_what_is_missing_is_one():
    assert not compare(facts(input={"t": torch.ones(9)}), facts(input={"t": torch.ones(9) + 1e-7}))
    found = compare(facts(parameters={"a": (2,)}), facts(parameters={"b": (2,)}))
    assert [str(one) for one in found["parameters"]] == ["a: (2,) -> nothing", "b: nothing -> (2,)"]
    assert repr(ABSENT) == "nothing"


def test_numbers_that_are_not_finite_never_count_as_equal():
    assert relative_change(torch.tensor([float("nan")]), torch.tensor([float("nan")])) == float("inf")
    assert relative_change(torch.zeros(3), torch.zeros(3)) == 0.0


def test_words():
    assert (words(None), words(0.123456), words(torch.zeros(2, 1)), words("x")) == ("none", "0.1235", "(2, 1)", "x")

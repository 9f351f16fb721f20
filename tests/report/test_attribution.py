"""Shapley values over feasible orders: against the definition, and the properties that make them a fair split."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation.report.attribution import Stages, all_orders, order_counts, sampled_shares, shapley

PLAYERS = ("a", "b", "c", "d")


def subsets(players: tuple[str, ...]) -> list[Stages]:
    return [frozenset(one) for size in range(len(players) + 1) for one in itertools.combinations(players, size)]


def brute_force(values: dict[Stages, float], players: tuple[str, ...]) -> dict[str, float]:
    """Average what each player adds over every permutation all of whose prefixes have a value."""
    added: dict[str, list[float]] = {player: [] for player in players}
    for order in itertools.permutations(players):
        prefixes = [frozenset(order[:place]) for place in range(len(order) + 1)]
        if all(prefix in values for prefix in prefixes):
            for player, before, after in zip(order, prefixes, prefixes[1:], strict=False):
                added[player].append(values[after] - values[before])
    return {player: sum(sizes) / len(sizes) for player, sizes in added.items()}


def draw_values(seed: int, players: tuple[str, ...] = PLAYERS, feasible: Callable[[Stages], bool] | None = None) -> dict[Stages, float]:
    noise = random.Random(seed)
    return {one: noise.gauss(0, 3) for one in subsets(players) if feasible is None or feasible(one)}


def test_the_classical_glove_game():
    """One left and two right gloves: the left one is worth 2/3, each right one 1/6."""
    values = {one: float("left" in one and len(one) > 1) for one in subsets(("left", "right", "spare"))}
    assert shapley(values) == pytest.approx({"left": 2 / 3, "right": 1 / 6, "spare": 1 / 6})


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), dropped=st.sets(st.integers(1, 14), max_size=9))
def test_agrees_with_brute_force_over_feasible_orders_and_adds_up(seed, dropped):
    """With any infeasible sets; where no order is left, there is no value."""
    values = draw_values(seed)
    for place in dropped:
        del values[subsets(PLAYERS)[place]]
    orders = all_orders(values)
    expected = [order for order in itertools.permutations(PLAYERS)
                if all(frozenset(order[:place]) in values for place in range(5))]  # fmt: skip
    assert orders == expected
    shares = shapley(values)
    if not orders:
        assert shares == {}
        return
    assert shares == pytest.approx(brute_force(values, PLAYERS))
    assert math.fsum(shares.values()) == pytest.approx(values[frozenset(PLAYERS)] - values[frozenset()])
    assert order_counts(values)[1][frozenset()] == len(orders)


def test_a_prerequisite_leaves_only_the_orders_that_respect_it():
    values = draw_values(3, feasible=lambda one: "b" not in one or "a" in one)
    orders = all_orders(values)
    assert len(orders) == 12
    assert all(order.index("a") < order.index("b") for order in orders)
    assert shapley(values) == pytest.approx(brute_force(values, PLAYERS))


@pytest.mark.parametrize("chained", [False, True])
def test_a_null_player_gets_nothing(chained):
    """Also under a prerequisite that it has no part in."""
    base = draw_values(5, ("a", "b", "c"), lambda one: not chained or "b" not in one or "a" in one)
    values = {one | extra: value for one, value in base.items() for extra in (frozenset[str](), frozenset({"d"}))}
    shares = shapley(values)
    assert shares["d"] == 0.0
    assert {name: shares[name] for name in "abc"} == pytest.approx(shapley(base))


def test_players_that_are_alike_get_the_same():
    noise = random.Random(8)
    by_kind = {(number, rest): noise.gauss(0, 3) for number in range(3) for rest in subsets(("c", "d"))}
    values = {one: by_kind[len(one & {"a", "b"}), one - {"a", "b"}] for one in subsets(PLAYERS)}
    shares = shapley(values)
    assert shares["a"] == pytest.approx(shares["b"])


def test_an_additive_game_gives_each_its_own():
    sizes = dict(zip(PLAYERS, (5.0, -2.0, 0.3, 0.0), strict=True))
    values = {one: sum(sizes[player] for player in one) for one in subsets(PLAYERS)}
    assert shapley(values) == pytest.approx(sizes)


def test_all_orders_sampled_is_the_exact_value_without_error():
    values = draw_values(11)
    orders = all_orders(values)
    for player, one in sampled_shares(values, orders, len(orders)).items():
        assert one.share == pytest.approx(shapley(values)[player])
        assert one.error == 0.0
    assert sampled_shares(values, orders[:1], 24)["a"].error is None
    assert sampled_shares(values, [], 24) == {}


def test_the_standard_error_is_that_of_the_estimate():
    """Over many samples of eight orders: the spread of the estimates is the error they state, and they are right on average."""
    values, noise = draw_values(21), random.Random(0)
    orders, exact = all_orders(values), shapley(values)
    found = [sampled_shares(values, noise.sample(orders, 8), len(orders)) for _ in range(1500)]
    for player in PLAYERS:
        estimates = [one[player].share for one in found]
        centre = math.fsum(estimates) / len(estimates)
        spread = math.sqrt(math.fsum((one - centre) ** 2 for one in estimates) / len(estimates))
        stated = math.sqrt(math.fsum((one[player].error or 0) ** 2 for one in found) / len(found))
        assert centre == pytest.approx(exact[player], abs=4 * spread / math.sqrt(len(found)))
        assert stated == pytest.approx(spread, rel=0.08)

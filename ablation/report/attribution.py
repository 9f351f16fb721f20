"""Shapley values over the feasible orders of stages: a split of the whole change that does not depend on one order. Pure.

A set of stages has a value: what the path with just these stages measures. An order is feasible if every set that it passes
through is; with prerequisites that is not every order. A stage's share is the mean, over the feasible orders, of what it adds
when its turn comes. The shares add up to the whole change; a stage that never changes anything gets nothing; stages that are
alike get the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablation.report.intervals import mean, spread

Stages = frozenset[str]
Order = tuple[str, ...]


def additions(sets: Collection[Stages]) -> list[tuple[Stages, str]]:
    """List every step from one set to another that has one stage more."""
    known = set(sets)
    players = set().union(*known) if known else set()
    return [(one, player) for one in sorted(known, key=_place) for player in sorted(players - one) if one | {player} in known]


def _place(stages: Stages) -> tuple[int, list[str]]:
    return len(stages), sorted(stages)


def order_counts(sets: Collection[Stages]) -> tuple[dict[Stages, int], dict[Stages, int]]:
    """Count the orders that lead from the empty set to each set, and from each set to the whole."""
    whole: Stages = frozenset().union(*sets)
    steps = additions(sets)
    to, onward = dict.fromkeys(sets, 0), dict.fromkeys(sets, 0)
    if frozenset() in to:
        to[frozenset()] = 1
    if whole in onward:
        onward[whole] = 1
    for before, player in steps:  # smaller sets first
        to[before | {player}] += to[before]
    for before, player in reversed(steps):
        onward[before] += onward[before | {player}]
    return to, onward


def shapley(values: Mapping[Stages, float]) -> dict[str, float]:
    """Return every stage's share over the orders that the given sets allow; {} where they allow none."""
    if not values:
        return {}
    to, onward = order_counts(list(values))
    orders = onward.get(frozenset(), 0)
    if not orders:
        return {}
    shares = dict.fromkeys(sorted(frozenset().union(*values)), 0.0)
    for before, player in additions(list(values)):
        weight = to[before] * onward[before | {player}]
        shares[player] += weight / orders * (values[before | {player}] - values[before])
    return shares


def all_orders(sets: Collection[Stages], most: int = 5040) -> list[Order]:
    """List the orders that the given sets allow, at most so many, in alphabetical turn."""
    whole: Stages = frozenset().union(*sets)
    known = set(sets)
    _, onward = order_counts(known)

    def grow(order: Order, reached: Stages) -> Iterator[Order]:
        if reached == whole:
            yield order
            return
        for player in sorted(whole - reached):
            if onward.get(reached | {player}, 0):
                yield from grow((*order, player), reached | {player})

    found = []
    for order in grow((), frozenset()):
        found.append(order)
        if len(found) == most:
            break
    return found


def passes(order: Order) -> list[Stages]:
    """List the sets that an order passes through, the empty one first."""
    return [frozenset(order[:place]) for place in range(len(order) + 1)]


@dataclass(frozen=True)
class Sampled:
    """A share estimated from some of the orders: the mean of what the stage added in each, and that mean's standard error."""

    share: float
    error: float | None  # None from one order


def sampled_shares(values: Mapping[Stages, float], orders: Sequence[Order], total: int) -> dict[str, Sampled]:
    """Estimate the shares from complete orders, drawn without repetition from `total` feasible ones."""
    added: dict[str, list[float]] = {player: [] for player in sorted(orders[0])} if orders else {}
    for order in orders:
        for place, player in enumerate(order):
            added[player].append(values[frozenset(order[: place + 1])] - values[frozenset(order[:place])])
    left = math.sqrt(max(0.0, 1 - len(orders) / total)) if total else 1.0  # nothing is left to chance once all are seen
    shares = {}
    for player, sizes in added.items():
        deviation = spread(sizes)
        shares[player] = Sampled(mean(sizes), None if deviation is None else left * deviation / math.sqrt(len(sizes)))
    return shares

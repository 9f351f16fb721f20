"""The cells behind Shapley values: every feasible selection of some of a path's stages, or those on a sample of orders. Light.

The chosen stages come and go, the path's other stages stay; what is there is applied in the path's own order. An order is
feasible if every selection it passes through can run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations

from ablation.config import Config
from ablation.design import Role
from ablation.errors import ConfigError, nearest
from ablation.layouts import Route, Variant

MOST_STAGES = 6
"""Stages of which every selection may be asked for: 2^6 = 64 cells a seed."""
MOST_SAMPLED = 14
"""Stages over which orders may be sampled: all selections are looked at, though few are run."""

Stages = frozenset[str]


def coalition_variants(route: Route, among: Sequence[str], orders: int | None) -> list[Variant]:
    """Return a variant for each selection that is needed; orders: how many feasible orders to sample, None for all selections."""
    players = chosen_stages(route, among, orders)
    feasible = feasible_selections(route, players)
    onward = orders_from(feasible, frozenset(players))
    total = onward.get(frozenset(), 0)
    if not total:
        raise ConfigError(
            f"no order of {', '.join(players)} can be run: {_first_obstacle(route, players)}",
            "Choose other stages with --among, together with those they need.",
        )
    sampled: dict[Stages, list[int]] = {}
    if orders is None or orders >= total:
        reached = _reachable(onward)
        sampled = {selection: [] for selection in reached}
    else:
        for number, order in enumerate(sample_orders(onward, frozenset(players), orders)):
            for size in range(len(order) + 1):
                sampled.setdefault(frozenset(order[:size]), []).append(number)
    names = [stage.name for stage in route.stages]
    variants = []
    for selection in sorted(sampled, key=lambda one: (len(one), [names.index(name) for name in names if name in one])):
        steps = tuple(name for name in names if name in selection)
        path = tuple(name for name in names if name not in players or name in selection)
        role = Role("shapley", route.through, None, "", steps, tuple(sampled[selection]), total)
        variants.append(Variant(role, feasible[selection], path))
    return variants


def chosen_stages(route: Route, among: Sequence[str], orders: int | None) -> tuple[str, ...]:
    """Return the stages that come and go, in the path's order; too many, or unknown ones, raise."""
    names = [stage.name for stage in route.stages[1:]]
    if unknown := [name for name in among if name not in names]:
        raise ConfigError(f"--among '{unknown[0]}' is no stage between the root and '{route.through}'", nearest(unknown[0], names))
    players = tuple(name for name in names if not among or name in among)
    most = MOST_STAGES if orders is None else MOST_SAMPLED
    if len(players) > most:
        raise ConfigError(
            f"--design shapley over {len(players)} stages takes up to {2 ** len(players)} cells a seed; the limit is {most} stages",
            f"Choose at most {most} with --among"
            + (f", or sample orders of up to {MOST_SAMPLED} with --orders." if orders is None else "."),
        )
    if len(players) < 2:
        raise ConfigError("--design shapley needs two stages or more", "Name them with --among.")
    return players


def _configuration(route: Route, players: Sequence[str], selection: Stages) -> Config:
    """Apply the stages of a selection and all others; raises where that cannot run."""
    stages = [stage for stage in route.stages if stage.name not in players or stage.name in selection]
    config = route.apply_again(stages)[-1]
    route.check(config, stages)
    return config


def feasible_selections(route: Route, players: Sequence[str]) -> dict[Stages, Config]:
    """Map every selection that can run to its configuration."""
    found = {}
    for size in range(len(players) + 1):
        for chosen in combinations(players, size):
            selection = frozenset(chosen)
            try:
                found[selection] = _configuration(route, players, selection)
            except ConfigError:
                continue
    return found


def _first_obstacle(route: Route, players: Sequence[str]) -> str:
    """Say why the path without the chosen stages, or else with one of them, cannot run."""
    for selection in (frozenset[str](), *(frozenset({player}) for player in players)):
        try:
            _configuration(route, players, selection)
        except ConfigError as error:
            return error.problem
    return "each order passes through a selection that cannot run"


def orders_from(feasible: dict[Stages, Config], whole: Stages) -> dict[Stages, int]:
    """Count, for each feasible selection, the orders that lead from it to all chosen stages."""
    onward: dict[Stages, int] = {}
    for selection in sorted(feasible, key=len, reverse=True):
        onward[selection] = 1 if selection == whole else sum(onward.get(selection | {player}, 0) for player in whole - selection)
    return onward


def _reachable(onward: dict[Stages, int]) -> set[Stages]:
    """Return the selections that lie on a feasible order."""
    reached = {frozenset[str]()}
    for selection in sorted(onward, key=len):
        if onward[selection] and any(selection - {player} in reached for player in selection):
            reached.add(selection)
    return reached


def sample_orders(onward: dict[Stages, int], whole: Stages, count: int, seed: int = 0) -> Iterator[tuple[str, ...]]:
    """Yield different feasible orders, each as likely as any other: the next stage is drawn by how many orders go on from it."""
    draw, seen = random.Random(seed), set[tuple[str, ...]]()
    while len(seen) < count:
        order: tuple[str, ...] = ()
        while len(order) < len(whole):
            reached = frozenset(order)
            options = sorted(player for player in whole - reached if onward.get(reached | {player}, 0))
            order = (*order, *draw.choices(options, [onward[reached | {player}] for player in options]))
        if order not in seen:
            seen.add(order)
            yield order

"""The cells behind Shapley values: feasible selections and sampled orders, each run once."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import partial

import pytest
from test_layouts import five_stages

from ablation.checks import check_config
from ablation.coalitions import MOST_STAGES, chosen_stages, coalition_variants, feasible_selections, orders_from, sample_orders
from ablation.errors import ConfigError
from ablation.layouts import Route, design_cells


def lay(tree, through, among=(), orders=None, designs=("shapley",), seeds=(0,)):
    return design_cells(tree, through, designs, seeds, {}, partial(coalition_variants, among=among, orders=orders))[0]


def test_five_stages_with_prerequisites():
    """b before c and d before e: of 120 orders 30 are feasible, of 32 selections 18, all of which some order passes through."""
    tree = five_stages()
    cells = lay(tree, "e")
    roles = [role for cell in cells for role in cell.roles]
    assert {role.total for role in roles} == {30}
    selections = {frozenset(role.steps) for role in roles}
    expected = {
        frozenset(one) for size in range(6) for one in itertools.combinations("abcde", size)
        if ("c" not in one or "b" in one) and ("e" not in one or "d" in one)
    }  # fmt: skip
    assert selections == expected
    assert len(roles) == len(selections) == 18
    assert len(cells) == len({cell.config for cell in cells}) < 18, "d overrides a: selections that are equal are one cell"
    assert {cell.id for cell in cells} >= {"root-s0", "a-s0", "b-s0", "c-s0", "e-s0"}, "the ladder's own cells are shared"


def test_what_does_not_come_and_go_stays(smoke_tree):
    among = ("inverse_pca_input", "predict_clean")
    cells = lay(smoke_tree, "inverse_pca_input", among, seeds=(0, 1))
    found = {frozenset(role.steps): cell for cell in cells for role in cell.roles if cell.seed == 0}
    assert found[frozenset({"predict_clean"})].id == "drop_input_scaling-s0"
    assert found[frozenset(among)].id == "inverse_pca_input-s0"
    assert dict(found[frozenset({"inverse_pca_input"})].overrides) == {"process.target": "noise"}
    assert dict(found[frozenset()].overrides) == {"process.target": "noise", "process.input_space": "latent"}
    assert all("drop_input_scaling" in cell.path or not cell.overrides for cell in cells)
    assert len(cells) == 8


def test_sampled_orders_are_feasible_different_and_equally_likely():
    tree = five_stages()
    route = Route(tree, "e", {})
    players = chosen_stages(route, (), 5)
    onward = orders_from(feasible_selections(route, players), frozenset(players))
    every = set(sample_orders(onward, frozenset(players), 30))
    assert len(every) == 30
    assert all(order.index("b") < order.index("c") and order.index("d") < order.index("e") for order in every)
    cells = lay(tree, "e", orders=4)
    by_order: dict[int, set[frozenset[str]]] = {}
    for cell in cells:
        check_config(cell.config, [])
        for role in cell.roles:
            for number in role.orders:
                by_order.setdefault(number, set()).add(frozenset(role.steps))
    assert {number: sorted(map(len, sets)) for number, sets in by_order.items()} == {number: [0, 1, 2, 3, 4, 5] for number in range(4)}
    first = Counter(next(sample_orders(onward, frozenset(players), 1, seed))[0] for seed in range(600))
    firsts = Counter(order[0] for order in every)
    for player, count in firsts.items():
        assert first[player] / 600 == pytest.approx(count / 30, abs=0.07)


def test_as_many_orders_as_there_are_is_the_exact_design():
    cells = lay(five_stages(), "e", orders=500)
    assert all(role.orders == () for cell in cells for role in cell.roles)


@pytest.mark.parametrize(
    ("among", "orders", "said"),
    [
        ((), None, rf"over 13 stages takes up to 8192 cells a seed; the limit is {MOST_STAGES} stages.*--among, or sample orders"),
        (("predict_cleen",), None, "--among 'predict_cleen' is no stage between the root and 'single_noise_level'.*predict_clean"),
        (("predict_clean",), None, "needs two stages or more"),
        (("patch_pca", "predict_clean"), None, r"no order of patch_pca, predict_clean can be run: stage '\w+' requires"),
    ],
)
def test_what_cannot_be_asked_for_is_said(smoke_tree, among, orders, said):
    with pytest.raises(ConfigError, match=said):
        lay(smoke_tree, "single_noise_level", among, orders)

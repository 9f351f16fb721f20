"""Which cells a study needs: the ladder and the designs beside it, the paper's grids, and the seeds.

A cell is one trained and measured configuration: a stage, settings on top of it, and a seed. A design lays cells over the
path to a stage, the final model:

ladder         each stage on top of all before it
add_one        the root and one stage alone
leave_one_out  the path applied again without one stage
put_back       the final model with the settings that one stage changed set back to what they were before it
shapley        the path with every feasible selection of some of its stages

Equal configurations are one cell, whichever designs ask for it. This module is light.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ablation.checks import check_config
from ablation.config import Config, apply
from ablation.errors import ConfigError
from ablation.keys import digest
from ablation.stage import Stage, StageTree

CONTROLS = ("random_init", "pca_features")
DESIGNS = ("ladder", "leave_one_out", "add_one", "put_back", "shapley")


@dataclass(frozen=True)
class Role:
    """What a cell stands for in a design over the path to `through`.

    `stage` is the stage under test, or None for the cell that the design's others are compared with; `remark` says what else
    the cell undoes. In the design shapley, `steps` are the chosen stages that are there, `orders` the numbers of the sampled
    orders that pass through (empty: all orders are wanted), of `total` feasible ones.
    """

    design: str
    through: str
    stage: str | None
    remark: str = ""
    steps: tuple[str, ...] = ()
    orders: tuple[int, ...] = ()
    total: int = 0


@dataclass(frozen=True)
class LeftOut:
    """A stage that a design has no cell for: because it cannot run ("impossible"), or would be the model it is compared with."""

    design: str
    through: str
    stage: str
    kind: str  # "impossible" or "no change"
    reason: str

    def __str__(self) -> str:
        return f"{self.design} of {self.stage}: {self.kind}: {self.reason}"


@dataclass(frozen=True)
class Cell:
    """One configuration to train and measure, or a control to measure it against."""

    stage: str
    overrides: tuple[tuple[str, Any], ...]
    seed: int
    config: Config
    control: str | None = None
    path: tuple[str, ...] = ()  # the stages that were applied, where that is not the whole path to `stage`
    roles: tuple[Role, ...] = ()
    left_out: tuple[LeftOut, ...] = ()  # carried by the cell that the missing ones would be compared with

    @cached_property
    def id(self) -> str:
        """Name the cell by what it is: stage or control, overrides if any, and seed."""
        name = f"{self.stage}.{self.control}" if self.control else self.stage
        suffix = f"-{digest(dict(self.overrides))[:6]}" if self.overrides else ""
        return f"{name}{suffix}-s{self.seed}"

    def steps(self, tree: StageTree) -> tuple[Stage, ...]:
        """Return the stages that were applied, root first."""
        return tuple(tree.stage(name) for name in self.path) if self.path else tree.path(self.stage)


def make_cell(
    tree: StageTree, stage: str, seed: int, overrides: Mapping[str, Any], settings: Mapping[str, Any], own: Config | None = None
) -> Cell:
    """Resolve one cell: the stage's path, then the study's settings, then the cell's own overrides; checked as a whole.

    own: the stage's configuration with the study's settings, where the caller has it already.
    """
    config = apply(tree.resolve(stage), {**settings, **overrides}) if own is None else apply(own, overrides)
    try:
        check_config(config, tree.parts)
    except ConfigError as error:
        raise ConfigError(f"stage '{stage}': {error.problem}", error.fix) from None
    return Cell(stage, tuple(sorted(overrides.items())), seed, config)


def seeded(cell: Cell, seeds: Sequence[int]) -> list[Cell]:
    """Return the cell once for every seed; all share one configuration."""
    return [replace(cell, seed=seed) for seed in seeds]


def ladder(tree: StageTree, through: str, seeds: Sequence[int], settings: Mapping[str, Any]) -> list[Cell]:
    """Return the cells of the path from the root to a stage, stage by stage, every seed of each."""
    cells = [cell for stage in tree.path(through) for cell in seeded(make_cell(tree, stage.name, seeds[0], {}, settings), seeds)]
    return [replace(cell, roles=(Role("ladder", through, cell.stage),)) for cell in cells]


def grid(
    tree: StageTree, stages: Sequence[str], axes: Mapping[str, Sequence[Any]], seeds: Sequence[int], settings: Mapping[str, Any]
) -> tuple[list[Cell], list[tuple[str, str]]]:
    """Return the cells of stages crossed with settings, and the infeasible ones with their reasons.

    A combination equal to the stage's own configuration is the stage's own cell, so that it is shared with the ladder.
    """
    combinations: list[dict[str, Any]] = [{}]
    for path, values in axes.items():
        combinations = [{**combination, path: value} for combination in combinations for value in values]
    cells, infeasible = [], []
    for stage in stages:
        own = apply(tree.resolve(stage), settings)
        for combination in combinations:
            overrides = {} if apply(own, combination) == own else combination
            try:
                cells += seeded(make_cell(tree, stage, seeds[0], overrides, settings, own), seeds)
            except ConfigError as error:
                named = ", ".join(f"{path}={value}" for path, value in combination.items())
                infeasible.append((f"{stage} with {named}", str(error)))
    return cells, infeasible


def controls(cells: Sequence[Cell], last: str | None = None) -> list[Cell]:
    """Return the control cells of the last stage, one of each kind and seed: untrained network, and patch-PCA features."""
    if not cells:
        return []
    last = last or cells[-1].stage
    final = [cell for cell in cells if cell.stage == last and not cell.overrides]
    return [Cell(cell.stage, (), cell.seed, _control_config(cell.config, control), control) for cell in final for control in CONTROLS]


def _control_config(config: Config, control: str) -> Config:
    """Return what a control is measured with: the cell's own settings, with a patch PCA where the control asks for one."""
    if control == "random_init" or config.tokenizer.kind == "patch_pca":
        return config
    dim = min(config.patch_dim, 32)
    return apply(config, {"tokenizer.kind": "patch_pca", "tokenizer.latent_dim": dim})


def silenced_changes(tree: StageTree, through: str, settings: Mapping[str, Any]) -> list[str]:
    """Say which stages' declared changes a --set overrides, since such rows no longer show what their title says."""
    return [
        f"stage '{stage.name}' sets {path}, but --set fixes it at {settings[path]!r} in every row"
        for stage in tree.path(through)
        for path in stage.changes
        if path in settings
    ]

"""Which cells a study needs: the ladder, the paper's grids, and the seeds.

A cell is one trained and measured configuration: a stage, settings on top of it, and a seed. This module is light.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablation.checks import check_config
from ablation.config import Config, apply
from ablation.errors import ConfigError
from ablation.keys import digest
from ablation.stage import StageTree

CONTROLS = ("random_init", "pca_features")


@dataclass(frozen=True)
class Cell:
    """One configuration to train and measure, or a control to measure it against."""

    stage: str
    overrides: tuple[tuple[str, Any], ...]
    seed: int
    config: Config
    control: str | None = None

    @property
    def id(self) -> str:
        """Name the cell by what it is: stage or control, overrides if any, and seed."""
        name = f"{self.stage}.{self.control}" if self.control else self.stage
        suffix = f"-{digest(dict(self.overrides))[:6]}" if self.overrides else ""
        return f"{name}{suffix}-s{self.seed}"


def make_cell(tree: StageTree, stage: str, seed: int, overrides: Mapping[str, Any], settings: Mapping[str, Any]) -> Cell:
    """Resolve one cell: the stage's path, then the study's settings, then the cell's own overrides; checked as a whole."""
    config = apply(tree.resolve(stage), {**settings, **overrides})
    try:
        check_config(config, [part for step in tree.path(stage) for part in step.provides])
    except ConfigError as error:
        raise ConfigError(f"stage '{stage}': {error.problem}", error.fix) from None
    return Cell(stage, tuple(sorted(overrides.items())), seed, config)


def ladder(tree: StageTree, through: str, seeds: Sequence[int], settings: Mapping[str, Any]) -> list[Cell]:
    """Return the cells of the path from the root to a stage, stage by stage, every seed of each."""
    return [make_cell(tree, stage.name, seed, {}, settings) for stage in tree.path(through) for seed in seeds]


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
                cells += [make_cell(tree, stage, seed, overrides, settings) for seed in seeds]
            except ConfigError as error:
                named = ", ".join(f"{path}={value}" for path, value in combination.items())
                infeasible.append((f"{stage} with {named}", str(error)))
    return cells, infeasible


def controls(cells: Sequence[Cell]) -> list[Cell]:
    """Return the reference cells of the last stage, one of each kind and seed: untrained network, and patch-PCA features."""
    if not cells:
        return []
    last = cells[-1].stage
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

"""Lay the designs over a path: add one stage, leave one out, put one back; with the reasons for what cannot be. Light."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablation.checks import check_config
from ablation.config import Config, apply, diff, get_value
from ablation.design import DESIGNS, Cell, LeftOut, Role, ladder
from ablation.errors import ConfigError, nearest
from ablation.keys import KIND_VERSIONS, job_slice
from ablation.stage import Stage, StageTree


@dataclass(frozen=True)
class Variant:
    """One configuration of a design: what it stands for, and the stages that were applied."""

    role: Role
    config: Config
    path: tuple[str, ...]


class Route:
    """The path to a stage over a root configuration, with the study's settings on top of every configuration."""

    def __init__(self, tree: StageTree, through: str, settings: Mapping[str, Any]) -> None:
        self.through, self.settings, self.root, self.parts = through, settings, tree.root, tree.parts
        self.stages = tree.path(through)
        self.plain = tuple(tree.resolve(stage.name) for stage in self.stages)  # without the settings
        self.configs = tuple(apply(config, settings) for config in self.plain)

    def apply_again(self, stages: Sequence[Stage]) -> list[Config]:
        """Apply a selection of the path's stages in order and return the configuration after each.

        A stage may find its change already made; what a stage requires must hold, else ConfigError.
        """
        made, config = [], self.root
        for stage in stages:
            stage.check_requires(config)
            config = apply(config, stage.changes)
            made.append(apply(config, self.settings))
        return made

    def check(self, config: Config, stages: Iterable[Stage]) -> None:
        """Raise ConfigError where a configuration cannot run; parts may come from any stage of the tree."""
        check_config(config, self.parts)

    def home(self, config: Config) -> tuple[str, tuple[tuple[str, Any], ...]]:
        """Name a configuration: a stage of the path that equals it, else the final stage or the root, whichever is nearer, and
        the settings in which it differs from that. The name depends on no design, so that designs share cells."""
        for stage, own in zip(reversed(self.stages), reversed(self.configs), strict=True):
            if own == config:
                return stage.name, ()
        gaps = {place: diff(self.configs[place], config) for place in (-1, 0)}
        place = min(gaps, key=lambda end: len(gaps[end]))
        return self.stages[place].name, tuple(sorted((path, pair[1]) for path, pair in gaps[place].items()))


def design_cells(
    tree: StageTree,
    through: str,
    designs: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    coalitions: Callable[[Route], list[Variant]] | None = None,
) -> tuple[list[Cell], list[LeftOut]]:
    """Return the cells of designs over the path to a stage, equal configurations as one cell, and what has no cell and why.

    coalitions: makes the variants of the design shapley, whose stages have to be chosen.
    """
    if unknown := [name for name in designs if name not in DESIGNS]:
        raise ConfigError(f"unknown design '{unknown[0]}'", nearest(unknown[0], DESIGNS))
    route = Route(tree, through, settings)
    ladder(tree, through, seeds, settings)  # raises where the path itself cannot run with these settings
    found: list[Variant | LeftOut] = []
    for design in dict.fromkeys(designs):
        found += _LAYOUTS[design](route) if design in _LAYOUTS else coalitions(route) if coalitions else []
    left_out = [one for one in found if isinstance(one, LeftOut)]
    variants: dict[tuple[str, tuple[tuple[str, Any], ...]], list[Variant]] = {}
    for one in found:
        if isinstance(one, Variant):
            rung = one.role.stage if one.role.design == "ladder" else None  # two rungs with equal settings stay two rows
            variants.setdefault((rung, ()) if rung else route.home(one.config), []).append(one)
    cells = []
    for (stage, overrides), same in variants.items():
        roles = tuple(one.role for one in same)
        missing = tuple(hole for role in roles if role.stage is None for hole in left_out if hole.design == role.design)
        path = same[0].path if overrides else ()
        cells += [Cell(stage, overrides, seed, same[0].config, None, path, roles, missing) for seed in seeds]
    return cells, left_out


def _ladder(route: Route) -> Iterator[Variant]:
    """Every stage on top of all before it."""
    names = tuple(stage.name for stage in route.stages)
    for place, config in enumerate(route.configs):
        yield Variant(Role("ladder", route.through, names[place]), config, names[: place + 1])


def _add_one(route: Route) -> Iterator[Variant | LeftOut]:
    """The root, and the root with one stage's changes alone."""
    root = route.stages[0]
    yield Variant(Role("add_one", route.through, None), route.configs[0], (root.name,))
    for stage in route.stages[1:]:
        try:
            config = route.apply_again((root, stage))[-1]
            route.check(config, (root, stage))
        except ConfigError as error:
            yield LeftOut("add_one", route.through, stage.name, "impossible", error.problem)
            continue
        if reads(config) == reads(route.configs[0]):
            reason = f"'{root.name}' already is so, or reads nothing that '{stage.name}' changes"
            yield LeftOut("add_one", route.through, stage.name, "no change", reason)
        else:
            yield Variant(Role("add_one", route.through, stage.name), config, (root.name, stage.name))


def _leave_one_out(route: Route) -> Iterator[Variant | LeftOut]:
    """The final model, and the path applied again without one stage."""
    yield _final(route, "leave_one_out")
    for place, stage in enumerate(route.stages[1:], 1):
        kept = route.stages[:place] + route.stages[place + 1 :]
        try:
            made = route.apply_again(kept)
            route.check(made[-1], kept)
        except ConfigError as error:
            yield LeftOut("leave_one_out", route.through, stage.name, "impossible", error.problem)
            continue
        if reads(made[-1]) == reads(route.configs[-1]):
            yield LeftOut("leave_one_out", route.through, stage.name, "no change", _silencer(route, place, made[place - 1 :]))
        else:
            yield Variant(Role("leave_one_out", route.through, stage.name), made[-1], tuple(step.name for step in kept))


def _put_back(route: Route) -> Iterator[Variant | LeftOut]:
    """The final model, and the final model with what one stage changed set back to what it was before that stage."""
    yield _final(route, "put_back")
    names = tuple(stage.name for stage in route.stages)
    for place, stage in enumerate(route.stages[1:], 1):
        before = {path: pair[0] for path, pair in diff(route.plain[place - 1], route.plain[place]).items()}
        made = [apply(config, {**before, **route.settings}) for config in route.plain[place:]]
        if reads(made[-1]) == reads(route.configs[-1]):
            yield LeftOut("put_back", route.through, stage.name, "no change", _silencer(route, place, made))
            continue
        try:
            _check_later_stages(route, place, before, made[-1])
            route.check(made[-1], route.stages)
        except ConfigError as error:
            yield LeftOut("put_back", route.through, stage.name, "impossible", error.problem)
            continue
        yield Variant(Role("put_back", route.through, stage.name, _also_undone(route, place, before)), made[-1], names)


_LAYOUTS = {"ladder": _ladder, "leave_one_out": _leave_one_out, "add_one": _add_one, "put_back": _put_back}


def _final(route: Route, design: str) -> Variant:
    """The final model as what a design's other cells are compared with."""
    return Variant(Role(design, route.through, None), route.configs[-1], tuple(stage.name for stage in route.stages))


def reads(config: Config) -> dict[str, Any]:
    """Return what any job of a configuration reads: configurations with equal readings are trained and measured alike."""
    return {kind: job_slice(kind, config) for kind in KIND_VERSIONS}


def _silencer(route: Route, place: int, made: Sequence[Config]) -> str:
    """Say which later stage makes a change void. made: the changed configurations after stages[place], stages[place + 1], ..."""
    silencer = None
    for later in reversed(range(place, len(route.stages))):
        if reads(made[later - place]) != reads(route.configs[later]):
            break
        silencer = later
    if silencer == place:
        return f"--set fixes what '{route.stages[place].name}' changes"
    return f"overridden by '{route.stages[silencer or place].name}'"


def _check_later_stages(route: Route, place: int, before: Mapping[str, Any], config: Config) -> None:
    """Raise where what is put back breaks what a later stage requires; a later stage none of whose changes is left has no say."""
    for later in range(place + 1, len(route.stages)):
        stage, own = route.stages[later], route.configs[later]
        in_force = any(get_value(config, path) == get_value(own, path) for path in stage.changes)
        for path, wanted in stage.requires.items():
            allowed = wanted if isinstance(wanted, tuple) else (wanted,)
            if in_force and path in before and get_value(config, path) not in allowed:
                wanted_text = " or ".join(map(str, allowed))
                raise ConfigError(f"stage '{stage.name}' requires {path} = {wanted_text}, put back it is {get_value(config, path)}")


def _also_undone(route: Route, place: int, before: Mapping[str, Any]) -> str:
    """Name the later stages' changes that putting a stage back undoes as well."""
    undone = [f"{path} of '{stage.name}'" for stage in route.stages[place + 1 :] for path in stage.changes if path in before]
    return f"also undoes {', '.join(undone)}" if undone else ""

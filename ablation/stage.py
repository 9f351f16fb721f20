"""Stages, and the immutable tree they form.

A stage is one step of the deconstruction: the name of its parent and a diff on the parent's configuration. A path
from the root to a stage resolves to one frozen configuration per stage. This module is light.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from ablation.config import Config, apply, describe_type, diff, field_type, get_value
from ablation.errors import ConfigError, nearest
from ablation.parts import NAME_PATTERN, Part, Source, check_names

EFFECTS = ("data", "tokenizer", "input", "conditioning", "target", "loss", "parameters", "training", "evaluation", "sampling")
"""What a stage can act on, as `ablate check` sees it; docs/add-a-stage.md says what each is."""


@dataclass(frozen=True)
class Stage:
    """One step of the deconstruction, declared as a diff on its parent's configuration.

    `changes` maps dotted settings to their new values. `requires` maps dotted settings to the values (one, or a tuple
    of them) that the parent's configuration must have. `provides` maps "KIND:NAME" to the place of a part,
    "package.module:Name" or "file.py:Name" (loaded only in jobs, so that listing stages needs no torch). `uses_labels` says
    whether class labels enter training anywhere, the tokenizer's perceptual network included. `incomparable` names
    quantities that must not be compared with the parent's. `effects` says which of EFFECTS the stage acts on, all of them;
    `ablate check` holds it to that. Left empty, only the changes are checked.
    """

    name: str
    after: str | None
    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    table: str = ""
    uses_labels: bool = False
    incomparable: tuple[str, ...] = ()
    requires: Mapping[str, Any] = field(default_factory=dict)
    provides: Mapping[str, Any] = field(default_factory=dict)
    effects: tuple[str, ...] = ()
    doc: str = ""
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME_PATTERN.match(self.name):
            raise ConfigError(
                f"stage name {self.name!r} is not usable", "Use lower-case letters, digits and _, starting with a letter, at most 64."
            )
        if not isinstance(self.title, str) or not self.title.strip():
            raise ConfigError(f"stage '{self.name}' has no title", "Give the words its table row should show.")
        if self.after == self.name:
            raise ConfigError(f"stage '{self.name}' names itself as its parent", "Set `after` to the stage it builds on.")
        for label, value in self.provides.items():
            try:
                Part.parse(label, value, self.source if self.source.file else Source("stage.py"))
            except ConfigError as error:
                raise ConfigError(f"stage '{self.name}': {error.problem}", error.fix) from None
        for effect in self.effects:
            if effect not in EFFECTS:
                raise ConfigError(f"stage '{self.name}' declares the unknown effect '{effect}'", nearest(str(effect), EFFECTS))
        for path in (*self.changes, *self.requires):
            try:
                field_type(path)
            except ConfigError as error:
                raise ConfigError(f"stage '{self.name}': {error.problem}", error.fix) from None
        for attribute in ("changes", "requires", "provides"):
            object.__setattr__(self, attribute, MappingProxyType(dict(getattr(self, attribute))))

    def check_requires(self, parent: Config) -> None:
        """Raise ConfigError for the first setting of the configuration before this stage that is not what the stage requires."""
        for path, wanted in self.requires.items():
            allowed = wanted if isinstance(wanted, tuple) else (wanted,)
            if (actual := get_value(parent, path)) not in allowed:
                raise ConfigError(
                    f"stage '{self.name}' requires {path} = {' or '.join(map(str, allowed))}, but it is {actual} before it",
                    f"Place '{self.name}' after a stage that sets it.",
                )

    def parts(self) -> tuple[Part, ...]:
        """Return the parts it provides."""
        return tuple(Part.parse(label, value, self.source) for label, value in self.provides.items())

    def apply(self, parent: Config) -> Config:
        """Return the parent's configuration with this stage's changes; refuse a change that changes nothing."""
        self.check_requires(parent)
        try:
            child = apply(parent, self.changes)
        except ConfigError as error:
            raise ConfigError(f"stage '{self.name}': {error.problem}", error.fix) from None
        changed = diff(parent, child)
        for path, value in self.changes.items():
            if path not in changed:
                raise ConfigError(
                    f"stage '{self.name}' changes nothing: {path} already is {value!r} before it",
                    f"Remove the line, or set another value; it takes {describe_type(path)}.",
                )
        return child


@dataclass(frozen=True)
class Broken:
    """A stage source that could not be loaded, and why; names are those of its stages, as far as they are known."""

    source: Source
    problem: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageTree:
    """All known stages by name, their root configuration, the parts they can use, and the sources that failed to load."""

    stages: Mapping[str, Stage]
    root: Config
    broken: tuple[Broken, ...] = ()
    parts: Mapping[str, Part] = field(default_factory=dict)  # by "KIND:NAME"

    @classmethod
    def build(cls, stages: Iterable[Stage], root: Config, broken: Iterable[Broken] = (), parts: Iterable[Part] = ()) -> StageTree:
        """Check names, parts, parents and cycles, then freeze.

        What is wrong with an installed plugin, and a stage that has no path to the root, becomes a Broken entry and leaves
        the rest alone. Raises ConfigError where two sources that were asked for claim one name.
        """
        by_name, faults = _distinct(stages)
        known, clashes = _gather([*parts, *(part for stage in by_name.values() for part in stage.parts())])
        faults = [*broken, *faults, *clashes]
        reasons = {name: fault.problem for fault in faults for name in fault.names}
        for stage in list(by_name.values()):
            if problem := _name_problem(stage, known) or _cycle_problem(stage, by_name):
                faults.append(Broken(stage.source, problem, (stage.name,)))
                reasons[stage.name] = problem
        by_name = {name: stage for name, stage in by_name.items() if name not in reasons}
        while missing := [s for s in by_name.values() if s.after is not None and s.after not in by_name]:
            for stage in missing:
                parent = str(stage.after)
                why = f"cannot be used ({reasons[parent]})" if parent in reasons else f"does not exist. {nearest(parent, by_name)}"
                problem = f"stage '{stage.name}': its parent '{parent}' {why}"
                faults.append(Broken(stage.source, problem, (stage.name,)))
                reasons[stage.name] = problem
                del by_name[stage.name]
        return cls(MappingProxyType(by_name), root, tuple(faults), MappingProxyType(known))

    def stage(self, name: str) -> Stage:
        """Return a stage by name; an unknown name raises with the nearest ones and any broken source."""
        if name in self.stages:
            return self.stages[name]
        for broken in self.broken:
            if name in broken.names:
                raise ConfigError(f"stage '{name}' cannot be used: {broken.problem}", f"Mend {broken.source}.")
        hint = f" {len(self.broken)} stage source(s) failed to load; `ablate stages` shows why." if self.broken else ""
        raise ConfigError(f"unknown stage '{name}'", nearest(name, self.stages) + hint)

    def path(self, name: str) -> tuple[Stage, ...]:
        """Return the stages from the root to a stage, both included."""
        current = self.stage(name)
        stages = [current]
        while current.after is not None:
            current = self.stages[current.after]
            stages.append(current)
        return tuple(reversed(stages))

    def children(self, name: str) -> tuple[Stage, ...]:
        """Return the stages whose parent is the given one, in the order they were found."""
        return tuple(stage for stage in self.stages.values() if stage.after == name)

    def ordered(self) -> tuple[Stage, ...]:
        """Return all stages, every parent before its children, branches depth first."""
        order: list[Stage] = []

        def visit(stage: Stage) -> None:
            order.append(stage)
            for child in self.children(stage.name):
                visit(child)

        for stage in self.stages.values():
            if stage.after is None:
                visit(stage)
        return tuple(order)

    def resolve(self, name: str, base: Config | None = None) -> Config:
        """Apply every stage from the root to the named one, in order, to the root configuration (or a scaled one)."""
        config = base or self.root
        for stage in self.path(name):
            config = stage.apply(config)
        return config

    def with_root(self, root: Config) -> StageTree:
        """Return the same tree over another root configuration, such as one with a scale applied."""
        return replace(self, root=root)


def _distinct(stages: Iterable[Stage]) -> tuple[dict[str, Stage], list[Broken]]:
    """Map names to stages. Of two with one name, installed ones yield to others, and two installed ones are both broken."""
    by_name: dict[str, Stage] = {}
    faults: list[Broken] = []
    ambiguous: set[str] = set()
    for stage in stages:
        other = by_name.get(stage.name)
        if other is None:
            by_name[stage.name] = stage
            continue
        problem = f"two stages are named '{stage.name}': {other.source} and {stage.source}"
        if not stage.source.installed:
            raise ConfigError(problem, "Rename one of them.")
        if other.source.installed:
            ambiguous.add(stage.name)
            faults.append(Broken(other.source, problem, (stage.name,)))
        faults.append(Broken(stage.source, problem, (stage.name,) if other.source.installed else ()))
    return {name: stage for name, stage in by_name.items() if name not in ambiguous}, faults


def _gather(parts: Iterable[Part]) -> tuple[dict[str, Part], list[Broken]]:
    """Map labels to parts; of two different ones, the later is broken if it is installed, else the clash is an error."""
    known: dict[str, Part] = {}
    faults: list[Broken] = []
    for part in parts:
        other = known.setdefault(part.label, part)
        same_file = other.source.file == part.source.file or ".py:" not in part.place
        if other.place == part.place and same_file:
            continue
        problem = f"two parts are named '{part.label}': {other.place} of {other.source} and {part.place} of {part.source}"
        if not part.source.installed:
            raise ConfigError(problem, "Rename one of them.")
        faults.append(Broken(part.source, problem))
    return known, faults


def _name_problem(stage: Stage, parts: Mapping[str, Part]) -> str:
    """Say which of a stage's changes names a part that does not exist; empty where none does."""
    try:
        check_names(stage.changes, parts)
    except ConfigError as error:
        return f"stage '{stage.name}': {error}"
    return ""


def _cycle_problem(stage: Stage, by_name: Mapping[str, Stage]) -> str:
    """Say which cycle a stage is on or leads to; empty where its path ends."""
    seen, current = [stage.name], stage
    while current.after is not None and current.after in by_name:
        current = by_name[current.after]
        if current.name in seen:
            return f"stages form a cycle: {' -> '.join([*seen, current.name])}; mend `after` in {stage.source}"
        seen.append(current.name)
    return ""

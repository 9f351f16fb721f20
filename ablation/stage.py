"""Stages, and the immutable tree they form.

A stage is one step of the deconstruction: the name of its parent and a diff on the parent's configuration. A path
from the root to a stage resolves to one frozen configuration per stage. This module is light.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from ablation.config import Config, apply, describe_type, diff, field_type, get_value
from ablation.errors import ConfigError, nearest

NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
PART_KINDS = ("tokenizer",)
EFFECTS = ("data", "tokenizer", "input", "conditioning", "target", "loss", "parameters", "training", "evaluation", "sampling")
"""What a stage can act on, as `ablate check` sees it; docs/add-a-stage.md says what each is."""


@dataclass(frozen=True)
class Source:
    """Where a stage came from: a file and the hash of its bytes, or an installed distribution."""

    file: str = ""
    sha256: str = ""
    origin: str = "built-in"  # built-in, --stages, or the distribution's name and version

    def __str__(self) -> str:
        return f"{self.file or '?'} ({self.origin})"


@dataclass(frozen=True)
class Stage:
    """One step of the deconstruction, declared as a diff on its parent's configuration.

    `changes` maps dotted settings to their new values. `requires` maps dotted settings to the values (one, or a tuple
    of them) that the parent's configuration must have. `provides` maps "tokenizer:NAME" to a class, or to the text
    "module:Class" (loaded only in jobs, so that listing stages needs no torch). `uses_labels` says whether class labels
    enter training anywhere, the tokenizer's perceptual network included. `incomparable` names quantities that must not
    be compared with the parent's. `effects` says which of EFFECTS the stage acts on, all of them; `ablate check` holds it
    to that. Left empty, only the changes are checked.
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
    source: Source = Source()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME_PATTERN.match(self.name):
            raise ConfigError(
                f"stage name {self.name!r} is not usable", "Use lower-case letters, digits and _, starting with a letter, at most 64."
            )
        if not isinstance(self.title, str) or not self.title.strip():
            raise ConfigError(f"stage '{self.name}' has no title", "Give the words its table row should show.")
        if self.after == self.name:
            raise ConfigError(f"stage '{self.name}' names itself as its parent", "Set `after` to the stage it builds on.")
        for part in self.provides:
            kind, _, part_name = str(part).partition(":")
            if kind not in PART_KINDS or not NAME_PATTERN.match(part_name):
                raise ConfigError(f"stage '{self.name}' provides '{part}'", f"Write KIND:NAME with KIND one of {', '.join(PART_KINDS)}.")
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
    """All known stages by name, their root configuration, and the sources that failed to load."""

    stages: Mapping[str, Stage]
    root: Config
    broken: tuple[Broken, ...] = ()

    @classmethod
    def build(cls, stages: Iterable[Stage], root: Config, broken: Iterable[Broken] = ()) -> StageTree:
        """Check names, parents and cycles, then freeze."""
        by_name: dict[str, Stage] = {}
        for stage in stages:
            if other := by_name.get(stage.name):
                raise ConfigError(f"two stages are named '{stage.name}': {other.source} and {stage.source}", "Rename one of them.")
            by_name[stage.name] = stage
        faults = list(broken)
        while missing := [s for s in by_name.values() if s.after is not None and s.after not in by_name]:
            for stage in missing:
                problem = f"stage '{stage.name}': its parent '{stage.after}' does not exist. {nearest(str(stage.after), by_name)}"
                faults.append(Broken(stage.source, problem, (stage.name,)))
                del by_name[stage.name]
        for stage in by_name.values():
            seen, current = [stage.name], stage
            while current.after is not None:
                current = by_name[current.after]
                if current.name in seen:
                    raise ConfigError(f"stages form a cycle: {' -> '.join([*seen, current.name])}", f"Mend `after` in {stage.source}.")
                seen.append(current.name)
        return cls(MappingProxyType(by_name), root, tuple(faults))

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

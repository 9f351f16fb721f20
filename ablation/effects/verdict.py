"""Hold a stage to what it declares: its changes, its effects and its use of labels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ablation.config import Config, diff
from ablation.effects.compare import Difference, compare
from ablation.effects.observe import Observation, Workshop
from ablation.errors import AblationError, ConfigError
from ablation.keys import EXCLUDED, KIND_VERSIONS, reads
from ablation.stage import Stage, StageTree
from ablation.store import Store


@dataclass
class Verdict:
    """What a stage does, and every way in which that is not what it declares."""

    stage: str
    parent: str
    source: str
    problems: list[str] = field(default_factory=list)
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    declared: tuple[str, ...] = ()
    seen: dict[str, tuple[Difference, ...]] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)
    jobs: dict[str, str] = field(default_factory=dict)  # kind -> shared, new or none
    losses: dict[str, tuple[float, ...]] = field(default_factory=dict)  # parent, stage

    @property
    def passed(self) -> bool:
        """Whether the stage does what it declares."""
        return not self.problems

    def document(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        return {
            "stage": self.stage,
            "parent": self.parent,
            "source": self.source,
            "passed": self.passed,
            "problems": self.problems,
            "changes": {path: list(pair) for path, pair in self.changes.items()},
            "declared_effects": list(self.declared),
            "seen_effects": {
                effect: [{"name": one.name, "before": one.before, "after": one.after, "relative_change": one.amount} for one in differences]
                for effect, differences in self.seen.items()
            },
            "parameters": list(self.parameters),
            "jobs": self.jobs,
            "losses": {name: list(values) for name, values in self.losses.items()},
        }


def check_stages(tree: StageTree, names: Sequence[str]) -> Iterator[Verdict]:
    """Check stages one after the other in a run folder that is thrown away; the tree lies over the scale to check at.

    Raises ConfigError for an unknown stage or the root, before anything is built.
    """
    stages = [tree.stage(name) for name in names]
    for stage in stages:
        if stage.after is None:
            raise ConfigError(f"'{stage.name}' is the root: it changes nothing", "Check a stage below it.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # everything here is too small to share
    try:
        with tempfile.TemporaryDirectory(prefix="ablate-check-") as folder:
            workshop = Workshop(tree, Store(Path(folder)))
            for stage in stages:
                yield check_stage(workshop, stage)
    finally:
        torch.set_num_threads(threads)


def check_stage(workshop: Workshop, stage: Stage) -> Verdict:
    """Build a stage and its parent, compare them, and hold the stage to its declarations."""
    tree, parent = workshop.tree, str(stage.after)
    verdict = Verdict(stage.name, parent, str(stage.source), declared=stage.effects)
    try:
        before, after = tree.resolve(parent), tree.resolve(stage.name)
    except ConfigError as error:
        verdict.problems.append(_named(stage, str(error)))
        return verdict
    verdict.changes = diff(before, after)
    problems = [*_change_problems(stage, verdict.changes), *_unread(verdict.changes, before, after)]
    if stage.uses_labels != after.labels_used:
        problems.append(f"declares uses_labels={stage.uses_labels}, but labels are {'' if after.labels_used else 'not '}used in training")
    if verdict.changes:
        problems += _build_and_compare(workshop, stage, verdict)
    verdict.problems = [_named(stage, problem) for problem in problems]
    return verdict


def _build_and_compare(workshop: Workshop, stage: Stage, verdict: Verdict) -> list[str]:
    """Look at both configurations and return what does not fit the declared effects."""
    try:
        old, new = workshop.observe(verdict.parent), workshop.observe(stage.name)
    except AblationError as error:
        return [f"cannot be built at the smallest size: {error}"]
    verdict.seen = compare(old.facts, new.facts)
    verdict.parameters = (_count(old), _count(new))
    verdict.losses = {verdict.parent: old.losses, stage.name: new.losses}
    verdict.jobs = {
        kind: "none" if kind not in new.jobs else "shared" if old.jobs.get(kind) == new.jobs[kind] else "new" for kind in KIND_VERSIONS
    }
    return [*new.problems, *_effect_problems(stage, verdict.seen)]


def _count(seen: Observation) -> int:
    """Count the denoiser's numbers at the smallest size."""
    total = 0
    for shape in seen.facts["parameters"].values():
        size = 1
        for side in shape:
            size *= side
        total += size
    return total


def _change_problems(stage: Stage, changes: dict[str, tuple[Any, Any]]) -> list[str]:
    """Compare the changes that a stage declares with those it makes."""
    if not changes:
        return ["changes nothing: its configuration equals its parent's"]
    wanted = {path: tuple(value) if isinstance(value, list) else value for path, value in stage.changes.items()}
    problems = [
        f"declares {path} = {value!r}, but does not set it"
        for path, value in wanted.items()
        if path not in changes or changes[path][1] != value
    ]
    return problems + [
        f"changes {path} from {old!r} to {new!r} without declaring it" for path, (old, new) in changes.items() if path not in wanted
    ]


def _unread(changes: dict[str, tuple[Any, Any]], before: Config, after: Config) -> list[str]:
    """Name changed settings that no job reads, before or after, so that they cannot matter."""
    read = {path for config in (before, after) for kind in KIND_VERSIONS for path in reads(kind, config)} | set(EXCLUDED)
    return [f"changes {path}, which nothing reads in this configuration" for path in changes if path not in read]


def _effect_problems(stage: Stage, seen: dict[str, tuple[Difference, ...]]) -> list[str]:
    """Compare the effects that a stage declares with those that were seen; one that declares none must have some."""
    if not seen:
        return ["has no effect that can be seen: data, network, input, target, loss, training, evaluation and sampling are its parent's"]
    if not stage.effects:
        return []
    problems = [f"declares the effect '{effect}', but nothing of it was seen" for effect in stage.effects if effect not in seen]
    for effect, differences in seen.items():
        if effect not in stage.effects:
            problems.append(f"has the effect '{effect}' without declaring it ({differences[0]})")
    return problems


def _named(stage: Stage, problem: str) -> str:
    """Start a problem with the stage's name, unless it does already."""
    return problem if problem.startswith(f"stage '{stage.name}'") else f"stage '{stage.name}' {problem}"

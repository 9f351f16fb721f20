"""What every launcher does: bring a plan's jobs to their end, parents first. This module is light."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ablation.plan import Plan
from ablation.store import Store


class Watcher(Protocol):
    """Is told what happens, to show it."""

    def started(self, job_id: str) -> None:
        """A job began."""

    def progressed(self, job_id: str, done: int, total: int, note: str) -> None:
        """A job came further."""

    def ended(self, job_id: str, state: str, reason: str, seconds: float) -> None:
        """A job ended, or was skipped or reused."""


@dataclass
class Outcome:
    """How the jobs of a plan ended, by id; interrupted when a stop was asked for."""

    states: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def failed(self) -> list[str]:
        """The jobs that did not finish for a reason of their own or of a parent."""
        return [job for job, state in self.states.items() if state in ("failed", "diverged", "skipped")]


class Launcher(Protocol):
    """Brings jobs to their end: in this process, in several, or on a cluster."""

    def run(self, plan: Plan, store: Store, watcher: Watcher, should_stop: Callable[[], bool]) -> Outcome:
        """Run what is not finished yet; a failed job's descendants are marked skipped, all others still run."""


def blocked_by(plan: Plan, job_id: str, states: dict[str, str]) -> str:
    """Name a parent that ended without success, or return an empty text."""
    for parent in plan.jobs[job_id].inputs.values():
        if states.get(parent) in ("failed", "diverged", "skipped"):
            return parent
    return ""


def skip(plan: Plan, store: Store, job_id: str, parent: str, states: dict[str, str], watcher: Watcher) -> None:
    """Mark a job skipped because a parent did not finish, naming the ancestor at fault; one that finished before stays done."""
    if store.state(job_id).name == "done":
        states[job_id], reason = "done", ""
    else:
        inherited = store.state(parent).reason if states[parent] == "skipped" else ""
        states[job_id], reason = "skipped", inherited or f"parent {plan.jobs[parent].kind} {states[parent]} ({parent})"
        store.mark_failed(job_id, "skipped", reason)
    watcher.ended(job_id, states[job_id], reason, 0.0)

"""How a study's jobs stand: our own files first, SLURM's word only for jobs that our files do not settle. Light."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ablation.launch.slurm_groups import REPORT, groups, last_task, main_id
from ablation.launch.slurm_state import RETURNING, Poller, Task
from ablation.store import JobState, Store

SETTLED = ("done", "failed", "diverged", "skipped", "cancelled")
ENDED_BADLY = ("failed", "diverged", "skipped", "cancelled", "lost")
SETTLE_SECONDS = 30.0
"""How long the report job gives accounting to say how the last jobs ended."""
UNSEEN_SECONDS = 60.0
"""How long after its submission a job that neither squeue nor sacct knows is still taken for queued."""

States = dict[str, JobState]


class SlurmStates:
    """The states of a study's jobs, asked for again and again."""

    def __init__(self, store: Store, document: Mapping[str, Any]) -> None:
        self.store, self.poller = store, Poller()
        self.jobs = list(dict.fromkeys(job for cell in document["cells"] for job in cell["jobs"].values()))
        self.tasks: dict[str, Task] = {}  # job id -> what SLURM last said

    @property
    def problem(self) -> str:
        """Why SLURM could not be asked, or an empty text."""
        return self.poller.problem

    def now(self) -> States:
        """Return every job's state; a job that SLURM holds is queued or running, one that it lost says so."""
        states = {job: self.store.state(job) for job in self.jobs}
        records = {job: last_task(self.store, job) for job in self.jobs if states[job].name not in SETTLED}
        asked = {job: record for job, record in records.items() if record is not None}
        found = self.poller.poll({record["task"]: (main_id(record["task"]), record["name"]) for record in asked.values()})
        for job, record in asked.items():
            task = found.get(record["task"])
            if task is not None and task.name == record["name"]:
                self.tasks[job] = task
            if self.store.state(job).name in SETTLED:  # it ended while SLURM was asked
                states[job] = self.store.state(job)
            elif self.poller.known:
                states[job] = _merged(states[job], task, record, self.store.holder(job) or "")
        return self._inherited(states)

    def _inherited(self, states: States) -> States:
        """Mark jobs skipped whose parent ended badly and that nobody holds."""
        inputs = {job: (self.store.spec(job) or {"inputs": {}})["inputs"].values() for job, state in states.items() if state.name != "done"}
        changed = True
        while changed:
            changed = False
            for job, parents in inputs.items():
                if states[job].name not in ("new", "interrupted", "queued", "lost", "cancelled") or states[job].reason.startswith("parent"):
                    continue
                bad = next((parent for parent in parents if parent in states and states[parent].name in ENDED_BADLY), None)
                if bad is not None:
                    states[job] = JobState("skipped", f"parent {states[bad].name}: {bad}", states[job].when)
                    changed = True
        return states


def _merged(own: JobState, task: Task | None, record: Mapping[str, Any], holder: str) -> JobState:
    """Join what our files say of an unsettled job with what SLURM says.

    holder: who holds the job's lock; a process that a node took down with it seems to hold it until the lock runs out.
    """
    if task is None:
        if time.time() - record["submitted"] < UNSEEN_SECONDS:
            return JobState("queued", "just submitted")
        if own.name == "running":
            return own
        return JobState("lost", f"SLURM no longer knows {record['task']}; `ablate retry` submits it again", own.when)
    if task.state == "PENDING":
        reason = "" if task.reason in ("None", "") else task.reason
        stuck = f"stuck: {reason}; `ablate cancel` it and mend the resources" if task.stuck else reason
        return JobState("queued", stuck, own.when)
    if task.live:
        return (
            own if own.name == "running" else JobState("running", "starting" if task.state == "RUNNING" else task.state.lower(), own.when)
        )
    if own.name == "running" and holder.rpartition(" on ")[2].partition(".")[0] != task.node.partition(".")[0]:
        return own  # another launcher has it
    if task.state in RETURNING:
        return JobState("queued", f"SLURM: {task.state}; it puts such jobs back into the queue", own.when)
    if task.state == "CANCELLED":
        return JobState("cancelled", f"cancelled in SLURM ({task.id}){_because(task)}", own.when)
    return JobState("failed", f"SLURM: {task.state} ({task.id}){_because(task)}", own.when)


def _because(task: Task) -> str:
    """Return the reason SLURM gives, if it gives one."""
    return "" if task.reason in ("", "None") else f", {task.reason}"


def settle(
    store: Store, document: Mapping[str, Any], patience: float = SETTLE_SECONDS, sleep: Callable[[float], None] = time.sleep
) -> States:
    """Write into our own files how jobs ended that SLURM ended without a word (killed, cancelled, out of memory).

    Nothing is written about a job that may still run.
    """
    known = SlurmStates(store, document)
    deadline = time.monotonic() + patience
    while True:
        states = known.now()
        unclear = [job for job, state in states.items() if state.name in ("lost", "running", "queued")]
        if not unclear or time.monotonic() > deadline:
            break
        sleep(2.0)
    for job, state in states.items():
        if state.name in ("failed", "skipped", "cancelled") and store.state(job).name not in SETTLED:
            store.mark_failed(job, state.name, state.reason)
            if job in known.tasks and not known.tasks[job].live:
                store.break_lock(job)  # its holder was the task that SLURM has ended
    return states


def report_tasks(store: Store, study: str) -> dict[str, tuple[str, str]]:
    """Return the report jobs of a study as {task id: (main id, name)}."""
    return {slurm_id: (slurm_id, group.name) for group, slurm_id in groups(store, study) if group.kind == REPORT and slurm_id}

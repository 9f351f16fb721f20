"""What SLURM says about our jobs: squeue first, sacct for what squeue has forgotten, one batched query each, with back-off. Light.

Jobs are asked for by their names, which carry a token that is never used twice, so that a job id which another job has by now
(ids start again when a cluster's state is wiped) is never taken for ours.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ablation.errors import ConfigError

LIVE = frozenset(
    """PENDING CONFIGURING RUNNING COMPLETING SUSPENDED STOPPED REQUEUED REQUEUE_FED REQUEUE_HOLD RESIZING SIGNALING STAGE_OUT
    SPECIAL_EXIT RESV_DEL_HOLD""".split()  # noqa: SIM905
)
"""SLURM will still run the job, or is running it."""
RETURNING = frozenset(("NODE_FAIL", "PREEMPTED", "BOOT_FAIL"))
"""SLURM usually puts the job back into the queue under the same id: ended only when squeue has nothing newer for a while."""
NEVER = frozenset(
    """DependencyNeverSatisfied PartitionNodeLimit PartitionTimeLimit PartitionInactive PartitionDown BadConstraints JobHeldAdmin
    JobHeldUser InvalidAccount InvalidQOS AccountNotAllowed QOSNotAllowed""".split()  # noqa: SIM905
)
"""Reasons for which a pending job will not start by itself."""

QUERY_SECONDS = 20.0
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
ACCOUNTING_PAUSE, LONGEST_ACCOUNTING_PAUSE = 10.0, 600.0


class SlurmError(ConfigError):
    """A SLURM command refused or did not answer; the problem holds its own words."""


@dataclass(frozen=True)
class Task:
    """One job or array task as SLURM reports it; the id is JOB or JOB_INDEX."""

    id: str
    name: str
    state: str
    reason: str
    elapsed: str = ""
    node: str = ""

    @property
    def live(self) -> bool:
        """Say whether SLURM will still run it, or is running it."""
        return self.state in LIVE

    @property
    def stuck(self) -> bool:
        """Say whether it waits for something that will not come by itself."""
        return self.state == "PENDING" and (self.reason in NEVER or "held" in self.reason.lower())


def command(*arguments: str, seconds: float = QUERY_SECONDS) -> str:
    """Run a SLURM command and return what it prints; raises SlurmError with SLURM's own words."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError:
        raise SlurmError(f"no {arguments[0]} on this machine", "Submit from a node that has SLURM's commands.") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{arguments[0]} did not answer within {seconds:.0f} s", "Try again later.") from None
    if done.returncode:
        raise SlurmError(f"SLURM refused: {words(done.stderr or done.stdout) or f'{arguments[0]} exited with {done.returncode}'}")
    return done.stdout


def words(text: str) -> str:
    """Put SLURM's message on one line, without the names of its programs."""
    lines = [re.sub(r"^(sbatch|squeue|scancel|scontrol|sacct): (error: )?", "", line.strip()) for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))


def ask_queue(names: Iterable[str]) -> dict[str, Task]:
    """Return all tasks of the named jobs that the controller still knows, by id, in one query."""
    wanted = sorted(set(names))
    if not wanted:
        return {}
    text = command("squeue", "--noheader", "--array", "--states=all", "--format=%i|%j|%T|%r|%M|%N", f"--name={','.join(wanted)}")
    return {task.id: task for task in map(_task, text.splitlines()) if task}


def ask_accounting(ids: Iterable[str], names: Iterable[str]) -> dict[str, Task]:
    """Return the last known state of jobs (main ids) from accounting, by task id, in one query."""
    wanted, known = sorted(set(ids)), set(names)
    if not wanted:
        return {}
    text = command("sacct", "-nPX", f"--jobs={','.join(wanted)}", "--format=JobID,JobName,State,Reason,Elapsed,NodeList")
    found = {}
    for task in map(_task, text.splitlines()):
        if task and task.name in known:
            found.update(dict.fromkeys(expand(task.id), task))
    return found


def _task(line: str) -> Task | None:
    """Read one line of squeue or sacct."""
    parts = line.strip().split("|")
    if len(parts) != 6:
        return None
    identifier, name, state, reason, elapsed, node = parts
    return Task(identifier, name, state.split()[0] if state else "UNKNOWN", reason, elapsed, node)  # "CANCELLED by 0"


def expand(identifier: str) -> list[str]:
    """Return the task ids behind one id: "10_[0-2,5%3]" stands for 10_0, 10_1, 10_2 and 10_5."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", identifier)
    if match is None:
        return [identifier]
    indices: list[int] = []
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        indices += range(int(first), int(last or first) + 1)
    return [f"{match[1]}_{index}" for index in indices]


def ranges(indices: Sequence[int]) -> str:
    """Write array indices as SLURM does: 0-2,5."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


class Poller:
    """Asks SLURM about a set of jobs again and again, and less often the longer it fails or nothing is missing."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.problem = ""  # why the last question was not answered
        self.asked_queue = self.asked_accounting = 0
        self.known = False  # whether squeue has answered at all
        self._next_queue = self._next_accounting = 0.0
        self._pause, self._accounting_pause = FIRST_PAUSE, ACCOUNTING_PAUSE

    def poll(self, jobs: dict[str, tuple[str, str]], now: float | None = None) -> dict[str, Task]:
        """Return what is known of jobs {task id: (main id, name)}; asks only when it is time to."""
        now = time.monotonic() if now is None else now
        if jobs and now >= self._next_queue:
            self._ask_queue(jobs, now)
        gone = {task: of for task, of in jobs.items() if self.known and task not in self.tasks}
        if gone and now >= self._next_accounting:
            self._ask_accounting(gone, now)
        return {task: self.tasks[task] for task in jobs if task in self.tasks}

    def _ask_queue(self, jobs: dict[str, tuple[str, str]], now: float) -> None:
        """Ask squeue; what it no longer lists keeps its last state if that was an end."""
        self.asked_queue += 1
        try:
            found = ask_queue(name for _, name in jobs.values())
        except SlurmError as error:
            self.problem, self._pause = error.problem, min(LONGEST_PAUSE, self._pause * 2)
        else:
            self.problem, self._pause, self.known = "", FIRST_PAUSE, True
            ended = {task: known for task, known in self.tasks.items() if not known.live and known.state not in RETURNING}
            self.tasks = {**ended, **found}
        self._next_queue = now + self._pause

    def _ask_accounting(self, gone: dict[str, tuple[str, str]], now: float) -> None:
        """Ask sacct about what squeue has forgotten; its failure is no problem of ours."""
        self.asked_accounting += 1
        try:
            found = ask_accounting((main for main, _ in gone.values()), (name for _, name in gone.values()))
        except SlurmError as error:
            self.problem = self.problem or error.problem
        else:
            # accounting lags behind: what it calls live and squeue does not list has ended in a way not known yet
            self.tasks |= {task: of for task, of in found.items() if task in gone and not of.live}
        self._next_accounting = now + self._accounting_pause
        self._accounting_pause = min(LONGEST_ACCOUNTING_PAUSE, self._accounting_pause * 2)


def own_state() -> str:
    """Return the state of the job this process runs in, as the controller has it; empty where it does not answer."""
    try:
        found = command("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}")
    except (SlurmError, KeyError):
        return ""
    return found.split()[0] if found.split() else ""

"""What runs inside a SLURM job: one importable function that takes folder names, and nothing else crosses over. Light.

It puts back signal handlers that only set a flag (submitit's ignore SIGTERM), bounds restarts, checks the pinned code and the
inputs, runs the job through the same worker as every launcher, and asks for a requeue where the job was stopped in the middle.
It always ends by an exit status of its own: 0 done, 1 not, so that SLURM can resolve what waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ablation
from ablation.errors import AblationError, ArtifactError, LostProcessError
from ablation.launch.resources import Resources
from ablation.launch.slurm_groups import REPORT, Group, read_group, record_task
from ablation.launch.slurm_state import SlurmError, command, own_state
from ablation.launch.snapshot import check_snapshot
from ablation.launch.worker import Gather, StopFlag, file_progress, follow_job, run_job
from ablation.store import ATTEMPTS, CHECKPOINT_PREFIX, FAILED, Store, read_json

LOCK_POLL_SECONDS = 1.0
INPUT_PATIENCE_SECONDS = 15.0
"""How long an input that another node has just written may take to be seen here."""
END_PATIENCE_SECONDS = 300.0
"""How long a stopped job waits for SLURM to end it, after a requeue or a cancellation that is under way."""
ANSWER_PATIENCE_SECONDS = 30.0
"""How long a stopped job asks a controller that does not answer."""
PACKED_POLL_SECONDS = 5.0
SETTLED = ("failed", "diverged", "skipped", "cancelled")


class JobStop(StopFlag):
    """The flag, and which signals set it."""

    def __init__(self) -> None:
        super().__init__()
        self.signals: set[int] = set()

    def install(self) -> None:
        """Take SIGTERM and SIGUSR2 back from submitit, and let SIGCONT, which comes before every SIGTERM, do nothing."""
        super().install()
        signal.signal(signal.SIGCONT, signal.SIG_DFL)

    def _handle(self, number: int, frame: Any) -> None:
        self.signals.add(number)
        self.set = True


def work(runs: str, folder: str) -> None:
    """Run the task of a submitted group that this SLURM job or array task is; ends the process.

    A task is one process with one job; or one of several processes that share a job's training; or one of several processes with
    a packed job each.
    """
    stop = JobStop()
    stop.install()
    store, group = Store(Path(runs)), read_group(Path(folder))
    index = os.environ["SLURM_ARRAY_TASK_ID"] if group.array else "0"
    jobs, task = group.tasks[index], group.task_id(os.environ["SLURM_ARRAY_JOB_ID" if group.array else "SLURM_JOB_ID"], index)
    place = int(os.environ["SLURM_PROCID"]) if group.packed else 0
    if place >= len(jobs):  # the last task of an array may have fewer jobs than the others
        sys.exit(0)
    job_id = jobs[place]
    try:
        check_snapshot(Path(group.snapshot), str(ablation.__file__))
    except AblationError as error:
        if group.kind != REPORT:
            store.mark_failed(job_id, "failed", str(error))
        print(error, file=sys.stderr, flush=True)
        sys.exit(1)
    if group.kind == REPORT:
        sys.exit(0 if _report(store, group) else 1)
    if Resources(**group.resources).processes > 1:
        sys.exit(_share(store, group, job_id, task, stop))
    sys.exit(0 if _attempt(store, group, job_id, task, stop) else 1)


def _share(store: Store, group: Group, job_id: str, task: str, stop: JobStop) -> int:
    """Run a job, or take part in it, as one of several processes; returns the exit code.

    A process that fails by itself ends with 1, upon which srun ends the others (kill-on-bad-exit). Where all end at the same step,
    only the lead's code counts, so that it is left to record how and to ask for a requeue.
    """
    from ablation.launch.slurm import place_of_process
    from ablation.train.distributed import Meeting, leave

    place = place_of_process()
    if store.state(job_id).name == "done":
        return 0
    try:
        meeting = Meeting(place.rank, place.size, place.local_rank, place.host, place.port)
    except LostProcessError as error:
        if place.rank == 0:
            _settle(store, group, job_id, "failed", str(error))
        return 1
    if place.rank == 0:
        done = _attempt(store, group, job_id, task, stop, meeting.begin)
        if not meeting.begun:
            meeting.end()
    else:
        if not meeting.called(stop):
            return 0
        _compute(group)
        done = follow_job(store, job_id, stop, group.resources["checkpoint_seconds"], meeting.begin, place.rank) == "done"
    if not done:
        sys.stdout.flush()
        leave(1)
    return 0


def _attempt(store: Store, group: Group, job_id: str, task: str, stop: JobStop, gather: Gather | None = None) -> bool:
    """Run a job once; returns whether it is done."""
    record_task(store, group, job_id, task, os.environ.get("SLURM_CLUSTER_NAME", ""))
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if store.state(job_id).name == "done":
        return True
    if group.packed and _ended_before(store, job_id, restart):
        return False
    refused = _note_attempt(store, group, job_id, task, restart)
    if refused:
        return _settle(store, group, job_id, "failed", refused)
    if parent := _missing_input(store, job_id):
        found = store.state(parent)
        return _settle(store, group, job_id, "skipped", f"parent {found.name}: {parent}{f' ({found.reason})' if found.reason else ''}")
    _compute(group)
    should_stop = PackedStop(store, job_id, stop) if group.packed else stop
    state = _run(store, group, job_id, should_stop, gather)
    if state in ("interrupted", "lost"):
        _stopped(store, job_id, task, stop, state)
        return False
    if state in SETTLED:
        skip_descendants(store, group, job_id)
    return state == "done"


def _run(store: Store, group: Group, job_id: str, should_stop: Callable[[], bool], gather: Gather | None) -> str:
    """Run a job, once whoever holds it is gone, and return its state."""
    progress = file_progress(store, job_id)
    while (state := run_job(store, job_id, progress, should_stop, group.resources["checkpoint_seconds"], gather)) == "running":
        holder = store.holder(job_id)
        print(f"{job_id} is held by {holder}; waiting", flush=True)
        deadline = time.monotonic() + 30 * LOCK_POLL_SECONDS
        while store.holder(job_id) == holder and time.monotonic() < deadline and not should_stop():
            time.sleep(LOCK_POLL_SECONDS)
        if should_stop():
            return "interrupted"
    return state


def _ended_before(store: Store, job_id: str, restart: int) -> bool:
    """Say whether a packed job was cancelled on its own, or had failed before its task was restarted for the others."""
    state = store.state(job_id).name
    return state == "cancelled" or (restart > 0 and state in SETTLED)


class PackedStop:
    """Asks a packed job to stop: with its whole task, or because it alone was cancelled, which only its own files tell."""

    def __init__(self, store: Store, job_id: str, stop: JobStop) -> None:
        self.store, self.job_id, self.stop = store, job_id, stop
        self.asked = 0.0

    def __call__(self) -> bool:
        if not self.stop() and time.monotonic() - self.asked > PACKED_POLL_SECONDS:
            self.asked = time.monotonic()
            self.stop.set = cancelled(self.store, self.job_id)
        return self.stop()


def _compute(group: Group) -> None:
    """Use the CPU threads that the job asked for."""
    from ablation.compute import enable_fast_products, set_threads

    set_threads(group.resources["threads"] or group.resources["cpus"])
    enable_fast_products()


def _note_attempt(store: Store, group: Group, job_id: str, task: str, restart: int) -> str:
    """Record the attempt and why there is another one; returns why it must be the last, or an empty text."""
    entries = [entry for entry in attempts(store, job_id) if entry.get("token") == group.token]
    marks = [entry.get("checkpoint", "") for entry in entries if entry["event"] == "slurm"]
    mark = max((path.name for path in store.job_folder(job_id).glob(f"{CHECKPOINT_PREFIX}*")), default="")
    why = _why_again(store, job_id) if restart or marks else ""
    with contextlib.suppress(ArtifactError):
        store.record_attempt(
            job_id,
            {
                "event": "slurm",
                "token": group.token,
                "task": task,
                "restart": restart,
                "node": platform.node(),
                "checkpoint": mark,
                "after": why,
            },
        )
    limit, stalled = group.resources["max_restarts"], group.resources["max_stalled"]
    tail = f"; last: {why}" if why else ""
    if restart > limit:
        return f"restarted {restart} times, more than max_restarts={limit}{tail}. Find the cause, then `ablate retry`."
    if len(marks) >= stalled and set(marks[-stalled:]) == {mark}:
        return f"restarted {stalled} times without a new checkpoint{tail}. Find the cause, then `ablate retry`."
    return ""


def attempts(store: Store, job_id: str) -> list[dict[str, Any]]:
    """Return what a job's attempts recorded, oldest first; a line cut short by a kill is left out."""
    path = store.job_folder(job_id) / ATTEMPTS
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict) and "event" in entry]


def _why_again(store: Store, job_id: str) -> str:
    """Say why a job runs again: what its last attempt recorded, else what accounting says, else that it vanished."""
    last = next((entry for entry in reversed(attempts(store, job_id)) if entry["event"] != "slurm"), None)
    if last is not None and last["event"] != "started":
        return str(last.get("reason") or last["event"])
    try:
        states = command("sacct", "-nPXD", f"--jobs={os.environ['SLURM_JOB_ID']}", "--format=State,NodeList", seconds=10).splitlines()
    except (SlurmError, KeyError):
        states = []
    ended = [line for line in states if not line.startswith(("RUNNING", "PENDING"))]
    if ended:
        return f"SLURM: {ended[-1].replace('|', ' on ')}"
    return "it ended without a word (node failure, kill -9, or requeued from outside)"


def _missing_input(store: Store, job_id: str) -> str:
    """Return a parent that is not done, or an empty text; a file just written on another node may take a while to be seen."""
    spec = store.spec(job_id)
    deadline = time.monotonic() + INPUT_PATIENCE_SECONDS
    for parent in (spec or {"inputs": {}})["inputs"].values():
        while (state := store.state(parent).name) != "done":
            if state in SETTLED or time.monotonic() > deadline:
                return str(parent)
            time.sleep(0.5)
    return ""


def _settle(store: Store, group: Group, job_id: str, state: str, reason: str) -> bool:
    """Record a job that will not run, and what cannot run without it."""
    store.mark_failed(job_id, state, reason)
    with contextlib.suppress(ArtifactError):
        store.log(job_id, f"{state}: {reason}")
        store.record_attempt(job_id, {"event": state, "reason": reason, "token": group.token})
    skip_descendants(store, group, job_id)
    return False


def skip_descendants(store: Store, group: Group, job_id: str) -> None:
    """Mark everything that needs a job's output skipped, at once; SLURM cancels their tasks by itself."""
    found = store.state(job_id)
    for child in group.descendants.get(job_id, ()):
        if store.spec(child) is not None and store.state(child).name in ("new", "interrupted"):
            store.mark_failed(child, "skipped", f"parent {found.name}: {job_id}")


def _stopped(store: Store, job_id: str, task: str, stop: JobStop, state: str) -> None:
    """Decide what becomes of a job stopped in the middle: back into the queue, unless somebody cancelled it.

    SIGUSR2 means that the time is nearly over: requeue. SIGTERM alone is preemption while the controller still calls the job
    running, and a cancellation once it does not. Without a signal, another process of the training was lost, as with its node.
    """
    if cancelled(store, job_id):
        return
    asked = signal.SIGUSR2 in stop.signals
    known = "RUNNING" if asked else _patient_state()
    names = ", ".join(sorted(signal.Signals(number).name for number in stop.signals)) or "no signal"
    if known == "RUNNING":
        why = "time limit near" if asked else "another process was lost" if state == "lost" else "preempted"
        if problem := _requeue(task):
            _note(store, job_id, {"event": "stopped", "reason": f"{why} ({names}), and could not be requeued: {problem}"})
            return
        _note(store, job_id, {"event": "requeued", "reason": f"{why} ({names}); requeued"})
    else:
        _note(store, job_id, {"event": "stopped", "reason": f"ended by SLURM ({names}; {known or 'the controller does not answer'})"})
        if known:
            return
    if state == "lost":  # SLURM ends the processes of a training together
        return
    # Leaving by ourselves would count as an end of the job; SLURM ends it, and starts it again, in its own time.
    time.sleep(END_PATIENCE_SECONDS)


def _patient_state() -> str:
    """Return the state of this job, asking a controller that does not answer again for a while."""
    deadline = time.monotonic() + ANSWER_PATIENCE_SECONDS
    while not (state := own_state()) and time.monotonic() < deadline:
        time.sleep(1.0)
    return state


def _requeue(task: str) -> str:
    """Ask for a requeue, again for a while where that fails; returns why it cannot be had, or an empty text."""
    deadline = time.monotonic() + ANSWER_PATIENCE_SECONDS
    while True:
        try:
            command("scontrol", "requeue", task, seconds=60)
            return ""
        except SlurmError as error:
            if own_state() not in ("RUNNING", ""):  # it is under way: a packed neighbour, or SLURM itself, was faster
                return ""
            if time.monotonic() > deadline:
                return error.problem
        time.sleep(1.0)


def cancelled(store: Store, job_id: str) -> bool:
    """Say whether `ablate cancel` has been asked for a job, also while it runs."""
    with contextlib.suppress(ArtifactError, KeyError, TypeError):
        return bool(read_json(store.job_folder(job_id) / FAILED)["state"] == "cancelled")
    return False


def _note(store: Store, job_id: str, entry: Mapping[str, Any]) -> None:
    """Record and print, as far as the disk allows."""
    print(entry["reason"], flush=True)
    with contextlib.suppress(ArtifactError):
        store.record_attempt(job_id, entry)


def _report(store: Store, group: Group) -> bool:
    """Settle what SLURM ended without a word, then write the study's reports, as `ablate report` does."""
    from ablation.launch.slurm_status import settle

    settle(store, store.study(group.study))
    reporting = [sys.executable, "-m", "ablation", "report", "--runs", str(store.root), "--study", group.study]
    return subprocess.run(reporting, check=False).returncode == 0

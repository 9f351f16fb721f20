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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ablation
from ablation.errors import AblationError, ArtifactError
from ablation.launch.slurm_groups import REPORT, Group, read_group, record_task
from ablation.launch.slurm_state import SlurmError, command, own_state
from ablation.launch.snapshot import check_snapshot
from ablation.launch.worker import StopFlag, file_progress, run_job
from ablation.store import ATTEMPTS, CHECKPOINT_PREFIX, Store

LOCK_POLL_SECONDS = 1.0
INPUT_PATIENCE_SECONDS = 15.0
"""How long an input that another node has just written may take to be seen here."""
END_PATIENCE_SECONDS = 300.0
"""How long a stopped job waits for SLURM to end it, after a requeue or a cancellation that is under way."""
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
    """Run the task of a submitted group that this SLURM job or array task is; ends the process."""
    stop = JobStop()
    stop.install()
    store, group = Store(Path(runs)), read_group(Path(folder))
    index = os.environ["SLURM_ARRAY_TASK_ID"] if group.array else "0"
    job_id, task = group.tasks[index], group.task_id(os.environ["SLURM_ARRAY_JOB_ID" if group.array else "SLURM_JOB_ID"], index)
    try:
        check_snapshot(Path(group.snapshot), str(ablation.__file__))
    except AblationError as error:
        if group.kind != REPORT:
            store.mark_failed(job_id, "failed", str(error))
        print(error, file=sys.stderr, flush=True)
        sys.exit(1)
    if group.kind == REPORT:
        sys.exit(0 if _report(store, group) else 1)
    sys.exit(0 if _attempt(store, group, job_id, task, stop) else 1)


def _attempt(store: Store, group: Group, job_id: str, task: str, stop: JobStop) -> bool:
    """Run a job once; returns whether it is done."""
    record_task(store, group, job_id, task, os.environ.get("SLURM_CLUSTER_NAME", ""))
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if store.state(job_id).name == "done":
        return True
    refused = _note_attempt(store, group, job_id, task, restart)
    if refused:
        return _settle(store, group, job_id, "failed", refused)
    if parent := _missing_input(store, job_id):
        found = store.state(parent)
        return _settle(store, group, job_id, "skipped", f"parent {found.name}: {parent}{f' ({found.reason})' if found.reason else ''}")
    _compute(group)
    progress = file_progress(store, job_id)
    while (state := run_job(store, job_id, progress, stop, group.resources["checkpoint_seconds"])) == "running":
        holder = store.holder(job_id)
        print(f"{job_id} is held by {holder}; waiting", flush=True)
        deadline = time.monotonic() + 30 * LOCK_POLL_SECONDS
        while store.holder(job_id) == holder and time.monotonic() < deadline and not stop():
            time.sleep(LOCK_POLL_SECONDS)
        if stop():
            state = "interrupted"
            break
    if state == "interrupted":
        _stopped(store, job_id, task, stop)
        return False
    if state in SETTLED:
        skip_descendants(store, group, job_id)
    return state == "done"


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


def _stopped(store: Store, job_id: str, task: str, stop: JobStop) -> None:
    """Decide what becomes of a job stopped in the middle: back into the queue, unless somebody cancelled it.

    SIGUSR2 means that the time is nearly over: requeue. SIGTERM alone is preemption while the controller still calls the job
    running, and a cancellation once it does not.
    """
    asked = signal.SIGUSR2 in stop.signals
    state = "RUNNING" if asked else own_state()
    names = ", ".join(sorted(signal.Signals(number).name for number in stop.signals))
    if state == "RUNNING":
        why = "time limit near" if asked else "preempted"
        try:
            command("scontrol", "requeue", task, seconds=60)
            _note(store, job_id, {"event": "requeued", "reason": f"{why} ({names}); requeued"})
        except SlurmError as error:
            _note(store, job_id, {"event": "stopped", "reason": f"{why} ({names}), and could not be requeued: {error.problem}"})
            return
    else:
        _note(store, job_id, {"event": "stopped", "reason": f"ended by SLURM ({names}; {state or 'the controller does not answer'})"})
        if state:
            return
    # Leaving by ourselves would count as an end of the job; SLURM ends it, and starts it again, in its own time.
    time.sleep(END_PATIENCE_SECONDS)


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

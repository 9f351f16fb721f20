"""Run one job: lock, execute, record. Every launcher ends here, so that a job behaves the same everywhere.

Success is DONE.json, written last. `python -m ablation.launch.worker --runs DIR JOB ...` runs jobs in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ablation.config import from_nested
from ablation.errors import (
    EXIT_INTERRUPTED,
    EXIT_JOB_FAILED,
    EXIT_OK,
    AblationError,
    ArtifactError,
    DivergedError,
    Interrupted,
    LostProcessError,
)
from ablation.launch.together import TOGETHER, Followers, follow
from ablation.parts import load_part
from ablation.store import FAILED, LOG, PROGRESS, Store, write_json

if TYPE_CHECKING:
    from ablation.jobs.context import JobIO
    from ablation.train.distributed import Processes

CHECKPOINT_SECONDS = 60.0

Gather = Callable[[], AbstractContextManager["Processes"]]
"""Forms the group of processes that a job's training is shared by, once the job is about to run."""
RECORD_PATIENCE_SECONDS = 3.0
"""How long what another process of a job has written may take to be seen."""


class StopFlag:
    """Set by a signal, asked by the training loop at every step; the handler itself does nothing else."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self) -> None:
        self.set = False

    def install(self) -> None:
        """Set the flag at SIGINT, SIGTERM and SIGUSR2; a second SIGINT interrupts at once."""
        for number in self.SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if self.set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.set = True

    def __call__(self) -> bool:
        return self.set


def checked_sources(spec: Mapping[str, Any], pinned: Path | None = None) -> dict[str, Any]:
    """Load the parts that a specification records, after checking that their files are unchanged.

    pinned: a folder of copies named by content, which a cluster's jobs read, so that editing a loose file does not stop them.
    """
    return {entry["part"]: load_part(entry, pinned) for entry in spec["sources"]}


def run_job(
    store: Store,
    job_id: str,
    progress: Callable[[int, int, str], None],
    should_stop: Callable[[], bool],
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    gather: Gather | None = None,
) -> str:
    """Run one job to its end and return its state: done, failed, diverged, interrupted, or running (held by somebody else).

    gather: forms the group of processes that share the job's training and that this one leads. A job one of whose processes ended
    without a word is "lost", which is not recorded: the launcher knows more. Raises nothing but KeyboardInterrupt: whatever goes
    wrong in the job is recorded in its folder.
    """
    try:
        with store.lock(job_id) as mine:
            if not mine:
                return "running"
            if store.state(job_id).name == "done":
                return "done"
            store.clear_failure(job_id)
            store.record_attempt(job_id, {"event": "started"})
            return _attempt(store, job_id, progress, should_stop, checkpoint_seconds, gather)
    except (OSError, ArtifactError) as error:  # the folder cannot be written to
        return _ended(store, job_id, "failed", str(error))


def _attempt(
    store: Store,
    job_id: str,
    progress: Callable[[int, int, str], None],
    should_stop: Callable[[], bool],
    checkpoint_seconds: float,
    gather: Gather | None,
) -> str:
    """Run a job whose lock is held and record how that ended."""
    try:
        _execute(store, job_id, progress, should_stop, checkpoint_seconds, gather)
    except KeyboardInterrupt:
        _ended(store, job_id, "interrupted", "stopped by the user")
        raise
    except LostProcessError as error:
        if _failed_elsewhere(store, job_id):
            return "failed"
        return _ended(store, job_id, "lost", str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a job's fault, whatever it is, belongs to the job's record
        return _ended(store, job_id, *_verdict(store, job_id, error))
    with contextlib.suppress(ArtifactError):  # DONE.json is there: the job is done, whatever becomes of the note about it
        store.record_attempt(job_id, {"event": "done"})
    return "done"


def _verdict(store: Store, job_id: str, error: BaseException) -> tuple[str, str]:
    """Return the state that an exception leaves a job in and why; one that nobody foresaw leaves its traceback in the log."""
    if isinstance(error, Interrupted):
        return "interrupted", str(error)
    if isinstance(error, DivergedError):
        return "diverged", str(error)
    if isinstance(error, AblationError):
        return "failed", str(error)
    if isinstance(error, MemoryError):
        return "failed", "out of memory. Use a smaller batch or scale."
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    with contextlib.suppress(ArtifactError):
        store.log(job_id, "".join(traceback.format_exception(error)))
    return "failed", f"{reason}. The traceback is in {store.job_folder(job_id) / LOG}"


def _failed_elsewhere(store: Store, job_id: str) -> bool:
    """Say whether another process of the job has recorded why it failed, which it does before it ends."""
    record, deadline = store.job_folder(job_id) / FAILED, time.monotonic() + RECORD_PATIENCE_SECONDS
    while not record.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return record.exists()


def _ended(store: Store, job_id: str, state: str, reason: str) -> str:
    """Record how an attempt ended, as far as the disk allows."""
    try:
        if state not in ("interrupted", "lost"):
            store.mark_failed(job_id, state, reason)
        store.log(job_id, f"{state}: {reason}")
        store.record_attempt(job_id, {"event": state, "reason": reason})
    except ArtifactError as error:
        print(f"{state} {job_id}: {reason} (and that could not be recorded: {error})", file=sys.stderr)
    return state


def follow_job(store: Store, job_id: str, should_stop: Callable[[], bool], checkpoint_seconds: float, gather: Gather, rank: int) -> str:
    """Take part in a job that another process leads and records; returns done, failed (recorded here) or lost."""
    try:
        with gather() as processes:
            spec, io = job_view(store, job_id, should_stop=should_stop, checkpoint_seconds=checkpoint_seconds, processes=processes)
            importlib.import_module(f"ablation.jobs.{spec['kind']}").run(io)
    except (Interrupted, DivergedError):  # in all processes at the same step; the lead records it
        return "done"
    except LostProcessError as error:
        print(f"process {rank} on {platform.node()}: {error}", file=sys.stderr, flush=True)
        return "lost"
    except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
        state, reason = _verdict(store, job_id, error)
        return _ended(store, job_id, state, f"process {rank} on {platform.node()}: {reason}")
    return "done"


def job_view(
    store: Store,
    job_id: str,
    progress: Callable[[int, int, str], None] = lambda *_: None,
    should_stop: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    processes: Processes | None = None,
) -> tuple[dict[str, Any], JobIO]:
    """Return a prepared job's specification, and what the job sees of the store and of its launcher."""
    from ablation.compute import choose_device  # here, so that importing this module stays light
    from ablation.jobs.context import JobIO
    from ablation.train.distributed import ALONE

    spec = store.spec(job_id)
    if spec is None:
        raise ArtifactError(f"{store.job_folder(job_id)} has no readable specification", "Run `ablate run` again.")
    io = JobIO(
        store=store,
        job_id=job_id,
        config=from_nested(spec["config"]),
        seed=spec["seed"] if spec["seed"] is not None else 0,
        control=spec["control"],
        inputs=spec["inputs"],
        parts=checked_sources(spec, store.sources),
        device=choose_device(),
        progress=progress,
        log=lambda text: store.log(job_id, text) if processes is None or processes.lead else None,
        should_stop=should_stop,
        checkpoint_seconds=checkpoint_seconds,
        processes=processes or ALONE,
    )
    return spec, io


def _execute(
    store: Store,
    job_id: str,
    progress: Callable[[int, int, str], None],
    should_stop: Callable[[], bool],
    checkpoint_seconds: float,
    gather: Gather | None,
) -> None:
    """Run a job's kind and write DONE.json."""
    began, cpu = time.time(), time.process_time()
    with contextlib.nullcontext() if gather is None else gather() as processes:
        spec, io = job_view(store, job_id, progress, should_stop, checkpoint_seconds, processes)
        shared = f", {io.processes.size} processes" if io.processes.size > 1 else ""
        io.log(f"started {spec['kind']} on {platform.node()} ({io.device}{shared})")
        outcome = importlib.import_module(f"ablation.jobs.{spec['kind']}").run(io)
    record = {
        "metrics": outcome.get("metrics", {}),
        "protocol": outcome.get("protocol", {}),
        "cost": {
            "wall_seconds": round(time.time() - began, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
            "device": str(io.device),
            **({"processes": io.processes.size} if io.processes.size > 1 else {}),
        },
        "code": spec["code"],
        "versions": _versions(),
    }
    io.log(f"done: {json.dumps(record['metrics'])}")
    store.mark_done(job_id, record)


def _versions() -> dict[str, str]:
    """Return the versions that results may depend on."""
    import numpy
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}


def file_progress(store: Store, job_id: str) -> Callable[[int, int, str], None]:
    """Return a progress function that writes progress.json, at most twice a second."""
    last = 0.0

    def report(done: int, total: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5 or done == total:
            last = time.monotonic()
            write_json(store.job_folder(job_id) / PROGRESS, {"done": done, "total": total, "note": note})

    return report


def _keep_stdout() -> TextIO:
    """Return standard output for answers, and send to standard error whatever else is printed, which must not be taken for one."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _print_to_log(store: Store, job_id: str) -> None:
    """Send what a job prints, on either stream, to its log."""
    sys.stdout.flush()
    with contextlib.suppress(OSError):
        log = os.open(store.job_folder(job_id) / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)


def main(arguments: list[str] | None = None) -> int:
    """Run jobs named on the command line, or, with --serve, named one a line on standard input."""
    parser = argparse.ArgumentParser(description="Run jobs of a study; the launchers call this.")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--checkpoint-seconds", type=float, default=CHECKPOINT_SECONDS)
    parser.add_argument("--processes", type=int, default=1, help="how many share a training, this one included")
    parser.add_argument("--follow", metavar="RANK/SIZE@PORT", help="take part in a job that another process leads")
    parser.add_argument("--serve", action="store_true", help="read job ids from standard input, answer each with its state")
    parser.add_argument("jobs", nargs="*")
    options = parser.parse_args(arguments)
    stop = StopFlag()
    stop.install()
    from ablation.compute import enable_fast_products, set_threads  # slow; a stop during the import is heeded at the first step

    set_threads(options.threads or None)
    enable_fast_products()
    if options.follow:
        return follow(options.follow, options.runs, options.jobs[0], options.checkpoint_seconds)
    store = Store(options.runs)
    states = []
    answers = _keep_stdout() if options.serve else sys.stdout
    names = (line.strip() for line in sys.stdin) if options.serve else iter(options.jobs)
    for job_id in names:
        if options.serve:
            _print_to_log(store, job_id)
        states.append(_run(store, job_id, stop, options, answers))
        if stop():
            break
    if "interrupted" in states:
        return EXIT_INTERRUPTED
    return EXIT_OK if all(state == "done" for state in states) else EXIT_JOB_FAILED


def _run(store: Store, job_id: str, stop: StopFlag, options: argparse.Namespace, answers: TextIO) -> str:
    """Run a job, with further processes where its kind can use them, and answer with its state."""
    followers = None
    if options.processes > 1 and job_id.partition("-")[0] in TOGETHER:
        common = ["--runs", str(store.root), "--threads", str(options.threads), "--checkpoint-seconds", str(options.checkpoint_seconds)]
        followers = Followers(options.processes, [*common, job_id])
    gather = followers.gather if followers else None
    state = run_job(store, job_id, file_progress(store, job_id), stop, options.checkpoint_seconds, gather)
    lost = state == "lost" and followers is not None
    if followers is not None and lost:
        state = "failed"
        store.mark_failed(job_id, state, followers.why_lost())
    print(f"{job_id} {state}", file=answers, flush=True)
    if lost:
        from ablation.train.distributed import leave

        leave(EXIT_JOB_FAILED)
    return state


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())

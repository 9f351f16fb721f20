"""Run one job: lock, execute, record. Every launcher ends here, so that a job behaves the same everywhere.

Success is DONE.json, written last. `python -m ablation.launch.worker --runs DIR JOB ...` runs jobs in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
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
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ablation.config import from_nested
from ablation.discover import load_file, load_parts
from ablation.errors import EXIT_INTERRUPTED, EXIT_JOB_FAILED, EXIT_OK, AblationError, ArtifactError, DivergedError, Interrupted
from ablation.store import LOG, PROGRESS, Store, write_json

if TYPE_CHECKING:
    from ablation.jobs.context import JobIO

CHECKPOINT_SECONDS = 60.0


class StopFlag:
    """Set by a signal, asked by the training loop at every step; the handler itself does nothing else."""

    def __init__(self) -> None:
        self.set = False

    def install(self) -> None:
        """Set the flag at SIGINT, SIGTERM and SIGUSR2; a second SIGINT interrupts at once."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if self.set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.set = True

    def __call__(self) -> bool:
        return self.set


def checked_sources(spec: Mapping[str, Any], pinned: Path | None = None) -> dict[str, Any]:
    """Load the parts that recorded stage files provide, after checking that the files are unchanged.

    pinned: a folder of copies named by content, which a cluster's jobs read, so that editing a stage file does not stop them.
    """
    stages = []
    for source in spec["sources"]:
        path = Path(source["file"])
        if pinned is not None and (copy := pinned / f"{source['sha256']}.py").is_file():
            path = copy
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != source["sha256"]:
            raise ArtifactError(
                f"the stage file {path} of stage '{source['stage']}' changed since the job was planned", "Run `ablate run` again."
            )
        stages += load_file(path, "recorded")
    return load_parts(stages)


def run_job(
    store: Store,
    job_id: str,
    progress: Callable[[int, int, str], None],
    should_stop: Callable[[], bool],
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> str:
    """Run one job to its end and return its state: done, failed, diverged, interrupted, or running (held by somebody else).

    Raises nothing but KeyboardInterrupt: whatever goes wrong in the job is recorded in its folder.
    """
    try:
        with store.lock(job_id) as mine:
            if not mine:
                return "running"
            if store.state(job_id).name == "done":
                return "done"
            return _attempt(store, job_id, progress, should_stop, checkpoint_seconds)
    except (OSError, ArtifactError) as error:  # the folder cannot be written to
        return _ended(store, job_id, "failed", str(error))


def _attempt(
    store: Store, job_id: str, progress: Callable[[int, int, str], None], should_stop: Callable[[], bool], checkpoint_seconds: float
) -> str:
    """Run a job whose lock is held and record how that ended."""
    store.clear_failure(job_id)
    store.record_attempt(job_id, {"event": "started"})
    try:
        _execute(store, job_id, progress, should_stop, checkpoint_seconds)
    except Interrupted as stop:
        return _ended(store, job_id, "interrupted", str(stop))
    except KeyboardInterrupt:
        _ended(store, job_id, "interrupted", "stopped by the user")
        raise
    except DivergedError as error:
        return _ended(store, job_id, "diverged", str(error))
    except AblationError as error:
        return _ended(store, job_id, "failed", str(error))
    except MemoryError:
        return _ended(store, job_id, "failed", "out of memory. Use a smaller batch or scale.")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a job's fault, whatever it is, belongs to the job's record
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        with contextlib.suppress(ArtifactError):
            store.log(job_id, traceback.format_exc())
        return _ended(store, job_id, "failed", f"{reason}. The traceback is in {store.job_folder(job_id) / LOG}")
    with contextlib.suppress(ArtifactError):  # DONE.json is there: the job is done, whatever becomes of the note about it
        store.record_attempt(job_id, {"event": "done"})
    return "done"


def _ended(store: Store, job_id: str, state: str, reason: str) -> str:
    """Record how an attempt ended, as far as the disk allows."""
    try:
        if state != "interrupted":
            store.mark_failed(job_id, state, reason)
        store.log(job_id, f"{state}: {reason}")
        store.record_attempt(job_id, {"event": state, "reason": reason})
    except ArtifactError as error:
        print(f"{state} {job_id}: {reason} (and that could not be recorded: {error})", file=sys.stderr)
    return state


def job_view(
    store: Store,
    job_id: str,
    progress: Callable[[int, int, str], None] = lambda *_: None,
    should_stop: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> tuple[dict[str, Any], JobIO]:
    """Return a prepared job's specification, and what the job sees of the store and of its launcher."""
    from ablation.compute import choose_device  # here, so that importing this module stays light
    from ablation.jobs.context import JobIO

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
        log=lambda text: store.log(job_id, text),
        should_stop=should_stop,
        checkpoint_seconds=checkpoint_seconds,
    )
    return spec, io


def _execute(
    store: Store, job_id: str, progress: Callable[[int, int, str], None], should_stop: Callable[[], bool], checkpoint_seconds: float
) -> None:
    """Build the job's view of the world, run its kind, and write DONE.json."""
    spec, io = job_view(store, job_id, progress, should_stop, checkpoint_seconds)
    began, cpu = time.time(), time.process_time()
    io.log(f"started {spec['kind']} on {platform.node()} ({io.device})")
    outcome = importlib.import_module(f"ablation.jobs.{spec['kind']}").run(io)
    record = {
        "metrics": outcome.get("metrics", {}),
        "protocol": outcome.get("protocol", {}),
        "cost": {
            "wall_seconds": round(time.time() - began, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
            "device": str(io.device),
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
    parser.add_argument("--serve", action="store_true", help="read job ids from standard input, answer each with its state")
    parser.add_argument("jobs", nargs="*")
    options = parser.parse_args(arguments)
    stop = StopFlag()
    stop.install()
    from ablation.compute import enable_fast_products, set_threads  # slow; a stop during the import is heeded at the first step

    set_threads(options.threads or None)
    enable_fast_products()
    store = Store(options.runs)
    states = []
    answers = _keep_stdout() if options.serve else sys.stdout
    names = (line.strip() for line in sys.stdin) if options.serve else iter(options.jobs)
    for job_id in names:
        if options.serve:
            _print_to_log(store, job_id)
        state = run_job(store, job_id, file_progress(store, job_id), stop, options.checkpoint_seconds)
        states.append(state)
        print(f"{job_id} {state}", file=answers, flush=True)
        if stop():
            break
    if "interrupted" in states:
        return EXIT_INTERRUPTED
    return EXIT_OK if all(state == "done" for state in states) else EXIT_JOB_FAILED


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
